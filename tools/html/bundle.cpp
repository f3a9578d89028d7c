#include "html/bundle.h"

#include <cstring>

#include "mixed_kv/error.h"

namespace mixed_kv::tools {

void Bundle::add(const std::string& name, const char* type, std::span<const std::byte> bytes,
                 const std::vector<int64_t>& shape) {
    // Float arrays begin at multiples of four bytes from the first array on.
    data_.resize((data_.size() + 3) / 4 * 4);
    arrays_[name] = {{"type", type}, {"at", data_.size()}, {"shape", shape}};
    data_.insert(data_.end(), bytes.begin(), bytes.end());
}

std::vector<std::byte> Bundle::bytes() const {
    nlohmann::ordered_json with_arrays = json;
    with_arrays["arrays"] = arrays_;
    const std::string text =
        with_arrays.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    if (text.size() > UINT32_MAX) throw Error("too much text for one piece of a page");
    const auto length = uint32_t(text.size());
    std::vector<std::byte> all(sizeof length + text.size() + data_.size());
    std::memcpy(all.data(), &length, sizeof length);
    std::memcpy(all.data() + sizeof length, text.data(), text.size());
    if (!data_.empty()) std::memcpy(all.data() + sizeof length + text.size(), data_.data(), data_.size());
    return all;
}

}  // namespace mixed_kv::tools
