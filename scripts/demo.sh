#!/usr/bin/env bash
# demo.sh                 a story on a throwaway server, from the right that is given to the record that is kept
# demo.sh --psql [ROLE]   the same database to oneself: psql as ROLE (default helpdesk_anna)
#
# Sets up what is missing, and leaves nothing running.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"

begun=$(clock)

# ------------------------------------------------------------------------------------------------------- the server ---

scripts/setup.sh
use_postgres

open_database() {
    say "A throwaway server"
    step "building in release mode (a few minutes the first time)" scripts/install.sh --pg-config "$pg_config"
    # Not by step, which would run it in a subshell.
    local start
    start=$(clock)
    cluster_create ''
    cluster_start
    say "  starting $("$bindir/postgres" --version) on a socket of its own ... $(since "$start")"
    step "making the database hr: 5 departments, 5000 employees, row-level security" load_hr
    export PGDATABASE=hr
}

load_hr() {
    run_psql -q -c 'CREATE DATABASE hr'
    run_psql -q -d hr -f scripts/demo/hr.sql
}

# ------------------------------------------------------------------------------------------------------------- psql ---

if [ "${1:-}" = --psql ]; then
    role=${2:-helpdesk_anna}
    open_database
    run_psql -q -c 'GRANT "SET USER" (bob) TO helpdesk'
    cat <<WORDS

You are $role. helpdesk_anna may act as bob, who manages Sales; not as carol. To try:

  SELECT * FROM impersonate.explain_setuser('carol');
  SELECT setuser('bob', reason => 'INC-4711');
  SELECT current_user, session_user, count(*) FROM hr.employee;
  SELECT setuser();
  \\c - postgres
  SELECT * FROM impersonate.audit;

The server goes when you leave with \\q.

WORDS
    # Ctrl-C is psql's.
    trap : INT
    status=0
    "$bindir/psql" -U "$role" || status=$?
    exit $status
fi

# -------------------------------------------------------------------------------------------------------- the story ---

chapter_number=0
chapter_start=

chapter() {
    end_chapter
    chapter_number=$((chapter_number + 1))
    chapter_start=$(clock)
    printf '\n%s. %s\n' "$chapter_number" "$1"
    shift
    [ $# -eq 0 ] || printf '   %s\n' "$@"
}

end_chapter() {
    [ -z "$chapter_start" ] || printf '   (%s)\n' "$(since "$chapter_start")"
}

# talk ROLE ERRORS: a session of ROLE as psql shows it, each statement with what it gives and its time. The demo fails
# when another number of statements is refused than ERRORS.
talk() {
    local role=$1 errors=$2 seen
    printf '\n--- psql as %s %s\n\n' "$role" "$(printf -- '-%.0s' $(seq $((66 - ${#role}))))"
    # Without psql's own "psql:<stdin>:1:", with a line between statements, and as it comes.
    run_psql -U "$role" -P null=- -c '\set QUIET on' -c '\timing on' -c '\set QUIET off' -c '\set ECHO all' -f - 2>&1 |
        sed -u -E 's/^psql:<stdin>:[0-9]+: //; s/^Time: .*/&\n/' | tee "$scratch/talk"
    seen=$(grep -cE '^(ERROR|FATAL|PANIC):' "$scratch/talk" || true)
    [ "$seen" -eq "$errors" ] || die "the story has $errors refusals here, and there were $seen"
}

scratch=$(mktemp -d)
open_database

chapter "Anna works at the help desk. She sees her own salary and nobody else's." \
    "Bob, who manages Sales, has reported that his list of employees looks wrong."
talk helpdesk_anna 0 <<'SQL'
SELECT current_user, count(*), max(salary) FROM hr.employee;
SQL

chapter "She cannot just be somebody else, and is told why, and what would change it."
talk helpdesk_anna 1 <<'SQL'
SELECT setuser('bob', reason => 'INC-4711');
SELECT * FROM impersonate.explain_setuser('bob');
SELECT * FROM impersonate.explain_setuser('carol');
SQL

chapter "So the administrator gives the help desk a right: over Bob, and nobody else."
talk postgres 0 <<'SQL'
GRANT "SET USER" (bob) TO helpdesk;
SELECT * FROM impersonate.grants;
SQL

chapter "The same query before, as Bob, and after. What Bob may not do, Anna may not do as Bob."
talk helpdesk_anna 1 <<'SQL'
SELECT current_user, session_user, count(*), max(salary) FROM hr.employee;
SELECT setuser('bob', reason => 'INC-4711');
SELECT current_user, session_user, count(*), max(salary) FROM hr.employee;
SELECT impersonator, target, reason FROM impersonate.active;
UPDATE hr.employee SET salary = salary + 100 WHERE login = 'dave';
SELECT * FROM hr.bank_account;
SELECT setuser();
SELECT current_user, session_user, count(*), max(salary) FROM hr.employee;
SQL

chapter "A switch is part of the transaction: ROLLBACK undoes it, with what was done."
talk helpdesk_anna 0 <<'SQL'
BEGIN;
SELECT setuser('bob', reason => 'INC-4711, second look');
UPDATE hr.employee SET salary = 0;
ROLLBACK;
SELECT current_user, session_user, count(*), max(salary) FROM hr.employee;
SQL

chapter "Bob is promoted: he pays salaries now. Anna does not, so she may not act as him any more." \
    "The right is still there; whoever acts as another must already hold what that other holds."
talk postgres 0 <<'SQL'
GRANT payroll TO bob;
SQL
talk helpdesk_anna 1 <<'SQL'
SELECT setuser('bob', reason => 'INC-4712');
SQL
talk postgres 0 <<'SQL'
REVOKE payroll FROM bob;
SQL
talk helpdesk_anna 0 <<'SQL'
SELECT impersonate.can_setuser('bob');
SQL

chapter "All of it is on record, under both names: refusals, failures and what was rolled back as well."
talk postgres 0 <<'SQL'
SELECT impersonate.audit_sync();
SELECT event_id AS id, event, session_user_name AS who, user_name AS acting_as, sqlstate, row_count AS rows,
       reason, left(statement, 60) AS statement
  FROM impersonate.audit ORDER BY event_id;
SQL

report=$root/target/report.html
chapter "The same as a page for auditors, made by the server: it loads nothing, and can be mailed and printed."
printf '\n--- psql -Atc "SELECT impersonate.report()" >%s\n\n' "$report"
mkdir -p target
run_psql -U postgres -Atc 'SELECT impersonate.report()' >"$report"
grep -q 'Record intact' "$report" || die "the report does not say that the record is intact: $report"
end_chapter

cluster_remove
cat <<WORDS

That was the demo, $(since "$begun") in all. The server and its data are gone.
The report is there to be opened in a browser: $report
To try it yourself:  make psql                (the same database, as helpdesk_anna)
                     make psql ROLE=postgres  (as the administrator)
WORDS
