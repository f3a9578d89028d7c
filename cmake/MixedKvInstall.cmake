# cmake --install: the core library and headers with their CMake package, the plugin and the tools.
include_guard(GLOBAL)
include(CMakePackageConfigHelpers)

set(_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/mixed_kv")

if(TARGET mixed_kv_core AND NOT MIXED_KV_PREBUILT)
    # EXPORT_NAME makes the installed target mixed_kv::mixed_kv, the alias of this tree.
    set_target_properties(mixed_kv_core PROPERTIES EXPORT_NAME mixed_kv)
    target_compile_features(mixed_kv_core PUBLIC cxx_std_20) # the public headers use it
    set(_exported mixed_kv_core)

    # A static library names the object libraries it was linked from; they have to be in the export too.
    get_target_property(_linked mixed_kv_core LINK_LIBRARIES)
    foreach(_library IN LISTS _linked)
        if(TARGET "${_library}")
            get_target_property(_type "${_library}" TYPE)
            get_target_property(_imported "${_library}" IMPORTED)
            if(NOT _imported AND _type MATCHES "^(OBJECT_LIBRARY|INTERFACE_LIBRARY)$")
                list(APPEND _exported "${_library}")
            endif()
        endif()
    endforeach()

    install(TARGETS ${_exported}
        EXPORT mixed_kv_targets
        COMPONENT core
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
    install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/mixed_kv"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        COMPONENT core
        FILES_MATCHING PATTERN "*.h")
    install(EXPORT mixed_kv_targets
        FILE mixed_kvTargets.cmake
        NAMESPACE mixed_kv::
        DESTINATION "${_package_dir}"
        COMPONENT core)
    configure_package_config_file(
        "${PROJECT_SOURCE_DIR}/cmake/mixed_kvConfig.cmake.in"
        "${PROJECT_BINARY_DIR}/mixed_kvConfig.cmake"
        INSTALL_DESTINATION "${_package_dir}")
    # While the version is 0.y, a new y may change the interface.
    write_basic_package_version_file(
        "${PROJECT_BINARY_DIR}/mixed_kvConfigVersion.cmake"
        COMPATIBILITY SameMinorVersion)
    install(FILES
        "${PROJECT_BINARY_DIR}/mixed_kvConfig.cmake"
        "${PROJECT_BINARY_DIR}/mixed_kvConfigVersion.cmake"
        DESTINATION "${_package_dir}"
        COMPONENT core)
endif()

# The plugin's own rule is in plugin/. Every executable that tools/ defines is one for users.
function(_mixed_kv_install_executables directory)
    get_property(targets DIRECTORY "${directory}" PROPERTY BUILDSYSTEM_TARGETS)
    foreach(target IN LISTS targets)
        get_target_property(type ${target} TYPE)
        if(type STREQUAL "EXECUTABLE")
            set(destination "${CMAKE_INSTALL_BINDIR}")
            get_target_property(is_helper ${target} MIXED_KV_HELPER)
            if(is_helper)
                set(destination "${CMAKE_INSTALL_LIBDIR}/ggml-mixed-kv")
            endif()
            install(TARGETS ${target} RUNTIME DESTINATION "${destination}" COMPONENT tools)
        endif()
    endforeach()
    get_property(subdirectories DIRECTORY "${directory}" PROPERTY SUBDIRECTORIES)
    foreach(subdirectory IN LISTS subdirectories)
        _mixed_kv_install_executables("${subdirectory}")
    endforeach()
endfunction()
if(MIXED_KV_BUILD_TOOLS AND "tools/CMakeLists.txt" IN_LIST MIXED_KV_FOLDERS)
    _mixed_kv_install_executables("${PROJECT_SOURCE_DIR}/tools")
endif()

install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_SOURCE_DIR}/README.md" "${PROJECT_SOURCE_DIR}/CHANGELOG.md"
    DESTINATION "${CMAKE_INSTALL_DOCDIR}"
    COMPONENT core)
