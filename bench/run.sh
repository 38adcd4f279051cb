#!/usr/bin/env bash
# What impersonation costs, side by side in one run: medians of interleaved rounds, and their ratios. Asserts nothing
# about time. A quarter of an hour as it stands.
#
# ROUNDS         rounds of the throughput tests (5)
# SECONDS_EACH   seconds that each of them runs (3)
# SCALE          pgbench's scale (10): with fewer branches than clients, TPC-B would measure the wait for their locks
# PARTS          "throughput writer standby roles": only these
#
# The peers are Debian's pgaudit and set_user for this major, fetched into .tools and loaded from there. Without them
# their lines are left out.
set -euo pipefail
. "$(dirname "$0")/../scripts/lib.sh"
cd "$root"

ROUNDS=${ROUNDS:-5}
SECONDS_EACH=${SECONDS_EACH:-3}
SCALE=${SCALE:-10}
all_parts="throughput writer standby roles"
PARTS=${PARTS:-$all_parts}
wanted() { [[ " $PARTS " == *" $1 "* ]]; }

begun=$(clock)
# What is reported goes into bench/RESULTS.md as well, when all was measured.
note() { tee -a "$scratch/report"; }
tell() { say "$*" | note; }
use_postgres
step "building in release mode" scripts/install.sh --pg-config "$pg_config"
scratch=$(mktemp -d)
# So large that all is in memory: 16 MB for each of pgbench's scale. All run with the same settings, an fsync for each
# commit as in earnest, and what goes to the server log through the collector, where pgaudit has all that it writes.
cat >"$scratch/settings" <<CONF
shared_buffers = $((128 + 64 * SCALE))MB
max_connections = 600
fsync = on
full_page_writes = on
checkpoint_timeout = 1h
max_wal_size = 4GB
logging_collector = on
log_directory = 'collected'
log_rotation_age = 0
log_rotation_size = 0
pgaudit.log = 'all'
CONF
cluster_create "$scratch/settings"

# ------------------------------------------------------------------------------------------------------- the cluster ---

# One cluster, so that only what is preloaded differs.
start_with() {
    printf "shared_preload_libraries = '%s'\n" "$1" >"$cluster/data/postgresql.auto.conf"
    cluster_start
}

stop() {
    (cd "$cluster" && as_server "$bindir/pg_ctl" -D "$cluster/data" -m fast -w stop >/dev/null)
    rm -rf "$cluster/data/collected"
}

# Table and index into shared buffers, which a sequential scan would not do.
warm_up() {
    run_psql -q -o /dev/null -c 'SET enable_seqscan = off; SET enable_bitmapscan = off' \
        -c 'SELECT sum(abalance) FROM pgbench_accounts WHERE aid > 0'
}

# peer NAME: the path of its library, or nothing.
peer() {
    local folder
    (PG=$(major_of "$pg_config") && "$root/scripts/fetch-tools.sh" "postgresql-$PG-${1/_/-}") >&2 || true
    folder=$(readlink -m "$root/.tools")/postgresql-$(major_of "$pg_config")-${1/_/-}
    find "$folder" -name "$1.so" 2>/dev/null | head -1
}
pgaudit=
set_user=
if wanted throughput; then
    pgaudit=$(peer pgaudit)
    set_user=$(peer set_user)
fi

start_with impersonate
step "making a database of pgbench, scale $SCALE" "$bindir/pgbench" -q -i -s "$SCALE"
run_psql -q <<'SQL'
CREATE EXTENSION impersonate;
CREATE ROLE bob LOGIN;
CREATE ROLE anna LOGIN IN ROLE bob;
GRANT ALL ON ALL TABLES IN SCHEMA public TO bob, anna;
GRANT "SET USER" (bob) TO anna;
SQL
# By the path, as nothing is installed; beyond that it is what CREATE EXTENSION makes.
[ -z "$set_user" ] || run_psql -q <<SQL
CREATE FUNCTION public.set_user(text) RETURNS text LANGUAGE c AS '$set_user', 'set_user';
SQL
stop

