#include "kqv-tensor-reader/trace_values.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kqv-tensor-reader/ggml_blocks.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"
#include "mixed_kv/fp16.h"
#include "reference/codec_reference.h"

namespace mixed_kv::trace_tools {

using trace::CachePart;
using trace::CellPlace;
using trace::GgmlType;
using trace::TensorData;
using trace::TraceRecord;

namespace {

[[noreturn]] void fail(const TraceRecord& record, const char* tensor, const std::string& what) {
    throw Error(place_text(record.layer, record.step) + ", " + tensor + ": " + what);
}

// Decoder of one side's cold pages, after everything that could be wrong with them has been checked.
class PageDecoder {
  public:
    PageDecoder(const TraceRecord& record, const CachePart& part, Side side, int64_t head_dim)
        : record_(record),
          part_(part),
          name_(side == Side::k ? "k_quant" : "v_quant"),
          role_(side == Side::k ? KvRole::key : KvRole::value),
          head_dim_(int(head_dim)) {
        const char* name = name_;
        const trace::ColdLayout& cold = part.cold;
        for (const std::string& text : trace::cold_formats_of(cold)) {
            const ColdFormat* format = find_cold_format(text);
            if (format == nullptr) fail(record, name, "unknown cold format '" + text + "'");
            code_bits_.push_back(format->code_bits);
        }
        const auto expect = [&](const char* what, int64_t found, int64_t expected) {
            if (found != expected) {
                fail(record, name,
                     std::string(what) + " is " + std::to_string(found) + ", format " + cold.format +
                         " has " + std::to_string(expected));
            }
        };
        expect("page_tokens", cold.page_tokens, kPageTokens);
        expect("block_bytes", cold.block_bytes,
               int64_t(reference::block_bytes(*std::max_element(code_bits_.begin(), code_bits_.end()), role_,
                                              head_dim_)));
        const int64_t rotation = role_ == KvRole::value ? hadamard_size(head_dim_) : 1;
        expect("rotation_block", std::max<int64_t>(cold.rotation_block, 1), std::max<int64_t>(rotation, 1));
    }

    // [64][head_dim] of one KV head.
    std::vector<double> decode(size_t page, int64_t head, int64_t n_head_kv) const {
        const auto bytes = size_t(part_.cold.block_bytes);
        const int code_bits = code_bits_[size_t(part_.pages[page].format)];
        const std::byte* block = part_.codes.bytes.data() + (page * size_t(n_head_kv) + size_t(head)) * bytes;
        const size_t used = reference::block_bytes(code_bits, role_, head_dim_);
        if (std::any_of(block + used, block + bytes, [](std::byte b) { return b != std::byte{0}; })) {
            fail(record_, name_,
                 "page " + std::to_string(page) + ", head " + std::to_string(head) + ": more than the " +
                     std::to_string(used) + " bytes of its format");
        }
        try {
            return reference::decode_block(code_bits, role_, head_dim_, block);
        } catch (const Error& error) {
            fail(record_, name_,
                 "page " + std::to_string(page) + ", head " + std::to_string(head) + ": " + error.what());
        }
    }

