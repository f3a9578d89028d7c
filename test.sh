#!/usr/bin/env bash
# Sets up, builds everything, and runs the fast tests (those not labelled slow).
#
#   ./test.sh               all fast tests
#   ./test.sh -R KvTensor   any further arguments go to ctest
#
# MIXED_KV_JOBS sets the number of compile and test jobs (default: all cores).
# MIXED_KV_ALSO_LABELS names ctest labels to run after that, for example "ci-short" or "slow".
set -euo pipefail
cd "$(dirname "$0")"
jobs=${MIXED_KV_JOBS:-$(nproc)}

fail() {
    echo "test: $*" >&2
    exit 1
}

scripts/setup.sh

echo "test: configuring build/"
mkdir -p build
cmake --preset dev >build/configure.log 2>&1 ||
    fail "configuring failed: $(grep -A 3 -m 1 'CMake Error' build/configure.log | tr '\n' ' ') (build/configure.log)"
echo "test: building with $jobs jobs"
cmake --build build -j "$jobs" || fail "the build failed; see above"

echo "test: running the fast tests with $jobs jobs"
status=0
ctest --test-dir build -LE slow -j "$jobs" --output-on-failure --no-tests=error "$@" || status=$?
for label in ${MIXED_KV_ALSO_LABELS:-}; do
    echo "test: running what is labelled $label"
    ctest --test-dir build -L "^$label\$" -j "$jobs" --output-on-failure --no-tests=ignore "$@" || status=$?
done
[ "$status" = 0 ] || fail "some tests failed; their output is above"
echo "test: all passed"