# ------------------------------------------------------------------------------------------------- running and noting ---

# run_script NAME OPTIONS...: pgbench as anna, unless they say otherwise. A transaction that fails, or a client that gives up, is no measurement.
run_script() {
    local name=$1
    shift
    if ! "$bindir/pgbench" -n -U anna -f "$scratch/$name.sql" -D began=0 -D scale="$SCALE" "$@" \
        >"$scratch/output" 2>"$scratch/errors" || grep -qE 'ERROR|aborted' "$scratch/errors"; then
        die "pgbench failed with the script $name" "$(cat "$scratch/errors")"
    fi
}
# found WORDS: the number after them in what pgbench reported.
found() { sed -nE "s/^$1[ :=]+([0-9.]+).*/\\1/p" "$scratch/output"; }
# statement_ms TEXT: the mean that -r reported of the statement that begins so.
statement_ms() { awk -v text="$1" 'index($0, text) { print $1; exit }' "$scratch/output"; }

record() { printf '%s\n' "$2" >>"$scratch/$1.values"; }
middle() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
median() { middle <"$scratch/$1.values"; }
whole() { printf '%.0f' "$(median "$1")"; }
# Of each round, then the median: what else the machine does changes from round to round more than within one.
ratio() {
    printf '%.2f' "$(paste "$scratch/$1.values" "$scratch/$2.values" | awk '$2 > 0 { print $1 / $2 }' | middle)"
}

# ------------------------------------------------------------------------------------------------------- throughput ---

# script NAME STATEMENT: the load NAME_select and NAME_tpcb. Each client's first transaction makes it who it is to be;
# nothing else differs.
script() {
    tee "$scratch/$1_select.sql" >"$scratch/$1_tpcb.sql" <<SQL
\\if :began = 0
$2;
\\set began 1
\\endif
\\set aid random(1, 100000 * :scale)
SQL
    cat >>"$scratch/$1_select.sql" <<SQL
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
SQL
    cat >>"$scratch/$1_tpcb.sql" <<SQL
\\set bid random(1, 1 * :scale)
\\set tid random(1, 10 * :scale)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
SQL
}
script nothing 'SELECT 1'
script set_role 'SET ROLE bob'
script setuser "SELECT setuser('bob')"
script set_user "SELECT public.set_user('bob')"

selected=0
# measure NAME SCRIPT LOAD...: with one client and with eight.
measure() {
    local name=$1 kind=$2 clients load
    shift 2
    for load; do
        for clients in 1 8; do
            run_script "${kind}_$load" -M prepared -c "$clients" -j "$clients" -T "$SECONDS_EACH"
            record "$load.$name.$clients" "$(found tps)"
            if [ "$kind" = setuser ]; then
                [ "$load" = tpcb ] ||
                    selected=$((selected + $(found 'number of transactions actually processed')))
                # What is still queued is stored now, rather than during the next measurement.
                run_psql -q -o /dev/null -c 'SELECT impersonate.audit_sync()'
            fi
        done
    done
}

# served LIBRARIES NAME...: what is measured under one server.
served() {
    local name
    start_with "$1"
    shift
    warm_up
    run_psql -q -c 'TRUNCATE pgbench_history' -c 'VACUUM pgbench_branches, pgbench_tellers'
    for name; do
        case $name in
            without | idle) measure "$name" nothing select ;;
            role | pgaudit) measure "$name" set_role select tpcb ;;
            off | commit | flush)
                run_psql -q -c "ALTER ROLE anna SET impersonate.audit_wait = '$name'"
                measure "$name" setuser select tpcb
                run_psql -q -c 'ALTER ROLE anna RESET impersonate.audit_wait'
                ;;
            set_user | both) measure "$name" set_user select tpcb ;;
        esac
    done
    stop
}
without() { served '' "$@"; }
ours() { served impersonate "$@"; }
pgaudit() { [ -z "$pgaudit" ] || served "$pgaudit" pgaudit; }
set_user() { [ -z "$set_user" ] || served "$set_user" set_user; }
both() { [ -z "$pgaudit" ] || [ -z "$set_user" ] || served "$set_user, $pgaudit" both; }

