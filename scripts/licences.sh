# The licences of what is linked into the library: crates, and Rust's standard library. Sourced after lib.sh.
# shellcheck shell=bash

# crates_of MAJOR: NAME|VERSION|LICENCE|REPOSITORY|FOLDER of each crate that is linked in.
crates_of() {
    local package licence from name version folder
    while IFS='|' read -r package licence from; do
        read -r name version _ <<<"$package"
        version=${version#v}
        folder=$(compgen -G "${CARGO_HOME:-$HOME/.cargo}/registry/src/*/$name-$version" | head -1)
        [ -n "$folder" ] || die "the sources of $name $version are not where cargo unpacks them"
        [ -n "$licence" ] || die "$name $version names no licence"
        printf '%s\n' "$name|$version|$licence|$from|$folder"
    done < <(cargo tree --package impersonate --edges normal,no-proc-macro --prefix none --no-dedupe \
        --no-default-features --features "pg$1" --format '{p}|{l}|{r}' | grep -v "($root" | LC_ALL=C sort -u)
}

licence_files() {
    find "$1" -maxdepth 1 -type f -regex '.*/\(LICEN[CS]E\|COPYING\|UNLICENSE\)[^/]*' | LC_ALL=C sort
    [ ! -d "$1/LICENSES" ] || find "$1/LICENSES" -type f | LC_ALL=C sort
}

authors() {
    awk '/^authors = \[/ { on = 1 } on { print } on && /\]$/ { exit }' "$1/Cargo.toml" | grep -o '"[^"]*"' | tr -d '"'
}

# copyright_lines FOLDER: who holds it, without the word itself; the authors where the texts name nobody.
copyright_lines() {
    local files found
    mapfile -t files < <(licence_files "$1")
    found=$([ ${#files[@]} -eq 0 ] || sed -nE \
        's/^[[:space:]]*Copyright (\([cC]\) |© )?([^]<{[]*[[:alpha:]][^]<{[]*)$/\2/p' "${files[@]}" | tr -d '\r' |
        grep -viE '^(notice|owner|and permission|licen[cs]e|\(c\)[0-9, -]*$)' | LC_ALL=C sort -u)
    [ -n "$found" ] || found=$(authors "$1")
    found=${found:-the authors of $(basename "$1")}
    printf '%s\n' "$found"
}

# licence_text LICENCE CRATES: the text, without whose copyright it is, as a crate that has it gives it.
licence_text() {
    local begin folder file
    case $1 in
        MIT) begin='Permission is hereby granted, free of charge' ;;
        Apache-2.0) begin=' *Apache License' ;;
        Zlib) begin="This software is provided 'as-is'" ;;
        Unlicense) begin='This is free and unencumbered software' ;;
        Unicode-3.0) begin='COPYRIGHT AND PERMISSION NOTICE' ;;
        *) die "how the text of $1 begins is not known to ${BASH_SOURCE[0]##*/}" ;;
    esac
    while IFS='|' read -r _ _ _ _ folder; do
        while read -r file; do
            grep -q "^$begin" "$file" || continue
            sed -n "/^$begin/,\$p" "$file" | tr -d '\r'
            return
        done < <(licence_files "$folder")
    done <<<"$2"
    die "no crate has the text of $1"
}

# licence_names CRATES: each that a crate is under, alone or with others.
licence_names() { cut -d'|' -f3 <<<"$1" | sed -E 's,/| OR | AND |[()],\n,g' | sed '/^ *$/d' | LC_ALL=C sort -u; }

# third_party MAJOR: every text in full, crate by crate.
third_party() {
    local crates name version licence from folder file files
    crates=$(crates_of "$1")
    say "The library contains code of Rust's standard library (MIT OR Apache-2.0, by the Rust Project's contributors; both" \
        "texts are below) and of these crates, under their licences."
    while IFS='|' read -r name version licence from folder; do
        printf '\n%s %s: %s\n%s\n' "$name" "$version" "$licence" "$from"
        printf 'Copyright %s\n\n' "$(copyright_lines "$folder" | paste -sd, | sed 's/,/, /g')"
        mapfile -t files < <(licence_files "$folder")
        for file in "${files[@]}"; do
            printf -- '--- %s\n' "${file##*/}"
            cat "$file"
        done
        if [ ${#files[@]} -eq 0 ]; then
            # The crate says which it is; the text is the same for all, but for whose copyright it is.
            for licence in $(licence_names "||$licence||"); do
                printf -- '--- %s, which comes with the crate by name only\n' "$licence"
                licence_text "$licence" "$crates"
            done
        fi
    done <<<"$crates"
}

# debian_copyright MAJOR: the same as Debian wants it, a paragraph for each crate and one for each licence.
debian_copyright() {
    local crates name version licence from folder
    crates=$(crates_of "$1")
    cat <<COPYRIGHT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: impersonate
Comment: The library has Rust's standard library and crates linked in, which have paragraphs of their own, by the names
 that their sources unpack to. third-party.gz has the texts as they come with each.

Files: *
Copyright: $(sed -nE 's/^Copyright \(c\) //p' LICENSE)
License: PostgreSQL
$(sed -e '1,/^Copyright/d' LICENSE | sed '1{/^$/d}' | indented)

Files: rust-std/*
Copyright: the Rust Project's contributors
License: Expat or Apache-2.0
Comment: https://github.com/rust-lang/rust
COPYRIGHT
    while IFS='|' read -r name version licence from folder; do
        printf '\nFiles: %s-%s/*\n' "$name" "$version"
        printf 'Copyright: %s\n' "$(copyright_lines "$folder" | sed '2,$s/^/ /')"
        # Debian's names, and its way without parentheses.
        printf 'License: %s\n' "$(sed -E 's,/, or ,g; s/ OR / or /g; s/\) AND /, and /g; s/ AND / and /g; s/[()]//g
            s/\bMIT\b/Expat/g' <<<"$licence")"
        printf 'Comment: %s\n' "$from"
    done <<<"$crates"
    for licence in $( (licence_names "$crates"; printf '%s\n' MIT Apache-2.0) | LC_ALL=C sort -u); do
        printf '\nLicense: %s\n' "${licence/#MIT/Expat}"
        if [ "$licence" = Apache-2.0 ]; then
            say " On Debian systems the text is in /usr/share/common-licenses/Apache-2.0."
        else
            licence_text "$licence" "$crates" | indented
        fi
    done
}

# As a field's further lines: a blank one has a dot.
indented() { sed -e 's/[[:space:]]*$//' -e 's/^$/./' -e 's/^/ /'; }
