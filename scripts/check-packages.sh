#!/usr/bin/env bash
# check-packages.sh: builds what make deb and make dist build, and installs and uses it. For every supported major, or
# for PG=MAJOR alone. The last line is "N passed, N failed".
#
# Each Debian package and each archive goes into a copy of the private server, which is started and used. Each package is
# also installed by apt, used, upgraded and removed in a Debian of its own, with Debian's own server, where root and
# Debian's mirror are there; otherwise that is said, and counts for nothing. No Debian has 16: an empty package stands for
# its server there.
#
# PROFILE=dev  built without optimisation, which is quicker
# NO_ROOT=1    without that Debian
set -euo pipefail
asked=${PG:-}
. "$(dirname "$0")/lib.sh"
. "$root/scripts/debian.sh"
cd "$root"

majors=${asked:-$MAJORS}
version=$(extension_version)
revision=${DEB_REVISION:-1}
passed=0
failed=0
scratch=$(mktemp -d)
# What servers read is read by their account.
chmod 755 "$scratch"
out=$scratch/dist
mkdir "$out"

# one NAME COMMAND...
one() {
    local name=$1 status=0 log=$scratch/log start
    shift
    start=$(clock)
    # Not in an "if", inside which bash would let errors pass.
    set +e
    (set -e; trap - EXIT; "$@") >"$log" 2>&1 </dev/null
    status=$?
    set -e
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 1))
        say "  ok: $name, $(since "$start")"
    else
        failed=$((failed + 1))
        say "  not ok: $name"
        sed 's/^/    | /' "$log" | tail -60
    fi
}

equal() { diff -u <(printf '%s\n' "$1") <(printf '%s\n' "$2"); }

# -------------------------------------------------------------------------------------------------- what is in them ---

