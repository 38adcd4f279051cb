#!/usr/bin/env bash
# check-clients.sh: real clients against a real server, directly and by way of pgbouncer. Each begins, uses and ends an
# impersonation by every door of tests/clients/doors.tsv; then the audit is asked for each of them. Prints "ok CLIENT:
# DOOR" or "not ok CLIENT: DOOR" for each, and ends with their count. CLIENTS="psql asyncpg" takes only those.
#
# What is missing is fetched into .tools from the ordinary registries: psycopg and asyncpg by pip, pg by npm, Debian's
# driver for Java and pgbouncer as packages that are unpacked; tokio-postgres is built by cargo. Only the runtimes
# themselves, if they are missing, are installed by apt-get. The library must be installed: make dev.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"
use_postgres
make_tools
tools=$(readlink -f .tools)
clients=$root/tests/clients
work=$(mktemp -d)
log=$work/log
trap 'stop_bouncer; cluster_remove; rm -rf "$work"' EXIT

good=0
bad=0
bouncer=

# ------------------------------------------------------------------------------------------------------ what it needs ---

# runtime COMMAND PACKAGE...: the command works only where they are installed.
runtime() {
    $1 >/dev/null 2>&1 && return
    shift
    step "installing $*" apt_install "$@"
}

fetch_python() {
    python3 -m venv "$tools/clients-python.new"
    "$tools/clients-python.new/bin/pip" -q --disable-pip-version-check install 'psycopg[binary]==3.2.*' 'asyncpg==0.30.*'
    touch "$tools/clients-python.new/complete"
    rm -rf "$tools/clients-python"
    mv "$tools/clients-python.new" "$tools/clients-python"
}

fetch_node() {
    mkdir -p "$tools/clients-node"
    npm install --silent --no-audit --no-fund --prefix "$tools/clients-node" pg@8
}

fetch_java() {
    local folder=$tools/clients-java
    mkdir -p "$folder/debs"
    cd "$folder/debs"
    apt-get -q -o APT::Sandbox::User=root download libpostgresql-jdbc-java ||
        { [ "$(id -u)" -eq 0 ] && apt-get -q update && apt-get -q download libpostgresql-jdbc-java; }
    dpkg-deb -x libpostgresql-jdbc-java*.deb "$folder"
    rm -rf "$folder/debs"
}

# ------------------------------------------------------------------------------------------------------------ counting ---

# count CLIENT COMMAND...: it prints lines "ok DOOR" and "not ok DOOR: why". One that prints none has failed.
count() {
    local client=$1 line found=0 status=0
    shift
    timeout --foreground --kill-after=5 120 "$@" >"$log" 2>&1 || status=$?
    while IFS= read -r line; do
        case $line in
            'ok '*)
                good=$((good + 1)) found=$((found + 1))
                say "ok $client: ${line#ok }"
                ;;
            'not ok '*)
                bad=$((bad + 1)) found=$((found + 1))
                say "not ok $client: ${line#not ok }"
                ;;
        esac
    done <"$log"
    if [ "$found" -eq 0 ] || [ "$status" -ne 0 ]; then
        bad=$((bad + 1))
        say "not ok $client: ended with status $status after $found doors"
        sed 's/^/    | /' "$log" | tail -20
    fi
}

# audited CLIENT VIA: what the audit has of what count() ran last.
audited() {
    FOLDER=$clients count "$1" "$bindir/psql" -X -qAt -v ON_ERROR_STOP=1 -U postgres -d clients -v since="$since" -v via="$2" \
        -v client="$1" -f "$clients/audit.sql"
}

# unavailable CLIENT: what it needs could not be had.
unavailable() {
    bad=$((bad + 1))
    say "not ok $1: it could not be fetched"
}

# ----------------------------------------------------------------------------------------------------------- pgbouncer ---

# start_bouncer MODE [IGNORED]
start_bouncer() {
    local folder=$cluster/bouncer _
    mkdir "$folder"
    cat >"$folder/ini" <<INI
[databases]
* = host=$cluster/socket port=$PGPORT
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $bouncer_port
unix_socket_dir = $folder
auth_type = trust
auth_file = $folder/users
pool_mode = $1
default_pool_size = 1
server_reset_query = DISCARD ALL
# pgjdbc always sends the first.
ignore_startup_parameters = extra_float_digits${2:-}
logfile = $folder/log
pidfile = $folder/pid
INI
    printf '"%s" ""\n' alice tool >"$folder/users"
    [ "$(id -u)" -ne 0 ] || chown -R "$(id -u "$account"):$(id -g "$account")" "$folder"
    as_server "$tools/pgbouncer/run" "$folder/ini" >"$folder/out" 2>&1 {guard}>&- &
    bouncer=$!
    for _ in {1..100}; do
        [ ! -S "$folder/.s.PGSQL.$bouncer_port" ] || return 0
        sleep 0.1
    done
    cat "$folder/out" "$folder/log" >&2
    return 1
}

stop_bouncer() {
    [ -n "$bouncer" ] || return 0
    # Its own pid: $bouncer is the subshell's that waits for it.
    kill "$(cat "$cluster/bouncer/pid")" 2>/dev/null || true
    wait "$bouncer" 2>/dev/null || true
    rm -rf "${cluster:?}/bouncer"
    bouncer=
}

