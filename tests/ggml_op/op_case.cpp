#include "op_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/contract.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/page.h"
#include "reference/codec_reference.h"
#include "support/random.h"

namespace mixed_kv::test {

namespace {

const char* split_name(Split split) {
    static const char* names[] = {"all hot", "mostly hot", "half", "mostly cold", "all cold", "interleaved"};
    return names[int(split)];
}

ggml_type block_type(const std::string& format) {
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0}) {
        if (format == ggml_type_name(type)) return type;
    }
    return GGML_TYPE_I8;
}

// Cells that are in cold pages, and those of them whose row is given exactly too.
struct Places {
    std::vector<std::int64_t> pages;  // first cell of each
    std::int64_t n_cold = 0;          // rows; less than 64 * pages for a short last page of ggml's blocks
    std::vector<std::int64_t> rows;   // cell of every hot row
};

Places place(const OpCase& c, bool blocks_of_ggml, std::int64_t parity) {
    Places p;
    const std::int64_t n_pages = (c.n_kv + kPageTokens - 1) / kPageTokens;
    if (c.split == Split::interleaved) {
        for (std::int64_t page = n_pages - 1; page >= 0; --page) {
            const bool cold = page % 2 == parity || n_pages == 1;
            if (cold) p.pages.push_back(page * kPageTokens);
            for (std::int64_t t = std::min<std::int64_t>(kPageTokens, c.n_kv - page * kPageTokens) - 1;
                 t >= 0; --t) {
                if (!cold || (t + page) % 7 == 0) p.rows.push_back(page * kPageTokens + t);
            }
        }
        p.n_cold = std::int64_t(p.pages.size()) * kPageTokens;
        return p;
    }
    std::int64_t n_cold = 0;
    switch (c.split) {
        case Split::mostly_hot:
            n_cold = c.n_kv / 4;
            break;
        case Split::half:
            n_cold = c.n_kv / 2;
            break;
        case Split::mostly_cold:
            n_cold = c.n_kv - 1;
            break;
        case Split::all_cold:
            n_cold = c.n_kv;
            break;
        default:
            break;
    }
    if (!blocks_of_ggml && n_cold < c.n_kv) n_cold = n_cold / kPageTokens * kPageTokens;
    for (std::int64_t cell = 0; cell < n_cold; cell += kPageTokens) p.pages.push_back(cell);
    for (std::int64_t cell = n_cold; cell < c.n_kv; ++cell) p.rows.push_back(cell);
    p.n_cold = blocks_of_ggml ? n_cold : std::int64_t(p.pages.size()) * kPageTokens;
    return p;
}

