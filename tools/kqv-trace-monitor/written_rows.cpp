#include "kqv-trace-monitor/written_rows.h"

#include <ggml-backend.h>

#include <charconv>
#include <cstring>
#include <string_view>
#include <vector>

#include "mixed_kv/error.h"

namespace mixed_kv::tools {

namespace {

struct CacheName {
    int32_t layer = 0;
    bool is_value = false;
};

std::optional<CacheName> cache_name(std::string_view name) {
    const bool is_value = name.starts_with("cache_v_l");
    if (!is_value && !name.starts_with("cache_k_l")) return std::nullopt;
    CacheName parsed{0, is_value};
    const char* end = name.data() + name.size();
    const auto result = std::from_chars(name.data() + std::strlen("cache_k_l"), end, parsed.layer);
    return result.ec == std::errc() && parsed.layer >= 0 ? std::optional(parsed) : std::nullopt;
}

template <typename T>
std::vector<T> row_of(const ggml_tensor* t, int64_t row, int64_t n) {
    std::vector<T> values(static_cast<size_t>(n));
    ggml_backend_tensor_get(t, values.data(), size_t(row) * t->nb[1], values.size() * sizeof(T));
    return values;
}

}  // namespace

bool writes_cache_rows(const ggml_tensor* node) {
    // A transposed V (no flash attention) is written element by element, as rows of one.
    return node->op == GGML_OP_SET_ROWS && node->view_src != nullptr && cache_name(node->view_src->name) &&
           node->src[0]->ne[0] == node->view_src->ne[0] && node->src[0]->ne[0] > 1;
}

std::optional<CacheWrite> captured_write(const ggml_tensor* node) {
    if (!writes_cache_rows(node)) return std::nullopt;
    const ggml_tensor *rows = node->src[0], *ids = node->src[1], *cache = node->view_src;
    const bool is_float = rows->type == GGML_TYPE_F32;
    if ((!is_float && rows->type != GGML_TYPE_F16) || ids->type != GGML_TYPE_I64 || rows->ne[2] != 1 ||
        rows->ne[3] != 1) {
        throw Error(std::string("--keep-originals: '") + cache->name +
                    "' is written in a way that is not known");
    }
    const auto name = cache_name(cache->name);
    CacheWrite write{name->layer, name->is_value, {}};
    const int64_t n_values = rows->ne[0], n_rows = rows->ne[1], n_cells = cache->ne[1];
    write.rows.rows = {trace::GgmlType::f16, {n_values, 1, n_rows, 1}, {}};
    write.rows.rows.bytes.resize(size_t(n_values * n_rows) * sizeof(ggml_fp16_t));
    auto* out = reinterpret_cast<ggml_fp16_t*>(write.rows.rows.bytes.data());
    const std::vector<int64_t> cells = row_of<int64_t>(ids, 0, n_rows);
    for (int64_t row = 0; row < n_rows; ++row, out += n_values) {
        if (is_float) {
            ggml_fp32_to_fp16_row(row_of<float>(rows, row, n_values).data(), out, n_values);
        } else {
            std::memcpy(out, row_of<ggml_fp16_t>(rows, row, n_values).data(), size_t(n_values) * 2);
        }
        const int64_t cell = cells[size_t(row)];
        write.rows.cells.push_back(int32_t(cell / n_cells));
        write.rows.cells.push_back(int32_t(cell % n_cells));
    }
    return write;
}

}  // namespace mixed_kv::tools
