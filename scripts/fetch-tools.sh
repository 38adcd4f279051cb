#!/usr/bin/env bash
# fetch-tools.sh NAME...: programs of others that tests use, such as pgbouncer, and libraries for the server that are
# measured beside ours, such as postgresql-15-pgaudit. Does only what is missing.
#
# Each is Debian's package, unpacked into .tools/NAME together with the libraries that this machine lacks; nothing is
# installed. .tools/NAME/run starts a program; a browser (chromium-headless-shell) has a font with it. Where there is no
# apt-get, what is in the PATH must do. A library for the server stays in .tools/NAME, with its scripts: it is loaded by
# its path.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

apt=(-q -o APT::Sandbox::User=root)

# In the folder of the packages.
download() {
    apt-get "${apt[@]}" download "$@" && return
    [ ! -d "$new/apt" ] || return 1
    # Package lists of our own, where those of the machine are missing or out of date.
    mkdir -p "$new/apt/lists/partial" "$new/apt/archives/partial"
    apt+=(-o "Dir::State::Lists=$new/apt/lists" -o "Dir::Cache=$new/apt" -o Acquire::Languages=none)
    apt-get "${apt[@]}" update
    apt-get "${apt[@]}" download "$@"
}

unpack() {
    local deb
    for deb in ./*.deb; do
        dpkg-deb -x "$deb" "$new"
        dpkg-deb -f "$deb" Package >>"$new/fetched"
        dpkg-deb -f "$deb" Depends | tr ',' '\n' | sed -E 's/^ *([^ |(:]+).*/\1/' >>"$new/wanted"
        rm "$deb"
    done
    # Some libraries of an older Debian are not below /usr.
    [ ! -d "$new/lib" ] || { cp -a "$new/lib" "$new/usr/" && rm -rf "$new/lib"; }
}

is_library() { [[ $name == postgresql-* ]]; }
is_browser() { [[ $name == chromium-* ]]; }

program() {
    if is_library; then
        find "$1/usr/lib/postgresql" -type f -name '*.so' | head -1
    elif is_browser; then
        printf '%s' "$1/usr/lib/chromium/$name"
    else
        find "$1/usr/bin" "$1/usr/sbin" -type f -name "$name" 2>/dev/null | head -1
    fi
}

# Sets `lacking`.
lacks_libraries() {
    local folders
    folders=$(printf '%s:' "$new"/usr/lib/*-linux-gnu{,/pulseaudio})
    lacking=$(LD_LIBRARY_PATH=$folders ldd "$(program "$new")" | sed -n '/not found/p')
    [ -n "$lacking" ]
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

fetch() {
    local names library lacking
    rm -rf "$new"
    mkdir -p "$new/debs"
    cd "$new/debs"
    download "$name"
    # Pages need a font, on a machine without a screen as well.
    ! is_browser || download chromium-common fonts-dejavu-core
    unpack
    while lacks_libraries; do
        names=()
        while read -r library; do
            # The C library and what comes with the compiler must be the machine's own.
            case $library in '' | libc6 | libgcc* | libstdc++* | [!l]*) continue ;; esac
            installed "$library" || grep -qx "$library" "$new/fetched" || names+=("$library")
        done < <(sort -u "$new/wanted")
        [ ${#names[@]} -gt 0 ] || die "$name does not find its libraries" "$lacking"
        download "${names[@]}"
        unpack
    done
    rm -rf "$new/apt" "$new/debs" "$new/etc" "$new/usr/share/doc"
    if is_library; then
        [ -n "$(program "$new")" ] || die "$name has no library in it"
    else
        write_run
        is_browser || rm -rf "$new/usr/share"
    fi
    chmod -R go+rX "$new"
    rm -rf "$folder"
    mv "$new" "$folder"
}

# The script that starts the program with the libraries beside it.
write_run() {
    cat >"$new/run" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
for folder in "$here"/usr/lib/*-linux-gnu; do LD_LIBRARY_PATH=$folder:$folder/pulseaudio; done
export LD_LIBRARY_PATH
RUN
    if is_browser; then
        cat >"$new/fonts.conf" <<CONF
<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">usr/share/fonts</dir><cachedir prefix="xdg">fontconfig</cachedir></fontconfig>
CONF
        echo 'export FONTCONFIG_FILE="$here/fonts.conf" XDG_CACHE_HOME="${TMPDIR:-/tmp}"' >>"$new/run"
    fi
    printf 'exec "$here%s" "$@"\n' "$(program "$new" | sed "s|^$new||")" >>"$new/run"
    chmod 755 "$new/run"
}

make_tools
exec {lock}>"$root/.tools/lock"
flock "$lock"
for name; do
    folder=$(readlink -f "$root/.tools")/$name
    new=$folder.new
    [ ! -f "$folder/fetched" ] || continue
    if ! have apt-get; then
        ! is_library || die "$name is fetched by apt-get, which is missing here"
        PATH=$PATH:/usr/sbin have "$name" || die "$name is fetched by apt-get, which is missing here" \
            "install it so that it is in the PATH"
        continue
    fi
    step "fetching $name into .tools (nothing is installed)" fetch
done
