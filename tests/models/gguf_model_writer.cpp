#include "gguf_model_writer.h"

#include "trace/output_file.h"

#include <ggml.h>
#include <gguf.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <stdexcept>

namespace mixed_kv::test {

namespace {

constexpr std::size_t kMaxTensors = 8192;
constexpr std::int64_t kBlockValues = 32;  // of Q8_0 and Q4_0
constexpr std::size_t kQ8BlockBytes = 2 + 32;
constexpr std::size_t kQ4BlockBytes = 2 + 16;

/// SplitMix64: small, fast, and the same on every machine.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }

    /// [0, 1)
    float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24f; }

  private:
    std::uint64_t state_;
};

/// FNV-1a: a tensor's values depend on its name, not on the order of the calls.
std::uint64_t hash_name(const std::string& name) {
    std::uint64_t hash = 0xcbf29ce484222325ull;
    for (const unsigned char c : name) {
        hash = (hash ^ c) * 0x100000001b3ull;
    }
    return hash;
}

ggml_type ggml_type_of(WeightType type) {
    switch (type) {
        case WeightType::kF32:
            return GGML_TYPE_F32;
        case WeightType::kF16:
            return GGML_TYPE_F16;
        case WeightType::kQ8_0:
            return GGML_TYPE_Q8_0;
        case WeightType::kQ4_0:
            return GGML_TYPE_Q4_0;
    }
    throw std::invalid_argument("unknown weight type");
}

/// Random quantized blocks: a half-precision scale, then random bytes. 4-bit values run from -8 to 7, so the
/// scale's sign alternates at random: otherwise every weight would carry a bias of -0.5 steps, and the matrix
/// one large singular value.
void fill_blocks(Random& random, float sigma, std::size_t block_bytes, std::vector<std::uint8_t>& out) {
    const bool four_bit = block_bytes == kQ4BlockBytes;
    const float level_sigma =
        four_bit ? std::sqrt((16.0f * 16 - 1) / 12) : std::sqrt((256.0f * 256 - 1) / 12);
    const ggml_fp16_t positive = ggml_fp32_to_fp16(sigma / level_sigma);
    for (std::size_t at = 0; at + block_bytes <= out.size(); at += block_bytes) {
        std::uint64_t words[4];
        for (std::uint64_t& word : words) {
            word = random.next();
        }
        const ggml_fp16_t scale =
            static_cast<ggml_fp16_t>(positive | ((random.next() & 1) != 0 ? 0x8000 : 0));
        std::memcpy(&out[at], &scale, 2);
        std::memcpy(&out[at + 2], words, block_bytes - 2);
    }
}

}  // namespace

ElementFunction around(float center, float sigma) {
    const float half_width = std::sqrt(3.0f) * sigma;
    return [=](std::int64_t, float uniform) { return center + half_width * (2 * uniform - 1); };
}

ElementFunction random_sign(float magnitude) {
    return [=](std::int64_t, float uniform) {
        const float sign = uniform < 0.5f ? -1.0f : 1.0f;
        const float rest = uniform < 0.5f ? 2 * uniform : 2 * uniform - 1;  // again uniform in [0, 1)
        return sign * magnitude * (0.9f + 0.2f * rest);
    };
}

struct GgufModelWriter::Tensor {
    ggml_tensor* shape;
    WeightType type;
    float sigma;
    ElementFunction values;  // empty: noise of `sigma`
};

GgufModelWriter::GgufModelWriter(std::string architecture, std::uint64_t seed, WeightType weight_type)
    : architecture_(std::move(architecture)),
      seed_(seed),
      weight_type_(weight_type),
      gguf_(gguf_init_empty()),
      shapes_(ggml_init({kMaxTensors * ggml_tensor_overhead(), nullptr, true})) {
    set("general.architecture", architecture_);
}

GgufModelWriter::~GgufModelWriter() {
    ggml_free(shapes_);
    gguf_free(gguf_);
}

std::string GgufModelWriter::full_key(const std::string& key) const {
    const bool global = key.rfind("general.", 0) == 0 || key.rfind("tokenizer.", 0) == 0;
    return global ? key : architecture_ + "." + key;
}

void GgufModelWriter::set(const std::string& key, std::uint32_t value) {
    gguf_set_val_u32(gguf_, full_key(key).c_str(), value);
}

void GgufModelWriter::set(const std::string& key, float value) {
    gguf_set_val_f32(gguf_, full_key(key).c_str(), value);
}

void GgufModelWriter::set(const std::string& key, bool value) {
    gguf_set_val_bool(gguf_, full_key(key).c_str(), value);
}

void GgufModelWriter::set(const std::string& key, const std::string& value) {
    gguf_set_val_str(gguf_, full_key(key).c_str(), value.c_str());
}

