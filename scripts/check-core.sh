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
        cc -O1 -fPIC -shared -w "${flags[@]}" -I"$("$pg_config" --includedir-server)" \
            -o "$scratch/lib/${name##*/}.so" "$CORE_SOURCE/$name.c"
    done
}

# The suite, expecting what the patches say.
copy_suite() {
    local patch name
    for name in sql expected data parallel_schedule resultmap; do
        cp -R "$CORE_SOURCE/src/test/regress/$name" "$scratch/suite/"
    done
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

# run NAME WORDS: one run of the suite, on a cluster of its own, with the settings on standard input.
run() {
    local name=$1 words=$2 out=$scratch/$1 status=0 start
    start=$(clock)
    mkdir "$out"
    { cat; echo 'max_prepared_transactions = 2'; } >"$out/settings"
    cluster_create "$out/settings"
    cluster_start
    [ ! -f "$scratch/$name.sql" ] || run_psql -q -d template1 -f "$scratch/$name.sql"
    chmod 755 "$scratch"
    [ "$(id -u)" -ne 0 ] || chown -R "$(id -u "$account")" "$out"
    # It writes its answers, and its server reads and writes files beside them.
    as_server "$pgxs_tests/regress/pg_regress" --bindir="$bindir" --host="$PGHOST" --port="$PGPORT" --user="$PGUSER" \
        --dbname=regression --inputdir="$scratch/suite" --outputdir="$out" --dlpath="$scratch/lib" \
        --max-concurrent-tests=20 --schedule="$scratch/suite/parallel_schedule" >"$out/said" 2>&1 || status=$?
    say "  $words: $(sed -nE 's/^ *((All )?[0-9]+ (of [0-9]+ )?tests (passed|failed)).*/\1/p' "$out/said"), $(since "$start")"
    if [ "$status" -ne 0 ]; then
        failed=1
        grep -E 'FAILED|failed' "$out/said" | sed 's/^ */    /' || tail -20 "$out/said"
        [ ! -s "$out/regression.diffs" ] || sed 's/^/    | /' "$out/regression.diffs" | head -400
    fi
    if grep -E 'was terminated by signal|PANIC:|TRAP:' "$cluster/log"; then
        failed=1
        say "  the server crashed"
    fi
    [ -z "${RESULTS:-}" ] || { mkdir -p "$RESULTS" && cp -R "$out" "$cluster/log" "$RESULTS/"; }
    cluster_remove
}

scripts/setup.sh
use_postgres
export PGRX_PG_CONFIG_PATH=$pg_config
[ -n "$CORE_SOURCE" ] || CORE_SOURCE=$(scripts/fetch-core.sh)
scratch=$(mktemp -d)
mkdir "$scratch/lib" "$scratch/suite"

say "core: the regression suite$(sed 's/^/ of /' "$CORE_SOURCE/version" 2>/dev/null) on $("$pg_config" --version)"
step "building and installing" install_library
step "building the suite's modules" build_modules
step "applying tests/core" copy_suite

run preloaded "preloaded, in no database" <<<''
# Everything passes through the audit.
echo 'CREATE EXTENSION impersonate' >"$scratch/recorded.sql"
run recorded "in every database, every statement recorded" <<<'impersonate.audit_statements = all'

say "$(since "$begun")"
exit "$failed"
