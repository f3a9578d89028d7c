# MIXED_KV_PACKAGE: what scripts/package.sh needs to make a .deb, a .tar.gz (both by CPack) and the npm package.
#
# The programs ship with the llama.cpp that they were linked with, in lib/ggml-mixed-kv/llama: libllama's structures
# differ between releases. The plugin files need no llama.cpp of their own.
include_guard(GLOBAL)

file(GLOB _llama_files "${MIXED_KV_LLAMA_LIB_DIR}/libggml*.so*" "${MIXED_KV_LLAMA_LIB_DIR}/libllama.*so*")
install(FILES ${_llama_files} DESTINATION "${CMAKE_INSTALL_LIBDIR}/ggml-mixed-kv/llama" COMPONENT tools)
set(_llama_licence "${MIXED_KV_LLAMA_HEADERS}/LICENSE")
if(NOT EXISTS "${_llama_licence}")
    message(FATAL_ERROR "MIXED_KV_PACKAGE: no LICENSE of llama.cpp at ${_llama_licence}")
endif()
install(FILES "${_llama_licence}" DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT tools RENAME LICENSE.llama.cpp)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT core RENAME copyright)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/docs" DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT core)
install(DIRECTORY "${PROJECT_BINARY_DIR}/man/" DESTINATION "${CMAKE_INSTALL_MANDIR}/man1" COMPONENT tools)
# Where --strip does not reach: a static library, and plugins that were installed under names of their own.
install(CODE [[
    set(_lib "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib")
    file(GLOB _with_debug_information "${_lib}/*.a" "${_lib}/ggml-mixed-kv/*.so")
    if(CMAKE_INSTALL_DO_STRIP)
        execute_process(COMMAND strip --strip-debug ${_with_debug_information} COMMAND_ERROR_IS_FATAL ANY)
    endif()]]
    COMPONENT core)
configure_file("${PROJECT_SOURCE_DIR}/packaging/npm/package.json.in" "${PROJECT_BINARY_DIR}/npm/package.json" @ONLY)

set(CPACK_GENERATOR DEB TGZ)
set(CPACK_PACKAGE_NAME ggml-mixed-kv)
set(CPACK_SYSTEM_NAME linux-x86_64)
set(CPACK_PACKAGE_VENDOR "ggml-mixed-kv")
set(CPACK_PACKAGE_CONTACT "the developers of ggml-mixed-kv")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION libs)
# scripts/check-package.sh holds the highest symbol versions to these.
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6 (>= 2.35), libstdc++6 (>= 12), libgcc-s1 (>= 3.0)")
include(CPack)
