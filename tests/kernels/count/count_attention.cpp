// Decode attention of this library, OPS times, for a counter of instructions (scripts/count-instructions.sh):
//
//   count-attention ISA FORMAT HEAD_DIM GQA N_KV N_Q OPS
//
// One KV head with GQA query heads, N_Q query rows of each, over N_KV cold rows of Gaussian values; FORMAT is
// a cold format or f16. What one op takes is the difference of two counts divided by the difference of OPS.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "formats/codec.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"
#include "mixed_kv/flash_decode.h"
#include "mixed_kv/fp16.h"
#include "mixed_kv/isa.h"

namespace {

using namespace mixed_kv;

constexpr std::size_t kAlignment = 64;

// All pages of one head hold the same rows.
struct Cache {
    std::vector<std::byte> memory;
    std::vector<Page> pages;
    PageTable table;

    Cache(KvRole role, const ColdFormat* format, int head_dim, int n_pages, std::mt19937& rng)
        : pages(std::size_t(n_pages)) {
        std::normal_distribution<float> normal;
        std::vector<std::uint16_t> rows(std::size_t(kPageTokens) * std::size_t(head_dim));
        for (std::uint16_t& x : rows) x = fp32_to_fp16(normal(rng));
        table.layout.shape = {1, head_dim};
        table.layout.role = role;
        std::size_t bytes = rows.size() * sizeof rows[0];
        if (format != nullptr) {
            table.layout.format = format;
            table.layout.format_index = int(format - cold_formats().data());
            table.layout.block_bytes = bytes = format->block_bytes(role, head_dim);
        }
        memory.resize(bytes + kAlignment);
        std::byte* data = memory.data();
        data += (kAlignment - reinterpret_cast<std::uintptr_t>(data) % kAlignment) % kAlignment;
        if (format == nullptr) {
            std::memcpy(data, rows.data(), bytes);
        } else {
            const kernels::EncodeArgs args{rows.data(), head_dim, head_dim, ~std::uint64_t{0}, data};
            const bool encoded = role == KvRole::key ? formats::encode_key(format->code_bits, args)
                                                     : formats::encode_value(format->code_bits, args);
            if (!encoded) throw Error("these rows cannot be encoded");
        }
        for (Page& page : pages) {
            page.state = format != nullptr ? PageState::cold : PageState::hot;
            page.written = ~std::uint64_t{0};
            page.data = data;
        }
        table.pages = pages.data();
        table.n_pages = n_pages;
    }
};

int number(const char* text, const char* what) {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || n < 1 || n > 1 << 20) throw Error(std::string(what) + ": no number");
    return int(n);
}

void run(char** argv) {
    const std::string_view name = argv[2];
    const ColdFormat* format = name == "f16" ? nullptr : find_cold_format(name);
    if (format == nullptr && name != "f16") throw Error("unknown format " + std::string(name));
    const int head_dim = number(argv[3], "HEAD_DIM"), n_gqa = number(argv[4], "GQA");
    const int n_kv = number(argv[5], "N_KV"), n_q = number(argv[6], "N_Q"), n_ops = number(argv[7], "OPS");
    if (head_dim > kernels::kMaxHeadDim)
        throw Error("HEAD_DIM: at most " + std::to_string(kernels::kMaxHeadDim));
    if (n_kv % kPageTokens != 0) throw Error("N_KV: a multiple of " + std::to_string(kPageTokens));
    std::mt19937 rng(1);
    const Cache k(KvRole::key, format, head_dim, n_kv / kPageTokens, rng);
    const Cache v(KvRole::value, format, head_dim, n_kv / kPageTokens, rng);
    std::vector<float> q(std::size_t(n_q) * std::size_t(n_gqa) * std::size_t(head_dim)), out(q.size());
    std::normal_distribution<float> normal;
    for (float& x : q) x = normal(rng);

    AttentionArgs args;
    args.n_q = n_q;
    args.n_kv = n_kv;
    args.n_head = n_gqa;
    args.n_head_kv = 1;
    args.head_dim_k = args.head_dim_v = head_dim;
    args.q = q.data();
    args.out = out.data();
    args.q_head_stride = args.out_head_stride = std::ptrdiff_t(sizeof(float)) * head_dim;
    args.q_row_stride = args.out_row_stride = args.q_head_stride * n_gqa;
    args.k = &k.table;
    args.v = &v.table;
    args.kq_scale = 1.0f / std::sqrt(float(head_dim));
    MaskPages mask_pages;
    mask_pages.classify(args.mask, 1, args.n_q, args.n_kv);
    FlashDecode decode(kernel_set(argv[1]));
    for (int i = 0; i < n_ops; ++i) {
        decode.plan(args, mask_pages, 1);
        decode.run_serial();
    }
    for (const float x : out) {
        if (!(std::abs(x) < 10.0f)) throw Error("wrong result");
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 8) {
        std::fprintf(stderr, "usage: count-attention ISA FORMAT HEAD_DIM GQA N_KV N_Q OPS\n");
        return 2;
    }
    try {
        run(argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "count-attention: %s\n", error.what());
        return 1;
    }
    return 0;
}
