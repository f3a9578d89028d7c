// The places of members in backend API 3, as far as they are known. Compiled together with the plugin's own
// files.
#include <cstddef>

#include "ggml-backend-impl.h"

static_assert(GGML_BACKEND_API_VERSION == 3);

constexpr std::size_t position(std::size_t offset) { return offset / sizeof(void*); }

static_assert(position(offsetof(ggml_backend_buffer_type_i, get_name)) == 0);
static_assert(position(offsetof(ggml_backend_buffer_type_i, alloc_buffer)) == 1);
static_assert(position(offsetof(ggml_backend_buffer_type_i, alloc_buffer_n)) == 2);
static_assert(position(offsetof(ggml_backend_buffer_type_i, get_alignment)) == 3);
static_assert(position(offsetof(ggml_backend_buffer_type_i, get_max_size)) == 4);
static_assert(position(offsetof(ggml_backend_buffer_type_i, get_alloc_size)) == 5);
static_assert(position(offsetof(ggml_backend_buffer_type_i, get_alloc_size_n)) == 6);
static_assert(position(offsetof(ggml_backend_buffer_type_i, is_host)) == 7);
static_assert(position(offsetof(ggml_backend_buffer_type, device)) == 8);
static_assert(position(offsetof(ggml_backend_buffer_type, context)) == 9);
