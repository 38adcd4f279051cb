#!/usr/bin/env bash
# check-majors.sh [--all]: check.sh on every supported major: all of it on the default one, and on each other what may
# differ there; with --all, all of it on each. The last line is "N passed, N failed" over all of them.
#
# Where PG, TEST_PG_CONFIG, STAGE or TESTS ask for something in particular, check.sh does that alone.
#
# A major whose packages cannot be fetched is not tested. That is said at the end, and is a failure with --all.
set -euo pipefail
asked=${PG:-}${TEST_PG_CONFIG:-}${STAGE:-}${TESTS:-}
. "$(dirname "$0")/lib.sh"
cd "$root"

# What is run on the majors that are not the default one. Chosen for what a version may change, and so that all of it
# stays below half an hour on two cores.
OTHER_STAGES="regress isolation server"
OTHER_TESTS="attacks capture crash criteria_full doors intersection lasting mapping membership projects psql start_up
switch upgrade versions"

all=no
[ "${1:-}" != --all ] || all=yes
if [ "$all" = no ] && [ -n "$asked" ]; then
    exec scripts/check.sh
fi

passed=0
failed=0
summary=()
missing=
begun=$(clock)
scratch=$(mktemp -d)

# check MAJOR: its own last line is kept for the sum, as no other line may be like ours.
check() {
    local log=$scratch/log good bad status=0 start
    start=$(clock)
    say "PostgreSQL $1 ----------------------------------------------------------------------------"
    if ! PG=$1 scripts/setup.sh >"$log" 2>&1; then
        sed 's/^/    | /' "$log"
        missing+=" $1"
        return
    fi
    PG=$1 scripts/check.sh 2>&1 | tee "$log" | sed -u -E '/^[0-9]+ passed, [0-9]+ failed$/d' || status=$?
    read -r good bad < <(sed -nE 's/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$log" | tail -1) || true
    if [ -z "${bad:-}" ]; then
        summary+=("PostgreSQL $1: it ended before it could count, see above")
        failed=$((failed + 1))
        return
    fi
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
        bad=1
    fi
    summary+=("PostgreSQL $1: $good ok, $bad not ok, $(since "$start")")
    passed=$((passed + good))
    failed=$((failed + bad))
}

for major in $MAJORS; do
    # From the default one, which has the extension by now, by pg_upgrade to each later one.
    older=$(PG=$PG TEST_PG_CONFIG='' test_pg_config)
    older=${older%/pg_config}
    export IMPERSONATE_OLDER=
    [ "$major" -le "$PG" ] || [ ! -x "$older/postgres" ] || IMPERSONATE_OLDER=$older
    if [ "$major" = "$PG" ] || [ "$all" = yes ]; then
        check "$major"
    else
        STAGE=$OTHER_STAGES TESTS=$OTHER_TESTS check "$major"
    fi
done

printf '%s\n' "${summary[@]}"
if [ -n "$missing" ]; then
    say "!!! NOT TESTED, as the packages could not be fetched (see above): PostgreSQL$missing"
    if [ "$all" = yes ] || [[ " $missing " == *" $PG "* ]]; then
        failed=$((failed + $(wc -w <<<"$missing")))
    fi
fi
say "All of it, $(since "$begun")"
say "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
