#!/usr/bin/env bash
# Sets up, builds, and shows the mixed KV cache beside llama.cpp's F16 cache: the bundled model's text and memory, then
# the speed and memory of a model of a real shape at a long context.
#
#   ./demo.sh                    both
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
targets=(ggml-mixed-kv mixed-kv-run)
[ $# -gt 0 ] || targets+=(mixed-kv-bench make-random-model)
cmake --build build -j "$jobs" --target "${targets[@]}" || fail "the build failed; see above"

if [ $# -gt 0 ]; then
    exec build/bin/mixed-kv-run "$@"
fi

model=$(ls models/*.gguf 2>/dev/null | head -n 1)
[ -n "$model" ] || fail "no model in models/"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Long enough that most of the cache is cold, short enough for the model's 2048 tokens of context.
head -c 5000 models/eval.txt >"$scratch/prompt"
echo "demo: $model continues an excerpt of models/eval.txt, mixed KV cache against F16"
build/bin/mixed-kv-run -m "$model" -f "$scratch/prompt" -c 2048 -n 96 --temp 0 --compare

# Four of its sixteen layers, random weights: what a layer costs does not depend on its weights, and all layers are
# alike. K and V of a token are 8 heads of 64.
layers=4 depth=32768 heads=8 channels=64
echo
echo "demo: $layers layers of Llama-3.2-1B's shape, random weights, $depth tokens in the cache"
build/bin/make-random-model --arch llama-1b --layers $layers --out "$scratch/shape.gguf" >/dev/null
build/bin/mixed-kv-bench model -m "$scratch/shape.gguf" --depths $depth --host f16 --csv >"$scratch/figures" ||
    fail "the measurement failed; see above"
awk -F, -v f16_bytes=$((depth * layers * heads * channels * 2 * 2)) '
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i }
    NR == 2 {
        mixed = $column["tokens_per_second"]; f16 = $column["host_f16_tokens_per_second"]
        show_all("tokens per second", "%.1f", mixed, f16)
        show_all("KV cache, MiB", "%.1f", $column["kv_bytes"] / 1048576, f16_bytes / 1048576)
        printf "\n%.1f times as fast, %.0f %% of the memory.\n", mixed / f16, 100 * $column["kv_bytes"] / f16_bytes
    }
    function show_all(what, format, a, b) {
        printf "\n%s\n", what
        show("mixed", format, a, a > b ? a : b)
        show("F16", format, b, a > b ? a : b)
    }
    function show(name, format, value, most,    bar, i) {
        for (i = 0; i < 48 * value / most; i++) bar = bar "#"
        printf "  %-6s %9s  %s\n", name, sprintf(format, value), bar
    }' "$scratch/figures"
cat <<END

With a model of yours:
  build/bin/mixed-kv-run -m MODEL.gguf -f TEXT.txt -c 0 --compare
  GGML_BACKEND_PATH=$PWD/build/lib/libggml-mixed-kv.so llama-server -m MODEL.gguf   # any llama.cpp program; docs/recipes.md
END
