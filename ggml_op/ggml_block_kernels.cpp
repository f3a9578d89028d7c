#include "ggml_op/ggml_block_kernels.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>

#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"

namespace mixed_kv::ggml_op {

namespace {

using kernels::DecodeArgs;
using kernels::KernelSet;
using kernels::kPage;
using kernels::PvArgs;
using kernels::QkArgs;

constexpr std::array kBlockTypes = {GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0};

// Kernels are plain functions, so that each one finds the set whose gemm it uses by a number it is compiled
// with.
constexpr std::size_t kMaxSets = 8;
std::array<const KernelSet*, kMaxSets> base_sets{};

std::size_t round_up_to_16(int n) noexcept { return (std::size_t(n) + 15) / 16 * 16; }

// [64][head_dim] floats of a page.
template <ggml_type Type>
void to_float(const kernels::PageData& page, float* out) noexcept {
    static const ggml_to_float_t decode = ggml_get_type_traits(Type)->to_float;
    decode(page.data, out, std::int64_t(kPage) * page.head_dim);
}

// in [64][head_dim] -> out [head_dim][stride]
void transpose(const float* in, int head_dim, float* out, std::ptrdiff_t stride) noexcept {
    for (int t = 0; t < kPage; ++t) {
        for (int d = 0; d < head_dim; ++d) out[d * stride + t] = in[t * head_dim + d];
    }
}

template <ggml_type Type, std::size_t Set>
struct Kernels {
    static const KernelSet& base() noexcept { return *base_sets[Set]; }

    static void rotate(float* x, int head_dim) noexcept {
        const int size = hadamard_size(head_dim);
        if (size > 1) base().hadamard(x, head_dim, size);
    }

    static void qk(const QkArgs& args) noexcept {
        const int dim = args.keys.head_dim;
        auto* rows = reinterpret_cast<float*>(args.scratch);
        float* columns = rows + std::size_t(kPage) * round_up_to_16(dim);
        to_float<Type>(args.keys, rows);
        transpose(rows, dim, columns, kPage);
        base().gemm(
            {args.q, args.q_stride, columns, kPage, args.scores, kPage, args.n_rows, kPage, dim, false});
    }

    static void pv(const PvArgs& args) noexcept {
        const int dim = args.values.head_dim;
        auto* rows = reinterpret_cast<float*>(args.scratch);
        float* sums = rows + std::size_t(kPage) * round_up_to_16(dim);
        to_float<Type>(args.values, rows);
        base().gemm({args.p, kPage, rows, dim, sums, dim, args.n_rows, dim, kPage, false});
        for (int r = 0; r < args.n_rows; ++r) {
            float* sum = sums + r * dim;
            rotate(sum, dim);
            for (int d = 0; d < dim; ++d) args.o[r * args.o_stride + d] += sum[d];
        }
    }

    static void decode(const DecodeArgs& args, bool rotated) noexcept {
        const int dim = args.page.head_dim;
        float row[kernels::kMaxHeadDim];
        static const ggml_to_float_t decode_row = ggml_get_type_traits(Type)->to_float;
        const std::size_t row_bytes = ggml_row_size(Type, dim);
        for (int t = 0; t < kPage; ++t) {
            decode_row(args.page.data + std::size_t(t) * row_bytes, row, dim);
            if (rotated) rotate(row, dim);
            for (int d = 0; d < dim; ++d) {
                args.out[args.transposed ? d * args.out_stride + t : t * args.out_stride + d] = row[d];
            }
        }
    }
    static void decode_key(const DecodeArgs& args) noexcept { decode(args, false); }
    static void decode_value(const DecodeArgs& args) noexcept { decode(args, true); }

    static kernels::FormatKernels kernels() noexcept {
        return {qk,           pv,      decode_key,
                decode_value, nullptr, nullptr};  // what ggml has quantised needs no encoder
    }
};

// A page as rows, and the same transposed or the sums of a call's rows.
template <std::size_t Set>
std::size_t scratch_bytes(int head_dim) noexcept {
    const std::size_t row = round_up_to_16(head_dim) * sizeof(float);
    const std::size_t sums = std::size_t(std::max(base_sets[Set]->max_rows, kPage)) * row;
    return std::max(base_sets[Set]->scratch_bytes(head_dim), kPage * row + sums);
}

// One set of the list, extended.
struct Extended {
    KernelSet set;
    std::vector<kernels::FormatKernels> formats;
};

template <std::size_t Set>
void extend(Extended& out) {
    const KernelSet& base = *base_sets[Set];
    out.formats.assign(base.formats, base.formats + cold_formats().size());
    out.formats.push_back(Kernels<GGML_TYPE_Q8_0, Set>::kernels());
    out.formats.push_back(Kernels<GGML_TYPE_Q5_0, Set>::kernels());
    out.formats.push_back(Kernels<GGML_TYPE_Q4_0, Set>::kernels());
    out.set = base;
    out.set.formats = out.formats.data();
    out.set.scratch_bytes = scratch_bytes<Set>;
}

template <std::size_t... Sets>
void extend_slot(std::size_t slot, Extended& out, std::index_sequence<Sets...>) {
    ((Sets == slot ? extend<Sets>(out) : void()), ...);
}

}  // namespace

bool is_block_type(ggml_type type) noexcept {
    return std::find(kBlockTypes.begin(), kBlockTypes.end(), type) != kBlockTypes.end();
}

int BlockKernelSet::format_index(ggml_type type) const {
    const auto found = std::find(kBlockTypes.begin(), kBlockTypes.end(), type);
    return int(cold_formats().size()) + int(found - kBlockTypes.begin());
}

BlockKernelSet block_kernel_set(std::string_view isa) {
    static std::mutex mutex;
    static std::array<Extended, kMaxSets> extended;
    const KernelSet& base = isa.empty() ? active_kernel_set() : kernel_set(isa);
    const std::lock_guard lock(mutex);
    for (std::size_t slot = 0; slot < kMaxSets; ++slot) {
        if (base_sets[slot] == nullptr) {
            base_sets[slot] = &base;
            extend_slot(slot, extended[slot], std::make_index_sequence<kMaxSets>());
        }
        if (base_sets[slot] == &base) return {&extended[slot].set, base.name};
    }
    throw Error("flash decoding op: more than " + std::to_string(kMaxSets) +
                " instruction sets in one process");
}

}  // namespace mixed_kv::ggml_op
