# Finds llama.cpp and defines
#   llama_cpp::headers     include folders and the definitions below
#   llama_cpp::ggml_base   libggml-base: tensors, backends, buffers
#   llama_cpp::ggml        libggml: the backend registry and loader
#   llama_cpp::llama       libllama
# and the variables, also compile definitions (strings) of llama_cpp::headers,
#   MIXED_KV_GGML_VERSION, MIXED_KV_GGML_COMMIT   what the linked libggml-base says of itself
#   MIXED_KV_LLAMA_LIB_DIR                        the folder of the libraries and the loadable CPU backends
#
# Without MIXED_KV_LLAMA_ROOT this is the pinned npm build with the source of the same release, both
# fetched by scripts/setup.sh.

set(MIXED_KV_LLAMA_TAG "v0.5.0") # keep in step with package.json and docs
set(_setup_hint "run scripts/setup.sh first, or give your own llama.cpp with -DMIXED_KV_LLAMA_ROOT=PATH, "
                "or build the core alone with -DMIXED_KV_BUILD_PLUGIN=OFF")
string(CONCAT _setup_hint ${_setup_hint})

# --- folders to search -------------------------------------------------------------------------------------

if(MIXED_KV_LLAMA_ROOT)
    get_filename_component(_root "${MIXED_KV_LLAMA_ROOT}" ABSOLUTE BASE_DIR "${CMAKE_BINARY_DIR}")
    if(NOT IS_DIRECTORY "${_root}")
        message(FATAL_ERROR "MIXED_KV_LLAMA_ROOT: no such folder: ${_root}")
    endif()
    set(_lib_dirs
        "${_root}/build/bin" "${_root}/build/lib" "${_root}/build"
        "${_root}/${CMAKE_INSTALL_LIBDIR}" "${_root}/lib" "${_root}/lib64" "${_root}/bin" "${_root}")
    set(_header_roots "${_root}")
    set(_lib_hint "build llama.cpp there with shared libraries (-DBUILD_SHARED_LIBS=ON)")
else()
    set(_lib_dirs "${PROJECT_SOURCE_DIR}/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64")
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
        set(_lib_dirs "${PROJECT_SOURCE_DIR}/.deps/linux-arm64") # scripts/fetch-llama-arm64.sh
    endif()
    set(_header_roots "${PROJECT_SOURCE_DIR}/.deps/llama.cpp-${MIXED_KV_LLAMA_TAG}")
    set(_lib_hint "${_setup_hint}")
endif()
if(MIXED_KV_LLAMA_SOURCE)
    get_filename_component(_source "${MIXED_KV_LLAMA_SOURCE}" ABSOLUTE BASE_DIR "${CMAKE_BINARY_DIR}")
    if(NOT EXISTS "${_source}/ggml/src/ggml-backend-impl.h")
        message(FATAL_ERROR "MIXED_KV_LLAMA_SOURCE: not a llama.cpp source tree "
                            "(no ggml/src/ggml-backend-impl.h): ${_source}")
    endif()
    list(PREPEND _header_roots "${_source}")
endif()

# --- versions of ggml by their sources ---------------------------------------------------------------------

# The version that the ggml in a llama.cpp source tree gives itself; empty for headers without their CMakeLists.txt.
function(mixed_kv_ggml_version_of tree out)
    set(numbers)
    if(EXISTS "${tree}/ggml/CMakeLists.txt")
        file(STRINGS "${tree}/ggml/CMakeLists.txt" lines REGEX "^set\\(GGML_VERSION_(MAJOR|MINOR|PATCH) ")
        foreach(line IN LISTS lines)
            string(REGEX MATCH "[0-9]+" number "${line}")
            list(APPEND numbers "${number}")
        endforeach()
    endif()
    list(JOIN numbers "." version)
    set(${out} "${version}" PARENT_SCOPE)
endfunction()