// Makes one side and its dense rows [n_kv][n_head_kv][head_dim]. value_range: see ErrorModel.
OpSide make_side(const OpCase& c, KvRole role, std::vector<double>& dense, double& value_range) {
    const bool key = role == KvRole::key;
    const std::string& format_name = key ? c.k_format : c.v_format;
    OpSide side;
    side.head_dim = c.head_dim;
    side.cold_type = block_type(format_name);
    const bool blocks_of_ggml = side.cold_type != GGML_TYPE_I8;
    const Places places = place(c, blocks_of_ggml, key ? 0 : 1);
    const int dim = c.head_dim, heads = c.n_head_kv;
    const auto row_values = std::size_t(heads) * std::size_t(dim);
    Random random(c.seed * 2 + (key ? 0 : 1));
    std::vector<float> offset(row_values);  // keys have channels that stand out
    for (float& x : offset) x = key && random.below(16) == 0 ? 4.0f * random.normal() : 0.0f;
    std::vector<fp16_t> page_rows(kPageTokens * row_values);
    const auto draw = [&](std::size_t n_rows) {
        for (std::size_t i = 0; i < n_rows * row_values; ++i) {
            page_rows[i] = fp32_to_fp16(random.normal() + offset[i % row_values]);
        }
    };
    dense.assign(std::size_t(c.n_kv) * row_values, 0.0);
    const auto note = [&](double x) { value_range = std::max(value_range, std::fabs(x)); };

    const ColdFormat* format = find_cold_format(format_name);
    const std::size_t block_bytes =
        blocks_of_ggml ? ggml_row_size(side.cold_type, dim) : format->block_bytes(role, dim);
    side.cold_ne0 = blocks_of_ggml ? dim : std::int64_t(block_bytes);
    side.n_cold = blocks_of_ggml ? places.n_cold : std::int64_t(places.pages.size());
    side.cold.resize(std::size_t(side.n_cold) * std::size_t(heads) * block_bytes);
    struct alignas(64) Line {
        std::byte bytes[64];
    };
    std::vector<Line> block((block_bytes + 63) / 64);
    auto* encoded = reinterpret_cast<std::byte*>(block.data());
    for (std::size_t i = 0; i < places.pages.size(); ++i) {
        const std::int64_t cell0 = places.pages[i];
        const std::int64_t n = std::min<std::int64_t>(kPageTokens, c.n_kv - cell0);
        const std::int64_t n_stored =
            std::min<std::int64_t>(kPageTokens, places.n_cold - std::int64_t(i) * kPageTokens);
        draw(kPageTokens);
        for (int h = 0; h < heads; ++h) {
            std::vector<double> rows(std::size_t(kPageTokens) * std::size_t(dim));
            if (blocks_of_ggml) {
                for (std::int64_t t = 0; t < n_stored; ++t) {
                    std::vector<float> in(static_cast<std::size_t>(dim));
                    for (int d = 0; d < dim; ++d) {
                        in[std::size_t(d)] =
                            fp16_to_fp32(page_rows[std::size_t(t) * row_values + std::size_t(h * dim + d)]);
                    }
                    std::byte* to =
                        side.cold.data() +
                        ((i * kPageTokens + std::size_t(t)) * std::size_t(heads) + std::size_t(h)) *
                            block_bytes;
                    ggml_quantize_chunk(side.cold_type, in.data(), to, 0, 1, dim, nullptr);
                    const std::vector<float> back =
                        trace_tools::to_floats(trace::GgmlType(int(side.cold_type)), {to, block_bytes});
                    std::copy(back.begin(), back.end(), rows.begin() + t * dim);
                }
            } else {
                const kernels::FormatKernels& kernel =
                    kernel_set("scalar").formats[format - cold_formats().data()];
                const kernels::EncodeArgs args{page_rows.data() + h * dim, std::ptrdiff_t(row_values), dim,
                                               ~std::uint64_t{0}, encoded};
                (key ? kernel.encode_key : kernel.encode_value)(args);
                std::memcpy(side.cold.data() + (i * std::size_t(heads) + std::size_t(h)) * block_bytes,
                            encoded, block_bytes);
                rows = reference::decode_block(format->code_bits, role, dim, encoded);
            }
            for (std::int64_t t = 0; t < n; ++t) {
                std::copy_n(rows.data() + t * dim, dim,
                            dense.data() + (std::size_t(cell0 + t) * std::size_t(heads) + std::size_t(h)) *
                                               std::size_t(dim));
            }
            if (!key && hadamard_size(dim) > 1) {
                for (std::int64_t t = 0; t < kPageTokens; ++t) {
                    reference::hadamard(rows.data() + t * dim, dim, hadamard_size(dim));
                }
            }
            std::for_each(rows.begin(), rows.end(), note);
        }
    }
    side.n_hot = std::int64_t(places.rows.size());
    for (const std::int64_t cell : places.rows) {
        draw(1);
        side.hot.insert(side.hot.end(), page_rows.begin(), page_rows.begin() + std::ptrdiff_t(row_values));
        for (std::size_t j = 0; j < row_values; ++j) {
            dense[std::size_t(cell) * row_values + j] = double(fp16_to_fp32(page_rows[j]));
        }
    }
    std::for_each(dense.begin(), dense.end(), note);
    side.explicit_cells = c.split == Split::interleaved;
    side.cells.rows.assign(places.rows.begin(), places.rows.end());
    side.cells.pages.assign(places.pages.begin(), places.pages.end());
    return side;
}

void make_mask(const OpCase& c, OpData& data) {
    if (c.mask == OpMask::none) return;
    Random random(c.seed + 77);
    auto& d = data.dense;
    data.n_mask_heads = c.mask == OpMask::by_head ? d.n_head : 1;
    for (std::int64_t head = 0; head < data.n_mask_heads; ++head) {
        for (std::int64_t i = 0; i < c.n_q; ++i) {
            const std::int64_t last = std::max<std::int64_t>(c.n_kv - c.n_q + i, 0);
            for (std::int64_t cell = 0; cell < c.n_kv; ++cell) {
                bool hidden = c.mask == OpMask::causal ? cell > last : random.below(3) == 0;
                if (c.mask == OpMask::holes && i % 5 == 4) hidden = true;  // sees nothing
                const auto distance = float(cell > last ? cell - last : last - cell);
                data.mask.push_back(hidden ? kMaskedOut : fp32_to_fp16(c.alibi ? -distance : 0.0f));
            }
        }
    }
    d.mask_heads = data.n_mask_heads;
    d.mask_rows = c.n_q;
    for (const fp16_t m : data.mask) d.mask.push_back(fp16_to_fp32(m));
}

}  // namespace

std::string OpCase::name() const {
    std::string text = "dim " + std::to_string(head_dim) + ", heads " + std::to_string(n_gqa * n_head_kv) +
                       "/" + std::to_string(n_head_kv) + ", n_kv " + std::to_string(n_kv) + ", n_q " +
                       std::to_string(n_q) + ", " + split_name(split) + ", " + k_format + "/" + v_format;
    static const char* masks[] = {"", ", causal", ", holes", ", mask by head"};
    text += masks[int(mask)];
    if (alibi) text += ", ALiBi";
    if (softcap) text += ", soft-cap";
    if (sinks) text += ", sinks";
    return text;
}

