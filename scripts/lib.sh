# What the scripts of this folder share: words, the private Postgres, a throwaway cluster. Sourced by bash, not run.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# The Postgres major that is built for and tested with, and all that are supported.
PG=${PG:-15}
# shellcheck disable=SC2034
MAJORS="15 16 17 18"
# rustup adds cargo to the PATH of login shells only.
PATH=$PATH:${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin

# ----------------------------------------------------------------------------------------------------------- words ---

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Milliseconds; only differences mean anything.
clock() {
    local now=${EPOCHREALTIME/[.,]/}
    printf '%s' $((now / 1000))
}

# since START: the time that has gone by, in seconds.
since() {
    local gone=$(($(clock) - $1))
    printf '%d.%d s' $((gone / 1000)) $((gone % 1000 / 100))
}

# step WORDS COMMAND...: says what it does and how long it took; the command's own output shows only when it fails.
# The command runs in a subshell.
step() {
    local words=$1 start log status
    shift
    start=$(clock)
    log=$(mktemp)
    printf '  %s ... ' "$words"
    # Not in an "if", inside which bash would let errors pass.
    set +e
    (set -e && "$@") >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if [ "$status" -eq 0 ]; then
        since "$start"
        printf '\n'
        rm -f "$log"
    else
        printf 'failed after %s\n' "$(since "$start")"
        sed 's/^/    | /' "$log" >&2
        rm -f "$log"
        exit 1
    fi
}

# -------------------------------------------------------------------------------------------- installing what is missing ---

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; please run as root:" "$*"
    fi
}

apt_install() {
    have apt-get || die "please install what Debian calls: $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" && return
    # The package lists of a fresh machine are empty, those of an old one out of date.
    as_root apt-get -q update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@"
}

# ------------------------------------------------------------------------------------------------------- cleaning up ---

scratch=   # a folder for a script's own files, where it wants one
cluster=   # a throwaway cluster's folder, see below

at_exit() {
    cluster_remove
    [ -z "$scratch" ] || rm -rf "$scratch"
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --------------------------------------------------------------------------------------------- the server's account ---

# Postgres refuses to run as root, so root's servers run as an account that can do nothing else.
if [ "$(id -u)" -ne 0 ]; then
    account=$(id -un)
elif id -u postgres >/dev/null 2>&1; then
    account=postgres
else
    account=nobody
fi

# as_server COMMAND...: runs it as the account that servers run as.
as_server() {
    if [ "$(id -u)" -eq 0 ]; then
        setpriv --reuid="$(id -u "$account")" --regid="$(id -g "$account")" --clear-groups -- \
            env HOME=/nonexistent "$@"
    else
        "$@"
    fi
}

# ----------------------------------------------------------------------------------------------- the private Postgres ---

# Everything fetched for the project is below .tools. Where the checkout is closed to the server's account (root's
# home, say), .tools is a link to a folder that is not.
make_tools() {
    local elsewhere
    if [ -L "$root/.tools" ] && [ ! -d "$root/.tools" ]; then
        rm -f "$root/.tools"
    fi
    mkdir -p "$root/.tools"
    if ! as_server test -x "$(readlink -f "$root/.tools")/."; then
        elsewhere=$(mktemp -d /var/tmp/impersonate-tools.XXXXXX)
        chmod 755 "$elsewhere"
        cp -a "$root/.tools/." "$elsewhere/"
        rm -rf "$root/.tools"
        ln -s "$elsewhere" "$root/.tools"
    fi
}

# The pg_config of the server that demo and check use: TEST_PG_CONFIG, else the private one. An installation given by
# TEST_PG_CONFIG is written to: the extension goes into it.
test_pg_config() {
    if [ -n "${TEST_PG_CONFIG:-}" ]; then
        printf '%s' "$TEST_PG_CONFIG"
    else
        printf '%s' "$(readlink -m "$root/.tools")/pg$PG/usr/lib/postgresql/$PG/bin/pg_config"
    fi
}

# major_of PG_CONFIG: 15 for "PostgreSQL 15.20 (Debian ...)".
major_of() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }

# The version of the extension, by its control file.
extension_version() { sed -nE "s/^default_version = '(.*)'$/\1/p" "$root/impersonate.control"; }

# target_folder MAJOR FEATURES: where cargo builds the library for that. Cargo gives it the same name whatever it is built
# for, and takes what lies there under that name for its own: in one folder, majors and features would get mixed.
target_folder() {
    local target=${CARGO_TARGET_DIR:-$root/target} features
    if have cargo; then
        target=$(cd "$root" && cargo metadata --format-version 1 --no-deps |
            sed -E 's/.*"target_directory":"([^"]*)".*/\1/')
    fi
    features=$(tr -s ', ' '\n' <<<"$2" | sed '/^$/d' | LC_ALL=C sort -u | sed 's/^/+/' | tr -d '\n')
    printf '%s/pg%s%s' "$target" "$1" "$features"
}

