# Installs the core component, then configures, builds and runs consumer/ against it.
function(run what)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(NOT result EQUAL 0)
        message(FATAL_ERROR "${what} failed (${result}):\n${output}")
    endif()
    set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${PREFIX}" "${CONSUMER_BUILD}")
run("installing" "${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix "${PREFIX}" --component core)

# The prefix can be moved: nothing in the package may name this tree.
file(GLOB_RECURSE package_files "${PREFIX}/*.cmake")
get_filename_component(tree "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
foreach(file IN LISTS package_files)
    file(READ "${file}" text)
    string(FIND "${text}" "${tree}" at)
    if(NOT at EQUAL -1)
        message(FATAL_ERROR "${file} names the source tree ${tree}")
    endif()
endforeach()
run("configuring the consumer" "${CMAKE_COMMAND}" -S "${CONSUMER_SOURCE}" -B "${CONSUMER_BUILD}" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${CXX}" "-DCMAKE_PREFIX_PATH=${PREFIX}" "-DMIXED_KV_WANTED=${VERSION}")
run("building the consumer" "${CMAKE_COMMAND}" --build "${CONSUMER_BUILD}")
run("running the consumer" "${CONSUMER_BUILD}/consumer")
message("${output}")
