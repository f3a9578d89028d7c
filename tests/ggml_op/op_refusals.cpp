#include <cstdio>
#include <cstring>
#include <functional>
#include <initializer_list>

#include "ggml_op/cold_source.h"
#include "ggml_op/ggml_block_kernels.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"
#include "op_check.h"

namespace mixed_kv::test {

namespace {

// Two KV heads of 64 values, four query heads, one q8 page and 10 hot rows: a call that is accepted as it is.
struct Call {
    ggml_context* ctx = ggml_init({64 * ggml_tensor_overhead(), nullptr, true});
    ggml_op::FlashDecodeInputs in;
    ggml_op::FlashDecodeParams params;
    ggml_op::CellList cells;

    Call() {
        const ColdFormat& q8 = *find_cold_format("q8");
        in.q = tensor(GGML_TYPE_F32, {64, 3, 4});
        in.k = tensor(GGML_TYPE_F16, {64, 10, 2});
        in.v = tensor(GGML_TYPE_F16, {64, 10, 2});
        in.k_quant = tensor(GGML_TYPE_I8, {std::int64_t(q8.block_bytes(KvRole::key, 64)), 2, 1});
        in.v_quant = tensor(GGML_TYPE_I8, {std::int64_t(q8.block_bytes(KvRole::value, 64)), 2, 1});
        in.mask = tensor(GGML_TYPE_F16, {74, 3, 1});
        in.sinks = tensor(GGML_TYPE_F32, {4, 1, 1});
        params.k_format = params.v_format = "q8";
    }
    ~Call() { ggml_free(ctx); }
    ggml_tensor* tensor(ggml_type type, std::array<std::int64_t, 3> ne) const {
        return ggml_new_tensor_3d(ctx, type, ne[0], ne[1], ne[2]);
    }
};

// Blocks are looked at when they are there: what the op says of a key block whose first byte is `order`, the
// place of a quad, or whose first width is `width`.
std::string answer_to_block(int order, int width) {
    constexpr int kHeadDim = 64;
    const ColdFormat& q3 = *find_cold_format("q3");
    const auto bytes = std::int64_t(q3.block_bytes(KvRole::key, kHeadDim));
    ggml_context* ctx = ggml_init({std::size_t(4 * bytes) + 4 * ggml_tensor_overhead(), nullptr, false});
    ggml_tensor* cold = ggml_new_tensor_3d(ctx, GGML_TYPE_I8, bytes, 1, 2);
    auto* block = static_cast<std::uint8_t*>(cold->data);
    std::memset(block, 0, std::size_t(2 * bytes));
    for (int page = 0; page < 2; ++page, block += bytes) {
        for (int quad = 0; quad < kHeadDim / 4; ++quad) block[quad] = std::uint8_t(quad);
    }
    block -= bytes;  // the second page's
    block[0] = std::uint8_t(order);
    block[kHeadDim / 4] = std::uint8_t(width);
    const ggml_op::BlockKernelSet kernels = ggml_op::block_kernel_set("scalar");
    ggml_op::CachePages pages;
    std::string answer = "accepted";
    try {
        pages.lay_out("k", {KvRole::key, {1, kHeadDim}, 128}, nullptr, cold, "q3", {}, kernels);
        pages.fill(nullptr, cold);
    } catch (const Error& e) {
        answer = e.what();
    }
    ggml_free(ctx);
    return answer;
}

struct Refusal {
    const char* what;
    const char* part_of_message;
    std::function<void(Call&)> spoil;
};

}  // namespace

int check_refusals() {
    const std::initializer_list<Refusal> refusals = {
        {"no q", "q is missing", [](Call& c) { c.in.q = nullptr; }},
        {"q of f16", "q is f16",
         [](Call& c) {
             c.in.q = c.tensor(GGML_TYPE_F16, {64, 3, 4});
         }},
        {"q with strided rows", "q: the values",
         [](Call& c) {
             c.in.q = ggml_permute(c.ctx, c.tensor(GGML_TYPE_F32, {3, 64, 4}), 1, 0, 2, 3);
         }},
        {"three query heads", "no multiple",
         [](Call& c) {
             c.in.q = c.tensor(GGML_TYPE_F32, {64, 3, 3});
         }},
        {"no keys", "neither k nor", [](Call& c) { c.in.k = c.in.k_quant = nullptr; }},
        {"k of f32", "k: is f32",
         [](Call& c) {
             c.in.k = c.tensor(GGML_TYPE_F32, {64, 10, 2});
         }},
        {"k of another head size", "k: is f16",
         [](Call& c) {
             c.in.k = c.tensor(GGML_TYPE_F16, {80, 10, 2});
         }},
        {"v of other heads", "v: is f16",
         [](Call& c) {
             c.in.v = c.tensor(GGML_TYPE_F16, {64, 10, 4});
         }},
        {"blocks of another size", "k_quant: is i8",
         [](Call& c) {
             c.in.k_quant = c.tensor(GGML_TYPE_I8, {64, 2, 1});
         }},
        {"unknown format", "unknown cold format 'q9'", [](Call& c) { c.params.k_format = "q9"; }},
        {"no format", "unknown cold format ''", [](Call& c) { c.params.v_format = ""; }},
        {"a block type without kernels", "neither i8",
         [](Call& c) {
             c.in.k_quant = c.tensor(GGML_TYPE_Q4_1, {64, 64, 2});
         }},
        {"q8_0 called q4_0", "not of format",
         [](Call& c) {
             c.in.k_quant = c.tensor(GGML_TYPE_Q8_0, {64, 64, 2});
             c.params.k_format = "q4_0";
         }},
        {"a short mask", "mask is f16",
         [](Call& c) {
             c.in.mask = c.tensor(GGML_TYPE_F16, {74, 2, 1});
         }},
        {"a narrow mask", "cells",
         [](Call& c) {
             c.in.mask = c.tensor(GGML_TYPE_F16, {75, 3, 1});
         }},
        {"a mask of f32", "mask is f32",
         [](Call& c) {
             c.in.mask = c.tensor(GGML_TYPE_F32, {74, 3, 1});
         }},
        {"too few sinks", "sinks",
         [](Call& c) {
             c.in.sinks = c.tensor(GGML_TYPE_F32, {3, 1, 1});
         }},
        {"fewer values than keys", "v and v_quant hold", [](Call& c) { c.in.v = nullptr; }},
        {"too few cells", "cells of",
         [](Call& c) {
             c.cells = {{64, 65}, {0}};
             c.params.k_cells = &c.cells;
         }},
        {"a cell twice", "two rows of cell 70",
         [](Call& c) {
             c.cells = {{64, 65, 66, 67, 68, 69, 70, 71, 72, 70}, {0}};
             c.params.k_cells = &c.cells;
         }},
        {"a page off its place", "not a multiple of 64",
         [](Call& c) {
             c.cells = {{64, 65, 66, 67, 68, 69, 70, 71, 72, 73}, {32}};
             c.params.k_cells = &c.cells;
         }},
        {"an unknown kernel set", "unknown instruction set", [](Call& c) { c.params.isa = "mmx"; }},
    };
    int n_wrong = 0;
    const auto report = [&](const char* what, const std::string& why) {
        std::printf("FAIL  refusal of %s: %s\n", what, why.c_str());
        ++n_wrong;
    };
    try {
        Call call;
        ggml_op::FlashDecodeOp op;
        op.build(call.ctx, call.in, call.params);
    } catch (const Error& e) {
        report("nothing", e.what());
    }
    for (const Refusal& refusal : refusals) {
        Call call;
        refusal.spoil(call);
        ggml_op::FlashDecodeOp op;
        try {
            op.build(call.ctx, call.in, call.params);
            report(refusal.what, "it was accepted");
        } catch (const Error& e) {
            const std::string line = e.what();
            if (line.find(refusal.part_of_message) == std::string::npos ||
                line.find('\n') != std::string::npos) {
                report(refusal.what, "says '" + line + "'");
            }
        }
    }
    struct Block {
        int order, width;
        const char* answer;
    };
    for (const Block& block :
         {Block{0, 6, "accepted"},
          {1, 6,
           "flash decoding op: k_quant: page 1, head 0: a q3 key block does not hold every channel once"},
          {16, 6,
           "flash decoding op: k_quant: page 1, head 0: a q3 key block does not hold every channel once"},
          {0, 5, "flash decoding op: k_quant: page 1, head 0: a q3 key block has code width 5 in slot 0"},
          {0, 255,
           "flash decoding op: k_quant: page 1, head 0: a q3 key block has code width 255 in slot 0"}}) {
        const std::string answer = answer_to_block(block.order, block.width);
        if (answer != block.answer) report("a damaged block", "says '" + answer + "'");
    }
    std::printf("%zu refusals checked\n", refusals.size());
    return n_wrong;
}

}  // namespace mixed_kv::test
