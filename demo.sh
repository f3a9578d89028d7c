#!/usr/bin/env bash
# Sets up, builds, and runs the bundled model with the mixed KV cache beside llama.cpp's F16 cache.
#
#   ./demo.sh                    the bundled model on a long excerpt of models/eval.txt
#   ./demo.sh -m MODEL -p TEXT   any further arguments go to mixed-kv-run in place of these
#
# MIXED_KV_JOBS sets the number of compile jobs (default: all cores).
set -euo pipefail
cd "$(dirname "$0")"
jobs=${MIXED_KV_JOBS:-$(nproc)}

fail() {
    echo "demo: $*" >&2
    exit 1
}

scripts/setup.sh build

# A build folder that is there already, ./test.sh's for example, is used as it is.
if [ ! -f build/build.ninja ]; then
    echo "demo: configuring build/"
    mkdir -p build
    cmake -S . -B build -G Ninja -DMIXED_KV_BUILD_TESTS=OFF >build/configure.log 2>&1 ||
        fail "configuring failed: $(grep -A 3 -m 1 'CMake Error' build/configure.log | tr '\n' ' ') (build/configure.log)"
fi
echo "demo: building with $jobs jobs"
cmake --build build -j "$jobs" --target ggml-mixed-kv mixed-kv-run || fail "the build failed; see above"

if [ $# -gt 0 ]; then
    exec build/bin/mixed-kv-run "$@"
fi

model=$(ls models/*.gguf 2>/dev/null | head -n 1)
[ -n "$model" ] || fail "no model in models/"
prompt=$(mktemp)
trap 'rm -f "$prompt"' EXIT
# Long enough that most of the cache is cold, short enough for the model's 2048 tokens of context.
head -c 5000 models/eval.txt >"$prompt"
echo "demo: $model continues an excerpt of models/eval.txt, mixed KV cache against F16"
build/bin/mixed-kv-run -m "$model" -f "$prompt" -c 2048 -n 96 --temp 0 --compare
