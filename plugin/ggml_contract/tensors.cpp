#include "ggml_contract/tensors.h"

#include <charconv>
#include <cstring>
#include <string_view>

namespace mixed_kv::plugin {
namespace {

bool parse_cache_name(const char* name, KvRole& role, int& layer) noexcept {
    if (std::strncmp(name, "cache_", 6) != 0) return false;
    const std::string_view rest(name + 6);
    const auto last = rest.rfind("_l");
    if (last == std::string_view::npos || last == 0) return false;
    const char kind = rest[last - 1];
    const bool tagged_well = last == 1 || rest[last - 2] == '_';
    if (!tagged_well || (kind != 'k' && kind != 'v')) return false;
    role = kind == 'k' ? KvRole::key : KvRole::value;
    const std::string_view number = rest.substr(last + 2);
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), layer);
    return error == std::errc{} && end == number.data() + number.size() && layer >= 0;
}

}  // namespace

bool is_lasting(const ggml_tensor* tensor) noexcept {
    return tensor->op == GGML_OP_NONE && tensor->view_src == nullptr;
}

std::optional<CacheTensor> cache_tensor(const ggml_tensor* tensor) noexcept {
    CacheTensor found;
    if (!is_lasting(tensor) || !parse_cache_name(tensor->name, found.role, found.layer)) return std::nullopt;
    found.row_elements = int(tensor->ne[0]);
    found.row_bytes = tensor->nb[1];
    found.n_cells = tensor->ne[1];
    found.n_stream = int(tensor->ne[2]);
    found.is_f16 = tensor->type == GGML_TYPE_F16;
    return found;
}

bool is_recurrent_state(const ggml_tensor* tensor) noexcept {
    return std::strncmp(tensor->name, "cache_r_l", 9) == 0 || std::strncmp(tensor->name, "cache_s_l", 9) == 0;
}

}  // namespace mixed_kv::plugin