row() {
    if [ ! -f "$scratch/$2.1.values" ]; then
        printf '%-46s %9s\n' "$1" "not here"
        return
    fi
    printf '%-46s %9s %6s %10s %6s   %s\n' "$1" "$(whole "$2.1")" "$(ratio "$2.1" "$3.1")" \
        "$(whole "$2.8")" "$(ratio "$2.8" "$3.8")" "$4"
}

rows() {
    printf '%-46s %9s %6s %10s %6s   %s\n' "" "1 client" "ratio" "8 clients" "ratio" "to"
    if [ "$1" = select ]; then
        row "without the library" "$1.without" "$1.without" ""
        row "preloaded and idle" "$1.idle" "$1.without" "without"
    fi
    row "SET ROLE, no library, no audit" "$1.role" "$1.role" ""
    for wait in off commit flush; do
        row "setuser(), audit_wait = $wait" "$1.$wait" "$1.role" "SET ROLE"
    done
    row "SET ROLE, pgaudit of all classes" "$1.pgaudit" "$1.role" "SET ROLE"
    row "set_user(), which audits the switch alone" "$1.set_user" "$1.role" "SET ROLE"
    row "set_user() and pgaudit" "$1.both" "$1.role" "SET ROLE"
    [ ! -f "$scratch/$1.both.1.values" ] || row "setuser(), audit_wait = commit" "$1.commit" "$1.both" "set_user() and pgaudit"
}

tell ""
tell "$("$bindir/postgres" --version), $(date +%F)"
tell "$(nproc) cores, $(sed -nE 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)," \
    "$(awk '/^MemTotal/ { printf "%d", $2 / 1048576 + 0.5 }' /proc/meminfo) GB, load $(cut -d ' ' -f 1-3 /proc/loadavg)"

