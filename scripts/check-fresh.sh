#!/usr/bin/env bash
# check-fresh.sh: README's two commands where nothing is installed: in a Debian of its own with nothing but apt, make and
# sudo, once as root and once as an ordinary user who may sudo. Wants root, Debian's mirror, and that of crates.
#
# Rust, which README leaves to the user, is this machine's toolchain, read-only, and with it what cargo has downloaded.
# PG, STAGE and TESTS are handed on to make check. WHO="root user" says who tries, WHAT="demo check" what.
#
# The last line is "N passed, N failed": the commands that did what they should.
set -euo pipefail
handed_on=()
for name in PG STAGE TESTS; do
    [ -z "${!name:-}" ] || handed_on+=("$name='${!name}'")
done
. "$(dirname "$0")/lib.sh"
. "$root/scripts/debian.sh"
cd "$root"

[ "$(id -u)" -eq 0 ] || die "this makes a Debian of its own, which takes root"
have rustc || die "Rust is missing"
debian_rust=$(rustc --print sysroot)
WHO=${WHO:-root user}
WHAT=${WHAT:-demo check}
for what in $WHAT; do [[ " demo check " == *" $what "* ]] || die "WHAT is demo, check or both, not $what"; done
passed=0
failed=0
begun=$(clock)
scratch=$(mktemp -d)
fresh=$scratch/fresh

# What is committed, and how the machine reaches the network.
furnish() {
    local home=$fresh/$1 name
    mkdir -p "$home/impersonate" "$fresh/opt/registry"
    git archive HEAD | tar -x -C "$home/impersonate"
    for name in resolv.conf hosts ssl/certs/ca-certificates.crt /etc/apt/apt.conf.d/*; do
        name=${name#/etc/}
        [ ! -f "/etc/$name" ] || cp -L --remove-destination "/etc/$name" "$fresh/etc/$name"
    done
    [ ! -d "${CARGO_HOME:-$HOME/.cargo}/registry" ] || cp -a "${CARGO_HOME:-$HOME/.cargo}/registry" "$fresh/opt/registry/"
}

# try WHO COMMAND: what README says, in the checkout.
try() {
    local who=$1 command=$2 home user start log=$scratch/log
    home=/root user=root
    [ "$who" = root ] || { home=/home/me user=me; }
    start=$(clock)
    if in_debian "$fresh" "
        [ $user = root ] || id me >/dev/null 2>&1 || {
            useradd --create-home --shell /bin/bash me
            echo 'me ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/me
        }
        mkdir -p $home/.cargo
        [ ! -d /opt/registry/registry ] || cp -an /opt/registry/registry $home/.cargo/
        chown -R $user $home
        cd $home/impersonate
        exec setpriv --reuid=$user --regid=$user --init-groups env HOME=$home PATH=/opt/rust/bin:\$PATH $command" \
        >"$log" 2>&1 </dev/null && { [[ $command != *check* ]] || [[ $(tail -1 "$log") =~ ^[0-9]+\ passed,\ 0\ failed$ ]]; }; then
        passed=$((passed + 1))
        say "  ok: as $who, $command, $(since "$start"): $(tail -1 "$log")"
    else
        failed=$((failed + 1))
        say "  not ok: as $who, $command, $(since "$start")"
        sed 's/^/    | /' "$log" | tail -80
    fi
}

say "README's commands in a fresh Debian"
for who in $WHO; do
    step "a Debian with apt, make and sudo" make_debian "$fresh" make sudo ca-certificates
    if [ "$who" = root ]; then furnish root; else furnish home/me; fi
    for what in $WHAT; do
        try "$who" "make $what$([ "$what" = demo ] || printf ' %s' "${handed_on[@]}")"
    done
    rm -rf --one-file-system "$fresh"
done
say "Fresh, $(since "$begun")"
say "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
