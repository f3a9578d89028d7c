# mixed_kv_embed_text(target header symbol file...)
#
# Gives `target` a header `header` with the files' texts, one after the other, as `inline constexpr std::string_view
# mixed_kv::tools::symbol`. Made anew when a file changes.
function(mixed_kv_embed_text target header symbol)
    set(files "")
    foreach(file IN LISTS ARGN)
        cmake_path(ABSOLUTE_PATH file BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
        list(APPEND files "${file}")
    endforeach()
    set(folder "${CMAKE_CURRENT_BINARY_DIR}/embedded")
    # Commas, since a list does not survive a command line.
    string(REPLACE ";" "," joined "${files}")
    add_custom_command(
        OUTPUT "${folder}/${header}"
        COMMAND "${CMAKE_COMMAND}" "-DFILES=${joined}" "-DSYMBOL=${symbol}" "-DOUTPUT=${folder}/${header}"
                -P "${PROJECT_SOURCE_DIR}/cmake/embed_text.cmake"
        DEPENDS ${files} "${PROJECT_SOURCE_DIR}/cmake/embed_text.cmake"
        VERBATIM)
    target_sources(${target} PRIVATE "${folder}/${header}")
    target_include_directories(${target} PRIVATE "${folder}")
endfunction()