if wanted throughput; then
    # There and back, so that nothing is always first.
    for round in $(seq "$ROUNDS"); do
        start=$(clock)
        if ((round % 2)); then
            without without role
            ours idle off commit flush
            pgaudit
            set_user
            both
        else
            both
            set_user
            pgaudit
            ours flush commit off idle
            without role without
        fi
        say "  round $round of $ROUNDS ... $(since "$start")"
    done
    start_with impersonate
    stored=$(run_psql -qAt -c "SELECT count(*) FROM impersonate.audit
        WHERE event = 'STATEMENT' AND command_tag = 'SELECT' AND row_count = 1 AND statement !~ 'setuser'")
    stop
    [ "$stored" -ge "$selected" ] || die "$stored statements are on record of $selected made under setuser()"

    tell ""
    tell "pgbench select-only, prepared, scale $SCALE: tps, and ratios within a round; medians of $ROUNDS rounds of $SECONDS_EACH s each"
    rows select | note
    tell ""
    tell "pgbench TPC-B of seven statements, prepared: tps, likewise"
    rows tpcb | note
fi

# ------------------------------------------------------------------------------------------------------- the writer ---

# The table is locked, so that events pile up in the queue; then it is let go, and the time until all are stored counts.
if wanted writer; then
    printf 'impersonate.audit_queue_size = 64MB\n' >>"$cluster/data/postgresql.conf"
    start_with impersonate
    run_psql -q -c "ALTER ROLE anna SET impersonate.audit_wait = 'off'"
    cat >"$scratch/fill.sql" <<'SQL'
\if :began = 0
SELECT setuser('bob');
\sleep 2 s
\set began 1
\endif
\set aid random(1, 100000 * :scale)
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
SQL
    # The sessions impersonate before the lock, as a switch waits until it is on record.
    cat >"$scratch/fill" <<SH
"$bindir/pgbench" -n -U anna -f "$scratch/fill.sql" -D began=0 -D scale=$SCALE -M prepared -c 4 -j 2 -t 25000 \\
    >"$scratch/output" 2>&1 &
echo \$! >"$scratch/filler"
sleep 1
SH
    for _ in $(seq "$ROUNDS"); do
        run_psql -qAt -v scratch="$scratch" >"$scratch/drained" <<'SQL'
\setenv scratch :scratch
\! sh "$scratch/fill"
SELECT impersonate.audit_sync() \g /dev/null
BEGIN;
LOCK TABLE impersonate.audit IN SHARE ROW EXCLUSIVE MODE;
SELECT coalesce(max(event_id), 0) AS before FROM impersonate.audit \gset
\! while [ -d "/proc/$(cat "$scratch/filler")" ]; do sleep 0.05; done
SELECT extract(epoch FROM clock_timestamp()) AS began \gset
COMMIT;
SELECT impersonate.audit_sync() \g /dev/null
SELECT extract(epoch FROM clock_timestamp()) - :began AS took \gset
SELECT round((max(event_id) - :before) / :took) || '|' || max(event_id) - :before FROM impersonate.audit;
SQL
        ! grep -qE 'ERROR|aborted' "$scratch/output" || die "the queue was not filled" "$(cat "$scratch/output")"
        record writer "$(cut -d '|' -f 1 "$scratch/drained")"
        record writer_events "$(cut -d '|' -f 2 "$scratch/drained")"
    done
    [ "$(whole writer_events)" -ge 100000 ] || die "only $(whole writer_events) events were in the queue"
    run_psql -q -c 'ALTER ROLE anna RESET impersonate.audit_wait'
    stop
    tell ""
    tell "The writer, from a queue of $(whole writer_events) events: $(whole writer) events a second"
fi

# --------------------------------------------------------------------------------------------------------- a standby ---

# On the same machine, so that replication takes next to nothing: what is measured is the rest.
if wanted standby; then
    start_with impersonate
    run_psql -q <<'SQL'
ALTER SYSTEM SET full_page_writes = on;
CREATE ROLE shipper LOGIN;
GRANT EXECUTE ON FUNCTION impersonate.audit_receive, impersonate.report_node TO shipper;
CREATE ROLE withheld;
CREATE ROLE carl LOGIN;
GRANT "SET USER" (carl) TO anna;
CREATE TABLE public.committed (at timestamptz);
SQL
    standby=$cluster/standby
    stop_standby() {
        [ ! -f "$standby/data/postmaster.pid" ] ||
            (cd "$cluster" && as_server "$bindir/pg_ctl" -D "$standby/data" -m "$1" -w stop >/dev/null 2>&1) || true
    }
    at_exit() {
        stop_standby immediate
        cluster_remove
        rm -rf "$scratch"
    }
    (cd "$cluster" && as_server "$bindir/pg_basebackup" -D "$standby/data" -R -X stream -c fast -C -S standby --no-sync)
    as_server mkdir "$standby/socket"
    cat >>"$standby/data/postgresql.conf" <<CONF
unix_socket_directories = '$standby/socket'
cluster_name = 'standby'
impersonate.primary_conninfo = 'host=$PGHOST port=$PGPORT user=shipper'
CONF
    (cd "$standby" && as_server "$bindir/pg_ctl" -D "$standby/data" -l "$standby/log" -w -t 60 start {guard}>&- \
        >"$cluster/pg_ctl.log" 2>&1) || die "the standby did not start" "$(cat "$standby/log")"
    on_standby() { PGHOST=$standby/socket "$@"; }
    caught_up() {
        local end
        end=$(run_psql -qAt -c 'SELECT txid_current()' -c 'SELECT pg_current_wal_insert_lsn()' | tail -n 1)
        while [ "$(on_standby run_psql -qAt -c "SELECT pg_last_wal_replay_lsn() >= '$end'")" != t ]; do sleep 0.01; done
    }

    for _ in $(seq "$ROUNDS"); do
        for clients in 1 8; do
            on_standby run_script set_role_select -M prepared -c "$clients" -j "$clients" -T "$SECONDS_EACH"
            record "standby.role.$clients" "$(found tps)"
            on_standby run_script setuser_select -M prepared -c "$clients" -j "$clients" -T "$SECONDS_EACH"
            record "standby.commit.$clients" "$(found tps)"
        done
    done
    run_psql -q -c "ALTER ROLE anna SET impersonate.audit_wait = 'off'"
    caught_up
    for _ in $(seq "$ROUNDS"); do
        for clients in 1 8; do
            on_standby run_script setuser_select -M prepared -c "$clients" -j "$clients" -T "$SECONDS_EACH"
            record "standby.off.$clients" "$(found tps)"
        done
    done
    run_psql -q -c 'ALTER ROLE anna RESET impersonate.audit_wait'
    while [ "$(on_standby run_psql -qAt -c 'SELECT sum(waiting_events) FROM impersonate.audit_spool')" != 0 ]; do
        sleep 0.2
    done
    caught_up

    # From the moment before the COMMIT of a GRANT that breaks an impersonation to the end of its connection, by the
    # clock of the machine: the last thing that a backend does is to say so.
    # The session is idle, and so in the way of nothing that is replayed.
    for _ in {1..50}; do
        rm -f "$scratch/go"
        {
            echo "SELECT setuser('carl');"
            until [ -e "$scratch/go" ]; do sleep 0.05; done
            echo 'SELECT 1;'
        } | on_standby run_psql -qAt -U anna >"$scratch/acting" 2>&1 &
        while [ "$(on_standby run_psql -qAt -c 'SELECT count(*) FROM impersonate.active')" != 1 ]; do sleep 0.05; done
        run_psql -q -c 'BEGIN; GRANT withheld TO carl; INSERT INTO public.committed SELECT clock_timestamp(); COMMIT'
        sleep 0.3
        touch "$scratch/go"
        wait $! || true
        grep -q 'may no longer act' "$scratch/acting" || die "the connection was not ended" "$(cat "$scratch/acting")"
        run_psql -q -c 'REVOKE withheld FROM carl'
        caught_up
    done
    while [ "$(run_psql -qAt -c "SELECT count(*) FROM impersonate.audit
        WHERE node = 'standby' AND event = 'RESETUSER' AND detail->>'cause' = 'terminated'")" != 50 ]; do sleep 0.2; done
    window=$(run_psql -qAt -c "
        SELECT format('%s ms (median), %s ms (worst of %s)',
                      round(1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY took)::numeric, 1),
                      round(1000 * max(took)::numeric, 1), count(*))
          FROM (SELECT extract(epoch FROM min(a.event_time) - c.at)::float8 AS took
                  FROM public.committed c, impersonate.audit a
                 WHERE a.node = 'standby' AND a.event = 'RESETUSER' AND a.detail->>'cause' = 'terminated'
                   AND a.event_time > c.at
                 GROUP BY c.at) w")
    stop_standby fast
    run_psql -q -c "SELECT pg_drop_replication_slot('standby')" -o /dev/null
    stop
    tell ""
    tell "On a hot standby, pgbench select-only, prepared: tps, and ratios within a round; medians of $ROUNDS rounds"
    printf '%-46s %9s %6s %10s %6s   %s\n' "" "1 client" "ratio" "8 clients" "ratio" "to" | note
    row "SET ROLE, no audit" standby.role standby.role "" | note
    row "setuser(), audit_wait = off" standby.off standby.role "SET ROLE" | note
    row "setuser(), audit_wait = commit: a sync each" standby.commit standby.role "SET ROLE" | note
    tell "From the COMMIT on the primary to the end of the connection on the standby: $window"
fi

# ----------------------------------------------------------------------------------------------------------- switches ---

if ! wanted roles; then
    say "$(since "$begun") in all"
    exit
fi
printf 'fsync = off\n' >>"$cluster/data/postgresql.conf"
start_with impersonate
printf 'SELECT setuser(%s);\nSELECT setuser();\n' "'bob'" >"$scratch/pair_setuser.sql"
printf 'SET ROLE bob;\nRESET ROLE;\n' >"$scratch/pair_set_role.sql"
for _ in $(seq "$ROUNDS"); do
    run_script pair_set_role -T "$SECONDS_EACH"
    record pair_set_role "$(found tps)"
    run_script pair_setuser -r -T "$SECONDS_EACH"
    record pair_setuser "$(found tps)"
    record pair_begin "$(statement_ms "SELECT setuser('bob')")"
    record pair_end "$(statement_ms 'SELECT setuser()')"
done
tell ""
tell "Switch and back in one session, pairs a second (a SETUSER is on record before setuser() returns)"
printf '%-46s %9s\n' "SET ROLE + RESET ROLE" "$(whole pair_set_role)" | note
printf '%-46s %9s %6s   %s\n' "setuser('bob') + setuser()" "$(whole pair_setuser)" \
    "$(ratio pair_setuser pair_set_role)" "SET ROLE; $(median pair_begin) ms to begin, $(median pair_end) ms to end" | note

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
judged() {
    # A new connection each time: with cold caches, as a person comes along.
    for _ in {1..21}; do
        run_script judge -r -t 1
        record "$1_new" "$(statement_ms "SELECT setuser('carol')")"
    done
    for _ in {1..5}; do
        run_script judge -r -t 50
        record "$1_same" "$(statement_ms "SELECT setuser('carol')")"
    done
}
judged small
run_psql -q -c "DO \$\$ BEGIN FOR i IN 1..19000 LOOP EXECUTE format('CREATE ROLE other_%s', i); IF i % 1000 = 0 THEN COMMIT; END IF; END LOOP;
    END \$\$"
judged large

# What an impersonator is compared in: with full, each of the 10,000 tables that the target was granted is looked at.
run_psql -q <<'SQL'
CREATE ROLE dora LOGIN;
CREATE ROLE emil LOGIN;
GRANT "SET USER" (dora) TO emil;
CREATE SCHEMA granted;
SQL
for first in $(seq 1 1000 9001); do
    run_psql -q -c "DO \$\$ BEGIN FOR i IN $first..$((first + 999)) LOOP
        EXECUTE format('CREATE TABLE granted.t%s (a int)', i);
        EXECUTE format('GRANT SELECT, INSERT ON granted.t%s TO dora, emil', i);
    END LOOP; END \$\$"
done
run_psql -q -c 'VACUUM ANALYZE'
printf 'SELECT setuser(%s);\nSELECT setuser();\n' "'dora'" >"$scratch/compared.sql"
compared() {
    run_psql -q -c "ALTER ROLE emil SET impersonate.criteria = $1"
    for _ in {1..11}; do
        run_script compared -U emil -r -t 1
        record "$1_new" "$(statement_ms "SELECT setuser('dora')")"
    done
    for _ in {1..5}; do
        run_script compared -U emil -r -t 50
        record "$1_same" "$(statement_ms "SELECT setuser('dora')")"
    done
}
compared roles
compared full
stop
tell ""
tell "setuser() to a target of 1,000 roles, five levels deep, in ms (medians)"
printf '%-46s %9s %6s %10s %6s   %s\n' "" "new" "ratio" "same" "ratio" "session" | note
printf '%-46s %9.1f %6s %10.1f\n' "1,000 roles in the cluster" "$(median small_new)" "" "$(median small_same)" | note
printf '%-46s %9.1f %6s %10.1f %6s\n' "20,000 roles in the cluster" \
    "$(median large_new)" "$(ratio large_new small_new)" "$(median large_same)" "$(ratio large_same small_same)" | note

# ------------------------------------------------------------------------------------------------------ role changes ---

# Each of 500 impersonates a role of its own, so that nothing is judged once for several.
printf 'GRANT spare TO nobody;\nREVOKE spare FROM nobody;\n' >"$scratch/change.sql"
printf 'SELECT %s || :client_id AS name \\gset\nSELECT setuser(:name);\n\\sleep 2000 s\n' "'acted_'" >"$scratch/hold.sql"
start_with ''
run_psql -q <<'SQL'
CREATE ROLE spare; CREATE ROLE nobody; CREATE ROLE group_of_all;
DO $$
BEGIN
    FOR i IN 0..499 LOOP EXECUTE format('CREATE ROLE acted_%s LOGIN IN ROLE group_of_all', i); END LOOP;
END
$$;
CREATE ROLE clerk LOGIN IN ROLE group_of_all;
SQL
# changed NAME: milliseconds of a GRANT by nobody to nobody who is concerned.
changed() {
    run_script change -U "$PGUSER" -r -t 200
    record "$1" "$(statement_ms "GRANT spare")"
}
for _ in {1..5}; do changed change_without; done
stop
start_with impersonate
run_psql -q -c 'GRANT "SET USER" TO clerk'
for _ in {1..5}; do changed change_0; done
for sessions in 100 500; do
    "$bindir/pgbench" -n -M extended -U clerk -f "$scratch/hold.sql" -c "$sessions" -j 1 -T 3600 >"$scratch/hold.log" 2>&1 &
    holder=$!
    for _ in {1..600}; do
        [ "$(run_psql -Atc 'SELECT count(*) FROM impersonate.active')" -eq "$sessions" ] && break
        sleep 0.1
    done
    held=$(run_psql -Atc 'SELECT count(*) FROM impersonate.active')
    [ "$held" -eq "$sessions" ] || die "only $held of $sessions impersonations came about" "$(tail -5 "$scratch/hold.log")"
    for _ in {1..5}; do changed "change_$sessions"; done
    kill "$holder"
    wait "$holder" 2>/dev/null || true
    for _ in {1..600}; do
        [ "$(run_psql -Atc 'SELECT count(*) FROM impersonate.active')" -eq 0 ] && break
        sleep 0.1
    done
done
stop
tell ""
tell "GRANT of a role to one who is not concerned, in ms (medians)"
printf '%-46s %9s %6s\n' "" "GRANT" "ratio" | note
printf '%-46s %9.2f\n' "without the library" "$(median change_without)" | note
printf '%-46s %9.2f %6s\n' "nobody impersonates" "$(median change_0)" "$(ratio change_0 change_without)" | note
for sessions in 100 500; do
    printf '%-46s %9.2f %6s\n' "$sessions impersonations of as many roles" \
        "$(median "change_$sessions")" "$(ratio "change_$sessions" change_0)" | note
done
tell ""
tell "setuser() to a target that was granted 10,000 tables, in ms (medians)"
printf '%-46s %9s %6s %10s %6s   %s\n' "" "new" "ratio" "same" "ratio" "session" | note
printf '%-46s %9.1f %6s %10.1f\n' "impersonate.criteria = roles" "$(median roles_new)" "" "$(median roles_same)" | note
printf '%-46s %9.1f %6s %10.1f %6s\n' "impersonate.criteria = full" \
    "$(median full_new)" "$(ratio full_new roles_new)" "$(median full_same)" "$(ratio full_same roles_same)" | note
say ""
# bars LOAD WORDS: one load with eight clients, for the chart.
bars() {
    local name label
    for name in off commit flush pgaudit both; do
        [ -f "$scratch/$1.$name.8.values" ] || continue
        case $name in
            pgaudit) label="SET ROLE, pgaudit of all classes" ;;
            both) label="set_user() and pgaudit" ;;
            *) label="setuser(), audit_wait = $name" ;;
        esac
        printf '%s|%s|%s|%s\n' "$2" "$label" "$(ratio "$1.$name.8" "$1.role.8")" "$([[ $name == p* || $name == b* ]] || echo 1)"
    done
}
if [ "$PARTS" = "$all_parts" ]; then
    {
        bars select "select-only"
        bars tpcb "TPC-B"
    } | bench/chart.sh "Of the rate under SET ROLE without any audit, pgbench with 8 clients" >bench/results.svg
    {
        printf '# What it costs: figures\n\nWritten by `make bench`. README.md says what they mean.\n\n![chart](results.svg)\n\n```text'
        cat "$scratch/report"
        printf '```\n'
    } >bench/RESULTS.md
    say "bench/RESULTS.md and bench/results.svg are written"
else
    say "bench/RESULTS.md stays as it is: not all was measured"
fi
say "$(since "$begun") in all"
