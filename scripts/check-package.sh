#!/usr/bin/env bash
# Fails when a program or library below a folder needs more than a package may: a glibc above 2.35, a libstdc++ above
# GCC 12's, or a library that neither the system's C and C++ runtime nor the folder has.
#
#   scripts/check-package.sh FOLDER
set -euo pipefail

[ $# = 1 ] && [ -d "$1" ] || {
    echo "usage: $0 FOLDER" >&2
    exit 2
}
highest() { objdump -T "$2" 2>/dev/null | grep -oE "$1_[0-9.]+" | sort -uV | tail -n 1; }
above() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "${1#*_}" "$2" | sort -V | tail -n 1)" != "$2" ]; }

status=0
count=0
while IFS= read -r -d '' file; do
    [ "$(head -c 4 "$file" | tail -c 3)" = ELF ] || continue
    count=$((count + 1))
    glibc=$(highest GLIBC "$file" || true)
    if above "$glibc" 2.35; then
        echo "$file needs $glibc"
        status=1
    fi
    glibcxx=$(highest GLIBCXX "$file" || true)
    if above "$glibcxx" 3.4.30; then
        echo "$file needs $glibcxx"
        status=1
    fi
    while read -r needed; do
        case $needed in
            libc.so.6 | libm.so.6 | libstdc++.so.6 | libgcc_s.so.1 | libdl.so.2 | libpthread.so.0 | ld-linux-*) ;;
            *) [ -n "$(find "$1" -name "$needed" -print -quit)" ] || {
                echo "$file needs $needed"
                status=1
            } ;;
        esac
    done < <(objdump -p "$file" | awk '$1 == "NEEDED" { print $2 }')
done < <(find "$1" -type f -print0)
[ "$count" -gt 0 ] || {
    echo "$1: no program and no library" >&2
    exit 1
}
[ "$status" != 0 ] || echo "$count programs and libraries need glibc 2.35 at most"
exit "$status"
