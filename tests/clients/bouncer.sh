#!/usr/bin/env bash
# bouncer.sh PSQL MODE: by way of pgbouncer. In transaction mode only what ends with its transaction is of use.
set -u
psql=$1

# told NAME WANTED SCRIPT
told() {
    local found
    found=$("$psql" -X -qAt <<<"$3" 2>&1 | tr '\n' ';')
    if [ "$found" = "$2" ]; then echo "ok $1"; else echo "not ok $1: $found"; fi
}

told 'setuser(local => true)' 'bob;bob;alice;' \
    "BEGIN; SELECT setuser('bob', local => true); SELECT current_user; COMMIT; SELECT current_user;"
told 'SET LOCAL' 'bob;alice;' \
    "BEGIN; SET LOCAL impersonate.target = 'bob'; SELECT current_user; COMMIT; SELECT current_user;"
if [ "$2" = session ]; then
    told 'setuser()' 'bob;bob;alice;alice;' \
        "SELECT setuser('bob'); SELECT current_user; SELECT setuser(); SELECT current_user;"
    told 'SET' 'bob;alice;' \
        "SET impersonate.target = 'bob'; SELECT current_user; RESET impersonate.target; SELECT current_user;"
    # One client leaves while it impersonates; the next gets its connection.
    "$psql" -X -qAt -c "SELECT setuser('bob')" >/dev/null 2>&1
    told 'the next client is itself' 'alice;' 'SELECT current_user;'
fi
