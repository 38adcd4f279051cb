#!/usr/bin/env bash
# psql.sh PSQL [role]: every door in the simple protocol, or that of ALTER ROLE ... SET. VIA is direct, or how pgbouncer
# hands connections on: session, transaction.
set -u
psql=("$1" -X -qAt)
via=${VIA:-direct}
witness="SELECT 'then ' || current_user || ' of ' || session_user"

# told NAME WANTED FOUND
told() {
    if [ "$2" = "$3" ]; then echo "ok $1"; else echo "not ok $1: $3"; fi
}

# run LOGIN STATEMENT...: what the witnesses said, and errors; each statement is sent by itself.
run() {
    local login=$1 arguments=()
    shift
    for statement; do arguments+=(-c "$statement"); done
    "${psql[@]}" -U "$login" "${arguments[@]}" 2>&1 | grep '^then\|ERROR\|HINT' | tr '\n' ';'
}

if [ "${2:-}" = role ]; then
    told 'ALTER ROLE' 'then bob of alice;then alice of alice;' "$(run alice "$witness")$(run alice "$witness")"
    exit
fi

while IFS=$'\t' read -r kind login name _ begin _ end _; do
    back="then bob of $login;then $login of $login;"
    case "$via $kind" in
        *' local')
            told "$name" "$back" "$(run "$login" BEGIN "$begin" "$witness" COMMIT "$witness")"
            ;;
        'transaction session')
            found=$(run "$login" "$begin" "$witness")
            case $found in
                'ERROR:  an impersonation must end with its transaction'*"then $login of $login;")
                    echo "ok $name, refused"
                    ;;
                *) echo "not ok $name, refused: $found" ;;
            esac
            ;;
        *' session')
            told "$name" "$back" "$(run "$login" "$begin" "$witness" "$end" "$witness")"
            ;;
    esac
    if [ "$via $kind" = 'session session' ]; then
        # One client leaves while it impersonates; the next gets its connection.
        one="SELECT 'then ' || pg_backend_pid()"
        first=$(run "$login" "$begin" "$witness" "$one")
        next=$(run "$login" "$witness" "$one")
        told "$name, the next client" "$back ${first##*then }" "${first%%;*};${next%%;*}; ${next##*then }"
    fi
done < <(tail -n +2 "$(dirname "$0")/doors.tsv")

option='-c impersonate.target=bob'
if [ "$via" = direct ]; then
    told 'start-up option' 'then bob of alice;then alice of alice;then bob of alice;then alice of alice;' \
        "$(export PGOPTIONS=$option
            run alice "$witness" 'RESET impersonate.target' "$witness"
            run alice "$witness" "SET impersonate.target = ''" "$witness")"
elif [ "${IGNORED:-}" = options ]; then
    # pgbouncer drops what it is told to ignore.
    told 'start-up option, ignored' 'then alice of alice;' "$(PGOPTIONS=$option run alice "$witness")"
    exit
else
    found=$(PGOPTIONS=$option "${psql[@]}" -U alice -c "$witness" 2>&1)
    case $found in
        *'unsupported startup parameter'*) echo 'ok start-up option, refused by the pooler' ;;
        *) echo "not ok start-up option, refused by the pooler: $found" ;;
    esac
fi

for login in alice tool; do
    statement="SELECT setuser('carol', local => true)"
    [ $login = alice ] || statement='SET LOCAL ROLE carol'
    found=$(run $login "$statement" "$witness")
    case $found in
        *'may not act as role "carol"'*'GRANT "SET USER" (carol)'*";then $login of $login;")
            echo "ok a refusal of $login"
            ;;
        *) echo "not ok a refusal of $login: $found" ;;
    esac
done

# A program that knows SET ROLE alone. In session mode, the next client gets its connection.
if [ "$via" != transaction ]; then
    dump=("$(dirname "$1")/pg_dump" -U tool -t bobs --data-only --column-inserts)
    case $("${dump[@]}" 2>&1) in
        *'permission denied for table bobs'*) ;;
        *) echo 'not ok pg_dump by itself' ;;
    esac
    told 'pg_dump --role' "INSERT INTO public.bobs (what) VALUES ('of bob');" \
        "$("${dump[@]}" --role bob 2>&1 | grep '^INSERT\|rror')"
    told 'pg_dump --role, the next client' 'then tool of tool;' "$(run tool "$witness")"
fi
