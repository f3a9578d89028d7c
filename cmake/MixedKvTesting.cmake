# mixed_kv_add_test(NAME name SOURCES a.cpp ... [LIBS target ...] [LABELS unit ...]
#                   [ENV VAR=value ...] [TIMEOUT seconds] [WHOLE])
#
# One GoogleTest executable in bin/. Each of its tests becomes a ctest test, or one ctest test for all of
# them with WHOLE, for suites that share costly set-up. Labels: unit, property, kernel, plugin, model,
# client, slow; ci-short marks the short form of a slow suite.
include(GoogleTest)

# The tests' own code is templates of GoogleTest around calls of what is tested, which keeps its optimisation.
set(MIXED_KV_TEST_FLAGS -O1)

function(mixed_kv_add_test)
    cmake_parse_arguments(PARSE_ARGV 0 arg "WHOLE" "NAME;TIMEOUT" "SOURCES;LIBS;LABELS;ENV")
    string(REPLACE "\\;" ";" arg_LABELS "${arg_LABELS}") # of "a;b", which PARSE_ARGV keeps as one word
    if(arg_UNPARSED_ARGUMENTS OR NOT arg_NAME OR NOT arg_SOURCES)
        message(FATAL_ERROR "mixed_kv_add_test: NAME and SOURCES are needed, not understood: '${arg_UNPARSED_ARGUMENTS}'")
    endif()
    if(NOT arg_TIMEOUT)
        set(arg_TIMEOUT 300)
    endif()
    if(CMAKE_CROSSCOMPILING)
        math(EXPR arg_TIMEOUT "6 * ${arg_TIMEOUT}") # under an emulator
    endif()
    if(NOT arg_LABELS)
        set(arg_LABELS unit)
    endif()
    add_executable(${arg_NAME} ${arg_SOURCES})
    target_compile_options(${arg_NAME} PRIVATE ${MIXED_KV_TEST_FLAGS})
    target_link_libraries(${arg_NAME} PRIVATE ${arg_LIBS} GTest::gmock GTest::gtest GTest::gtest_main)
    if(arg_WHOLE)
        add_test(NAME ${arg_NAME} COMMAND ${arg_NAME})
        set_tests_properties(${arg_NAME} PROPERTIES
            LABELS "${arg_LABELS}" ENVIRONMENT "${arg_ENV}" TIMEOUT ${arg_TIMEOUT})
    else()
        gtest_discover_tests(${arg_NAME}
            TEST_PREFIX "${arg_NAME}."
            TEST_LIST ${arg_NAME}_TESTS
            DISCOVERY_MODE PRE_TEST
            DISCOVERY_TIMEOUT 120)
        # gtest_discover_tests(PROPERTIES) cannot carry lists, so the properties are set by a script of our own
        # that ctest reads after the list of tests.
        set(script "${CMAKE_CURRENT_BINARY_DIR}/${arg_NAME}_properties.cmake")
        file(CONFIGURE OUTPUT "${script}" @ONLY CONTENT
            [[foreach(test IN LISTS @arg_NAME@_TESTS)
    set_tests_properties("${test}" PROPERTIES LABELS "@arg_LABELS@" ENVIRONMENT "@arg_ENV@" TIMEOUT @arg_TIMEOUT@)
endforeach()
]])
        set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${script}")
    endif()
endfunction()