void GgufModelWriter::set(const std::string& key, const std::vector<std::int32_t>& values) {
    gguf_set_arr_data(gguf_, full_key(key).c_str(), GGUF_TYPE_INT32, values.data(), values.size());
}

void GgufModelWriter::set(const std::string& key, const std::vector<bool>& values) {
    const std::vector<std::int8_t> bytes(values.begin(), values.end());
    gguf_set_arr_data(gguf_, full_key(key).c_str(), GGUF_TYPE_BOOL, bytes.data(), bytes.size());
}

void GgufModelWriter::set(const std::string& key, const std::vector<float>& values) {
    gguf_set_arr_data(gguf_, full_key(key).c_str(), GGUF_TYPE_FLOAT32, values.data(), values.size());
}

void GgufModelWriter::set(const std::string& key, const std::vector<std::string>& values) {
    std::vector<const char*> pointers;
    pointers.reserve(values.size());
    for (const std::string& value : values) {
        pointers.push_back(value.c_str());
    }
    gguf_set_arr_str(gguf_, full_key(key).c_str(), pointers.data(), pointers.size());
}

GgufModelWriter::Tensor& GgufModelWriter::add(const std::string& name, const std::vector<std::int64_t>& ne,
                                              WeightType type) {
    if (tensors_.size() >= kMaxTensors || name.size() >= GGML_MAX_NAME) {
        throw std::invalid_argument("too many tensors, or a name too long: " + name);
    }
    ggml_tensor* shape = ggml_new_tensor(shapes_, ggml_type_of(type), static_cast<int>(ne.size()), ne.data());
    ggml_set_name(shape, name.c_str());
    gguf_add_tensor(gguf_, shape);
    tensors_.push_back({shape, type, 0.0f, {}});
    return tensors_.back();
}

void GgufModelWriter::add_matrix(const std::string& name, const std::vector<std::int64_t>& ne, float sigma) {
    add_matrix(name, ne, sigma, weight_type_);
}

void GgufModelWriter::add_matrix(const std::string& name, const std::vector<std::int64_t>& ne, float sigma,
                                 WeightType type) {
    const bool quantized = type == WeightType::kQ8_0 || type == WeightType::kQ4_0;
    add(name, ne, quantized && ne.at(0) % kBlockValues != 0 ? WeightType::kF16 : type).sigma = sigma;
}

void GgufModelWriter::add_f32(const std::string& name, const std::vector<std::int64_t>& ne,
                              ElementFunction values) {
    add(name, ne, WeightType::kF32).values = std::move(values);
}

std::uint64_t GgufModelWriter::write(const std::string& path) const {
    trace::OutputFile file(path);
    std::uint64_t written = 0;
    const auto put = [&](const std::uint8_t* data, std::size_t size) {
        file.append(std::as_bytes(std::span(data, size)));
        written += size;
    };

    std::vector<std::uint8_t> bytes(gguf_get_meta_size(gguf_));
    gguf_get_meta_data(gguf_, bytes.data());
    put(bytes.data(), bytes.size());

    constexpr std::int64_t kChunkValues = 1 << 18;  // a multiple of the block size
    std::vector<float> floats;
    const std::vector<std::uint8_t> padding(gguf_get_alignment(gguf_), 0);
    for (const Tensor& tensor : tensors_) {
        Random random(seed_ * 0x2545f4914f6cdd1dull ^ hash_name(tensor.shape->name));
        const ElementFunction values = tensor.values ? tensor.values : around(0.0f, tensor.sigma);
        const std::int64_t n_values = ggml_nelements(tensor.shape);
        for (std::int64_t first = 0; first < n_values; first += kChunkValues) {
            const std::int64_t n = std::min(kChunkValues, n_values - first);
            if (tensor.type == WeightType::kQ8_0 || tensor.type == WeightType::kQ4_0) {
                const std::size_t block_bytes =
                    tensor.type == WeightType::kQ8_0 ? kQ8BlockBytes : kQ4BlockBytes;
                bytes.resize(static_cast<std::size_t>(n / kBlockValues) * block_bytes);
                fill_blocks(random, tensor.sigma, block_bytes, bytes);
            } else {
                floats.resize(static_cast<std::size_t>(n));
                for (std::int64_t i = 0; i < n; i++) {
                    floats[static_cast<std::size_t>(i)] = values(first + i, random.uniform());
                }
                const bool half = tensor.type == WeightType::kF16;
                bytes.resize(static_cast<std::size_t>(n) * (half ? 2 : 4));
                if (half) {
                    ggml_fp32_to_fp16_row(floats.data(), reinterpret_cast<ggml_fp16_t*>(bytes.data()), n);
                } else {
                    std::memcpy(bytes.data(), floats.data(), bytes.size());
                }
            }
            put(bytes.data(), bytes.size());
        }
        put(padding.data(), (padding.size() - written % padding.size()) % padding.size());
    }
    file.publish();
    return written;
}

}  // namespace mixed_kv::test
