#include "mixed-kv-doctor/plan/model_shape.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <stdexcept>

#include "common/model_file.h"
#include "trace/gguf_reader.h"

namespace mixed_kv::tools {

namespace {

// Numbers of the header, by their names without the architecture in front.
class Header {
  public:
    explicit Header(const trace::GgufReader& reader)
        : reader_(reader), architecture_(reader.get<std::string>("general.architecture")) {}

    // A number for a layer, or of an array the layer's own.
    std::optional<std::int64_t> number(const std::string& field, std::size_t layer = 0) const {
        const auto index = reader_.find_key(architecture_ + "." + field);
        if (!index) return std::nullopt;
        switch (reader_.kv_type(*index)) {
            case trace::GgufType::u32:
                return value<std::uint32_t>(*index, layer);
            case trace::GgufType::i32:
                return value<std::int32_t>(*index, layer);
            default:
                return std::nullopt;
        }
    }

    std::int64_t require(const std::string& field, std::size_t layer = 0) const {
        const auto found = number(field, layer);
        if (!found || *found < 0) {
            throw std::runtime_error(fmt::format("the model '{}' does not say its {}.{}, which a plan needs",
                                                 reader_.file_name(), architecture_, field));
        }
        return *found;
    }

  private:
    template <typename T>
    std::optional<std::int64_t> value(std::size_t index, std::size_t layer) const {
        const std::string key(reader_.key(index));
        if (!reader_.kv_is_array(index)) return reader_.get<T>(key);
        const std::vector<T> values = reader_.get_array<T>(key);
        return layer < values.size() ? std::optional<std::int64_t>(values[layer]) : std::nullopt;
    }

    const trace::GgufReader& reader_;
    std::string architecture_;
};

// The layer of "blk.<layer>.<name>"; nullopt for other tensors.
std::optional<std::size_t> layer_of(std::string_view name) {
    if (name.substr(0, 4) != "blk.") return std::nullopt;
    std::size_t layer = 0;
    const auto [end, error] = std::from_chars(name.data() + 4, name.data() + name.size(), layer);
    return error == std::errc{} && *end == '.' ? std::optional(layer) : std::nullopt;
}

void read_heads(const Header& header, std::size_t index, LayerShape& layer, std::int64_t n_embd) {
    const std::int64_t n_head = header.require("attention.head_count", index);
    layer.n_head_kv = int(header.number("attention.head_count_kv", index).value_or(n_head));
    if (n_head == 0) layer.n_head_kv = 0;
    if (layer.n_head_kv == 0) return;
    if (const auto rank = header.number("attention.kv_lora_rank"); rank && *rank > 0) {
        // MLA: one head of latent values and turned channels, of which V is a part.
        layer.n_head_kv = 1;
        layer.head_dim_k = int(*rank + header.number("rope.dimension_count").value_or(0));
        return;
    }
    layer.head_dim_k = int(header.number("attention.key_length").value_or(n_embd / n_head));
    layer.head_dim_v = int(header.number("attention.value_length").value_or(n_embd / n_head));
}

}  // namespace

ModelShape read_model_shape(const std::string& path) {
    check_model_file(path);
    const trace::GgufReader reader(path);
    const Header header(reader);
    if (const auto split = reader.find_key("split.count"); split &&
                                                           reader.kv_type(*split) == trace::GgufType::u16 &&
                                                           reader.get<std::uint16_t>("split.count") > 1) {
        throw std::runtime_error("the model '" + path +
                                 "' is one file of several; a plan needs the whole model in one");
    }
    ModelShape model;
    model.n_embd = header.require("embedding_length");
    model.trained_context = header.number("context_length").value_or(0);
    model.layers.resize(std::size_t(header.require("block_count")));
    for (std::size_t i = 0; i < model.layers.size(); ++i)
        read_heads(header, i, model.layers[i], model.n_embd);
    const std::int64_t n_expert = header.number("expert_count").value_or(0);
    if (n_expert > 0)
        model.experts_per_token =
            double(header.number("expert_used_count").value_or(n_expert)) / double(n_expert);

    double embedding = 0;
    for (std::size_t i = 0; i < reader.n_tensors(); ++i) {
        const trace::GgufTensor tensor = reader.tensor(i);
        if (const auto layer = layer_of(tensor.name); layer && *layer < model.layers.size()) {
            model.layers[*layer].weights += double(tensor.bytes);
            if (tensor.name.find("_exps.") != std::string_view::npos)
                model.layers[*layer].expert_weights += double(tensor.bytes);
        } else if (tensor.name == "token_embd.weight") {
            embedding = double(tensor.bytes);
            model.n_vocab = tensor.ne[1];
        } else {
            model.output_weights += double(tensor.bytes);
        }
    }
    // A model that has no output matrix multiplies with its embeddings, of which the server then gets a copy.
    if (!reader.find_tensor("output.weight")) model.output_weights += embedding;
    return model;
}

}  // namespace mixed_kv::tools
