#!/usr/bin/env bash
# Fails when a C++ file is not formatted as .clang-format says (clang-format 14, another version formats otherwise).
#
#   scripts/check-format.sh          every C++ file that git tracks
#   scripts/check-format.sh --fix    formats them
set -euo pipefail
cd "$(dirname "$0")/.."

tool=$(command -v clang-format-14 || command -v clang-format) || {
    echo "check-format: clang-format is missing (Debian: apt-get install clang-format)" >&2
    exit 1
}
mode=(--dry-run --Werror)
[ "${1:-}" != --fix ] || mode=(-i)
git ls-files -z '*.cpp' '*.h' | xargs -0 "$tool" "${mode[@]}"
