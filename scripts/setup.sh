#!/usr/bin/env bash
# setup.sh [build-tools]: what is needed to build, and a private Postgres to test with. Does only what is missing.
#
# build-tools stops after the first half, for those who build for a Postgres that they have.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

prefix=
begun=$(clock)

# ------------------------------------------------------------------------------------------------------- build tools ---

check_cargo() {
    have cargo && return
    die "Rust is missing" \
        "get it with rustup, as yourself (https://rustup.rs):" \
        "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" \
        "and start again"
}

have_c_compiler() { have cc && echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1; }

# bindgen reads the server's headers through libclang, which wants headers of its own.
have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return
    { compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' || compgen -G '/usr/lib/*-linux-gnu/libclang*.so*' ||
        compgen -G '/usr/lib64/libclang*.so*'; } >/dev/null &&
        { compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' ||
            compgen -G '/usr/lib*/clang/*/include/stddef.h'; } >/dev/null
}

install_libclang() {
    local version
    # Only the library and the headers of this distribution's default clang, not the compilers.
    version=$(apt-cache depends libclang-dev 2>/dev/null | sed -nE 's/.*Depends: libclang-([0-9]+)-dev.*/\1/p')
    if [ -z "$version" ]; then
        as_root apt-get -q update
        version=$(apt-cache depends libclang-dev | sed -nE 's/.*Depends: libclang-([0-9]+)-dev.*/\1/p')
    fi
    apt_install "libclang1-$version" "libclang-common-$version-dev"
}

build_tools() {
    check_cargo
    have_c_compiler || step "installing a C compiler, which links the library" apt_install gcc libc6-dev
    have_libclang || step "installing libclang, which reads the server's headers" install_libclang
}

# -------------------------------------------------------------------------------------------------- private Postgres ---

prefix_is_complete() { [ -f "$prefix/packages" ] && "$prefix/usr/lib/postgresql/$PG/bin/postgres" --version >/dev/null 2>&1; }

# Unpacking needs no root, creates no cluster and leaves the machine's own Postgres alone: Postgres finds its files
# relative to its executables.
fetch_postgres() {
    local new=$prefix.new packages=("postgresql-$PG" "postgresql-client-$PG" "postgresql-server-dev-$PG") deb
    local apt=(-q -o APT::Sandbox::User=root)
    rm -rf "$new"
    mkdir -p "$new/apt/lists/partial" "$new/apt/archives/partial" "$new/debs"
    cd "$new/debs"
    if ! apt-get "${apt[@]}" download "${packages[@]}"; then
        # Package lists of our own, where those of the machine are missing or out of date.
        rm -f ./*.deb
        apt+=(-o "Dir::State::Lists=$new/apt/lists" -o "Dir::Cache=$new/apt" -o Acquire::Languages=none)
        apt-get "${apt[@]}" update
        apt-get "${apt[@]}" download "${packages[@]}" || die "this machine's package sources have no PostgreSQL $PG" \
            "to use another installation, which the extension goes into: TEST_PG_CONFIG=/path/to/pg_config"
    fi
    for deb in ./*.deb; do
        dpkg-deb -x "$deb" "$new"
        dpkg-deb -f "$deb" Package Version >>"$new/packages.new"
        dpkg-deb -f "$deb" Depends >>"$new/depends"
    done
    # Not needed here: JIT compilation (it would want LLVM), translations, manuals.
    rm -rf "$new"/usr/lib/postgresql/"$PG"/lib/{bitcode,llvmjit*} "$new"/usr/share/{locale,doc,man,lintian} \
        "$new/usr/share/postgresql/$PG/man" "$new/apt" "$new/debs"
    chmod -R go+rX "$new"
    chmod 755 "$new"
    mv "$new/packages.new" "$new/packages"
    rm -rf "$prefix"
    mv "$new" "$prefix"
}

missing_libraries() {
    local file
    for file in "$prefix/usr/lib/postgresql/$PG/bin"/{postgres,initdb,psql,pg_dump} \
        "$prefix/usr/lib/postgresql/$PG/lib"/*.so; do
        ldd "$file" 2>/dev/null | sed -nE 's/^\s*(\S+) => not found/\1/p'
    done | sort -u
    [ -e /usr/share/zoneinfo/UTC ] || echo tzdata
}

install_libraries() {
    local names
    # The packages themselves say what they link with; first choice of each alternative, without versions.
    mapfile -t names < <(tr ',' '\n' <"$prefix/depends" | sed -E 's/^ *([^ |(]+).*/\1/' |
        grep -E '^(lib|zlib|tzdata)' | grep -v '^libllvm' | grep -v -e '-dev$' | sort -u)
    apt_install "${names[@]}"
}

private_postgres() {
    make_tools
    if [ "$PG" != 15 ]; then
        # What this machine's own release need not have.
        "$root/scripts/fetch-postgres.sh" "$PG"
        [ -e /usr/share/zoneinfo/UTC ] || step "installing time zones" apt_install tzdata
        return
    fi
    # Two runs at once: the second waits, and finds the work done.
    exec {lock}>"$root/.tools/lock"
    flock "$lock"
    prefix=$(readlink -f "$root/.tools")/pg$PG
    if [ ! -f "$prefix/packages" ]; then
        have apt-get || die "PostgreSQL $PG is fetched by apt-get, which is missing here" \
            "give a PostgreSQL with server headers that the extension may be installed into: TEST_PG_CONFIG=/path/to/pg_config"
        step "fetching PostgreSQL $PG into .tools (20 MB, nothing is installed)" fetch_postgres
    fi
    if [ -n "$(missing_libraries)" ]; then
        step "installing libraries that PostgreSQL $PG links with" install_libraries
    fi
    prefix_is_complete || die "the PostgreSQL in $prefix does not run" "to fetch it anew: rm -rf $prefix; make setup"
    flock -u "$lock"
    exec {lock}>&-
}

say "Setting up"
build_tools
if [ "${1:-}" != build-tools ] && [ -z "${TEST_PG_CONFIG:-}" ]; then
    private_postgres
fi
say "  all there, $(since "$begun")"
