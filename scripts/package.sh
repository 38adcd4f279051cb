#!/usr/bin/env bash
# package.sh deb | dist: what others install. Everything is put into dist/.
#
# deb   postgresql-MAJOR-impersonate_VERSION-REVISION_ARCH.deb, for Debian's postgresql-MAJOR and PGDG's
# dist  impersonate-VERSION.zip and .tar.gz, the sources as committed, as PGXN wants them, and for each major
#       impersonate-VERSION-pgMAJOR-linux-MACHINE.tar.gz, the built files and how to install them
#
# For every supported major, or for PG=MAJOR alone, built against its headers in .tools, in release mode. The version is
# that of the control file. DEB_REVISION (1), DEBFULLNAME and DEBEMAIL are as packagers know them. For tests,
# PROFILE=dev builds without optimisation, and OUT is another folder than dist.
set -euo pipefail
majors=${PG:-}
. "$(dirname "$0")/lib.sh"
. "$root/scripts/licences.sh"
cd "$root"

kind=${1:-}
case $kind in deb | dist) ;; *) die "usage: package.sh deb | dist" ;; esac
majors=${majors:-$MAJORS}
for major in $majors; do
    [[ " $MAJORS " == *" $major "* ]] || die "PostgreSQL $major is not supported; $MAJORS are"
done

version=$(extension_version)
[ "$version" = "$(sed -nE '/^\[workspace.package\]/,/^\[[^w]/s/^version = "(.*)"$/\1/p' Cargo.toml)" ] ||
    die "impersonate.control and Cargo.toml are of different versions"
# The same sources give the same packages.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
out=${OUT:-$root/dist}
mkdir -p "$out"
scratch=$(mktemp -d)

# -------------------------------------------------------------------------------------------------------- the build ---

# build MAJOR: the library and where it is ($library).
build() {
    PG=$1 TEST_PG_CONFIG='' scripts/setup.sh >/dev/null
    library=$scratch/$1/impersonate.so
    [ ! -f "$library" ] || return 0
    local flags=(--build-only) profile=${PROFILE:-release}
    [ "$profile" = release ] || flags+=(--dev)
    # The time of the last commit is nothing to compile anew for.
    step "building for PostgreSQL $1" env -u SOURCE_DATE_EPOCH scripts/install.sh "${flags[@]}" \
        --pg-config "$(PG=$1 TEST_PG_CONFIG='' test_pg_config)"
    mkdir -p "$scratch/$1"
    # What a debugger wants stays with whoever builds by himself.
    strip --strip-unneeded -o "$library" "$(built_library "$1" "$profile" '')"
}

# files INTO_LIBRARY INTO_EXTENSION: the built files, as install.sh places them.
files() {
    install -d "$1" "$2"
    install -m 644 "$library" "$1/impersonate.so"
    install -m 644 impersonate.control sql/impersonate--*.sql "$2"
}

# -------------------------------------------------------------------------------------------------- Debian packages ---

deb() {
    local major=$1 name=postgresql-$1-impersonate tree=$scratch/$1/deb revision=${DEB_REVISION:-1}
    local maintainer="${DEBFULLNAME:-impersonate developers} <${DEBEMAIL:-impersonate@example.org}>"
    local doc=$tree/usr/share/doc/$name depends arch file
    arch=$(dpkg --print-architecture)
    build "$major"
    files "$tree/usr/lib/postgresql/$major/lib" "$tree/usr/share/postgresql/$major/extension"

    install -d "$doc" "$tree/DEBIAN"
    debian_copyright "$major" >"$doc/copyright"
    third_party "$major" | gzip -9n >"$doc/third-party.gz"
    cat >"$doc/README.Debian" <<WORDS
impersonate for PostgreSQL $major
================================

The library has to be preloaded. In postgresql.conf, and then restart the server:

    shared_preload_libraries = 'impersonate'

and, as a superuser, in each database where somebody is to impersonate:

    CREATE EXTENSION impersonate;

After an upgrade of this package the server goes on with the library that it has loaded. Restart it, and in each
database with the extension:

    ALTER EXTENSION impersonate UPDATE;

Before the package is removed, take impersonate out of shared_preload_libraries: the server does not start without a
library that it is told to preload.

README.md.gz and docs/ are the manual.
WORDS
    gzip -9n <README.md >"$doc/README.md.gz"
    install -d "$doc/docs"
    for document in docs/*.md; do gzip -9n <"$document" >"$doc/$document.gz"; done
    gzip -9n <SECURITY.md >"$doc/SECURITY.md.gz"
    gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
    gzip -9n >"$doc/changelog.Debian.gz" <<CHANGES
impersonate ($version-$revision) unstable; urgency=medium

  * Version $version; changelog.gz says what is new.

 -- $maintainer  $(LC_ALL=C date -R -u -d "@$SOURCE_DATE_EPOCH")
CHANGES
    depends=$(library_packages)
    cat >"$tree/DEBIAN/control" <<CONTROL
Package: $name
Source: impersonate
Version: $version-$revision
Section: database
Priority: optional
Architecture: $arch
Depends: postgresql-$major, $depends
Maintainer: $maintainer
Installed-Size: $(du -k -s --apparent-size "$tree/usr" | cut -f1)
Description: act as another role for a while, for PostgreSQL $major
 A logged-in role acts as another one: only with a SET USER right over it, only
 if it already holds at least what the other holds, and never without leaving
 a record that names both.
 .
 The extension is a library that PostgreSQL $major preloads.
CONTROL
    (cd "$tree" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
    find "$tree" -type d -exec chmod 755 {} +
    find "$tree" -type f -exec chmod 644 {} +
    find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    file=$out/${name}_$version-${revision}_$arch.deb
    dpkg-deb --root-owner-group -Zxz --build "$tree" "$file" >/dev/null
    say "  ${file##*/}"
}

