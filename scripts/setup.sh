#!/usr/bin/env bash
# Sets up everything that building and testing needs, from Debian packages and npm. Nothing by hand.
#
#   scripts/setup.sh          all of it
#   scripts/setup.sh build    what the plugin and the tools need, without the tests' packages
#   scripts/setup.sh package  that, and what scripts/package.sh needs
#   scripts/setup.sh arm64    that, and what scripts/test-arm64.sh needs
#   scripts/setup.sh browser  all of it, and the browser that the tests of HTML reports need (300 MB)
#
# Can be run again at any time; what is in place already costs about a second. What was done is logged in
# .deps/setup.log. MIXED_KV_SKIP_APT=1 leaves Debian packages alone (other systems, no root).
set -euo pipefail
cd "$(dirname "$0")/.."

tag=v0.5.0 # the llama.cpp release in node-llama-cpp's pinned version; keep in step with package.json
log=.deps/setup.log
stamps=.deps/stamps

say() { echo "setup: $*"; }
fail() {
    echo "setup: $*" >&2
    exit 1
}

case "${1:-test}" in
    build) groups="build" ;;
    arm64) groups="build arm64" ;;
    package) groups="build package" ;;
    browser) groups="build test browser" ;;
    test) groups="build test" ;;
    *) fail "unknown argument '$1': expected nothing, 'build', 'package', 'arm64' or 'browser'" ;;
esac

[ "$(uname -s)" = Linux ] || fail "needs Linux, this is $(uname -s)"
case "$(uname -m)" in
    x86_64) npm_root=node_modules/@node-llama-cpp/linux-x64/bins/linux-x64 platform= ;;
    # npm would refuse the packages for x86-64 that package.json names.
    aarch64) npm_root=.deps/linux-arm64 platform=--force ;;
    *) fail "the pinned llama.cpp is for x86-64 and 64-bit Arm, this is $(uname -m): build with -DMIXED_KV_LLAMA_ROOT=... (README.md)" ;;
esac

mkdir -p "$stamps"
exec 9>.deps/setup.lock
flock 9 # two scripts at once: the second waits, then finds everything done

# --- Debian packages ---------------------------------------------------------------------------------------

run_as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing_packages() {
    local package group rest
    while read -r package group rest; do
        case "$package" in '' | '#'*) continue ;; esac
        [[ " $groups " == *" $group "* ]] || continue
        rest=${rest%%#*}
        if [[ "$rest" == *unless=* ]]; then
            local command=${rest##*unless=}
            command -v "${command%% *}" >/dev/null && continue
        fi
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done <scripts/apt-packages.txt
}

install_packages() {
    local missing
    missing=$(missing_packages | tr '\n' ' ')
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        fail "not root and no sudo; ask an administrator for: apt-get install --no-install-recommends $missing"
    fi
    say "installing Debian packages: $missing"
    run_as_root apt-get -qq -o DPkg::Lock::Timeout=300 update >>"$log" 2>&1 ||
        fail "apt-get update failed (no network, or no right to install?); details in $log"
    run_as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends $missing >>"$log" 2>&1 ||
        fail "apt-get install failed; last line: $(grep -v '^$' "$log" | tail -n 1) (details in $log)"
}

if [ "${MIXED_KV_SKIP_APT:-0}" = 1 ]; then
    say "Debian packages left alone (MIXED_KV_SKIP_APT=1)"
elif command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    install_packages
else
    fail "no apt-get here: install the equivalents of scripts/apt-packages.txt and set MIXED_KV_SKIP_APT=1"
fi
for command in g++ cmake ninja git node npm; do
    command -v "$command" >/dev/null || fail "$command is missing (scripts/apt-packages.txt says which package has it)"
done

# --- the pinned llama.cpp from npm -------------------------------------------------------------------------

bundle=node_modules/node-llama-cpp/llama/gitRelease.bundle

# node-llama-cpp itself, which only the tests run, needs Node 20; Debian 12 has 18. The tests then use the Node
# that npm has as a package. The browser's driver is one of these packages, too.
omit="--omit=optional"
node_major=$(node -p 'process.versions.node.split(".")[0]')
if { [ "$node_major" -ge 20 ] && [[ "$groups" != *browser* ]]; } || [[ "$groups" != *test* ]]; then
    omit="$omit --omit=dev"
fi

[ "$npm_root" != .deps/linux-arm64 ] || scripts/fetch-llama-arm64.sh || fail "no llama.cpp for 64-bit Arm; see above"

npm_key=$(cat package.json package-lock.json .npmrc | sha256sum | cut -d ' ' -f 1)
npm_has() { [ -f "$npm_root/libggml-base.so" ] && [ -f "$bundle" ] && [ "$(cat "$stamps/$1" 2>/dev/null)" = "$npm_key" ]; }
# A complete installation also serves those who ask for less.
if ! npm_has npm-all && { [[ "$omit" != *dev* ]] || ! npm_has npm; }; then
    say "installing the pinned llama.cpp and node-llama-cpp from npm"
    rm -f "$stamps/npm" "$stamps/npm-all"
    npm ci $omit $platform --ignore-scripts --no-audit --no-fund --prefer-offline \
        --fetch-retries=3 --fetch-retry-mintimeout=1000 --fetch-retry-maxtimeout=8000 >"$log.npm" 2>&1 ||
        fail "npm ci failed (no network?): $(grep -m 1 '^npm \(ERR!\|error\)' "$log.npm" || true) (details in $log.npm)"
    [ -f "$npm_root/libggml-base.so" ] || fail "npm brought no $npm_root/libggml-base.so; details in $log"
    if [[ "$omit" == *dev* ]]; then echo "$npm_key" >"$stamps/npm"; else echo "$npm_key" >"$stamps/npm-all"; fi
fi

# --- its source, for the headers ---------------------------------------------------------------------------

source_dir=.deps/llama.cpp-$tag
source_key=$(sha256sum "$bundle" | cut -d ' ' -f 1)
if [ "$(cat "$stamps/llama-source" 2>/dev/null)" != "$source_key" ] || [ ! -f "$source_dir/ggml/include/ggml.h" ]; then
    say "unpacking the llama.cpp $tag source for its headers"
    rm -rf "$source_dir" "$source_dir.new"
    git -c advice.detachedHead=false clone -q "$bundle" "$source_dir.new" >>"$log" 2>&1 ||
        fail "cannot unpack $bundle; details in $log"
    [ -f "$source_dir.new/ggml/src/ggml-backend-impl.h" ] || fail "$bundle has no ggml/src/ggml-backend-impl.h"
    mv "$source_dir.new" "$source_dir"
    echo "$source_key" >"$stamps/llama-source"
fi

say "ready (llama.cpp $tag in $npm_root)"
