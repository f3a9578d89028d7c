#!/usr/bin/env bash
# Fails when a file of plugin/ outside ggml_contract/ reads what is a particular ggml's: sources, shapes, strides and
# op_params of nodes, numbers of ops, names of tensors, symbols looked up by name.
#
#   scripts/check-ggml-contract.sh [FOLDER]     default: plugin, without ggml_contract/ and front/ (which knows no ggml)
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-plugin}
found=$(find "$folder" -maxdepth 1 -name '*.cpp' -o -maxdepth 1 -name '*.h' | sort | xargs grep -nE \
    'op_params|GGML_OP_[A-Z]|\bOps::|(->|\.)(src|ne|nb)\[|->(src|op|view_src)\b|"cache_|"Qcur|\bdl(sym|open)\(' |
    grep -vE '^[^:]+:[0-9]+: *//' || true)
if [ -n "$found" ]; then
    printf 'knowledge of ggml outside plugin/ggml_contract:\n%s\n' "$found" >&2
    exit 1
fi
