#!/usr/bin/env bash
# Fetches the pinned llama.cpp for 64-bit Arm from npm to .deps/linux-arm64, in the version and with the checksum of
# package-lock.json. `npm ci` itself brings the one for x86-64, which package.json names.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "fetch-llama-arm64: $*" >&2
    exit 1
}

package=@node-llama-cpp/linux-arm64
llama=.deps/linux-arm64
stamp=.deps/stamps/linux-arm64
version=$(node -p 'require("./package.json").dependencies["@node-llama-cpp/linux-x64"]')
checksum=$(node -p "require('./package-lock.json').packages['node_modules/$package'].integrity ?? ''")
[ -n "$checksum" ] || fail "package-lock.json has no checksum for $package"

[ "$(cat "$stamp" 2>/dev/null)" != "$checksum" ] || [ ! -f "$llama/libggml-base.so" ] || exit 0
echo "fetch-llama-arm64: fetching $package $version from npm"
mkdir -p .deps/stamps
rm -rf "$llama" "$llama.new"
mkdir -p "$llama.new"
archive=$(npm pack --silent --pack-destination "$llama.new" "$package@$version") ||
    fail "npm pack $package@$version failed (no network?)"
archive=$llama.new/${archive##*$'\n'}
[ -f "$archive" ] || fail "npm pack left no $archive"
found=sha512-$(node -p "require('crypto').createHash('sha512').update(require('fs').readFileSync('$archive')).digest('base64')")
[ "$found" = "$checksum" ] || fail "$archive has the checksum $found, package-lock.json says $checksum"
tar -xzf "$archive" -C "$llama.new" --strip-components=3 package/bins/linux-arm64
rm "$archive"
mv "$llama.new" "$llama"
echo "$checksum" >"$stamp"
