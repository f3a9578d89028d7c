#!/usr/bin/env bash
# Fails when an object file of attention kernels holds fewer prefetch instructions than kernels: GCC 12 deletes
# calls of functions that do nothing else (docs/adr/0012-asm-for-prefetches-and-sums.md).
#
#   scripts/check-prefetches.sh OBJECT...
#
# Kernels are the global functions whose names begin with qk_ or pv_. Each needs at least two prefetches, one for
# parameters and one for codes. NM and OBJDUMP name the nm and objdump to use.
set -euo pipefail

[ $# -gt 0 ] || {
    echo "usage: $0 OBJECT..." >&2
    exit 2
}

status=0
for object in "$@"; do
    kernels=$("${NM:-nm}" --defined-only --demangle "$object" | grep -cE ' T .*::(qk|pv)_[a-z0-9_]+\(' || true)
    prefetches=$("${OBJDUMP:-objdump}" --disassemble --no-show-raw-insn "$object" | grep -cE '[[:space:]](prefetch|prfm)' || true)
    if [ "$kernels" -eq 0 ] || [ "$prefetches" -lt $((2 * kernels)) ]; then
        echo "$object: $kernels kernels, $prefetches prefetches"
        status=1
    fi
done
[ "$status" != 0 ] || echo "$# object file(s) prefetch"
exit "$status"
