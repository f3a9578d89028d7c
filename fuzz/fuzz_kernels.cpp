// libFuzzer harness for the kernels: every instruction set that this CPU runs gets the same bytes as the
// scalar set, which is the definition. Encoders must write the same block (or refuse alike), decoders the
// same floats, qk and pv the same products up to the order of their float sums. Buffers have their exact
// sizes, for AddressSanitizer.
//
//   cmake --preset fuzz && cmake --build --preset fuzz
//   build-fuzz/bin/fuzz_kernels -max_len=4096 WORK_FOLDER fuzz/corpus/kernels

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/contract.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/fp16.h"
#include "mixed_kv/isa.h"

namespace {

using namespace mixed_kv;
using kernels::kMaxDecodeRows;
using kernels::kPage;

// The input as an endless source of choices: starts again when it is used up.
class Choices {
  public:
    Choices(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
    unsigned byte() {
        if (size_ == 0) return 0;
        const std::size_t at = at_++;
        return data_[at % size_] + unsigned(at / size_) % 7;  // not the same again
    }
    std::uint16_t half() {
        const auto low = byte() & 255;
        return std::uint16_t((byte() & 255) << 8 | low);
    }
    // Within -4..4, or now and then 0.
    float value() {
        const unsigned b = byte() & 255;
        return b < 8 ? 0.0f : (float(b) - 128.0f) / 32.0f;
    }

  private:
    const std::uint8_t* data_;
    std::size_t size_, at_ = 0;
};

// n values on a 64-byte boundary; what lies behind them is not ours.
template <typename T>
class Aligned {
  public:
    explicit Aligned(std::size_t n) : n_(n), memory_(n * sizeof(T) + 64) {
        auto at = reinterpret_cast<std::uintptr_t>(memory_.data());
        data_ = reinterpret_cast<T*>((at + 63) / 64 * 64);
        std::memset(static_cast<void*>(data_), 0, n * sizeof(T));
    }
    T* data() { return data_; }
    const T* data() const { return data_; }
    std::size_t size() const { return n_; }
    T& operator[](std::size_t i) { return data_[i]; }
    T operator[](std::size_t i) const { return data_[i]; }