OpData make_data(const OpCase& c) {
    OpData data;
    auto& d = data.dense;
    d.n_tokens = c.n_q;
    d.n_head = c.n_gqa * c.n_head_kv;
    d.n_head_kv = c.n_head_kv;
    d.n_kv = c.n_kv;
    d.n_stream = 1;
    d.head_dim_k = d.head_dim_v = c.head_dim;
    d.kq_scale = double(1.0f / std::sqrt(float(c.head_dim)));
    d.max_bias = c.alibi ? 8.0 : 0.0;
    d.logit_softcap = c.softcap ? 15.0 : 0.0;
    Random random(c.seed + 5);
    d.q.resize(std::size_t(c.n_q * d.n_head * c.head_dim));
    for (float& x : d.q) x = random.normal();
    if (c.sinks) {
        for (std::int64_t h = 0; h < d.n_head; ++h) d.sinks.push_back(2.0f * random.normal());
    }
    double key_range = 0.0;
    data.k = make_side(c, KvRole::key, d.k, key_range);
    data.v = make_side(c, KvRole::value, d.v, data.model.value_range);
    make_mask(c, data);
    data.model.head_dim_k = data.model.head_dim_v = c.head_dim;
    data.model.n_kv = c.n_kv;
    data.model.integer_scores = data.k.n_cold > 0 && data.k.cold_type == GGML_TYPE_I8;
    data.model.integer_values = data.v.n_cold > 0 && data.v.cold_type == GGML_TYPE_I8;
    data.model.rotated_values = data.v.n_cold > 0 && hadamard_size(c.head_dim) > 1;
    return data;
}

std::vector<OpCase> all_cases() {
    std::vector<OpCase> cases;
    std::vector<std::string> formats;
    for (const ColdFormat& f : cold_formats()) formats.emplace_back(f.name);
    const std::size_t n_registered = formats.size();
    for (const char* name : {"q8_0", "q5_0", "q4_0"}) formats.emplace_back(name);
    constexpr Split splits[] = {Split::all_hot,     Split::mostly_hot, Split::half,
                                Split::mostly_cold, Split::all_cold,   Split::interleaved};
    constexpr std::int64_t batches[] = {1, 3, 33};
    std::uint64_t seed = 1;
    const auto add = [&](OpCase c) {
        c.seed = seed++;
        if (c.alibi && c.mask == OpMask::none) c.mask = OpMask::causal;
        cases.push_back(c);
    };
    const auto format_for = [&](int head_dim, std::size_t i) {  // ggml's blocks hold 32 values of one row
        return formats[i % (head_dim % 32 == 0 ? formats.size() : n_registered)];
    };

    // Shapes: every head size, GQA and length, the rest taken in turn.
    std::size_t i = 0;
    for (const int head_dim : {64, 80, 128, 256}) {
        for (const int n_gqa : {1, 4, 8}) {
            for (const std::int64_t n_kv : {1, 63, 64, 65, 300, 2048, 33001}) {
                const bool large = n_kv > 2048;
                if (large && n_gqa == 8 && head_dim > 128) continue;
                OpCase c;
                c.head_dim = head_dim;
                c.n_gqa = n_gqa;
                c.n_head_kv = n_kv > 300 ? 1 : 2;
                c.n_kv = n_kv;
                c.n_q = n_kv > 300 ? (i % 4 == 3 && n_gqa == 1 ? 33 : (i % 2 == 0 ? 1 : 3))
                                   : batches[(i + i / 21) % 3];
                c.split = splits[(i + i / 6) % 6];
                c.k_format = format_for(head_dim, i);
                c.v_format = format_for(head_dim, i * 2 + 1);
                c.mask = large ? OpMask::causal : OpMask((i / 2) % 4);
                c.alibi = i % 5 == 1;
                c.softcap = i % 5 == 2;
                c.sinks = i % 5 == 3;
                add(c);
                ++i;
            }
        }
    }
    // Formats: each with every batch size and split.
    for (const std::string& format : formats) {
        for (const std::int64_t n_q : batches) {
            for (const Split split : splits) {
                OpCase c;
                c.n_gqa = 4;
                c.n_kv = split == Split::all_cold ? 320 : 299;
                c.n_q = n_q;
                c.split = split;
                c.k_format = c.v_format = format;
                c.mask = split == Split::half ? OpMask::holes : OpMask::causal;
                add(c);
            }
        }
    }
    // Features: all subsets, on a short cache of each head size.
    for (const int head_dim : {64, 80, 128, 256}) {
        for (int bits = 0; bits < 8; ++bits) {
            OpCase c;
            c.head_dim = head_dim;
            c.n_gqa = 4;
            c.n_head_kv = 2;
            c.n_kv = 200;
            c.n_q = 3;
            c.split = Split::interleaved;
            c.k_format = "q8";
            c.v_format = "q4";
            c.mask = OpMask(bits % 4);
            c.alibi = (bits & 1) != 0;
            c.softcap = (bits & 2) != 0;
            c.sinks = (bits & 4) != 0;
            add(c);
        }
    }
    return cases;
}

}  // namespace mixed_kv::test
