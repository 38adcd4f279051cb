#!/usr/bin/env bash
# check-all.sh: check.sh on every supported major: all of it on the default one, and on each other what may differ there.
# The last line is "N passed, N failed" over all of them. A major that cannot be had counts as a failure.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"

# What is run on the majors that are not the default one; make check PG=17 runs everything there.
OTHER_STAGES="regress isolation server"
OTHER_TESTS="attacks crash switch membership versions"

passed=0
failed=0
summary=()
begun=$(clock)
scratch=$(mktemp -d)

# check MAJOR: its own last line is kept for the sum, as no other line may be like ours.
check() {
    local log=$scratch/log good bad status=0
    say "PostgreSQL $1 ----------------------------------------------------------------------------"
    PG=$1 scripts/check.sh 2>&1 | tee "$log" | sed -u -E '/^[0-9]+ passed, [0-9]+ failed$/d' || status=$?
    read -r good bad < <(sed -nE 's/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$log" | tail -1) || true
    if [ -z "${bad:-}" ]; then
        # It ended before it could count: no such server, for one.
        summary+=("PostgreSQL $1: could not be tested, see above")
        failed=$((failed + 1))
        return
    fi
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then
        bad=1
    fi
    summary+=("PostgreSQL $1: $good ok, $bad not ok")
    passed=$((passed + good))
    failed=$((failed + bad))
}

for major in $MAJORS; do
    if [ "$major" = "$PG" ]; then
        check "$major"
    else
        STAGE=$OTHER_STAGES TESTS=$OTHER_TESTS check "$major"
    fi
done

printf '%s\n' "${summary[@]}"
say "All of them, $(since "$begun")"
say "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
