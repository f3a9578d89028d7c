#!/bin/bash
# llama-completion and llama-server with GGML_MIXED_KV_LIMIT_MB, --fit on and off: a mixed cache within the limit, or a
# refusal in one line, never a cache of the host's own.
#
#   tests/stress/upstream/limits.sh BUILD_FOLDER PLUGIN [MODEL]
set -u
if [ $# -lt 2 ]; then
    echo "usage: $0 BUILD_FOLDER PLUGIN [MODEL]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" && pwd)/bin
plugin=$(realpath "$2")
model=$(realpath "${3:-$here/../../../models/tiny-recall.gguf}")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0

# name: what the log shows; the cache's line ends with its size, "..., 1.6 MiB (F16: 5.0 MiB)".
judge() {
    local size refused host
    size=$(grep -a "mixed-kv: cache of" "$log" | grep -o '[0-9.]* MiB (F16' | cut -d' ' -f1)
    refused=$(grep -ac "mixed-kv: .*GGML_MIXED_KV_LIMIT_MB=$limit: refused" "$log")
    host=$(grep -ac "CPU KV buffer size" "$log")
    local verdict=wrong
    if [ "$host" -eq 0 ]; then
        if [ -n "$size" ] && [ "$refused" -eq 0 ] && awk "BEGIN { exit !($size <= $limit) }"; then
            verdict="mixed, $size MiB"
        elif [ -z "$size" ] && [ "$refused" -eq 1 ]; then
            verdict=refused
        fi
    fi
    echo "$1, limit $limit MiB, --fit $fit, $context: $verdict"
    [ "$verdict" != wrong ] || { failed=1 && cat "$log" >&2; }
}

port=$((20000 + RANDOM % 20000))
for fit in on off; do
    for limit in 1 20 100 200 500; do
        for context in "-c 4096" "-c 262144" ""; do
            export GGML_BACKEND_PATH=$plugin GGML_MIXED_KV_LIMIT_MB=$limit
            # It prints from a thread of its own, and loses the end of its log when it ends at once: again, until the
            # reason for its end is there.
            for _ in $(seq 30); do
                # shellcheck disable=SC2086 # the options are words
                timeout 300 "$bin/llama-completion" -m "$model" $context --fit $fit -no-cnv -p The -n 2 -t 1 -lv 4 \
                    >"$log" 2>&1 && break
                grep -qa "unable to create context" "$log" && break
            done
            judge llama-completion
            port=$((port + 1))
            # shellcheck disable=SC2086
            "$bin/llama-server" -m "$model" $context --fit $fit -np 1 -t 1 --no-warmup --port $port -lv 4 >"$log" 2>&1 &
            server=$!
            for _ in $(seq 600); do
                grep -qa "listening on http" "$log" && break
                kill -0 $server 2>/dev/null || break
                sleep 0.2
            done
            kill $server 2>/dev/null
            wait $server 2>/dev/null
            judge llama-server
        done
    done
done
exit $failed
