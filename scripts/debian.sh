# A Debian of one's own in a folder, for what must be tried where nothing is installed yet. Sourced after lib.sh, by root.
# shellcheck shell=bash

# The release that the default Postgres is of.
debian_suite=bookworm

# make_debian FOLDER PACKAGES...: the least that has apt, and these packages.
make_debian() {
    local folder=$1 sources=() packages
    shift
    packages=$(IFS=,; printf '%s' "$*")
    "$root/scripts/fetch-tools.sh" mmdebstrap
    # From where this machine's packages come, if it is the same release.
    if grep -qs "VERSION_CODENAME=$debian_suite" /etc/os-release; then
        mapfile -t sources < <(compgen -G '/etc/apt/sources.list.d/*.sources'
            [ ! -s /etc/apt/sources.list ] || echo /etc/apt/sources.list)
    fi
    "$root/.tools/mmdebstrap/run" --mode=root --variant=apt --include="$packages" \
        --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt=force-unsafe-io "$debian_suite" "$folder" "${sources[@]}"
}

# in_debian FOLDER SCRIPT [NAMESPACES...]: runs it there as root, with processes that end with it. With --net, without a
# network. Where debian_rust is set, that toolchain is in /opt/rust, read-only and for this call alone.
debian_rust=
in_debian() {
    local folder=$1 script=$2 keep=() name
    shift 2
    for name in http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || keep+=("$name=${!name}")
    done
    unshare --mount --pid --fork --ipc --kill-child "$@" sh -euc '
        folder=$1 script=$2 rust=$3
        shift 3
        mount -t proc proc "$folder/proc"
        mkdir -p "$folder/dev/shm"
        mount -t tmpfs tmpfs "$folder/dev/shm"
        # Terminals of its own.
        mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$folder/dev/pts"
        mount --bind "$folder/dev/pts/ptmx" "$folder/dev/ptmx"
        if [ -n "$rust" ]; then
            mkdir -p "$folder/opt/rust"
            mount --bind "$rust" "$folder/opt/rust"
            mount -o remount,ro,bind "$folder/opt/rust"
        fi
        exec chroot "$folder" /usr/bin/env -i DEBIAN_FRONTEND=noninteractive LC_ALL=C HOME=/root \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" \
            /bin/bash -euo pipefail -c "$script"' \
        sh "$folder" "$script" "$debian_rust" "${keep[@]}"
}
