#!/usr/bin/env bash
# check.sh: every test and lint, fast ones first. The last line is "N passed, N failed", and no other line is like it.
#
# STAGE="lint policy regress isolation server clients"  only these
# FEATURES=test-entries                         cargo features on top, in the library that is tested
# TESTS="attacks crash"                         of the server tests, only these programs
# PROFILE=release                               the library as it is released; otherwise without optimisation
# IMPERSONATE_OLDER=FOLDER                      programs of an older server with the extension, to come from by pg_upgrade
# ACCEPT=1                                      golden files: what comes out becomes what is expected
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"

STAGE=${STAGE:-lint policy regress isolation server clients}
# The tests force what cannot happen otherwise; a release has no entry for it.
FEATURES=${FEATURES:-test-entries}
# What hangs is stopped: one golden file or isolation spec, and the whole of the server tests.
FILE_LIMIT=120
SERVER_LIMIT=1800

# Tests of what postgres_fdw and dblink do.
NEED_CONTRIB=(
    l5_a_foreign_server_is_not_written_before_the_row_is_on_disk
    l5_functions_that_act_outside_of_the_transaction_wait_before_they_do
    l5_a_function_that_was_looked_up_before_waits_as_well
)

passed=0
failed=0
failures=()

# --------------------------------------------------------------------------------------------------------- reporting ---

# begin STAGE WORDS
begin() {
    stage=$1
    stage_start=$(clock)
    stage_ok=0
    stage_bad=0
    stage_left_out=0
    stage_untried=0
    stage_note=
    say "$stage: $2"
}

ok() { stage_ok=$((stage_ok + ${1:-1})); }

# show FILE: what a runner said, without the progress of a good build and what went well. Indented, so that no line of
# it passes for ours.
show() {
    local lines=400
    sed -E '/^ +(Compiling|Checking|Downloading|Downloaded|Documenting|Running|Finished|Updating|Locking) /d
        /^test .* \.\.\. ok$/d' "$1" |
        awk -v lines=$lines 'NR <= lines { print "    | " $0 } END { if (NR > lines) print "    | ... " NR - lines " more lines" }'
}

# bad NAME [COUNT [FILE]]
bad() {
    stage_bad=$((stage_bad + ${2:-1}))
    failures+=("$stage: $1")
    say "  not ok: $1"
    if [ -n "${3:-}" ]; then
        show "$3"
    fi
}

finish() {
    if [ $((stage_ok + stage_bad)) -eq 0 ]; then
        bad "not a single test was run"
    fi
    [ "$stage_left_out" -eq 0 ] || stage_note=", $stage_left_out left out$stage_note"
    say "  $stage_ok ok, $stage_bad not ok$stage_note, $(since "$stage_start")"
    passed=$((passed + stage_ok))
    failed=$((failed + stage_bad))
}

# one NAME COMMAND...: a check that is good or bad as a whole.
one() {
    local name=$1 start
    shift
    start=$(clock)
    if "$@" >"$logs/log" 2>&1; then
        ok
        say "  $name, $(since "$start")"
    else
        bad "$name" 1 "$logs/log"
    fi
}