# built_library MAJOR PROFILE FEATURES: the library that is built so; PROFILE is release or dev.
built_library() {
    local folder=release
    [ "$2" = release ] || folder=debug
    printf '%s/%s/libimpersonate.so' "$(target_folder "$1" "$3")" "$folder"
}

# use_postgres: sets pg_config, bindir and pgxs_tests for the functions below. After setup.sh.
use_postgres() {
    pg_config=$(test_pg_config)
    [ -x "$pg_config" ] || die "there is no $pg_config" "run: make setup"
    bindir=$("$pg_config" --bindir)
    # pg_regress and its sister are kept beside PGXS.
    # shellcheck disable=SC2034
    pgxs_tests=$(dirname "$("$pg_config" --pgxs)")/../test
    export TEST_PG_CONFIG=$pg_config
}

# ------------------------------------------------------------------------------------------------ a throwaway cluster ---

guard=   # the pipe whose end ends it

# cluster_create FILE: makes a cluster that trusts everybody who can open its socket, and the folder of the socket
# is closed to others. It listens to no port, so that any number can run side by side. FILE is added to its settings,
# unless empty.
cluster_create() {
    local base=${TMPDIR:-/tmp}
    # The path of a socket may not exceed 107 bytes.
    [ ${#base} -le 60 ] && as_server test -x "$base/." || base=/tmp
    cluster=$(mktemp -d "$base/impersonate.XXXXXX")
    mkdir "$cluster/socket"
    if [ "$(id -u)" -eq 0 ]; then
        chown -R "$(id -u "$account"):$(id -g "$account")" "$cluster"
    fi
    export PGHOST=$cluster/socket PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
    unset PGPASSWORD PGSERVICE PGOPTIONS PGHOSTADDR

    (cd "$cluster" && as_server "$bindir/initdb" -D "$cluster/data" -U postgres --auth=trust --encoding=UTF8 \
        --no-locale --no-sync >"$cluster/initdb.log" 2>&1) || { cat "$cluster/initdb.log" >&2; return 1; }
    cat >"$cluster/data/postgresql.auto.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$cluster/socket'
shared_preload_libraries = 'impersonate'
# A throwaway cluster has nothing to lose in a power cut.
fsync = off
full_page_writes = off
CONF
    # Not in postgresql.auto.conf, where ALTER SYSTEM RESET ALL would undo them.
    cat "$cluster/data/postgresql.auto.conf" ${1:+"$1"} >>"$cluster/data/postgresql.conf"
    : >"$cluster/data/postgresql.auto.conf"

    # Should this script be killed outright, its end of this pipe closes and the server goes all the same.
    exec {guard}> >(exec >/dev/null 2>&1; trap '' INT TERM HUP; cat; cluster_end)
}

cluster_start() {
    # Without the guard's pipe: else the server would keep open what its own end hangs on.
    (cd "$cluster" && as_server "$bindir/pg_ctl" -D "$cluster/data" -l "$cluster/log" -w -t 60 start {guard}>&- \
        >"$cluster/pg_ctl.log" 2>&1) || { cat "$cluster/pg_ctl.log" "$cluster/log" >&2; return 1; }
}

# Whether process PID is this cluster's server: a pid left behind by a crash may be somebody else's by now, and an
# ended process may stay in the list for a while.
cluster_runs() { [ "$(readlink "/proc/$1/cwd")" = "$(readlink -f "$cluster/data")" ]; }

# Stops this very server, by its pid, and deletes its folder.
cluster_end() {
    local pid _
    if [ -f "$cluster/data/postmaster.pid" ]; then
        read -r pid <"$cluster/data/postmaster.pid"
        if cluster_runs "$pid"; then
            kill -INT "$pid"
            for _ in {1..200}; do
                cluster_runs "$pid" || break
                sleep 0.02
            done
            if cluster_runs "$pid"; then
                kill -QUIT "$pid"
                while cluster_runs "$pid"; do sleep 0.02; done
            fi
        fi
    fi
    rm -rf "$cluster"
}

cluster_remove() {
    [ -n "$cluster" ] || return 0
    cluster_end || true
    # Without one where initdb failed.
    [ -z "$guard" ] || exec {guard}>&-
    guard=
    cluster=
}

# psql as it is meant in scripts: no ~/.psqlrc, no pager.
run_psql() { PAGER='' "$bindir/psql" -X "$@"; }
