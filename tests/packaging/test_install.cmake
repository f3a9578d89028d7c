# Installs everything and looks at the plugin and the tools as a user's system would.
function(run out)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE error)
    if(NOT result EQUAL 0)
        message(FATAL_ERROR "${ARGN} failed (${result}):\n${output}${error}")
    endif()
    set(${out} "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${PREFIX}")
run(ignored "${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix "${PREFIX}")

if(WITH_PLUGIN AND EXISTS "${BUILD_DIR}/lib/libggml-mixed-kv.so")
    set(plugin "${PREFIX}/${LIBDIR}/libggml-mixed-kv.so")
    if(NOT EXISTS "${plugin}")
        message(FATAL_ERROR "not installed: ${plugin}")
    endif()

    # Strong symbols: the entry points of a loadable ggml backend and what the front of a package asks for
    # (plugin/front/variant.h), nothing that could clash with the host's.
    run(symbols nm --dynamic --defined-only "${plugin}")
    string(REGEX MATCHALL " [TDBR] [^\n]+" strong "${symbols}")
    foreach(symbol IN LISTS strong)
        if(NOT symbol MATCHES " T ggml_backend_(init|score)$| [DR] mixed_kv_variant$")
            message(SEND_ERROR "the plugin exports${symbol}")
        endif()
    endforeach()
    if(NOT symbols MATCHES " T ggml_backend_init\n")
        message(SEND_ERROR "the plugin does not export ggml_backend_init")
    endif()

    # No library of ggml: their names differ from builder to builder, and the plugin takes its functions from the ggml
    # that loads it. Nor of anyone else's: a host must be able to load it wherever it runs.
    run(dynamic readelf --dynamic --wide "${plugin}")
    string(REGEX MATCHALL "NEEDED[^\n]+" needed "${dynamic}")
    foreach(library IN LISTS needed)
        if(NOT library MATCHES "\\[(libstdc\\+\\+|libm|libgcc_s|libc|libpthread|libdl|ld-linux[a-z0-9-]*)\\.so")
            message(SEND_ERROR "the plugin needs more than the C++ runtime: ${library}")
        endif()
    endforeach()
endif()

if(WITH_TOOLS)
    file(GLOB tools "${PREFIX}/bin/*")
    foreach(tool IN LISTS tools)
        run(libraries ldd "${tool}")
        if(libraries MATCHES "[^\n]*not found")
            message(SEND_ERROR "${tool}: ${CMAKE_MATCH_0}")
        endif()
    endforeach()
    list(LENGTH tools count)
    message("${count} tools installed")
endif()
