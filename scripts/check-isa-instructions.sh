#!/usr/bin/env bash
# Fails when an object file holds instructions beyond an instruction set: such a file would crash on a CPU that
# the dispatch sends there.
#
#   scripts/check-isa-instructions.sh baseline|avx2|armv8|dotprod OBJECT...
#
# baseline: x86-64 with SSE only, no VEX or EVEX encoding. avx2: no ZMM or mask register, none of the 16 that
# AVX-512 adds. armv8: 64-bit Arm as its first CPUs have it, without dot products of bytes, products of matrices,
# arithmetic on binary16, later atomics, SVE. dotprod: that and SDOT, UDOT. OBJDUMP names the objdump to use.
set -euo pipefail

usage() {
    echo "usage: $0 baseline|avx2|armv8|dotprod OBJECT..." >&2
    exit 2
}
[ $# -gt 1 ] || usage
at='^[[:space:]]+[0-9a-f]+:[[:space:]]+'
later_arm="$at([su]*mmla|usdot|sudot|bf(dot|mmla|mlal[bt]|cvtn?2?)|fml[as]l2?|fcmla|fcadd|sqrdml[as]h|fjcvtzs|(cas|swp|ld(add|clr|eor|set))[abhlp]*)[[:space:]]"
later_arm+='|[[:space:],{]z[0-9]+[.,]|[[:space:]]f[a-z]+[[:space:]]+(v[0-9]+\.[48]h|h[0-9]+), (v[0-9]+\.[48]h|h[0-9]+)'
case $1 in
    # Every AVX instruction starts with v; verr, verw and those of virtual machines do not come from compilers.
    baseline) beyond='^[[:space:]]+[0-9a-f]+:[[:space:]]+v[a-z]|%[yz]mm|%k[0-7]' ;;
    armv8) beyond="$later_arm|$at[su]dot[[:space:]]" ;;
    dotprod) beyond=$later_arm ;;
    avx2) beyond='%zmm|%k[0-7]|%[xy]mm(1[6-9]|2[0-9]|3[01])' ;;
    *) usage ;;
esac
shift

status=0
for object in "$@"; do
    code=$("${OBJDUMP:-objdump}" --disassemble --no-show-raw-insn "$object")
    if found=$(grep -E -m 3 "$beyond" <<<"$code"); then
        echo "$object:"
        echo "$found"
        status=1
    fi
done
[ "$status" != 0 ] || echo "$# object file(s) clean"
exit "$status"
