#!/usr/bin/env bash
# Cross-builds the core, the plugin, the op and the trace tools for 64-bit Arm with Debian's compiler, and runs their
# tests under qemu. On an x86-64 Debian 12; everything it needs is installed by it. Takes a while: qemu is slow.
#
#   scripts/test-arm64.sh                 all of it, with the scalar kernels
#   scripts/test-arm64.sh -R custom-op    any further arguments go to ctest
#   MIXED_KV_ARM_KERNELS=ON scripts/test-arm64.sh
#                                         with the kernel sets for Arm (docs/performance-arm.md), as three CPUs: each
#                                         takes the set that it should, or a test fails
#
# MIXED_KV_JOBS sets the number of compile and test jobs (default: all cores). MIXED_KV_ARM_CPUS names the CPUs for the
# sets (default: cortex-a72 neoverse-n1 max).
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${MIXED_KV_JOBS:-$(nproc)}
kernels=${MIXED_KV_ARM_KERNELS:-OFF}

fail() {
    echo "test-arm64: $*" >&2
    exit 1
}

scripts/setup.sh arm64

scripts/fetch-llama-arm64.sh

# --- build and test ----------------------------------------------------------------------------------------

echo "test-arm64: configuring build-arm64/"
mkdir -p build-arm64
cmake --preset arm64 -DMIXED_KV_ARM_KERNELS="$kernels" >build-arm64/configure.log 2>&1 ||
    fail "configuring failed: $(grep -A 3 -m 1 'CMake Error' build-arm64/configure.log | tr '\n' ' ') (build-arm64/configure.log)"
echo "test-arm64: building with $jobs jobs"
cmake --build --preset arm64 -j "$jobs" || fail "the build failed; see above"
if [ "$kernels" != ON ]; then
    echo "test-arm64: running the tests under qemu with $jobs jobs"
    ctest --preset arm64 -j "$jobs" "$@" || fail "some tests failed; their output is above"
    echo "test-arm64: all passed"
    exit 0
fi
for cpu in ${MIXED_KV_ARM_CPUS:-cortex-a72 neoverse-n1 max}; do
    # A CPU that runs several sets tests the one that it takes; what no set is named in is tested on all of them.
    case $cpu in
        cortex-a72) isa=neon others='' ;;
        neoverse-n1) isa=dotprod others='[/.](scalar|neon)$' ;;
        max) isa=i8mm others='[/.](scalar|neon|dotprod)$' ;;
        *) fail "MIXED_KV_ARM_CPUS: no expectation for '$cpu': cortex-a72, neoverse-n1 or max" ;;
    esac
    echo "test-arm64: running the tests under qemu as $cpu, which takes $isa, with $jobs jobs"
    QEMU_CPU=$cpu MIXED_KV_EXPECT_ISA=$isa MIXED_KV_REQUIRE_ISA=$isa \
        ctest --preset arm64 -j "$jobs" ${others:+-E "$others|DeathTest"} "$@" ||
        fail "some tests failed as $cpu; their output is above"
done
echo "test-arm64: all passed"
