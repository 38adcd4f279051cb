#!/usr/bin/env bash
# check-clients.sh: real clients against a real server. Each begins, uses and ends an impersonation by every door that
# it can reach. Prints "ok CLIENT: DOOR" or "not ok CLIENT: DOOR" for each, and ends with their count.
#
# What is missing is fetched into .tools from the ordinary registries: psycopg and asyncpg by pip, pg by npm, Debian's
# driver for Java and pgbouncer as packages that are unpacked. Only the runtimes themselves, if they are missing, are
# installed by apt-get. The library must be installed: make dev.
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

# runtime PROGRAM PACKAGE...
runtime() {
    local program=$1
    shift
    have "$program" && return
    have apt-get || die "$program is missing" "please install what Debian calls: $*"
    if [ "$(id -u)" -eq 0 ]; then
        step "installing $*" apt-get -q -y --no-install-recommends install "$@"
    else
        step "installing $*" sudo apt-get -q -y --no-install-recommends install "$@"
    fi
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

# unavailable CLIENT: what it needs could not be had.
unavailable() {
    bad=$((bad + 1))
    say "not ok $1: it could not be fetched"
}

# ----------------------------------------------------------------------------------------------------------- pgbouncer ---

start_bouncer() {
    local folder=$cluster/bouncer _
    mkdir "$folder"
    cat >"$folder/ini" <<INI
[databases]
* = host=$cluster/socket port=$PGPORT
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = $folder
auth_type = trust
auth_file = $folder/users
pool_mode = $1
server_reset_query = DISCARD ALL
logfile = $folder/log
pidfile = $folder/pid
INI
    printf '"alice" ""\n' >"$folder/users"
    [ "$(id -u)" -ne 0 ] || chown -R "$(id -u "$account"):$(id -g "$account")" "$folder"
    as_server "$tools/pgbouncer/run" "$folder/ini" >"$folder/out" 2>&1 {guard}>&- &
    bouncer=$!
    for _ in {1..100}; do
        [ ! -S "$folder/.s.PGSQL.6432" ] || return 0
        sleep 0.1
    done
    cat "$folder/out" "$folder/log" >&2
    return 1
}

stop_bouncer() {
    [ -n "$bouncer" ] || return 0
    kill "$bouncer" 2>/dev/null || true
    wait "$bouncer" 2>/dev/null || true
    rm -rf "${cluster:?}/bouncer"
    bouncer=
}

# ----------------------------------------------------------------------------------------------------------------- run ---

runtime python3 python3 python3-venv
[ -f "$tools/clients-python/complete" ] || step "fetching psycopg and asyncpg into .tools" fetch_python || true
runtime node nodejs npm
[ -d "$tools/clients-node/node_modules/pg" ] || step "fetching node-postgres into .tools" fetch_node || true
runtime java default-jre-headless
jar=$(compgen -G "$tools/clients-java/usr/share/java/postgresql.jar") ||
    { step "fetching pgjdbc into .tools" fetch_java && jar=$tools/clients-java/usr/share/java/postgresql.jar; } || true
scripts/fetch-tools.sh pgbouncer || true

# pgjdbc speaks TCP alone: the loopback, with a port that nobody has.
tcp=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/conf" <<CONF
listen_addresses = '127.0.0.1'
port = $tcp
CONF
cluster_create "$work/conf"
export PGPORT=$tcp
cluster_start
run_psql -qAt -v ON_ERROR_STOP=1 -f "$clients/stage.sql"
export PGUSER=alice PGDATABASE=clients

count psql bash "$clients/psql.sh" "$bindir/psql"
if [ -f "$tools/clients-python/complete" ]; then
    count psycopg "$tools/clients-python/bin/python" "$clients/with_psycopg.py"
    count asyncpg "$tools/clients-python/bin/python" "$clients/with_asyncpg.py"
else
    unavailable psycopg
    unavailable asyncpg
fi
if [ -d "$tools/clients-node/node_modules/pg" ]; then
    NODE_PATH=$tools/clients-node/node_modules count node-postgres node "$clients/node.js"
else
    unavailable node-postgres
fi
if [ -e "$jar" ]; then
    JDBC_URL="jdbc:postgresql://127.0.0.1:$tcp/clients?user=alice&sslmode=disable&gssEncMode=disable" \
        count pgjdbc java -cp "$jar:$tools/clients-java/usr/share/java/*" "$clients/Doors.java"
else
    unavailable pgjdbc
fi
if [ -x "$tools/pgbouncer/run" ]; then
    for mode in session transaction; do
        start_bouncer "$mode"
        PGHOST=$cluster/bouncer PGPORT=6432 count "psql by pgbouncer, $mode" \
            bash "$clients/bouncer.sh" "$bindir/psql" "$mode"
        stop_bouncer
    done
else
    unavailable pgbouncer
fi

say "$good ok, $bad not ok"
[ "$bad" -eq 0 ]