  private:
    const TraceRecord& record_;
    const CachePart& part_;
    const char* name_;
    KvRole role_;
    int head_dim_;
    std::vector<int> code_bits_;  // by ColdPage::format
};

void fill_cold(const TraceRecord& record, const CachePart& part, Side side, int64_t head_dim,
               const std::vector<CellPlace>& places, DensePart& dense) {
    if (part.pages.empty()) return;
    const PageDecoder decoder(record, part, side, head_dim);
    const int64_t heads = record.n_head_kv;
    for (size_t page = 0; page < part.pages.size(); ++page) {
        const int64_t first = part.pages[page].first_cell;
        const int64_t n = std::min(part.cold.page_tokens, (first / record.n_kv + 1) * record.n_kv - first);
        for (int64_t head = 0; head < heads; ++head) {
            const std::vector<double> block = decoder.decode(page, head, heads);
            for (int64_t token = 0; token < n; ++token) {
                const CellPlace& place = places[size_t(first + token)];
                if (place.where != CellPlace::Where::page || place.index != int32_t(page)) continue;
                std::copy_n(block.data() + place.token * head_dim, head_dim,
                            dense.values.data() + ((first + token) * heads + head) * head_dim);
            }
        }
    }
}

}  // namespace

std::string place_text(int32_t layer, int32_t step) {
    return "layer " + std::to_string(layer) + ", step " + std::to_string(step);
}

bool is_convertible(GgmlType type) noexcept {
    return type == GgmlType::f32 || type == GgmlType::f16 || type == GgmlType::bf16 ||
           find_block_decoder(type) != nullptr;
}

std::vector<float> to_floats(GgmlType type, std::span<const std::byte> bytes) {
    std::vector<float> values;
    if (type == GgmlType::f32) {
        values.resize(bytes.size() / sizeof(float));
        std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    } else if (type == GgmlType::f16 || type == GgmlType::bf16) {
        values.resize(bytes.size() / sizeof(uint16_t));
        for (size_t i = 0; i < values.size(); ++i) {
            uint16_t bits;
            std::memcpy(&bits, bytes.data() + i * sizeof bits, sizeof bits);
            values[i] =
                type == GgmlType::f16 ? fp16_to_fp32(bits) : std::bit_cast<float>(uint32_t(bits) << 16);
        }
    } else if (const BlockDecoder decode = find_block_decoder(type)) {
        const trace::GgmlTypeInfo& info = trace::ggml_type_info(type);
        const auto n_blocks = bytes.size() / size_t(info.block_bytes);
        values.resize(n_blocks * size_t(info.block_values));
        for (size_t i = 0; i < n_blocks; ++i) {
            decode(bytes.data() + i * size_t(info.block_bytes),
                   values.data() + i * size_t(info.block_values));
        }
    } else {
        throw Error(std::string("values of type ") + trace::ggml_type_info(type).name + " are not supported");
    }
    return values;
}

std::vector<float> to_floats(const TensorData& tensor) { return to_floats(tensor.type, tensor.bytes); }

DensePart dense_part(const TraceRecord& record, Side side) {
    if (side == Side::v && record.v_is_view_of_k) {
        DensePart dense = dense_part(record, Side::k);
        const int64_t n_rows = int64_t(dense.stored.size()) * record.n_head_kv;
        std::vector<double> values(size_t(n_rows * record.head_dim_v));
        for (int64_t row = 0; row < n_rows; ++row) {
            std::copy_n(dense.values.data() + row * record.head_dim_k, record.head_dim_v,
                        values.data() + row * record.head_dim_v);
        }
        dense.values = std::move(values);
        return dense;
    }
    const CachePart& part = side == Side::k ? record.k : record.v;
    const int64_t head_dim = side == Side::k ? record.head_dim_k : record.head_dim_v;
    const int64_t n_cells = record.n_kv * record.n_stream, row_values = record.n_head_kv * head_dim;
    const std::vector<CellPlace> places = trace::locate_cells(record, part);
    DensePart dense;
    dense.values.resize(size_t(n_cells * row_values));
    dense.stored.resize(size_t(n_cells));
    const std::vector<float> rows = to_floats(part.rows);
    for (int64_t cell = 0; cell < n_cells; ++cell) {
        const CellPlace& place = places[size_t(cell)];
        dense.stored[size_t(cell)] = place.where != CellPlace::Where::nowhere;
        dense.n_cold += place.where == CellPlace::Where::page;
        if (place.where != CellPlace::Where::row) continue;
        ++dense.n_hot;
        std::copy_n(rows.data() + place.index * row_values, row_values,
                    dense.values.data() + cell * row_values);
    }
    fill_cold(record, part, side, head_dim, places, dense);
    return dense;
}

std::vector<uint8_t> visible_cells(const TraceRecord& record) {
    std::vector<uint8_t> visible(size_t(record.n_kv * record.n_stream), record.mask ? 0 : 1);
    if (!record.mask) return visible;
    const trace::Shape& ne = record.mask->ne;
    const std::vector<float> mask = to_floats(*record.mask);
    for (int64_t stream = 0; stream < record.n_stream; ++stream) {
        for (int64_t head = 0; head < ne[2]; ++head) {
            for (int64_t token = 0; token < record.n_tokens; ++token) {
                const float* row = mask.data() + (((stream % ne[3]) * ne[2] + head) * ne[1] + token) * ne[0];
                for (int64_t cell = 0; cell < record.n_kv; ++cell) {
                    if (row[cell] != -INFINITY) visible[size_t(stream * record.n_kv + cell)] = 1;
                }
            }
        }
    }
    return visible;
}

Statistics statistics(std::span<const float> values) {
    Statistics s;
    s.n = int64_t(values.size());
    if (values.empty()) return s;
    double sum = 0, squares = 0;
    s.min = std::numeric_limits<double>::infinity();
    s.max = -s.min;
    for (const float value : values) {
        sum += value;
        // Written so that a NaN, once seen, stays.
        s.min = s.min <= value ? s.min : (std::isnan(s.min) ? s.min : value);
        s.max = s.max >= value ? s.max : (std::isnan(s.max) ? s.max : value);
    }
    s.mean = sum / double(s.n);
    for (const float value : values) squares += (value - s.mean) * (value - s.mean);
    s.std = std::sqrt(squares / double(s.n));
    return s;
}

}  // namespace mixed_kv::trace_tools