  private:
    std::size_t n_;
    std::vector<std::byte> memory_;
    T* data_;
};

[[noreturn]] void fail(const char* what, const kernels::KernelSet& set, std::string_view format) {
    std::fprintf(stderr, "%s differ: %s against scalar, %.*s\n", what, set.name, int(format.size()),
                 format.data());
    std::abort();
}

int padded(int n) { return (n + 15) / 16 * 16; }

struct Case {
    int head_dim, n_rows, format;
    KvRole role;
    std::uint64_t counted;
    std::vector<std::uint16_t> rows;  // [64][head_dim]
    std::vector<float> x;             // queries [n_rows][padded head_dim], or weights [n_rows][64]
    std::vector<float> mass;          // [n_rows]; empty: unknown
};

Case read_case(Choices& in) {
    constexpr int kHeadDims[] = {16, 20, 32, 40, 64, 72, 80, 96, 128, 192, 256};
    Case c;
    c.head_dim = kHeadDims[in.byte() % 11];
    c.n_rows = 1 + int(in.byte() % kMaxDecodeRows);
    c.format = int(in.byte() % cold_formats().size());
    c.role = in.byte() % 2 == 0 ? KvRole::key : KvRole::value;
    const unsigned kind = in.byte() % 4;
    c.counted = kind == 0 ? ~std::uint64_t(0) << (in.byte() % 64) : ~std::uint64_t(0);
    c.rows.resize(std::size_t(kPage) * std::size_t(c.head_dim));
    // Any bits at all, NaN included, or rows as models have them.
    for (auto& v : c.rows) v = kind == 1 ? in.half() : fp32_to_fp16(in.value());
    const bool key = c.role == KvRole::key;
    const int stride = key ? padded(c.head_dim) : kPage, used = key ? c.head_dim : kPage;
    c.x.assign(std::size_t(c.n_rows) * std::size_t(stride), 0.0f);
    for (int r = 0; r < c.n_rows; ++r) {
        for (int i = 0; i < used; ++i) {
            const float v = in.value();
            c.x[std::size_t(r) * std::size_t(stride) + std::size_t(i)] = key ? v : std::fabs(v) / 4;
        }
        if (!key && kind != 2) c.mass.push_back(0.25f + float(in.byte()));
    }
    return c;
}

struct Result {
    bool encoded = false;
    Aligned<std::byte> block;
    std::vector<float> decoded, product;
};

Result run(const kernels::KernelSet& set, const Case& c) {
    const ColdFormat& format = cold_formats()[std::size_t(c.format)];
    const kernels::FormatKernels& k = set.formats[c.format];
    const bool key = c.role == KvRole::key;
    Result result{false, Aligned<std::byte>(format.block_bytes(c.role, c.head_dim)), {}, {}};
    const kernels::EncodeArgs encode{c.rows.data(), c.head_dim, c.head_dim, c.counted, result.block.data()};
    result.encoded = key ? k.encode_key(encode) : k.encode_value(encode);
    if (!result.encoded) return result;

    const kernels::PageData page{result.block.data(), 0, kPage, c.head_dim, nullptr};
    result.decoded.assign(std::size_t(kPage) * std::size_t(c.head_dim), 0.0f);
    const kernels::DecodeArgs decode{page, result.decoded.data(), key ? kPage : c.head_dim, key};
    key ? k.decode_key(decode) : k.decode_value(decode);

    Aligned<std::byte> scratch(set.scratch_bytes(c.head_dim));
    const int stride = key ? kPage : padded(c.head_dim);
    result.product.assign(std::size_t(c.n_rows) * std::size_t(stride), 0.0f);
    if (key) {
        k.qk({page, c.x.data(), padded(c.head_dim), c.n_rows, result.product.data(), scratch.data()});
    } else {
        k.pv({page, c.x.data(), c.n_rows, result.product.data(), stride, scratch.data(),
              c.mass.empty() ? nullptr : c.mass.data()});
    }
    return result;
}

// Products differ by the order of float sums only: bounded by the sum of the terms' magnitudes.
void compare_products(const kernels::KernelSet& set, const Case& c, const Result& expected,
                      const Result& actual) {
    const bool key = c.role == KvRole::key;
    const int stride = key ? kPage : padded(c.head_dim), used = key ? kPage : c.head_dim;
    const int x_stride = key ? padded(c.head_dim) : kPage;
    float largest = 0;
    for (const float v : expected.decoded) largest = std::fmax(largest, std::fabs(v));
    for (int r = 0; r < c.n_rows; ++r) {
        float sum = 0;
        for (int i = 0; i < x_stride; ++i)
            sum += std::fabs(c.x[std::size_t(r) * std::size_t(x_stride) + std::size_t(i)]);
        const float allowed = 4e-6f * sum * largest + 1e-30f;
        for (int i = 0; i < used; ++i) {
            const std::size_t at = std::size_t(r) * std::size_t(stride) + std::size_t(i);
            if (!(std::fabs(expected.product[at] - actual.product[at]) <= allowed))
                fail(key ? "scores" : "sums of values", set, cold_formats()[std::size_t(c.format)].name);
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Choices in(data, size);
    const Case c = read_case(in);
    const std::string_view name = cold_formats()[std::size_t(c.format)].name;
    const Result expected = run(kernel_set("scalar"), c);
    for (const float v : expected.decoded) {
        if (!std::isfinite(v)) fail("finite values", kernel_set("scalar"), name);
    }
    for (const std::string_view isa : supported_isas()) {
        if (isa == "scalar") continue;
        const kernels::KernelSet& set = kernel_set(isa);
        const Result actual = run(set, c);
        if (actual.encoded != expected.encoded) fail("refusals", set, name);
        if (!expected.encoded) continue;
        if (std::memcmp(actual.block.data(), expected.block.data(), expected.block.size()) != 0)
            fail("blocks", set, name);
        if (std::memcmp(actual.decoded.data(), expected.decoded.data(),
                        expected.decoded.size() * sizeof(float)) != 0)
            fail("decoded rows", set, name);
        compare_products(set, c, expected, actual);
    }
    return 0;
}
