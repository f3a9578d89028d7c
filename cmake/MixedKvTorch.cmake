# libtorch, the independent reference of kqv-tensor-reader and of some tests. Defines
#   mixed_kv::torch        imported target, only if found; carries MIXED_KV_HAVE_TORCH=1
#   MIXED_KV_HAVE_TORCH    TRUE or FALSE
# Found by its headers and three libraries, in Debian's libtorch-dev or below CMAKE_PREFIX_PATH. Not by
# find_package(Torch): that changes global flags, and fails hard where glog or protobuf is missing.
include_guard(GLOBAL)

set(MIXED_KV_HAVE_TORCH FALSE)
if(NOT MIXED_KV_WITH_TORCH MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "MIXED_KV_WITH_TORCH must be AUTO, ON or OFF, not '${MIXED_KV_WITH_TORCH}'")
endif()

if(NOT MIXED_KV_WITH_TORCH STREQUAL "OFF")
    find_path(MIXED_KV_TORCH_API_DIR torch/torch.h PATH_SUFFIXES torch/csrc/api/include)
    find_path(MIXED_KV_TORCH_INCLUDE_DIR torch/script.h)
    find_library(MIXED_KV_TORCH_LIBRARY torch)
    find_library(MIXED_KV_TORCH_CPU_LIBRARY torch_cpu)
    find_library(MIXED_KV_TORCH_C10_LIBRARY c10)
    mark_as_advanced(MIXED_KV_TORCH_API_DIR MIXED_KV_TORCH_INCLUDE_DIR MIXED_KV_TORCH_LIBRARY
        MIXED_KV_TORCH_CPU_LIBRARY MIXED_KV_TORCH_C10_LIBRARY)
    if(MIXED_KV_TORCH_API_DIR AND MIXED_KV_TORCH_INCLUDE_DIR AND MIXED_KV_TORCH_LIBRARY
            AND MIXED_KV_TORCH_CPU_LIBRARY AND MIXED_KV_TORCH_C10_LIBRARY)
        set(MIXED_KV_HAVE_TORCH TRUE)
        add_library(mixed_kv::torch INTERFACE IMPORTED GLOBAL)
        set_target_properties(mixed_kv::torch PROPERTIES
            INTERFACE_INCLUDE_DIRECTORIES "${MIXED_KV_TORCH_INCLUDE_DIR};${MIXED_KV_TORCH_API_DIR}"
            INTERFACE_COMPILE_DEFINITIONS "MIXED_KV_HAVE_TORCH=1"
            INTERFACE_LINK_LIBRARIES
            "${MIXED_KV_TORCH_LIBRARY};${MIXED_KV_TORCH_CPU_LIBRARY};${MIXED_KV_TORCH_C10_LIBRARY};Threads::Threads")
        message(STATUS "libtorch: ${MIXED_KV_TORCH_CPU_LIBRARY}")
    elseif(MIXED_KV_WITH_TORCH STREQUAL "ON")
        message(FATAL_ERROR "libtorch not found: install libtorch-dev, give its folder with -DCMAKE_PREFIX_PATH=PATH, "
                            "or configure with -DMIXED_KV_WITH_TORCH=OFF")
    else()
        message(STATUS "libtorch: not found; what compares with it is left out (libtorch-dev brings it)")
    endif()
endif()
