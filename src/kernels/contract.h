#pragma once

#include <cstddef>
#include <cstdint>

// The contract between the attention code and the kernels of each instruction set. Plain data and function
// pointers only: no STL type and no inline function crosses an ISA boundary, because the linker may keep the
// copy that was compiled with wider instructions. Kernels never allocate, never throw, and read no byte
// outside the shapes given here. All layouts are C order, slowest first. fp16 is IEEE binary16 in uint16_t.
namespace mixed_kv::kernels {

inline constexpr int kPage = 64;           // tokens of a page, = mixed_kv::kPageTokens
inline constexpr int kMaxHeadDim = 1024;   // larger heads are not taken by the plugin
inline constexpr int kMaxDecodeRows = 32;  // query rows that every set's qk/pv take in one call

// Values of one KV head's page, as keys or as values.
struct PageData {
    const std::byte* data;  // cold: the encoded block, 64-byte aligned; fp16: token 0's row of this head
    std::ptrdiff_t token_stride_bytes;  // fp16 only: from one token's row to the next
    int n_tokens;                       // fp16: 1..64 rows; cold: always 64
    int head_dim;
    const std::byte* next =
        nullptr;  // hint: data of the page of this form that is read after this one, fetched ahead
};

// scores[r][t] = sum_d q[r][d] * K[t][d]   for t < n_tokens; the rest of the 64 columns is left alone.
struct QkArgs {
    PageData keys;
    const float* q;  // [n_rows][q_stride], kq_scale applied; q_stride >= round_up(head_dim, 16), padding is 0
    std::ptrdiff_t q_stride;
    int n_rows;          // 1..KernelSet::max_rows; qk_f16: 1..KernelSet::fp16_rows
    float* scores;       // [n_rows][64]
    std::byte* scratch;  // KernelSet::scratch_bytes(head_dim) bytes, 64-byte aligned
    // Cold keys only: scores[r][t] += the sum instead. What is added is rounded to float by itself, so that
    // equal integer sums add equal numbers on every set.
    bool accumulate = false;
};

// o[r][d] += sum_t p[r][t] * V[t][d]   in the basis the values are stored in (rotated for cold values).
struct PvArgs {
    PageData values;
    const float* p;  // [n_rows][64], p >= 0, 0 where masked, and 0 for t >= n_tokens
    int n_rows;      // as for qk
    float* o;        // [n_rows][o_stride], o_stride >= round_up(head_dim, 16); the padding may be written
    std::ptrdiff_t o_stride;
    std::byte* scratch;
    // Softmax denominators of the rows so far, this page included [n_rows]; null: unknown. Where one page
    // holds much of a row's weight, cold kernels spend a second pass on it (see needs_residual_p()).
    const float* mass = nullptr;
};

// Decodes a page to float for the tile path (many query rows), in the stored basis.
struct DecodeArgs {
    PageData page;
    float* out;  // transposed: [head_dim][64]; else [64][out_stride]; columns/rows t >= n_tokens become 0
    std::ptrdiff_t out_stride;  // floats between rows of out; >= 64 when transposed
    bool transposed;
};

// Encodes one KV head's page. Bytes are defined by the scalar codec in src/formats; every ISA writes the
// same.
struct EncodeArgs {
    const std::uint16_t* rows;  // fp16 [64][row_stride], this head's channels first
    std::ptrdiff_t row_stride;  // elements between tokens
    int head_dim;
    std::uint64_t counted;  // bit t: row t takes part in choosing scales (sinks and empty cells do not);
                            // rows not counted are clamped into range and overridden by the overlay
    std::byte* block;       // block_bytes(role, head_dim), 64-byte aligned, fully written (padding zero)
};

// c[m][n] (+)= sum_k a[m][k] * b[k][n]; row-major float.
struct GemmArgs {
    const float* a;
    std::ptrdiff_t a_stride;
    const float* b;
    std::ptrdiff_t b_stride;
    float* c;
    std::ptrdiff_t c_stride;
    int m, n, k;
    bool accumulate;
};

// Turns raw scores into logits: x = cap ? cap * tanh(s / cap) : s;  x += slope * mask[t];  masked (-inf)
// stays -inf.
struct LogitArgs {
    float* scores;              // [64], in place
    int n_tokens;               // columns n_tokens..63 become -inf
    const std::uint16_t* mask;  // fp16 [n_tokens] or null
    float slope;                // ALiBi slope, 1 without ALiBi
    float softcap;  // 0: none (the caller has folded 1/cap into q otherwise: s arrives divided by cap)
};

// One step of the online softmax over one or several pages for each row: with m' = max(m, max_t s[t]),
//   p[t] = exp(s[t] - m'), rescale = exp(m - m'), l = l * rescale + sum_t p[t], m = m'.
// A row whose scores are all -inf keeps m and l, gets p = 0 and rescale = 1.
struct SoftmaxArgs {
    float* scores;  // [n_pages], page_stride floats apart, [n_rows][64] in: logits, out: p
    int n_rows;
    float* m;         // [n_rows], -inf when nothing was seen
    float* l;         // [n_rows]
    float* rescale;   // [n_rows] out
    int n_pages = 1;  // 1..KernelSet::softmax_pages
    std::ptrdiff_t page_stride = 0;
};

struct FormatKernels {
    void (*qk)(const QkArgs&) noexcept;
    void (*pv)(const PvArgs&) noexcept;
    void (*decode_key)(const DecodeArgs&) noexcept;
    void (*decode_value)(const DecodeArgs&) noexcept;
    // False, block untouched: a counted row holds a non-finite value (the page then stays hot).
    bool (*encode_key)(const EncodeArgs&) noexcept;
    bool (*encode_value)(const EncodeArgs&) noexcept;
};

struct KernelSet {
    const char* name;
    bool (*supported)() noexcept;
    // Most query rows that kernels take in one call, so that a page is prepared once for them: of cold pages,
    // and of FP16 pages; max_rows >= kMaxDecodeRows, fp16_rows >= max_rows.
    int max_rows, fp16_rows;
    // How far qk_f16, pv_f16 and gemm may be off in each product, relative to its magnitude and beside the
    // rounding of float sums: 0 for float arithmetic.
    float product_error;
    std::size_t (*scratch_bytes)(int head_dim) noexcept;

    void (*qk_f16)(const QkArgs&) noexcept;
    void (*pv_f16)(const PvArgs&) noexcept;
    void (*decode_f16)(const DecodeArgs&) noexcept;
    const FormatKernels* formats;  // parallel to mixed_kv::cold_formats()

    void (*gemm)(const GemmArgs&) noexcept;
    void (*logits)(const LogitArgs&) noexcept;
    void (*softmax)(const SoftmaxArgs&) noexcept;
    void (*scale)(float* x, std::ptrdiff_t n, float factor) noexcept;
    // Normalised Walsh-Hadamard transform in place over n/size consecutive groups of x; its own inverse.
    void (*hadamard)(float* x, int n, int size) noexcept;
    void (*fp32_to_fp16)(const float* in, std::uint16_t* out, std::ptrdiff_t n) noexcept;
    void (*fp16_to_fp32)(const std::uint16_t* in, float* out, std::ptrdiff_t n) noexcept;
    int softmax_pages = 1;  // most pages that softmax takes in one call
};

inline constexpr int kMaxSoftmaxPages = 4;

}  // namespace mixed_kv::kernels
