#!/usr/bin/env bash
# Fails when an object file defines code or data that the linker may share with other files.
#
#   scripts/check-isa-symbols.sh OBJECT...
#
# An inline function or template used in a file compiled for AVX-512 becomes a weak symbol there; the linker
# keeps one copy for the whole program, perhaps that one, and CPUs without AVX-512 crash in unrelated code. So
# kernel objects may define local and strong symbols only. NM names the nm to use.
set -euo pipefail

[ $# -gt 0 ] || {
    echo "usage: $0 OBJECT..." >&2
    exit 2
}

status=0
for object in "$@"; do
    # W, V: weak; u: one copy for the whole process. DW.ref.* is only a pointer to the exception personality.
    shared=$("${NM:-nm}" --defined-only --demangle "$object" |
        awk '$2 ~ /^[WVu]$/ && $3 !~ /^DW\.ref\./ { $1 = ""; print "   " $0 }')
    if [ -n "$shared" ]; then
        echo "$object defines symbols that the linker may share:"
        echo "$shared"
        status=1
    fi
done
[ "$status" != 0 ] || echo "$# object file(s) clean"
exit "$status"
