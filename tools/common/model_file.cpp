#include "common/model_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <vector>

#include "mixed_kv/error.h"
#include "trace/gguf_reader.h"

namespace mixed_kv::tools {

namespace {

constexpr std::int64_t kMaxLayers = 512;    // LLAMA_MAX_LAYERS
constexpr std::int64_t kMaxExperts = 1024;  // LLAMA_MAX_EXPERTS, of the newest release

// A model's header, by the names that llama.cpp gives its fields without the architecture in front.
class Header {
  public:
    explicit Header(const std::string& path) : path_(path), reader_(path) {
        architecture_ = reader_.get<std::string>("general.architecture");
    }

    // A number, or the largest of an array of numbers, one for each layer. nullopt: no such field, or one of
    // another type, which llama.cpp refuses by itself.
    std::optional<std::int64_t> number(const std::string& field) const {
        const auto index = reader_.find_key(key(field));
        if (!index || reader_.kv_count(*index) == 0) return std::nullopt;
        if (reader_.kv_type(*index) == trace::GgufType::u32)
            return largest<std::uint32_t>(*index, key(field));
        if (reader_.kv_type(*index) == trace::GgufType::i32) return largest<std::int32_t>(*index, key(field));
        return std::nullopt;
    }

    void require(const std::string& field, std::int64_t least, std::int64_t most,
                 const char* why = "") const {
        const auto value = number(field);
        if (value && (*value < least || *value > most)) {
            throw std::runtime_error(
                fmt::format("the model '{}' cannot be loaded: its header says {} = {}, "
                            "where llama.cpp takes {} to {}{}",
                            path_, key(field), *value, least, most, why));
        }
    }

  private:
    std::string key(const std::string& field) const { return architecture_ + "." + field; }

    template <typename T>
    std::int64_t largest(std::size_t index, const std::string& name) const {
        if (!reader_.kv_is_array(index)) return reader_.get<T>(name);
        const std::vector<T> values = reader_.get_array<T>(name);
        return *std::max_element(values.begin(), values.end());
    }

    std::string path_;
    trace::GgufReader reader_;
    std::string architecture_;
};

void check_header(const Header& header) {
    header.require("block_count", 1, kMaxLayers);
    const std::int64_t n_layer = header.number("block_count").value_or(kMaxLayers);
    header.require("nextn_predict_layers", 0, n_layer, ", its number of layers");
    header.require("posnet.block_count", 0, n_layer, ", its number of layers");
    header.require("convnext.block_count", 0, n_layer, ", its number of layers");

    header.require("expert_count", 0, kMaxExperts);
    const std::int64_t n_expert = header.number("expert_count").value_or(0);
    header.require("expert_used_count", n_expert > 0 ? 1 : 0, n_expert, ", its number of experts");
    header.require("expert_group_count", 0, std::max<std::int64_t>(0, n_expert - 1),
                   ", less than its number of experts");
    const std::int64_t n_group = header.number("expert_group_count").value_or(0);
    if (n_group > 1) header.require("expert_group_used_count", 1, n_group - 1, ", less than its groups");
}

}  // namespace

void check_model_file(const std::string& path) {
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) {
        throw std::runtime_error("the model '" + path + "' is a folder, not a GGUF file");
    }
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::runtime_error("cannot open the model '" + path + "': " + std::strerror(errno));
    }
    char magic[4] = {};
    if (!file.read(magic, sizeof magic) || std::memcmp(magic, "GGUF", sizeof magic) != 0) {
        throw std::runtime_error("the model '" + path + "' is not a GGUF file");
    }
    std::optional<Header> header;
    try {
        header.emplace(path);
    } catch (const Error&) {
        return;  // llama.cpp may know more kinds of files, and it refuses damaged ones by itself
    }
    check_header(*header);
}

}  // namespace mixed_kv::tools
