#!/usr/bin/env bash
# Makes the packages from a clean clone: dist/*.deb, dist/*.tar.gz and dist/*.tgz (npm). Who installs them needs no
# compiler and no particular llama.cpp: they have a plugin for each interface of ggml and one in front that chooses, and
# the programs bring the llama.cpp that they were linked with. docs/versions.md says which hosts they fit;
# scripts/test-packages.sh tries them.
#
# MIXED_KV_JOBS sets the number of compile jobs (default: all cores).
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${MIXED_KV_JOBS:-$(nproc)}

fail() {
    echo "package: $*" >&2
    exit 1
}

scripts/setup.sh package
# The oldest release of each interface that the default build does not have (docs/versions.md), as in test-versions.sh.
other_interfaces="3.18.1"
scripts/fetch-llama.sh --source-only $other_interfaces
sources=$(for v in $other_interfaces; do echo "$PWD/.deps/versions/$v/src"; done | paste -sd ';')

# As ./test.sh builds, so that a compiler cache serves both; what is installed is stripped.
build=build-package
mkdir -p $build/man dist
echo "package: building with $jobs jobs"
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMIXED_KV_WERROR=ON -DMIXED_KV_BUILD_TESTS=OFF \
    -DMIXED_KV_WITH_TORCH=OFF -DMIXED_KV_PACKAGE=ON -DCMAKE_INSTALL_PREFIX=/usr -DCMAKE_INSTALL_LIBDIR=lib \
    -DCMAKE_INSTALL_DOCDIR=share/doc/ggml-mixed-kv "-DMIXED_KV_ALSO_LLAMA_SOURCE=$sources" >$build/configure.log 2>&1 ||
    fail "configuring failed: $(grep -A 3 -m 1 'CMake Error' $build/configure.log | tr '\n' ' ') ($build/configure.log)"
cmake --build $build -j "$jobs" >$build/build.log 2>&1 || {
    tail -n 30 $build/build.log >&2
    fail "the build failed; see $build/build.log"
}
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:[A-Z]*=//p' $build/CMakeCache.txt)

# --- what will be in them, looked at ------------------------------------------------------------------------

stage=$PWD/$build/stage
rm -rf "$stage" $build/man
mkdir -p $build/man
DESTDIR=$stage cmake --install $build --strip >$build/install.log 2>&1 || fail "installing failed; see $build/install.log"
for tool in "$stage"/usr/bin/*; do
    name=$(basename "$tool")
    summary=$("$tool" --help | head -n 1)
    help2man --no-info --version-string="$version" --source="ggml-mixed-kv $version" --name="${summary%.}" "$tool" \
        2>>$build/install.log | gzip -9n >"$build/man/$name.1.gz" || fail "$name --help makes no man page; see $build/install.log"
done
scripts/check-package.sh "$stage/usr"

# On every x86-64: qemu64 has no AVX, no SSE 4, no SSSE3. mixed-kv-run loads llama.cpp, the front and a plugin.
for tool in "$stage"/usr/bin/*; do
    qemu-x86_64 -cpu qemu64 "$tool" --help >/dev/null || fail "$(basename "$tool") does not run on a plain x86-64"
done
qemu-x86_64 -cpu qemu64 "$stage/usr/bin/mixed-kv-run" -m models/tiny-recall.gguf -p "$(head -c 600 models/eval.txt)" \
    -n 2 -c 256 -t 1 --json | grep -q '"active": true' || fail "no mixed cache on a plain x86-64"
echo "package: runs on a plain x86-64 (qemu64)"

# --- the packages --------------------------------------------------------------------------------------------

rm -rf $build/packages $build/npm/lib
(cd $build && cpack -B packages >cpack.log 2>&1) || fail "cpack failed; see $build/cpack.log"

npm_folder=$build/npm
mkdir -p $npm_folder/lib/ggml-mixed-kv
cp packaging/npm/{index.js,index.d.ts,doctor.js,README.md} LICENSE $npm_folder/
cp "$stage/usr/lib/libggml-mixed-kv.so" $npm_folder/lib/
cp "$stage"/usr/lib/ggml-mixed-kv/{*.so,look-at-llama} $npm_folder/lib/ggml-mixed-kv/
npm pack --silent --pack-destination $build/packages ./$npm_folder >/dev/null || fail "npm pack failed"

rm -f dist/ggml-mixed-kv*
mv $build/packages/*.deb $build/packages/*.tar.gz $build/packages/*.tgz dist/
ls -l dist/
