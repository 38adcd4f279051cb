#!/usr/bin/env bash
# install.sh [--pg-config PATH] [--dev] [--features LIST] [--no-build | --build-only | --uninstall]
#
# Builds the extension for the Postgres of PATH (default: the pg_config in the PATH) and installs it there: the
# library, the control file and the SQL. DESTDIR is put before the server's folders, for packagers. Each major, and each
# list of features, is built in a folder of its own: --no-build never takes what was built for another.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

pg_config=pg_config
profile=release
features=
build=yes
install=yes
uninstall=no
while [ $# -gt 0 ]; do
    case $1 in
        --pg-config) pg_config=$2; shift ;;
        --dev) profile=dev ;;
        --features) features=$2; shift ;;
        --no-build) build=no ;;
        --build-only) install=no ;;
        --uninstall) uninstall=yes ;;
        *) die "unknown argument: $1" ;;
    esac
    shift
done

found=$(command -v "$pg_config") || die "there is no $pg_config" \
    "name the server to install into: make install PG_CONFIG=/path/to/pg_config"
pg_config=$(cd "$(dirname "$found")" && pwd)/${found##*/}
major=$(major_of "$pg_config")
case $major in
    15 | 16 | 17 | 18) ;;
    *) die "PostgreSQL $major is not supported (of $pg_config); 15, 16, 17 and 18 are" ;;
esac
library_dir=${DESTDIR:-}$("$pg_config" --pkglibdir)
extension_dir=${DESTDIR:-}$("$pg_config" --sharedir)/extension

cd "$root"

if [ "$uninstall" = yes ]; then
    rm -f "$library_dir/impersonate.so" "$extension_dir/impersonate.control" "$extension_dir"/impersonate--*.sql
    say "removed impersonate from $library_dir and $extension_dir"
    exit
fi

# --------------------------------------------------------------------------------------------------- before building ---

# Asked first, as the build takes a while.
writable() {
    local dir=$1
    while [ ! -e "$dir" ]; do dir=$(dirname "$dir"); done
    [ -w "$dir" ]
}
for dir in "$library_dir" "$extension_dir"; do
    [ "$install" = no ] || writable "$dir" || die "you may not write to $dir" \
        "build as yourself and copy as root (root rarely finds your cargo):" \
        "  make build PG_CONFIG=$pg_config" \
        "  sudo scripts/install.sh --no-build --pg-config $pg_config"
done

# --------------------------------------------------------------------------------------------------------------- build ---

library=$(built_library "$major" "$profile" "$features")
if [ "$build" = yes ]; then
    have cargo || die "Rust is missing; scripts/setup.sh says how to get it" \
        "if it is another user's: build as that user (make build PG_CONFIG=$pg_config), then scripts/install.sh --no-build"
    headers=$("$pg_config" --includedir-server)
    [ -f "$headers/postgres.h" ] || die "the server headers of PostgreSQL $major are missing from $headers" \
        "on Debian and Ubuntu: apt-get install postgresql-server-dev-$major"
    flags=(--package impersonate --lib --no-default-features --features "pg$major${features:+,$features}")
    [ "$profile" = dev ] || flags+=(--release)
    CARGO_TARGET_DIR=$(target_folder "$major" "$features") PGRX_PG_CONFIG_PATH=$pg_config cargo build "${flags[@]}"
fi
[ -f "$library" ] || die "nothing is built for PostgreSQL $major${features:+ with $features}: there is no $library" \
    "run: make build PG_CONFIG=$pg_config"
if [ "$install" = no ]; then
    say "built $library"
    exit
fi

# ------------------------------------------------------------------------------------------------------------- install ---

# By rename: writing into a library that a running server has mapped would crash that server.
put() {
    local from=$1 to=$2
    install -m 644 "$from" "$to.new.$$"
    mv -f "$to.new.$$" "$to"
}
mkdir -p "$library_dir" "$extension_dir"
put "$library" "$library_dir/impersonate.so"
put impersonate.control "$extension_dir/impersonate.control"
for sql in sql/impersonate--*.sql; do
    put "$sql" "$extension_dir/${sql##*/}"
done
say "installed impersonate for PostgreSQL $major in $library_dir and $extension_dir"