# Headers of another release, for a plugin of its interface: its libraries are not needed for that.
function(mixed_kv_add_llama_headers tree out_target out_version)
    if(NOT EXISTS "${tree}/ggml/src/ggml-backend-impl.h")
        message(FATAL_ERROR "MIXED_KV_ALSO_LLAMA_SOURCE: not a llama.cpp source tree "
                            "(no ggml/src/ggml-backend-impl.h): ${tree}")
    endif()
    mixed_kv_ggml_version_of("${tree}" version)
    set(target llama_cpp::headers-${version})
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    set(definitions GGML_SHARED GGML_BACKEND_SHARED "MIXED_KV_GGML_VERSION=\"${version}\"" "MIXED_KV_GGML_COMMIT=\"source\"")
    set_target_properties(${target} PROPERTIES
        INTERFACE_INCLUDE_DIRECTORIES "${tree}/ggml/include;${tree}/ggml/src"
        INTERFACE_COMPILE_DEFINITIONS "${definitions}")
    set(${out_target} ${target} PARENT_SCOPE)
    set(${out_version} ${version} PARENT_SCOPE)
endfunction()

# --- libraries ---------------------------------------------------------------------------------------------

# Globbed, not find_library: the pinned libraries carry the release in their file names, and nothing outside
# the given root may be picked up instead.
function(_mixed_kv_find_shared out stem)
    foreach(dir IN LISTS _lib_dirs)
        file(GLOB found "${dir}/lib${stem}.so" "${dir}/lib${stem}.v*.so" "${dir}/lib${stem}.b*.so" "${dir}/lib${stem}.so.*")
        if(found)
            list(GET found 0 first)
            set(${out} "${first}" PARENT_SCOPE)
            return()
        endif()
    endforeach()
    list(JOIN _lib_dirs "\n  " searched)
    message(FATAL_ERROR "llama.cpp's lib${stem}.so not found: ${_lib_hint}\nSearched:\n  ${searched}")
endfunction()

_mixed_kv_find_shared(_ggml_base_file ggml-base)
_mixed_kv_find_shared(_ggml_file ggml)
_mixed_kv_find_shared(_llama_file llama)
get_filename_component(MIXED_KV_LLAMA_LIB_DIR "${_ggml_base_file}" DIRECTORY)

# --- headers -----------------------------------------------------------------------------------------------

# Public: ggml.h, ggml-backend.h, llama.h. Private: ggml-backend-impl.h, which every ggml backend needs and which
# llama.cpp does not install.
function(_mixed_kv_find_header out header hint)
    foreach(dir IN LISTS _header_roots)
        foreach(sub IN ITEMS ggml/include ggml/src include src)
            if(EXISTS "${dir}/${sub}/${header}")
                set(${out} "${dir}/${sub}" PARENT_SCOPE)
                return()
            endif()
        endforeach()
    endforeach()
    list(JOIN _header_roots "\n  " searched)
    message(FATAL_ERROR "llama.cpp's ${header} not found: ${hint}\nSearched:\n  ${searched}")
endfunction()

if(MIXED_KV_LLAMA_ROOT)
    set(_private_hint "an installed llama.cpp has no private headers. Give the source tree of exactly the same version "
                      "too: -DMIXED_KV_LLAMA_SOURCE=PATH")
    string(CONCAT _private_hint ${_private_hint})
    set(_public_hint "MIXED_KV_LLAMA_ROOT must be an install prefix, or a source tree with its build")
else()
    set(_private_hint "${_setup_hint}")
    set(_public_hint "${_setup_hint}")
endif()
_mixed_kv_find_header(_ggml_include_dir ggml.h "${_public_hint}")
_mixed_kv_find_header(_llama_include_dir llama.h "${_public_hint}")
_mixed_kv_find_header(_ggml_private_dir ggml-backend-impl.h "${_private_hint}")
set(_llama_includes "${_llama_include_dir}" "${_ggml_include_dir}" "${_ggml_private_dir}")
list(REMOVE_DUPLICATES _llama_includes)

# --- targets -----------------------------------------------------------------------------------------------

add_library(llama_cpp::headers INTERFACE IMPORTED GLOBAL)
set_target_properties(llama_cpp::headers PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_llama_includes}"
    INTERFACE_COMPILE_DEFINITIONS "GGML_SHARED;GGML_BACKEND_SHARED;LLAMA_SHARED")

