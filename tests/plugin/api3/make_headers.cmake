# ggml-backend-impl.h as it is told of the releases after ggml 0.25.1, made from the pinned one: backend API 3 has
# alloc_buffer_n after alloc_buffer and get_alloc_size_n after get_alloc_size (docs/versions.md). No source of such a
# release was at hand, so this says what is known, and is compiled, never run against one.
#
#   cmake -D FROM=ggml-backend-impl.h -D TO=FOLDER -P make_headers.cmake
file(READ "${FROM}" text)
function(replace pattern by)
    string(REGEX REPLACE "${pattern}" "${by}" changed "${text}")
    if(changed STREQUAL text)
        message(FATAL_ERROR "${FROM} has nothing like ${pattern}")
    endif()
    set(text "${changed}" PARENT_SCOPE)
endfunction()
replace("#define GGML_BACKEND_API_VERSION 2" "#define GGML_BACKEND_API_VERSION 3")
replace("(\\(\\*alloc_buffer\\) *\\([^)]*\\);)"
    "\\1\n        ggml_backend_buffer_t (*alloc_buffer_n)(ggml_backend_buffer_type_t buft, struct ggml_tensor ** tensors, size_t n_tensors);")
replace("(\\(\\*get_alloc_size\\) *\\([^)]*\\);)"
    "\\1\n        size_t (*get_alloc_size_n)(ggml_backend_buffer_type_t buft, struct ggml_tensor ** tensors, size_t n_tensors);")
file(WRITE "${TO}/ggml-backend-impl.h" "${text}")
