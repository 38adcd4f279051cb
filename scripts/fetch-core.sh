#!/usr/bin/env bash
# fetch-core.sh: the source of the Postgres that tests use, for its regression suite, into .tools. Only if missing.
#
# By apt-get source, from where the machine's packages come; nothing is installed. Prints the folder.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

use_postgres
# 15.20 for "PostgreSQL 15.20 (Debian 15.20-0+deb12u1)".
version=$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9.]+).*/\1/')
major=${version%%.*}

fetch() {
    local new=$folder.new package=
    have apt-get || die "the source of PostgreSQL $version is fetched by apt-get, which is missing here" \
        "give its folder: CORE_SOURCE=/path/to/postgresql-$version"
    rm -rf "$new"
    mkdir -p "$new/apt/lists/partial" "$new/apt/archives/partial" "$new/source"
    # The machine's own sources need not list source packages: these are theirs, of the same keys.
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(SIGNED_BY)' 'Created-By: Packages' | sort -u |
        while read -r uri release component key; do
            # What apt-get has no value for, it leaves as it is.
            case $key in '$('*) key= ;; esac
            printf 'deb-src %s%s %s %s\n' "${key:+[signed-by=$key] }" "$uri" "$release" "$component"
        done >"$new/apt/sources.list"
    export APT_CONFIG=$new/apt/apt.conf
    cat >"$APT_CONFIG" <<CONF
Dir::Etc::SourceList "$new/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$new/apt/lists";
Dir::Cache "$new/apt";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
    cd "$new/apt"
    apt-get -q update
    # The same version, else another of the same major: mirrors do not keep the sources of all that they carry.
    for package in $(apt-cache showsrc "postgresql-$major" | sed -n 's/^Version: //p' | sort -ru |
        awk -v same="$version-" 'index($0, same) == 1 { print; next } { rest = rest "\n" $0 } END { print rest }'); do
        rm -f ./postgresql-*.tar.*
        if apt-get -q --download-only source "postgresql-$major=$package"; then
            break
        fi
        package=
    done
    [ -n "$package" ] || die "this machine's package sources have no source of PostgreSQL $major" \
        "give its folder: CORE_SOURCE=/path/to/postgresql-$version"
    # The suite alone, and the two modules of contrib that it loads.
    tar -C "$new/source" --strip-components=1 --wildcards -xf ./postgresql-*.orig.tar.* \
        '*/src/test/regress' '*/contrib/spi'
    printf '%s\n' "${package%%-*}" >"$new/source/version"
    mv "$new/source" "$new/done"
    rm -rf "$new/apt" "$folder"
    mv "$new/done" "$folder"
    chmod -R go+rX "$folder"
    rmdir "$new"
}

make_tools
exec {lock}>"$root/.tools/lock"
flock "$lock"
folder=$(readlink -f "$root/.tools")/postgresql-$version
[ -d "$folder" ] || step "fetching the source of PostgreSQL $version into .tools (30 MB)" fetch >&2
printf '%s\n' "$folder"