# NEEDED of what links these becomes the library's own soname: the linker reads it from the file.
function(_mixed_kv_import target file)
    add_library(${target} SHARED IMPORTED GLOBAL)
    set_target_properties(${target} PROPERTIES
        IMPORTED_LOCATION "${file}"
        INTERFACE_LINK_LIBRARIES "llama_cpp::headers;${ARGN}")
endfunction()
_mixed_kv_import(llama_cpp::ggml_base "${_ggml_base_file}")
_mixed_kv_import(llama_cpp::ggml "${_ggml_file}" llama_cpp::ggml_base)
_mixed_kv_import(llama_cpp::llama "${_llama_file}" llama_cpp::ggml llama_cpp::ggml_base)

# --- which ggml is it? -------------------------------------------------------------------------------------

# Only the library itself knows its version and commit, so ask it. The answer is cached for the file it came from.
file(TIMESTAMP "${_ggml_base_file}" _ggml_base_time "%Y%m%d%H%M%S")
set(_ggml_identity "${_ggml_base_file}|${_ggml_base_time}")
if(NOT "${MIXED_KV_GGML_IDENTITY}" STREQUAL "${_ggml_identity}")
    set(_probe_source "${CMAKE_BINARY_DIR}/CMakeFiles/mixed_kv_ggml_identity.cpp")
    file(WRITE "${_probe_source}" [[
#include <ggml.h>
#include <cstdio>
int main() { std::printf("%s\n%s\n", ggml_version(), ggml_commit()); }
]])
    unset(_probe_run CACHE)
    unset(_probe_compiled CACHE)
    try_run(_probe_run _probe_compiled "${CMAKE_BINARY_DIR}/CMakeFiles/ggml-identity" "${_probe_source}"
        LINK_LIBRARIES llama_cpp::ggml_base
        COMPILE_OUTPUT_VARIABLE _probe_log
        RUN_OUTPUT_VARIABLE _probe_output)
    if(NOT _probe_compiled OR NOT "${_probe_run}" STREQUAL "0")
        message(FATAL_ERROR "cannot ask ${_ggml_base_file} for its version: do its headers "
                            "(${_ggml_include_dir}) belong to it?\n${_probe_log}\n${_probe_output}")
    endif()
    string(REGEX MATCHALL "[^\n]+" _probe_lines "${_probe_output}")
    list(GET _probe_lines 0 _ggml_version)
    list(GET _probe_lines 1 _ggml_commit)
    set(MIXED_KV_GGML_VERSION "${_ggml_version}" CACHE INTERNAL "ggml_version() of the linked libggml-base")
    set(MIXED_KV_GGML_COMMIT "${_ggml_commit}" CACHE INTERNAL "ggml_commit() of the linked libggml-base")
    set(MIXED_KV_GGML_IDENTITY "${_ggml_identity}" CACHE INTERNAL "the libggml-base that was asked")
endif()

# Headers of another version compile and then crash: private structs change from release to release.
set(MIXED_KV_LLAMA_HEADERS "${_ggml_private_dir}/../..")
mixed_kv_ggml_version_of("${MIXED_KV_LLAMA_HEADERS}" _source_version)
string(REGEX MATCH "^[0-9.]+" _library_version "${MIXED_KV_GGML_VERSION}")
if(_source_version AND NOT _source_version VERSION_EQUAL _library_version)
    message(FATAL_ERROR "llama.cpp's libraries in ${MIXED_KV_LLAMA_LIB_DIR} are ggml ${MIXED_KV_GGML_VERSION}, "
                        "the headers in ${_ggml_private_dir} are ggml ${_source_version}: both must be one version")
endif()

set_property(TARGET llama_cpp::headers APPEND PROPERTY INTERFACE_COMPILE_DEFINITIONS
    "MIXED_KV_GGML_VERSION=\"${MIXED_KV_GGML_VERSION}\""
    "MIXED_KV_GGML_COMMIT=\"${MIXED_KV_GGML_COMMIT}\""
    "MIXED_KV_LLAMA_LIB_DIR=\"${MIXED_KV_LLAMA_LIB_DIR}\"")

message(STATUS "llama.cpp: ${MIXED_KV_LLAMA_LIB_DIR} (ggml ${MIXED_KV_GGML_VERSION}, commit ${MIXED_KV_GGML_COMMIT})")
