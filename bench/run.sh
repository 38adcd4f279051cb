#!/usr/bin/env bash
# What impersonation costs, side by side in one run: medians of interleaved rounds, and their ratios. Asserts nothing.
#
# ROUNDS         rounds of the throughput tests (5)
# SECONDS_EACH   seconds that each of them runs (5)
# SCALE          pgbench's scale (10)
set -euo pipefail
. "$(dirname "$0")/../scripts/lib.sh"
cd "$root"

ROUNDS=${ROUNDS:-5}
SECONDS_EACH=${SECONDS_EACH:-5}
SCALE=${SCALE:-10}

use_postgres
step "building in release mode" scripts/install.sh --pg-config "$pg_config"
scratch=$(mktemp -d)
cluster_create ''

# ------------------------------------------------------------------------------------------------------ the clusters ---

# The same data without the library and with it: only what is preloaded changes.
start_with() {
    printf "shared_preload_libraries = '%s'\n" "$1" >"$cluster/data/postgresql.auto.conf"
    cluster_start
    # Everybody begins with warm caches.
    run_psql -q -c 'SELECT count(*) FROM pgbench_accounts' >/dev/null 2>&1 || true
}

stop() { (cd "$cluster" && as_server "$bindir/pg_ctl" -D "$cluster/data" -m fast -w stop >/dev/null); }

start_with impersonate
"$bindir/pgbench" -q -i -s "$SCALE" >/dev/null 2>&1
run_psql -q <<'SQL'
CREATE EXTENSION impersonate;
CREATE ROLE bob LOGIN;
CREATE ROLE anna LOGIN IN ROLE bob;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO bob, anna;
GRANT "SET USER" (bob) TO anna;
SQL
stop

# ------------------------------------------------------------------------------------------------------- throughput ---

# Each client's first transaction makes it who it is to be; nothing else differs.
script() {
    cat >"$scratch/$1.sql" <<SQL
\\if :began = 0
$2;
\\set began 1
\\endif
\\set aid random(1, 100000 * :scale)
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
SQL
}
script nothing 'SELECT 1'
script set_role 'SET ROLE bob'
script setuser "SELECT setuser('bob')"

# tps SCRIPT CLIENTS
tps() {
    "$bindir/pgbench" -n -U anna -M prepared -f "$scratch/$1.sql" -D began=0 -D scale="$SCALE" -c "$2" -j "$2" \
        -T "$SECONDS_EACH" 2>"$scratch/errors" | sed -nE 's/^tps = ([0-9]+)\..*/\1/p'
}

# record NAME VALUE; median NAME
record() { printf '%s\n' "$2" >>"$scratch/$1.values"; }
median() { sort -n "$scratch/$1.values" | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf b > 0 ? "%.2f" : "-", a / (b > 0 ? b : 1) }'; }

for round in $(seq "$ROUNDS"); do
    say "  round $round of $ROUNDS"
    start_with ''
    for clients in 1 8; do record "without.$clients" "$(tps nothing "$clients")"; done
    stop
    start_with impersonate
    for clients in 1 8; do
        record "idle.$clients" "$(tps nothing "$clients")"
        record "set_role.$clients" "$(tps set_role "$clients")"
        record "setuser.$clients" "$(tps setuser "$clients")"
    done
    # What is queued is stored now, rather than during the next measurement.
    run_psql -q -c 'SELECT impersonate.audit_sync()' >/dev/null
    stop
done

say ""
say "$("$bindir/postgres" --version), $(nproc) cores, $(sed -nE 's/^model name\s*: //p' /proc/cpuinfo | head -n 1), $(date +%F)"
say "pgbench select-only, prepared, scale $SCALE: medians of $ROUNDS interleaved rounds of $SECONDS_EACH s, in tps"
say ""
printf '%-44s %10s %7s %10s %7s\n' "" "1 client" "ratio" "8 clients" "ratio"
row() {
    local words=$1 name=$2 base=$3 one eight
    one=$(median "$name.1") eight=$(median "$name.8")
    printf '%-44s %10s %7s %10s %7s\n' "$words" "$one" "$(ratio "$one" "$(median "$base.1")")" \
        "$eight" "$(ratio "$eight" "$(median "$base.8")")"
}
row "without the library" without without
row "preloaded and idle (to: without)" idle without
row "as the target by SET ROLE (to: idle)" set_role idle
row "as the target by setuser(), audited (to: SET ROLE)" setuser set_role

# ----------------------------------------------------------------------------------------------------------- switches ---

start_with impersonate
printf 'SELECT setuser(%s);\nSELECT setuser();\n' "'bob'" >"$scratch/pair_setuser.sql"
printf 'SET ROLE bob;\nRESET ROLE;\n' >"$scratch/pair_set_role.sql"
pairs() {
    "$bindir/pgbench" -n -U anna -f "$scratch/pair_$1.sql" -c 1 -T "$SECONDS_EACH" 2>"$scratch/errors" |
        sed -nE 's/^tps = ([0-9]+)\..*/\1/p'
}
for _ in $(seq "$ROUNDS"); do
    for kind in set_role setuser; do record "pair_$kind" "$(pairs "$kind")"; done
done
say ""
say "Switch and back in one session, pairs a second (a SETUSER is on record before setuser() returns):"
printf '%-44s %10s\n' "SET ROLE + RESET ROLE" "$(median pair_set_role)"
printf '%-44s %10s %7s\n' "setuser() + setuser()" "$(median pair_setuser)" \
    "$(ratio "$(median pair_setuser)" "$(median pair_set_role)")"

# ------------------------------------------------------------------------------------------------------------ judging ---

# Five levels of roles, 1,000 in all; the target and the impersonator hold those of the first.
run_psql -q <<'SQL'
DO $$
BEGIN
    FOR i IN 1..1000 LOOP EXECUTE format('CREATE ROLE held_%s', i); END LOOP;
    FOR i IN 201..1000 LOOP EXECUTE format('GRANT held_%s TO held_%s', i, i - 200); END LOOP;
    CREATE ROLE carol LOGIN;
    FOR i IN 1..200 LOOP EXECUTE format('GRANT held_%s TO carol, anna', i); END LOOP;
END
$$;
GRANT "SET USER" (carol) TO anna;
SQL
printf 'SELECT setuser(%s);\nSELECT setuser();\n' "'carol'" >"$scratch/judge.sql"
# Milliseconds of the first statement. A new connection each time: with cold caches, as a person comes along.
judged() {
    for _ in $(seq 20); do
        "$bindir/pgbench" -n -U anna -r -f "$scratch/judge.sql" -c 1 -t 1 2>"$scratch/errors" |
            awk '/setuser\(.carol.\)/ { print $1 }'
    done >"$scratch/$1.values"
    "$bindir/pgbench" -n -U anna -r -f "$scratch/judge.sql" -c 1 -t 100 2>"$scratch/errors" |
        awk '/setuser\(.carol.\)/ { print $1 }' >"$scratch/$1_warm.values"
}
judged small
run_psql -q -c "DO \$\$ BEGIN FOR i IN 1..19000 LOOP EXECUTE format('CREATE ROLE other_%s', i); END LOOP; END \$\$"
judged large
say ""
say "setuser() to a target of 1,000 roles, five levels deep, in ms:"
printf '%-44s %12s %12s\n' "" "new session" "same session"
printf '%-44s %12s %12s\n' "1,000 roles in the cluster" "$(median small)" "$(median small_warm)"
printf '%-44s %12s %12s\n' "20,000 roles in the cluster" "$(median large)" "$(median large_warm)"
stop
