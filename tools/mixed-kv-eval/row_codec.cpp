#include "mixed-kv-eval/row_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "formats/codec.h"

namespace mixed_kv::tools {

namespace {

class HostCodec final : public RowCodec {
  public:
    HostCodec(ggml_type type, bool rotation) : type_(type), rotation_(rotation) {}

    void store_and_read(const Rows& rows) const override {
        const int n_values = rows.n_head * rows.head_dim, size = rotation_size(rows.role, rows.head_dim);
        std::vector<float> row(static_cast<std::size_t>(n_values));
        std::vector<std::byte> stored(ggml_row_size(type_, n_values));
        const auto read = ggml_get_type_traits(type_)->to_float;
        for (int t = 0; t < rows.n; ++t) {
            if ((rows.counted >> t & 1) == 0) continue;
            fp16_t* values = rows.values + static_cast<std::ptrdiff_t>(t) * n_values;
            std::transform(values, values + n_values, row.begin(), fp16_to_fp32);
            formats::rotate(row.data(), n_values, size);
            ggml_quantize_chunk(type_, row.data(), stored.data(), 0, 1, n_values, nullptr);
            read(stored.data(), row.data(), n_values);
            formats::rotate(row.data(), n_values, size);  // its own inverse
            std::transform(row.begin(), row.end(), values, fp32_to_fp16);
        }
    }

    double bits_per_value(KvRole, int) const override {
        return 8.0 * static_cast<double>(ggml_type_size(type_)) / static_cast<double>(ggml_blck_size(type_));
    }

    std::string refusal(int n_head, int head_dim) const override {
        const std::int64_t block = ggml_blck_size(type_);
        if (n_head * head_dim % block == 0) return "";
        return fmt::format("its rows have {} values, and {} stores {} at a time", n_head * head_dim,
                           ggml_type_name(type_), block);
    }

  private:
    // K is turned along as much of a head as a power of two divides, V along 64 channels at a time.
    int rotation_size(KvRole role, int head_dim) const {
        constexpr int kLeast = 64;
        if (!rotation_ || head_dim % kLeast != 0) return 1;
        return role == KvRole::value ? kLeast : head_dim & -head_dim;
    }

    ggml_type type_;
    bool rotation_;
};

class FormatCodec final : public RowCodec {
  public:
    FormatCodec(const ColdFormat* key, const ColdFormat* value) : key_(key), value_(value) {}

    void store_and_read(const Rows& rows) const override {
        const bool is_key = rows.role == KvRole::key;
        if (format_of(rows.role) == nullptr) return;
        const ColdFormat& format = *format_of(rows.role);
        const std::ptrdiff_t row_stride = std::ptrdiff_t(rows.n_head) * rows.head_dim;
        // A whole page: rows that there are not do not count.
        std::vector<fp16_t> page(static_cast<std::size_t>(row_stride) * kPageTokens);
        std::copy_n(rows.values, row_stride * rows.n, page.begin());
        const std::size_t bytes = format.block_bytes(rows.role, rows.head_dim);
        const std::unique_ptr<std::byte[], Free> block(
            static_cast<std::byte*>(operator new(bytes, kAlignment)));
        std::vector<float> row(static_cast<std::size_t>(rows.head_dim));
        for (int head = 0; head < rows.n_head; ++head) {
            const kernels::EncodeArgs args{page.data() + std::ptrdiff_t(head) * rows.head_dim, row_stride,
                                           rows.head_dim, rows.counted, block.get()};
            const auto encode = is_key ? formats::encode_key : formats::encode_value;
            if (!encode(format.code_bits, args)) continue;  // such a page stays in FP16
            const formats::BlockReader reader(format.code_bits, rows.role, rows.head_dim, block.get());
            for (int t = 0; t < rows.n; ++t) {
                if ((rows.counted >> t & 1) == 0) continue;
                for (int c = 0; c < rows.head_dim; ++c) row[std::size_t(c)] = reader.value(t, c);
                if (!is_key) formats::rotate(row.data(), rows.head_dim, hadamard_size(rows.head_dim));
                std::transform(row.begin(), row.end(),
                               rows.values + t * row_stride + std::ptrdiff_t(head) * rows.head_dim,
                               fp32_to_fp16);
            }
        }
    }

    double bits_per_value(KvRole role, int head_dim) const override {
        return format_of(role) == nullptr ? 16.0 : format_of(role)->bits_per_value(role, head_dim);
    }

    std::string refusal(int, int head_dim) const override {
        if (head_dim <= kernels::kMaxHeadDim) return "";
        return fmt::format("its heads have {} values, cold formats at most {}", head_dim,
                           kernels::kMaxHeadDim);
    }

  private:
    static constexpr std::align_val_t kAlignment{64};
    struct Free {
        void operator()(std::byte* block) const { operator delete(block, kAlignment); }
    };

    const ColdFormat* format_of(KvRole role) const { return role == KvRole::key ? key_ : value_; }

    const ColdFormat *key_, *value_;
};

}  // namespace

std::unique_ptr<RowCodec> make_host_codec(ggml_type type, bool rotation) {
    return std::make_unique<HostCodec>(type, rotation);
}

std::unique_ptr<RowCodec> make_format_codec(const ColdFormat* key, const ColdFormat* value) {
    return std::make_unique<FormatCodec>(key, value);
}

}  // namespace mixed_kv::tools