# cargo_tests SECONDS ARGUMENTS...: cargo's own counts, summed up over its programs.
cargo_tests() {
    local limit=$1 log=$logs/$stage.log status=0 good bad left_out untried n='([0-9]+)' argument build=()
    shift
    # Compiling is not what the limit is for.
    for argument; do
        [ "$argument" != -- ] || break
        build+=("$argument")
    done
    if ! cargo test --no-run "${build[@]}" >"$log" 2>&1; then
        bad "cargo test does not compile" 1 "$log"
        return
    fi
    timeout --foreground --kill-after=10 "$limit" cargo test --no-fail-fast "$@" >"$log" 2>&1 || status=$?
    read -r good bad left_out < <(sed -nE "s/^test result: .* $n passed; $n failed; $n ignored; .* $n filtered out;.*/\
\1 \2 \3 \4/p" "$log" |
        awk '{ good += $1; bad += $2; left_out += $3 + $4 } END { print good + 0, bad + 0, left_out + 0 }')
    # A test that could not try its subject here has passed for cargo, and says so.
    untried=$(grep -c '^left out: ' "$log" || true)
    ok $((good - untried))
    stage_left_out=$((stage_left_out + left_out + untried))
    stage_untried=$((stage_untried + untried))
    sed -n 's/^left out: /  left out: /p' "$log"
    if [ "$bad" -gt 0 ]; then
        stage_bad=$((stage_bad + bad))
        mapfile -t -O ${#failures[@]} failures < <(sed -nE "s/^test (.*) \.\.\. FAILED$/$stage: \1/p" "$log")
        show "$log"
    elif [ "$status" -eq 124 ]; then
        bad "nothing came for $limit seconds" 1 "$log"
    elif [ "$status" -ne 0 ]; then
        bad "cargo test" 1 "$log"
    fi
}

# ------------------------------------------------------------------------------------------------------------ stages ---

stage_lint() {
    local features=(--no-default-features --features "impersonate/pg$major")
    begin lint "rustfmt, clippy and the documentation, warnings as errors"
    one "cargo fmt" cargo fmt --all --check -- --color never
    one "cargo clippy" clippy
    CARGO_TARGET_DIR=$library_target RUSTDOCFLAGS='-D warnings' \
        one "cargo doc" cargo doc --workspace --no-deps "${features[@]}"
    finish
}

clippy() {
    local -x CARGO_TARGET_DIR=$library_target
    cargo clippy --workspace --all-targets "${features[@]}" -- -D warnings || return
    # What only the attack tests call is not to rot.
    cargo clippy --package impersonate --no-default-features --features "pg$major,test-entries" -- -D warnings
}

stage_policy() {
    begin policy "the pure core, the report's page, and what else needs no server"
    cargo_tests 600 --package impersonate-policy --package impersonate-report
    CARGO_TARGET_DIR=$library_target cargo_tests 600 --package impersonate --lib --no-default-features --features "pg$major"
    finish
}

# The library is built and installed once, before the first stage that loads it.
installed=
install_library() {
    local start
    [ -z "$installed" ] || return 0
    start=$(clock)
    local flags=(--pg-config "$pg_config" --features "$FEATURES")
    [ "${PROFILE:-dev}" = release ] || flags+=(--dev)
    if scripts/install.sh "${flags[@]}" >"$logs/install.log" 2>&1; then
        installed=yes
        # Clippy sees the default major alone.
        if grep -q '^warning' "$logs/install.log"; then
            bad "the compiler warns" 1 "$logs/install.log"
        fi
        say "  built and installed${FEATURES:+ with $FEATURES}, $(since "$start")"
    else
        bad "build and install" 1 "$logs/install.log"
        return 1
    fi
}

stage_regress() {
    begin regress "golden files, each in a database of its own, and the documents"
    golden_files tests/pg_regress sql sql regress/pg_regress
    documents
    finish
}

# The SQL of the documents, with what comes out: each document in a server of its own.
documents() {
    local file log=$logs/documents.log status
    local cargo=(cargo run --quiet --package impersonate-server-tests --bin documents --)
    install_library || return 0
    # Compiling is not what the limit is for.
    if ! cargo build --quiet --package impersonate-server-tests --bin documents >"$log" 2>&1; then
        bad "the program that runs the documents" 1 "$log"
        return 0
    fi
    for file in README.md docs/*.md; do
        status=0
        timeout --foreground --kill-after=5 $FILE_LIMIT "${cargo[@]}" "$file" >"$log" 2>&1 || status=$?
        if [ "$status" -eq 0 ]; then
            ok
        elif [ "$status" -ge 124 ]; then
            bad "$file: not done after $FILE_LIMIT seconds" 1 "$log"
        else
            bad "$file" 1 "$log"
        fi
    done
    one "links of the documents" "${cargo[@]}" --links ./*.md docs/*.md
}

stage_isolation() {
    begin isolation "several sessions at once, step by step"
    golden_files tests/isolation specs spec isolation/pg_isolation_regress
    finish
}

# golden_files FOLDER SUBFOLDER SUFFIX RUNNER
golden_files() {
    local folder=$1 file name out runner=$pgxs_tests/$4 files=()
    mapfile -t files < <(compgen -G "$folder/$2/*.$3" | sort)
    [ ${#files[@]} -gt 0 ] || return 0
    install_library || return 0
    # A file of settings beside the tests is optional.
    if ! { cluster_create "$(compgen -G "$folder/cluster.conf")" && cluster_start; } >"$logs/start.log" 2>&1; then
        bad "start of the cluster" 1 "$logs/start.log"
        cluster_remove
        return 0
    fi
    for file in "${files[@]}"; do
        name=$(basename "$file" ".$3")
        out=$logs/$stage/$name
        mkdir -p "$out/expected"
        one_golden_file
        clean_cluster
    done
    cluster_remove
}

one_golden_file() {
    local log=$out/runner.log status=0 crashes accepted
    # pg_regress makes the database. Through its own folder for output, so that two runs do not meet.
    PGISOLATIONTIMEOUT=$((FILE_LIMIT / 2)) timeout --foreground --kill-after=5 $FILE_LIMIT \
        "$runner" --bindir="$bindir" --host="$PGHOST" --port="$PGPORT" --user="$PGUSER" --dbname="${stage}_$name" \
        --load-extension=impersonate --inputdir="$folder" --outputdir="$out" "$name" >"$log" 2>&1 || status=$?
    if [ "$status" -eq 0 ]; then
        ok
    elif [ "$status" -ge 124 ]; then
        bad "$name: not done after $FILE_LIMIT seconds" 1 "$out/results/$name.out"
    elif [ "${ACCEPT:-}" = 1 ] && [ -s "$out/results/$name.out" ]; then
        # Where Postgres itself says or does something else from 16 on, there are two files: either is right.
        accepted=$folder/expected/$name$([ "$major" -eq 15 ] || printf _1).out
        cp "$out/results/$name.out" "$accepted"
        say "  accepted: $accepted"
        ok
    else
        if [ -s "$out/results/$name.out" ] && [ ! -e "$folder/expected/$name.out" ]; then
            bad "$name: there is no $folder/expected/$name.out; with ACCEPT=1 this becomes it" 1 "$out/results/$name.out"
        elif [ -s "$out/regression.diffs" ]; then
            bad "$name" 1 "$out/regression.diffs"
        else
            bad "$name" 1 "$log"
        fi
    fi
    crashes=$(grep -E 'was terminated by signal|PANIC:|TRAP:' "$cluster/log" || true)
    if [ -n "$crashes" ]; then
        printf '%s\n' "$crashes" >"$log"
        bad "$name: a crash of the server" 1 "$log"
        : >"$cluster/log"
    fi
}

# Nothing that one file made is there for the next: databases, roles, settings of the cluster.
clean_cluster() {
    local _
    # After a crash the server may still be recovering.
    for _ in {1..100}; do
        run_psql -qAt -c 'SELECT 1' >/dev/null 2>&1 && break
        sleep 0.1
    done
    run_psql -qAt -v ON_ERROR_STOP=1 >"$out/clean.log" 2>&1 <<'SQL' || bad "$name: could not be cleaned up after" 1 "$out/clean.log"
SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database
    WHERE datname NOT IN ('postgres', 'template0', 'template1') \gexec
SELECT format('DROP OWNED BY %I CASCADE', rolname) FROM pg_roles
    WHERE rolname <> current_user AND rolname !~ '^pg_' \gexec
SELECT 'DROP ROLE ' || string_agg(quote_ident(rolname), ', ') FROM pg_roles
    WHERE rolname <> current_user AND rolname !~ '^pg_' HAVING count(*) > 0 \gexec
ALTER SYSTEM RESET ALL;
SELECT pg_reload_conf();
SQL
}

stage_server() {
    local test only=() without=() all
    for test in ${TESTS:-}; do only+=(--test "$test"); done
    all=$(find tests/server/tests -maxdepth 1 -name '*.rs' | wc -l)
    begin server "servers that are started, stopped and killed$([ ${#only[@]} -eq 0 ] ||
        printf ': %d programs of %d' $((${#only[@]} / 2)) "$all")"
    # Where they cannot be had, their tests fail and say so.
    [ ${#only[@]} -gt 0 ] || scripts/fetch-tools.sh pgbouncer sqlsmith chromium-headless-shell || true
    # A small disk of a test's own, to be filled up.
    have mount || (step "installing mount" apt_install mount) || true
    if install_library; then
        # What only another extension can do cannot be tried where the server came without it.
        if [ ! -f "$("$pg_config" --sharedir)/extension/dblink.control" ]; then
            for test in "${NEED_CONTRIB[@]}"; do without+=(--skip "$test"); done
        fi
        IMPERSONATE_FEATURES=$FEATURES cargo_tests $SERVER_LIMIT --package impersonate-server-tests "${only[@]}" \
            -- "${without[@]}" ${IMPERSONATE_OLDER:+--include-ignored}
        # Only where the programs that have them are among those that are run.
        [ ${#without[@]} -eq 0 ] || [ "$stage_left_out" -eq "$stage_untried" ] ||
            stage_note+=" (this server has neither postgres_fdw nor dblink)"
    fi
    finish
}

stage_clients() {
    local log=$logs/clients.log counts line
    begin clients "real clients, each by every door that it can reach"
    if install_library; then
        scripts/check-clients.sh >"$log" 2>&1 || true
        counts=$(sed -nE 's/^([0-9]+) ok, ([0-9]+) not ok$/\1 \2/p' "$log")
        if [ -n "$counts" ]; then
            ok "${counts% *}"
            while IFS= read -r line; do bad "${line#not ok }"; done < <(grep '^not ok ' "$log")
        else
            bad "check-clients.sh did not get to its end" 1 "$log"
        fi
    fi
    finish
}

# --------------------------------------------------------------------------------------------------------------- run ---

for stage in $STAGE; do
    case $stage in
        lint | policy | regress | isolation | server | clients) ;;
        *) die "there is no stage $stage" "stages: lint policy regress isolation server clients" ;;
    esac
done

begun=$(clock)
scripts/setup.sh
use_postgres
major=$(major_of "$pg_config")
export PGRX_PG_CONFIG_PATH=$pg_config
export CARGO_TERM_COLOR=never
# What is compiled of the extension is, with what it depends on, where the library is built; the rest is in cargo's own.
library_target=$(target_folder "$major" "$FEATURES")
scratch=$(mktemp -d)
logs=$scratch

for stage in $STAGE; do
    "stage_$stage"
done

if [ "$failed" -gt 0 ]; then
    say "Not ok:"
    printf '  %s\n' "${failures[@]}"
fi
say "PostgreSQL $major, $(since "$begun")"
say "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