# What the library links with, as Debian's own tool finds it.
library_packages() {
    mkdir -p "$scratch/shlibs/debian"
    : >"$scratch/shlibs/debian/control"
    (cd "$scratch/shlibs" && dpkg-shlibdeps -O "$library" 2>"$scratch/shlibs/log") | sed -n 's/^shlibs:Depends=//p' |
        grep . || { cat "$scratch/shlibs/log" >&2; die "it is not known which packages the library needs"; }
}

# --------------------------------------------------------------------------------------------------------- archives ---

sources() {
    local name=impersonate-$version
    git rev-parse --git-dir >/dev/null 2>&1 ||
        die "the source archive is made of what is committed, and this is no clone"
    [ -z "$(git status --porcelain)" ] || printf '%s\n' "  not in the source archive, because it isn't committed:" \
        "$(git status --short)"
    git archive --format=zip --prefix="$name/" -o "$out/$name.zip" HEAD
    git archive --format=tar --prefix="$name/" HEAD | gzip -9n >"$out/$name.tar.gz"
    printf '  %s\n' "$name.zip" "$name.tar.gz"
}

binaries() {
    local major=$1 name tree libc
    name=impersonate-$version-pg$1-linux-$(uname -m)
    tree=$scratch/$name
    build "$major"
    files "$tree/lib" "$tree/extension"
    install -m 644 README.md SECURITY.md CHANGELOG.md LICENSE "$tree"
    install -d "$tree/docs"
    install -m 644 docs/*.md "$tree/docs"
    third_party "$major" >"$tree/THIRD-PARTY"
    libc=$(readelf -V "$library" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1 | sed 's/GLIBC_//')
    cat >"$tree/INSTALL" <<WORDS
impersonate $version for PostgreSQL $major, Linux on $(uname -m)

It wants the GNU C library $libc or newer ("ldd --version" tells) and a PostgreSQL $major of whatever minor version.
As whoever may write to the server's folders, root as a rule, with the pg_config of that server:

    cp lib/impersonate.so "\$(pg_config --pkglibdir)/impersonate.so.new"
    mv "\$(pg_config --pkglibdir)/impersonate.so.new" "\$(pg_config --pkglibdir)/impersonate.so"
    cp extension/impersonate* "\$(pg_config --sharedir)/extension/"

(By mv, as to write into a library that a running server has loaded would crash that server.) Then add to
postgresql.conf, and restart the server:

    shared_preload_libraries = 'impersonate'

and, as a superuser, in each database where somebody is to impersonate:

    CREATE EXTENSION impersonate;

To upgrade, do all of this but the last, and "ALTER EXTENSION impersonate UPDATE" in each of those databases.
To remove it: DROP EXTENSION impersonate in each of them, take it out of shared_preload_libraries, restart, and delete
the files. README.md and docs/ are the manual.
WORDS
    tar -C "$scratch" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -c "$name" |
        gzip -9n >"$out/$name.tar.gz"
    say "  $name.tar.gz"
}

# -------------------------------------------------------------------------------------------------------------- run ---

have cargo || die "Rust is missing; scripts/setup.sh says how to get it"
have strip || die "strip is missing: install what Debian calls binutils"
if [ "$kind" = deb ]; then
    have dpkg-shlibdeps || die "dpkg-shlibdeps is missing: install what Debian calls dpkg-dev"
    say "Debian packages, into $out"
    for major in $majors; do deb "$major"; done
else
    say "Archives, into $out"
    sources
    for major in $majors; do binaries "$major"; done
fi
