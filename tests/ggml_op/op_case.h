#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml_op/flash_decode_op.h"
#include "kqv-tensor-reader/recompute.h"
#include "mixed_kv/fp16.h"
#include "support/tolerance.h"

namespace mixed_kv::test {

// Which cells are cold.
enum class Split { all_hot, mostly_hot, half, mostly_cold, all_cold, interleaved };
enum class OpMask { none, causal, holes, by_head };

struct OpCase {
    int head_dim = 64;
    int n_gqa = 1;
    int n_head_kv = 1;
    std::int64_t n_kv = 64;
    std::int64_t n_q = 1;
    Split split = Split::half;
    std::string k_format = "q8", v_format = "q8";  // registered names, or q8_0, q5_0, q4_0
    OpMask mask = OpMask::none;
    bool alibi = false, softcap = false, sinks = false;
    std::uint64_t seed = 1;

    std::string name() const;
};

// All cases, in the order of the table.
std::vector<OpCase> all_cases();

// One side of the cache, as the op takes it.
struct OpSide {
    int head_dim = 0;
    std::vector<fp16_t> hot;  // [n_hot][n_head_kv][head_dim]
    std::int64_t n_hot = 0;
    std::vector<std::byte> cold;  // i8 [n_pages][n_head_kv][block_bytes], or ggml's [n_cold][n_head_kv] rows
    ggml_type cold_type = GGML_TYPE_I8;
    std::int64_t cold_ne0 = 0;  // block_bytes, or head_dim
    std::int64_t n_cold = 0;    // pages, or rows
    ggml_op::CellList cells;
    bool explicit_cells = false;
};

// The inputs of a case, and the same as dense arrays of what the op should read.
struct OpData {
    trace_tools::AttentionData dense;
    OpSide k, v;
    std::vector<fp16_t> mask;  // [mask heads][n_q][n_kv], empty: none
    std::int64_t n_mask_heads = 1;
    ErrorModel model;
};
OpData make_data(const OpCase& c);

}  // namespace mixed_kv::test