# ----------------------------------------------------------------------------------------------------------------- run ---

runtime "python3 -m ensurepip --version" python3 python3-venv
[ -f "$tools/clients-python/complete" ] || (step "fetching psycopg and asyncpg into .tools" fetch_python) || true
runtime "npm --version" nodejs npm
[ -d "$tools/clients-node/node_modules/pg" ] || (step "fetching node-postgres into .tools" fetch_node) || true
runtime "java -version" default-jre-headless
[ -e "$tools/clients-java/usr/share/java/postgresql.jar" ] || (step "fetching pgjdbc into .tools" fetch_java) || true
scripts/fetch-tools.sh pgbouncer || true

(step "building the client for Rust" cargo build --quiet --package impersonate-rust-client) || true
rust_client=${CARGO_TARGET_DIR:-$root/target}/debug/impersonate-rust-client

# pgjdbc speaks TCP alone: the loopback, with ports that nobody has.
read -r tcp bouncer_port < <(python3 -c 'import socket
sockets = [socket.socket() for _ in range(2)]
for each in sockets: each.bind(("127.0.0.1", 0))
print(*[each.getsockname()[1] for each in sockets])')
cat >"$work/conf" <<CONF
listen_addresses = '127.0.0.1'
port = $tcp
CONF
cluster_create "$work/conf"
export PGPORT=$tcp
cluster_start
run_psql -qAt -v ON_ERROR_STOP=1 -f "$clients/stage.sql"
export PGUSER=alice PGDATABASE=clients

# client NAME FILE COMMAND...: it can be had if the file is there.
client() {
    local name=$1 file=$2 client=$1
    shift 2
    case " ${CLIENTS:-$name} " in *" $name "*) ;; *) return 0 ;; esac
    [ -e "$file" ] || { unavailable "$name"; return 0; }
    [ "$VIA" = direct ] || client="$name by pgbouncer, $VIA"
    since=$(run_psql -qAt -h "$cluster/socket" -p "$tcp" -U postgres \
        -c 'SELECT impersonate.audit_sync()' -c 'SELECT coalesce(max(event_id), 0) FROM impersonate.audit' | tail -1)
    count "$client" "$@"
    PGHOST=$cluster/socket PGPORT=$tcp audited "$client" "$VIA"
}

# All of them, to where PGHOST and PGPORT lead.
all_clients() {
    local python=$tools/clients-python/bin/python jars
    jars=$tools/clients-java/usr/share/java
    export JDBC_URL="jdbc:postgresql://127.0.0.1:$PGPORT/clients?sslmode=disable&gssEncMode=disable"
    client psql "$bindir/psql" bash "$clients/psql.sh" "$bindir/psql"
    client psycopg "$tools/clients-python/complete" "$python" "$clients/with_psycopg.py"
    client asyncpg "$tools/clients-python/complete" "$python" "$clients/with_asyncpg.py"
    NODE_PATH=$tools/clients-node/node_modules client node-postgres "$tools/clients-node/node_modules/pg" \
        node "$clients/node.js"
    client pgjdbc "$jars/postgresql.jar" java -cp "$jars/postgresql.jar:$jars/*" "$clients/Doors.java" \
        "$clients/doors.tsv"
    client tokio-postgres "$rust_client" "$rust_client"
}

# In transaction mode a lasting impersonation would be the next client's too.
local_only() {
    run_psql -qAt -v ON_ERROR_STOP=1 -U postgres -c "ALTER ROLE alice SET impersonate.local_only = $1" \
        -c "ALTER ROLE tool SET impersonate.local_only = $1"
}

VIA=direct all_clients
if [ -x "$tools/pgbouncer/run" ]; then
    start_bouncer session
    VIA=session PGHOST=$cluster/bouncer PGPORT=$bouncer_port all_clients
    stop_bouncer
    local_only on
    start_bouncer transaction
    VIA=transaction PGHOST=$cluster/bouncer PGPORT=$bouncer_port all_clients
    stop_bouncer
    local_only off
    start_bouncer session ', options'
    VIA=session IGNORED=options PGHOST=$cluster/bouncer PGPORT=$bouncer_port \
        count 'psql by pgbouncer, session' bash "$clients/psql.sh" "$bindir/psql"
    stop_bouncer
    # What ALTER ROLE says is the first client's: the pooler ends it, and no reset brings it back.
    run_psql -qAt -v ON_ERROR_STOP=1 -U postgres -c "ALTER ROLE alice SET impersonate.target = 'bob'"
    start_bouncer session
    VIA=session PGHOST=$cluster/bouncer PGPORT=$bouncer_port \
        count 'psql by pgbouncer, session' bash "$clients/psql.sh" "$bindir/psql" role
    stop_bouncer
    run_psql -qAt -v ON_ERROR_STOP=1 -U postgres -c 'ALTER ROLE alice RESET impersonate.target'
else
    unavailable pgbouncer
fi

say "$good ok, $bad not ok"
[ "$bad" -eq 0 ]
