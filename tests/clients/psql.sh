#!/usr/bin/env bash
# psql.sh PSQL: every door in the simple protocol.
set -u
psql=$1

# door NAME START END: in force after START, gone after END.
door() {
    local found
    found=$("$psql" -X -qAt -v ON_ERROR_STOP=1 -c "$2" -c "SELECT 'then ' || current_user || ' of ' || session_user" \
        -c "$3" -c "SELECT 'then ' || current_user" 2>&1 | grep '^then\|ERROR\|DETAIL' | tr '\n' ';')
    if [ "$found" = 'then bob of alice;then alice;' ]; then
        echo "ok $1"
    else
        echo "not ok $1: $found"
    fi
}

door 'setuser()' "SELECT setuser('bob')" 'SELECT setuser()'
door 'setuser() by an e-mail address' "SELECT setuser('bob@example.com')" 'SELECT setuser()'
door 'SET' "SET impersonate.target = 'bob'" "SET impersonate.target = ''"
door 'RESET' "SET impersonate.target TO bob" 'RESET impersonate.target'
door 'set_config()' "SELECT set_config('impersonate.target', 'bob', false)" \
    "SELECT set_config('impersonate.target', '', false)"
door 'CALL' "CALL impersonate.impersonate_user('bob')" 'CALL impersonate.impersonate_user(NULL)'

found=$("$psql" -X -qAt 2>&1 <<'SQL' | tr '\n' ';'
BEGIN;
SET LOCAL impersonate.target = 'bob';
SELECT current_user;
COMMIT;
SELECT current_user;
SQL
)
if [ "$found" = 'bob;alice;' ]; then echo 'ok SET LOCAL'; else echo "not ok SET LOCAL: $found"; fi

found=$(PGOPTIONS='-c impersonate.target=bob' "$psql" -X -qAt -c 'SELECT current_user' -c 'RESET impersonate.target' \
    -c 'SELECT current_user' 2>&1 | tr '\n' ';')
ended=$(PGOPTIONS='-c impersonate.target=bob' "$psql" -X -qAt -c "SET impersonate.target = ''" -c 'SELECT current_user' 2>&1)
if [ "$found" = 'bob;alice;' ] && [ "$ended" = alice ]; then
    echo 'ok start-up option'
else
    echo "not ok start-up option: $found $ended"
fi

found=$("$psql" -X -qAt -c "SELECT setuser('carol')" 2>&1 | head -1)
case $found in
    *'may not act as role "carol"'*) echo 'ok a refusal' ;;
    *) echo "not ok a refusal: $found" ;;
esac
