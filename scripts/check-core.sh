#!/usr/bin/env bash
# check-core.sh: Postgres' own regression suite with the extension preloaded. What it may change in the answers is in
# tests/core, each change a patch of what the suite expects, with its reason on top.
#
# TEST_PG_CONFIG=...  a server to use instead of the private one; the extension goes into it
# CORE_SOURCE=...     a source tree of the same version; otherwise it is fetched
# RESULTS=...         a folder to keep the suite's answers in
# FEATURES=..., PROFILE=release  as for check.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$root"

FEATURES=${FEATURES:-}
CORE_SOURCE=${CORE_SOURCE:-}
begun=$(clock)
failed=0

# The suite's own library, and the modules of contrib that it loads. It looks for all of them in one folder.
build_modules() {
    local flags name
    read -r -a flags <<<"$("$pg_config" --cppflags)"
    for name in src/test/regress/regress contrib/spi/refint contrib/spi/autoinc; do
        # As contrib's own Makefile has it, for the suite.
        cc -O1 -fPIC -shared -w -DREFINT_VERBOSE "${flags[@]}" -I"$("$pg_config" --includedir-server)" \
            -o "$scratch/lib/${name##*/}.so" "$CORE_SOURCE/$name.c"
    done
}

copy_suite() {
    local name
    for name in sql expected data parallel_schedule resultmap; do
        cp -R "$CORE_SOURCE/src/test/regress/$name" "$scratch/suite/"
    done
}

# Then the suite expects what the patches say.
apply_patches() {
    local patch
    cd "$scratch/suite"
    for patch in "$root"/tests/core/*.patch; do
        [ -e "$patch" ] || continue
        # Not as a part of whatever repository may be around.
        GIT_CEILING_DIRECTORIES=$scratch git apply --whitespace=nowarn "$patch" ||
            die "${patch##*/} does not fit the suite of this version"
    done
}

install_library() {
    local flags=(--pg-config "$pg_config" --features "$FEATURES")
    [ "${PROFILE:-dev}" = release ] || flags+=(--dev)
    scripts/install.sh "${flags[@]}"
}

# suite NAME: one run on a cluster of its own, with the settings on standard input. Answers are in $scratch/NAME.
suite() {
    local name=$1 out=$scratch/$1 status=0
    mkdir "$out"
    { cat; echo 'max_prepared_transactions = 2'; } >"$out/settings"
    # The caller goes by the suite's own outcome.
    { cluster_create "$out/settings" && cluster_start; } || die "the cluster did not start"
    [ ! -f "$scratch/$name.sql" ] || run_psql -q -d template1 -f "$scratch/$name.sql"
    chmod 755 "$scratch"
    [ "$(id -u)" -ne 0 ] || chown -R "$(id -u "$account")" "$out"
    # It writes its answers, and its server reads and writes files beside them.
    as_server "$pgxs_tests/regress/pg_regress" --bindir="$bindir" --host="$PGHOST" --port="$PGPORT" --user="$PGUSER" \
        --dbname=regression --inputdir="$scratch/suite" --outputdir="$out" --dlpath="$scratch/lib" \
        --max-concurrent-tests=20 --schedule="$scratch/suite/parallel_schedule" >"$out/said" 2>&1 || status=$?
    cp "$cluster/log" "$out/log"
    cluster_remove
    return "$status"
}

# A suite of another version knows some answers that have changed since. Those that the server gives without the
# extension take their place.
learn_answers() {
    local name
    suite without <<<"shared_preload_libraries = ''" && return
    while read -r name; do
        rm -f "$scratch/suite/expected/$name"_[0-9].out
        cp "$scratch/without/results/$name.out" "$scratch/suite/expected/"
        say "  $name differs without the extension as well"
    done < <(sed -nE 's/^(test)? *([a-z0-9_]+) +\.\.\. FAILED.*/\2/p' "$scratch/without/said")
}

# run NAME WORDS: a run that counts.
run() {
    local out=$scratch/$1 words=$2 start
    start=$(clock)
    if suite "$1"; then
        say "  $words: $(answer), $(since "$start")"
    else
        failed=1
        say "  $words: $(answer), $(since "$start")"
        grep -F 'FAILED' "$out/said" | sed 's/^ */    /' || tail -20 "$out/said"
        [ ! -s "$out/regression.diffs" ] || sed 's/^/    | /' "$out/regression.diffs" | head -400
    fi
    if grep -E 'was terminated by signal|PANIC:|TRAP:' "$out/log"; then
        failed=1
        say "  the server crashed"
    fi
}

answer() { sed -nE 's/^ *((All )?[0-9]+ (of [0-9]+ )?tests (passed|failed)).*/\1/p' "$out/said"; }

scripts/setup.sh
use_postgres
export PGRX_PG_CONFIG_PATH=$pg_config
[ -n "$CORE_SOURCE" ] || CORE_SOURCE=$(scripts/fetch-core.sh)
scratch=$(mktemp -d)
mkdir "$scratch/lib" "$scratch/suite"

say "core: the regression suite$(sed 's/^/ of /' "$CORE_SOURCE/version" 2>/dev/null) on $("$pg_config" --version)"
step "building and installing" install_library
step "building the suite's modules" build_modules
step "copying the suite" copy_suite
if ! "$pg_config" --version | grep -qwF "$(cat "$CORE_SOURCE/version" 2>/dev/null || "$pg_config" --version)"; then
    learn_answers
fi
step "applying tests/core" apply_patches

run preloaded "preloaded, in no database" <<<''
# Everything passes through the audit.
echo 'CREATE EXTENSION impersonate' >"$scratch/recorded.sql"
run recorded "in every database, every statement recorded" <<<'impersonate.audit_statements = all'

if [ -n "${RESULTS:-}" ]; then
    mkdir -p "$RESULTS"
    cp -R "$scratch"/. "$RESULTS/"
fi
say "$(since "$begun")"
exit "$failed"
