#!/usr/bin/env bash
# Installs releases of node-llama-cpp, each in a folder of its own: .deps/versions/VERSION, with the libraries of its
# llama.cpp in node_modules and their source in src.
#
#   scripts/fetch-llama.sh [--source-only] VERSION...
#
# Versions and checksums are in scripts/llama-releases.txt. --source-only: node-llama-cpp alone, which brings the source.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "fetch-llama: $*" >&2
    exit 1
}

source_only=
if [ "${1:-}" = --source-only ]; then
    source_only=1
    shift
fi
[ $# -gt 0 ] || fail "which version? $(grep -oE '^[0-9.]+' scripts/llama-releases.txt | tr '\n' ' ')"
mkdir -p .deps/versions
exec 9>.deps/versions/lock
flock 9

# The checksum that npm verified, of a package that it has installed.
installed() { node -p "require('./$1/package-lock.json').packages['node_modules/$2']?.integrity ?? ''"; }

for version in "$@"; do
    read -r _ _ libraries client < <(grep -E "^${version//./\\.} " scripts/llama-releases.txt || echo) ||
        fail "scripts/llama-releases.txt has no $version"
    [ -n "${client:-}" ] || fail "scripts/llama-releases.txt has no $version"
    folder=.deps/versions/$version
    packages="node-llama-cpp@$version"
    [ -n "$source_only" ] || packages="$packages @node-llama-cpp/linux-x64@$version"
    case "$(cat "$folder/ready" 2>/dev/null)" in
        all) continue ;;
        source) [ -z "$source_only" ] || continue ;;
    esac
    echo "fetch-llama: fetching node-llama-cpp $version from npm"
    rm -rf "$folder"
    mkdir -p "$folder"
    echo '{"private": true}' >"$folder/package.json"
    # shellcheck disable=SC2086 # two packages
    (cd "$folder" && npm install --save-exact --omit=optional --ignore-scripts --no-audit --no-fund --prefer-offline \
        --fetch-retries=3 --omit-lockfile-registry-resolved $packages >npm.log 2>&1) ||
        fail "npm install $packages failed (no network?); details in $folder/npm.log"
    [ "$(installed "$folder" node-llama-cpp)" = "$client" ] ||
        fail "node-llama-cpp $version has another checksum than scripts/llama-releases.txt says"
    [ -n "$source_only" ] || [ "$(installed "$folder" @node-llama-cpp/linux-x64)" = "$libraries" ] ||
        fail "@node-llama-cpp/linux-x64 $version has another checksum than scripts/llama-releases.txt says"
    git -c advice.detachedHead=false clone -q "$folder/node_modules/node-llama-cpp/llama/gitRelease.bundle" \
        "$folder/src" 2>>"$folder/npm.log" || fail "cannot unpack the source of $version; details in $folder/npm.log"
    if [ -n "$source_only" ]; then echo source; else echo all; fi >"$folder/ready"
done
