# Cross build for 64-bit Arm on Debian or Ubuntu, run under qemu. scripts/test-arm64.sh does all of it; the core alone,
# without any llama.cpp:
#   apt-get install g++-aarch64-linux-gnu qemu-user googletest
#   cmake -B build-arm64 -G Ninja --toolchain cmake/toolchain-aarch64.cmake -DMIXED_KV_BUILD_PLUGIN=OFF
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

find_program(MIXED_KV_QEMU_AARCH64 NAMES qemu-aarch64 qemu-aarch64-static)
if(MIXED_KV_QEMU_AARCH64)
    set(CMAKE_CROSSCOMPILING_EMULATOR "${MIXED_KV_QEMU_AARCH64};-L;/usr/aarch64-linux-gnu")
endif()

set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
# Header-only packages (CLI11, nlohmann-json) are the host's.
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)
