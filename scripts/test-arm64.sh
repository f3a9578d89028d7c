#!/usr/bin/env bash
# Cross-builds the core, the plugin, the op and the trace tools for 64-bit Arm with Debian's compiler, and runs their
# tests under qemu. On an x86-64 Debian 12; everything it needs is installed by it. Takes a while: qemu is slow.
#
#   scripts/test-arm64.sh                 all of it
#   scripts/test-arm64.sh -R custom-op    any further arguments go to ctest
#
# MIXED_KV_JOBS sets the number of compile and test jobs (default: all cores).
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${MIXED_KV_JOBS:-$(nproc)}

fail() {
    echo "test-arm64: $*" >&2
    exit 1
}

scripts/setup.sh arm64

# --- the pinned llama.cpp for arm64 ------------------------------------------------------------------------
# From npm like the other one, in the same version and with the checksum that package-lock.json has for it. `npm ci`
# itself would leave out a package for another machine.

package=@node-llama-cpp/linux-arm64
llama=.deps/linux-arm64
stamp=.deps/stamps/linux-arm64
version=$(node -p 'require("./package.json").dependencies["@node-llama-cpp/linux-x64"]')
checksum=$(node -p "require('./package-lock.json').packages['node_modules/$package'].integrity ?? ''")
[ -n "$checksum" ] || fail "package-lock.json has no checksum for $package"

if [ "$(cat "$stamp" 2>/dev/null)" != "$checksum" ] || [ ! -f "$llama/libggml-base.so" ]; then
    echo "test-arm64: fetching $package $version from npm"
    rm -rf "$llama" "$llama.new"
    mkdir -p "$llama.new"
    archive=$(npm pack --silent --pack-destination "$llama.new" "$package@$version") ||
        fail "npm pack $package@$version failed (no network?)"
    archive=$llama.new/${archive##*$'\n'}
    [ -f "$archive" ] || fail "npm pack left no $archive"
    found=sha512-$(node -p "require('crypto').createHash('sha512').update(require('fs').readFileSync('$archive')).digest('base64')")
    [ "$found" = "$checksum" ] || fail "$archive has the checksum $found, package-lock.json says $checksum"
    tar -xzf "$archive" -C "$llama.new" --strip-components=3 package/bins/linux-arm64
    rm "$archive"
    mv "$llama.new" "$llama"
    echo "$checksum" >"$stamp"
fi

# --- build and test ----------------------------------------------------------------------------------------

echo "test-arm64: configuring build-arm64/"
mkdir -p build-arm64
cmake --preset arm64 >build-arm64/configure.log 2>&1 ||
    fail "configuring failed: $(grep -A 3 -m 1 'CMake Error' build-arm64/configure.log | tr '\n' ' ') (build-arm64/configure.log)"
echo "test-arm64: building with $jobs jobs"
cmake --build --preset arm64 -j "$jobs" || fail "the build failed; see above"
echo "test-arm64: running the tests under qemu with $jobs jobs"
ctest --preset arm64 -j "$jobs" "$@" || fail "some tests failed; their output is above"
echo "test-arm64: all passed"
