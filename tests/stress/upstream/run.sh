#!/bin/bash
# Runs llama.cpp's own tests and its server, built by the project in this folder, with llama.cpp's own cache and with
# the plugin, and says where the results differ:
#
#   tests/stress/upstream/run.sh BUILD_FOLDER PLUGIN [MODEL]
#
# "exact": a window over the whole context, results must be those of the plain run. "cold": a small window, q8 and q4;
# there test-save-load-state may fail its comparison with NMSE 1e-5, because a restore encodes rows anew.
set -u
if [ $# -lt 2 ]; then
    echo "usage: $0 BUILD_FOLDER PLUGIN [MODEL]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" && pwd)
plugin=$(realpath "$2")
model=$(realpath "${3:-$here/../../../models/tiny-recall.gguf}")
logs=$bin/logs
mkdir -p "$logs"
failed=0
unset GGML_BACKEND_PATH GGML_MIXED_KV_WINDOW GGML_MIXED_KV_K GGML_MIXED_KV_V

plain=()
exact=(GGML_BACKEND_PATH="$plugin" GGML_MIXED_KV_WINDOW=1048576)
cold=(GGML_BACKEND_PATH="$plugin" GGML_MIXED_KV_WINDOW=16 GGML_MIXED_KV_K=q8 GGML_MIXED_KV_V=q4)

# name command...: runs it three times, prints the exit statuses.
compare() {
    local name=$1
    shift
    env "${plain[@]}" "$@" >"$logs/$name-plain.log" 2>&1
    local a=$?
    env "${exact[@]}" "$@" >"$logs/$name-exact.log" 2>&1
    local b=$?
    env "${cold[@]}" "$@" >"$logs/$name-cold.log" 2>&1
    local c=$?
    echo "$name: plain $a, exact $b, cold $c"
    [ $a -eq $b ] || failed=1
    grep -q "mixed-kv: cache of" "$logs/$name-exact.log" || { echo "  the plugin was not in effect" && failed=1; }
    [ $c -lt 128 ] || failed=1 # a crash
}
compare test-save-load-state "$bin/bin/test-save-load-state" -m "$model" -t 1 -fa on -lv 5
compare test-state-restore-fragmented "$bin/bin/test-state-restore-fragmented" -m "$model" -t 1 -fa on -lv 5
compare test-thread-safety "$bin/bin/test-thread-safety" -m "$model" -ngl 99 -p "The meaning of life is" -n 128 -c 256 \
    -ub 32 -np 4 -t 1 -fa on -lv 5

for op in SET_ROWS ROPE CPY FLASH_ATTN_EXT; do
    LD_PRELOAD=$bin/libclaim-ops.so GGML_BACKEND_PATH=$plugin "$bin/bin/test-backend-ops" test -b MixedKV -o $op \
        >"$logs/backend-ops-$op.log" 2>&1 || failed=1
    echo "test-backend-ops $op: $(grep -a 'tests passed' "$logs/backend-ops-$op.log")"
done

node "$here/server_client.mjs" "$bin/bin/llama-server" "$plugin" "$model" || failed=1
exit $failed
