#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/codec.h"
#include "kernels/contract.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/isa.h"

// Shared by the kernel and format tests: guarded buffers, data, reference results with derived bounds.
namespace mixed_kv::testing {

inline constexpr int kHeadDims[] = {40, 64, 72, 80, 96, 128, 192, 256, 576};

// Of query rows: what every set takes, and where a set takes more, blocks of whole and of broken tiles up to
// that.
std::vector<int> row_counts(const kernels::KernelSet& set);

// n elements that end right before an inaccessible page and start as NaN patterns. Aligned to 64 bytes if the
// size in bytes is a multiple of 64.
class GuardedBytes {
  public:
    explicit GuardedBytes(std::size_t size);
    ~GuardedBytes();
    GuardedBytes(const GuardedBytes&) = delete;
    GuardedBytes& operator=(const GuardedBytes&) = delete;
    std::byte* data() const { return data_; }
    std::size_t size() const { return size_; }

  private:
    std::byte* map_ = nullptr;
    std::size_t map_size_ = 0;
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

template <typename T>
class Guarded {
  public:
    explicit Guarded(std::size_t n) : bytes_(n * sizeof(T)), n_(n) {}
    T* data() const { return reinterpret_cast<T*>(bytes_.data()); }
    T& operator[](std::size_t i) const { return data()[i]; }
    std::span<T> span() const { return {data(), n_}; }
    std::size_t size() const { return n_; }

  private:
    GuardedBytes bytes_;
    std::size_t n_;
};

// What the rows of a page look like.
enum class RowData {
    gaussian,
    outlier_channels,  // every seventh channel 30 times larger and shifted
    graded,            // every channel has a magnitude of its own, from 1/16 to 16: all widths of tiered keys
    constant,
    tiny,  // around the smallest binary16 subnormals
    huge,  // up to 65504 in magnitude
};
inline constexpr RowData kAllRowData[] = {RowData::gaussian, RowData::outlier_channels,
                                          RowData::graded,   RowData::constant,
                                          RowData::tiny,     RowData::huge};
std::string to_string(RowData kind);

// fp16 [64][head_dim].
std::vector<std::uint16_t> make_rows(RowData kind, int head_dim, std::mt19937& rng);
// float [n_rows][stride], zero from head_dim on: scaled so that logits against unit gaussian keys have this
// sigma.
void fill_queries(float* q, int n_rows, int head_dim, std::ptrdiff_t stride, float sigma, std::mt19937& rng);
// float [n_rows][64]: unnormalised softmax weights, the largest 1; about one in eight is 0 (masked).
void fill_weights(float* p, int n_rows, int n_tokens, std::mt19937& rng);

// An encoded block in a guarded buffer.
struct EncodedPage {
    const ColdFormat* format;
    KvRole role;
    int head_dim;
    Guarded<std::byte> block;

    EncodedPage(const ColdFormat& f, KvRole r, int dim, const std::vector<std::uint16_t>& rows,
                std::uint64_t counted = ~std::uint64_t{0});
    formats::BlockReader reader() const { return {format->code_bits, role, head_dim, block.data()}; }
    kernels::PageData page() const { return {block.data(), 0, kPageTokens, head_dim}; }
    // Codes of one width and their parameters: the whole block, or a tier of it.
    struct Part {
        int width, first, n_channels;  // the channels' places
        std::byte* data;
        formats::BlockLayout layout;
    };
    std::vector<Part> parts() const;
    // Makes every scale a power of two and every zero point -centre * scale, so that a kernel's result is its
    // integer sum times one float: equal integers give equal floats.
    void make_integer_only();
};

// One row of results in double, with how far off a correct kernel may be, element by element.
struct Reference {
    std::vector<double> value, bound;
};

// What one unit of the integers that a query row is rounded to is worth, by the width of the channels: those
// of one width, all of a uniform block, are rounded together.
using QuerySteps = std::map<int, double>;
QuerySteps query_steps(const EncodedPage& page, const float* q);

// sum_c q[c] * K[t][c] over a cold page. Bound: q * scale is rounded to multiples of step = max|q * scale| /
// limit (half a step per centred code), four float roundings per product, and the float sum of the constant.
// In a tiered block steps and limits are those of a tier, whose sums are added up in float.
Reference reference_qk(const EncodedPage& page, const float* q);
// o[c] + sum_t p[t] * V[t][c], alike.
Reference reference_pv(const EncodedPage& page, const float* p, const float* o);

// Every element within its bound; false for NaN.
::testing::AssertionResult within_bound(const Reference& want, std::span<const float> got);
// Root mean square of the error relative to that of the reference at most tolerance; false for NaN.
::testing::AssertionResult relative_rms(const Reference& want, std::span<const float> got, double tolerance);

// Tests over instruction sets: all compiled ones; those this CPU lacks are skipped, or fail when
// MIXED_KV_REQUIRE_ISA (names separated by commas) lists them.
class IsaTest : public ::testing::TestWithParam<std::string_view> {
  protected:
    void SetUp() override;
    const kernels::KernelSet& kernels() const { return kernel_set(GetParam()); }
};
const kernels::KernelSet& scalar_kernels();
std::vector<std::string_view> required_isas();
bool is_supported(std::string_view isa);
std::string isa_name(const ::testing::TestParamInfo<std::string_view>& info);

}  // namespace mixed_kv::testing

#define MIXED_KV_FOR_EVERY_ISA(Suite)                                                      \
    INSTANTIATE_TEST_SUITE_P(Isa, Suite, ::testing::ValuesIn(::mixed_kv::compiled_isas()), \
                             ::mixed_kv::testing::isa_name)
