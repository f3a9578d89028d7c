#!/usr/bin/env bash
# Counts the instructions of one attention op on 64-bit Arm under qemu: this library's kernel sets and, with --host,
# llama.cpp's own op over F16 and q8_0 caches, in the library that it takes on that CPU. build-arm64 must exist
# (scripts/test-arm64.sh). The counter is tests/kernels/count/instruction_count.c, a plugin that adds up the
# instructions of every block that is executed; an op is half the difference between runs of three ops and of one.
#
#   scripts/count-instructions.sh [--host] [FORMAT [HEAD_DIM [GQA [N_KV [N_Q]]]]]      q4 128 4 4096 1
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "count-instructions: $*" >&2
    exit 1
}

host=0
[ "${1:-}" != --host ] || { host=1 && shift; }
format=${1:-q4} shape="${2:-128} ${3:-4} ${4:-4096} ${5:-1}"
build=build-arm64
llama=.deps/linux-arm64
headers=$(echo .deps/llama.cpp-*/ggml/include)
[ -f $build/build.ninja ] || fail "no $build: run scripts/test-arm64.sh once"
cmake --build $build --target count-attention >/dev/null || fail "count-attention does not build"
plugin=$build/instruction-count.so
gcc -O2 -shared -fPIC -o $plugin tests/kernels/count/instruction_count.c

# Instructions of `command...` with a last argument of 3, less those with 1, halved.
per_op() {
    local cpu=$1 least most
    shift
    least=$(counted "$cpu" "$@" 1)
    most=$(counted "$cpu" "$@" 3)
    echo $(((most - least) / 2))
}
counted() {
    local cpu=$1 said
    shift
    said=$(qemu-aarch64 -cpu "$cpu" -L /usr/aarch64-linux-gnu -E "LD_LIBRARY_PATH=$llama" -plugin "$PWD/$plugin" "$@" 2>&1) ||
        fail "$1 failed as $cpu: $said"
    sed -n 's/^instructions //p' <<<"$said"
}

for row in scalar:cortex-a72 neon:cortex-a72 dotprod:neoverse-n1 i8mm:max; do
    isa=${row%:*} cpu=${row#*:}
    echo "$isa $format $shape, $cpu: $(per_op "$cpu" $build/bin/count-attention "$isa" "$format" $shape)"
done
[ $host = 1 ] || exit 0
[ -d "$llama" ] || fail "no $llama: run scripts/fetch-llama-arm64.sh"
program=$build/bin/count-host-attention
# The libraries carry the release in their names.
aarch64-linux-gnu-g++ -O2 -std=c++20 -I "$headers" -o $program tests/kernels/count/count_host_attention.cpp \
    "$(echo $llama/libggml.*.so)" $llama/libggml-base.so -Wl,-rpath-link,$llama || fail "count-host-attention does not build"
for cpu in cortex-a72 neoverse-n1 max; do
    for type in f16 q8_0; do
        echo "host $type $shape, $cpu: $(per_op "$cpu" $program "$llama" "$type" $shape)"
    done
done