fields() {
    local name=postgresql-$1-impersonate
    equal "$name $version-$revision database" \
        "$(dpkg-deb -f "$2" Package Version Section | sed 's/^[^:]*: //' | paste -sd' ')"
    dpkg-deb -f "$2" Depends | grep -qE "^postgresql-$1, .*libc6 \(>= "
    local doc=usr/share/doc/$name wanted
    wanted=$(printf '%s\n' "usr/lib/postgresql/$1/lib/impersonate.so" \
        "usr/share/postgresql/$1/extension/impersonate.control" "$doc/README.Debian" "$doc/README.md.gz" \
        "$doc/SECURITY.md.gz" "$doc/changelog.Debian.gz" "$doc/changelog.gz" "$doc/copyright" "$doc/third-party.gz" \
        docs/*.md sql/impersonate--*.sql |
        sed "s|^sql/|usr/share/postgresql/$1/extension/|; s|^docs/.*|$doc/&.gz|" | LC_ALL=C sort)
    equal "$wanted" "$(dpkg-deb -c "$2" | awk '$1 ~ /^-/ { print substr($6, 3) }' | LC_ALL=C sort)"
    # Nothing but root's, and nothing that others may write.
    equal '' "$(dpkg-deb -c "$2" | grep -vE '^(-rw-r--r--|drwxr-xr-x) root/root ' || true)"
    # Each crate that is linked in comes with the text of its licence, and Debian's file has a paragraph on it.
    dpkg-deb --fsys-tarfile "$2" | tar -xO "./$doc/third-party.gz" | gzip -d >"$scratch/third-party"
    dpkg-deb --fsys-tarfile "$2" | tar -xO "./$doc/copyright" >"$scratch/copyright"
    python3 - "$scratch/third-party" "$scratch/copyright" <<'PYTHON'
import re, sys
texts, debian = (open(name, encoding="utf-8").read() for name in sys.argv[1:])
crates = re.split(r"^([a-z0-9_-]+) ([0-9]\S*): (\S.*)\n(?=http)", texts, flags=re.M)[1:]
crates = [crates[at:at + 4] for at in range(0, len(crates), 4)]
assert {"pgrx", "serde_json", "seahash"} <= {crate[0] for crate in crates}, crates
begins = re.compile("Permission is hereby granted|Apache License|This software is provided 'as-is'")
for name, version, licence, text in crates:
    assert re.search("^--- .", text, re.M) and begins.search(text), f"no licence text of {name}"
    assert re.search("^Copyright .*[A-Za-z]{3}", text, re.M), f"nobody's copyright: {name}"
paragraphs = [dict(re.findall(r"^([A-Z][A-Za-z-]+): ?(.*(?:\n[ ].*)*)", paragraph, re.M))
              for paragraph in debian.split("\n\n")]
assert "Format" in paragraphs[0]
files = {one["Files"]: one for one in paragraphs if "Files" in one}
assert set(files) == {"*", "rust-std/*"} | {f"{crate[0]}-{crate[1]}/*" for crate in crates}
alone = {one["License"].split("\n")[0]: one["License"] for one in paragraphs if "License" in one and "Files" not in one}
for name, one in files.items():
    assert one["Copyright"].strip() and (name == "*" or "http" in one["Comment"]), one
    for licence in re.split(", and | and | or ", one["License"].split("\n")[0]):
        assert name == "*" or len(alone[licence].split("\n")) > 1, licence
PYTHON
}

sources() {
    local name=impersonate-$version
    mkdir "$scratch/sources"
    tar -C "$scratch/sources" -xzf "$out/$name.tar.gz"
    equal "$(git ls-tree -r --name-only HEAD | LC_ALL=C sort)" \
        "$(cd "$scratch/sources/$name" && find . ! -type d | cut -c3- | LC_ALL=C sort)"
    python3 - "$out/$name.zip" "$name" "$version" <<'PYTHON'
import json, sys, zipfile
archive, name, version = sys.argv[1:]
with zipfile.ZipFile(archive) as files:
    assert files.testzip() is None
    assert all(member.startswith(name + "/") for member in files.namelist())
    meta = json.loads(files.read(name + "/META.json"))
    assert (meta["name"], meta["version"]) == ("impersonate", version), meta
    for part in meta["provides"].values():
        files.getinfo(name + "/" + part["file"])
        files.getinfo(name + "/" + part["docfile"])
PYTHON
    # They are enough to build from, with what Cargo.lock names and nothing else.
    (cd "$scratch/sources/$name" && cargo metadata --locked --format-version 1 >/dev/null)
}

# ---------------------------------------------------------------------------------------- into a copy of the server ---

# copy MAJOR: a server without the extension, with the files of the private one. $copy
copy() {
    local from
    from=$(readlink -f "$root/.tools")/pg$1
    copy=$scratch/server-$1
    rm -rf "$copy"
    mkdir "$copy"
    # Links, as it is large; a file that is put in the place of another is a new one.
    cp -al "$from/usr" "$copy/"
    find "$copy" -name 'impersonate*' -delete
}

use() {
    local said
    bindir=$copy/usr/lib/postgresql/$1/bin
    [ -z "$(find "$copy" -name impersonate.so)" ] && { echo "nothing was installed"; return 1; }
    cluster_create ''
    cluster_start
    said=$(run_psql -qAt -f tests/packages/use.sql 2>&1) || true
    cluster_remove
    equal "$(expected)" "$said"
}

expected() {
    cat <<'SAID'
impersonate
library|t
package_bob
package_bob|package_anna
package_anna
psql:tests/packages/use.sql:16: ERROR:  role "package_anna" may not act as role "postgres"
DETAIL:  Criterion A1: "package_anna" holds no SET USER right over "postgres".
HINT:  GRANT "SET USER" (postgres) TO package_anna;

GRANT|postgres|postgres|00000|
SETUSER|package_anna|package_bob|00000|packages
STATEMENT|package_anna|package_bob|00000|
RESETUSER|package_anna|package_bob|00000|packages
DENIED|package_anna|package_anna|42501|
t|5
SAID
}

# The package's files are where Debian's server looks; the private one's own folders may be elsewhere (16's are).
use_deb() {
    local config
    mkdir "$scratch/deb-$1"
    dpkg-deb -x "$2" "$scratch/deb-$1"
    copy "$1"
    config=$copy/usr/lib/postgresql/$1/bin/pg_config
    cp "$scratch/deb-$1/usr/lib/postgresql/$1/lib"/* "$("$config" --pkglibdir)/"
    cp "$scratch/deb-$1/usr/share/postgresql/$1/extension"/* "$("$config" --sharedir)/extension/"
    use "$1"
}

# By the very commands that INSTALL gives.
use_archive() {
    local name=impersonate-$version-pg$1-linux-$(uname -m) commands
    tar -C "$scratch" -xzf "$out/$name.tar.gz"
    commands=$(sed -nE 's/^    ((cp|mv) .*)/\1/p' "$scratch/$name/INSTALL")
    equal 3 "$(wc -l <<<"$commands")"
    copy "$1"
    (cd "$scratch/$name" && PATH=$copy/usr/lib/postgresql/$1/bin:$PATH bash -euc "$commands")
    use "$1"
}

# ----------------------------------------------------------------------------------------- into a Debian of its own ---

# The release of Debian that has the server.
suite_of() {
    case $1 in
        15 | 16) say bookworm ;;
        17) say trixie ;;
        18) say forky ;;
    esac
}

# Where lintian is: the first one that is made.
lintian_in=
debian() {
    local debian_suite folder packages=("postgresql-${1/16/15}")
    debian_suite=$(suite_of "$1")
    folder=$scratch/debian-$debian_suite
    [ "$lintian_in" != "$debian_suite" ] || packages+=(lintian)
    make_debian "$folder" "${packages[@]}"
    mkdir "$folder/check"
    cp tests/packages/use.sql "$folder/check/"
}

# there MAJOR SCRIPT
there() {
    in_debian "$scratch/debian-$(suite_of "$1")" "
        server() { pg_ctlcluster $1 main \$1; }
        as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups -- \"\$@\"; }
        sql() { as_postgres psql -XqAt \"\$@\" 2>&1; }
        major=$1 package=postgresql-$1-impersonate
        # Nothing of it is left, in what packages and servers have.
        gone() { [ -z \"\$(find /usr /etc /var/lib/dpkg /var/lib/postgresql -name '*impersonate*')\" ]; }
        $2" --net
}

lint() {
    cp -n "$2" "$scratch/debian-$lintian_in/check/lint-$1.deb"
    in_debian "$scratch/debian-$lintian_in" \
        "lintian --allow-root --no-cfg --fail-on error --suppress-tags bogus-mail-host /check/lint-$1.deb" --net
}

by_apt() {
    there "$1" '
        apt-get -q -y install /check/$major-first.deb
        echo "local all all trust" >/etc/postgresql/$major/main/pg_hba.conf
        server start
        sql -c "ALTER SYSTEM SET shared_preload_libraries = impersonate"
        server restart
        cd /
        sql -f /check/use.sql >/check/said || true
        # A later package under the running server, which goes on with what it has loaded, and starts with the new.
        apt-get -q -y install /check/$major-second.deb
        sql -f /check/use.sql >/check/said.2 || true
        server restart
        sql -f /check/use.sql >/check/said.3 || true
        sql -c "ALTER SYSTEM RESET shared_preload_libraries"
        server stop
        server start
        apt-get -q -y purge $package
        gone
        server restart
        [ "$(sql -c "SELECT 1")" = 1 ]
        server stop'
    local said
    for said in said said.2 said.3; do
        equal "$(expected | sed 's|psql:tests/packages/|psql:/check/|')" \
            "$(cat "$scratch/debian-$(suite_of "$1")/check/$said")"
    done
}

# Without a server to start.
by_apt_alone() {
    there "$1" '
        mkdir -p /check/empty/DEBIAN
        printf "%s\n" "Package: postgresql-$major" "Version: $major" "Architecture: all" "Description: nothing" \
            "Maintainer: nobody <nobody@example.org>" >/check/empty/DEBIAN/control
        dpkg-deb --build /check/empty /check/server.deb
        apt-get -q -y install /check/server.deb /check/$major-first.deb
        apt-get -q -y install /check/$major-second.deb
        [ -f /usr/lib/postgresql/$major/lib/impersonate.so ]
        dpkg --verify $package
        apt-get -q -y purge $package postgresql-$major
        gone'
}

# -------------------------------------------------------------------------------------------------------------- run ---

begun=$(clock)
have dpkg-deb && have cargo || die "this needs dpkg-deb and cargo"
say "Building the packages"
for major in $majors; do
    PG=$major OUT=$out scripts/package.sh deb
    PG=$major OUT=$out scripts/package.sh dist
done

say "Checking them"
one "source archives: what is committed, META.json, enough to build from" sources
for major in $majors; do
    deb=$out/postgresql-$major-impersonate_$version-${revision}_$(dpkg --print-architecture).deb
    one "$major, .deb: fields, files, licences" fields "$major" "$deb"
    one "$major, .deb: used in a copy of the server" use_deb "$major" "$deb"
    one "$major, archive: installed as INSTALL says, and used" use_archive "$major"
done
if [ "$(id -u)" -ne 0 ] || [ -n "${NO_ROOT:-}" ] || ! have unshare; then
    say "  LEFT OUT, as it needs root: installation by apt into a Debian of its own, lintian"
else
    for major in $majors; do
        suite=$(suite_of "$major")
        lintian_in=${lintian_in:-$suite}
        [ -d "$scratch/debian-$suite" ] || one "a Debian of its own is made, $suite" debian "$major"
        [ -d "$scratch/debian-$suite/check" ] || continue
        deb=$out/postgresql-$major-impersonate_$version-${revision}_$(dpkg --print-architecture).deb
        cp "$deb" "$scratch/debian-$suite/check/$major-first.deb"
        PG=$major OUT=$scratch/second DEB_REVISION=$((revision + 1)) scripts/package.sh deb >/dev/null
        cp "$scratch/second/postgresql-$major-impersonate_$version-$((revision + 1))"_*.deb \
            "$scratch/debian-$suite/check/$major-second.deb"
        one "$major, .deb: lintian finds no error" lint "$major" "$deb"
        if [ "$major" = 16 ]; then
            one "$major, .deb: installed, upgraded and removed by apt, with an empty package for the server" \
                by_apt_alone "$major"
        else
            one "$major, .deb: installed, used, upgraded and removed by apt" by_apt "$major"
        fi
    done
fi
say "Packages, $(since "$begun")"
say "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
