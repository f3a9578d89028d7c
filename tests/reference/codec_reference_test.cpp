// Two independent readers of cold blocks: the format's own and the reference's.
#include "reference/codec_reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "formats/codec.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"
#include "support/page_tensor.h"
#include "support/random.h"

namespace mixed_kv::reference {
namespace {

constexpr int kHeadDims[] = {1, 17, 40, 64, 72, 80, 96, 128, 192, 256, 576};

TEST(CodecReference, AgreesOnSizes) {
    for (const ColdFormat& format : cold_formats()) {
        for (const int head_dim : kHeadDims) {
            for (const KvRole role : {KvRole::key, KvRole::value}) {
                EXPECT_EQ(block_bytes(format.code_bits, role, head_dim), format.block_bytes(role, head_dim));
            }
        }
    }
}

// Random widths by channel for a block that has them, within its budget.
void put_slots(test::Random& random, int code_bits, int head_dim, std::vector<std::byte>& block) {
    const int n_slots = head_dim / 16;
    std::vector<int> quads(std::size_t(head_dim / 4));
    std::iota(quads.begin(), quads.end(), 0);
    for (std::size_t i = quads.size(); i > 1; --i)
        std::swap(quads[i - 1], quads[std::size_t(random.next() % i)]);
    constexpr int kWidths[] = {0, 2, 3, 4, 6};
    std::vector<int> widths;
    int left = code_bits == 3 ? n_slots * 11 / 4 : n_slots * 2;
    for (int i = 0; i < n_slots; ++i) {
        const int width = kWidths[random.next() % 5];
        widths.push_back(width <= left ? width : 0);
        left -= widths.back();
    }
    std::sort(widths.begin(), widths.end(), std::greater<>());
    for (std::size_t i = 0; i < quads.size(); ++i) block[i] = std::byte(quads[i]);
    for (std::size_t i = 0; i < widths.size(); ++i) block[quads.size() + i] = std::byte(widths[i]);
}

// Any bytes are a block: every code, scale and zero point at its place.
TEST(CodecReference, AgreesOnRandomBytes) {
    test::Random random(1);
    for (const ColdFormat& format : cold_formats()) {
        for (const int head_dim : kHeadDims) {
            for (const KvRole role : {KvRole::key, KvRole::value}) {
                std::vector<std::byte> block(format.block_bytes(role, head_dim));
                for (std::byte& b : block) b = std::byte(random.next());
                if (formats::is_tiered(role == KvRole::key, format.code_bits, head_dim))
                    put_slots(random, format.code_bits, head_dim, block);
                const formats::BlockReader reader(format.code_bits, role, head_dim, block.data());
                const std::vector<double> rows =
                    decode_block_as_stored(format.code_bits, role, head_dim, block.data());
                for (int t = 0; t < kPageTokens; ++t) {
                    for (int c = 0; c < head_dim; ++c) {
                        const double expected =
                            double(reader.scale(t, c)) * (reader.code(t, c) - double(reader.shift())) +
                            double(reader.offset(t, c));
                        const double actual = rows[std::size_t(t * head_dim + c)];
                        if (std::isnan(expected)) {
                            ASSERT_TRUE(std::isnan(actual));
                        } else {
                            ASSERT_EQ(actual, expected)
                                << format.name << " " << head_dim << " " << t << " " << c;
                        }
                    }
                }
            }
        }
    }
}

// The only bytes that can be wrong: which channels have which width.
TEST(CodecReference, RefusesWidthsThatAreNone) {
    test::Random random(4);
    constexpr int head_dim = 64;
    std::vector<std::byte> block(block_bytes(2, KvRole::key, head_dim), std::byte{0});
    put_slots(random, 2, head_dim, block);
    const auto decode = [&](std::vector<std::byte> b) { decode_block(2, KvRole::key, head_dim, b.data()); };
    EXPECT_NO_THROW(decode(block));
    const auto with = [&block](std::size_t at, std::initializer_list<int> values) {
        std::vector<std::byte> b = block;
        for (const int value : values) b[at++] = std::byte(value);
        return b;
    };
    EXPECT_THROW(decode(with(3, {16})), Error);                              // no such quad
    EXPECT_THROW(decode(with(3, {std::to_integer<int>(block[4])})), Error);  // the same twice
    EXPECT_THROW(decode(with(16, {2, 3, 0, 0})), Error);                     // wider again
    EXPECT_THROW(decode(with(16, {5, 0, 0, 0})), Error);                     // no such width
    EXPECT_THROW(decode(with(16, {255, 0, 0, 0})), Error);
    EXPECT_THROW(decode(with(16, {6, 6, 6, 6})), Error);  // too many bits
    EXPECT_NO_THROW(decode(with(16, {6, 2, 0, 0})));
}

TEST(CodecReference, HadamardIsItsMatrix) {
    test::Random random(2);
    for (const int size : {1, 2, 32, 128}) {
        const int n = 2 * size;
        std::vector<double> x, y(static_cast<std::size_t>(n), 0.0);
        for (int i = 0; i < n; ++i) x.push_back(double(random.normal()));
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j < size; ++j) {
                const int sign = std::popcount(unsigned(i % size & j)) % 2 == 0 ? 1 : -1;
                y[std::size_t(i)] += sign * x[std::size_t(i / size * size + j)] / std::sqrt(double(size));
            }
        }
        std::vector<double> z = x;
        hadamard(z.data(), n, size);
        for (int i = 0; i < n; ++i) EXPECT_NEAR(z[std::size_t(i)], y[std::size_t(i)], 1e-12);
        hadamard(z.data(), n, size);
        for (int i = 0; i < n; ++i) EXPECT_NEAR(z[std::size_t(i)], x[std::size_t(i)], 1e-12);
    }
}

// Rows that were encoded come back within half a step, in the basis the model knows.
TEST(CodecReference, DecodesWhatWasEncoded) {
    const kernels::KernelSet& set = kernel_set("scalar");
    const auto format_index = std::size_t(find_cold_format("q8") - cold_formats().data());
    for (const int head_dim : {64, 80, 128}) {
        std::vector<fp16_t> rows(std::size_t(kPageTokens * head_dim));
        test::Random random(3);
        for (fp16_t& x : rows) x = fp32_to_fp16(random.normal());
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            const std::size_t bytes = block_bytes(8, role, head_dim);
            struct alignas(64) Line {
                std::byte b[64];
            };
            std::vector<Line> block(bytes / 64);
            const kernels::FormatKernels& format = set.formats[format_index];
            const auto encode = role == KvRole::key ? format.encode_key : format.encode_value;
            ASSERT_TRUE(encode({rows.data(), head_dim, head_dim, ~std::uint64_t(0), block[0].b}));
            const std::vector<double> decoded = decode_block(8, role, head_dim, block[0].b);
            double squares = 0.0, errors = 0.0;
            for (std::size_t i = 0; i < rows.size(); ++i) {
                const double x = double(fp16_to_fp32(rows[i]));
                squares += x * x;
                errors += (decoded[i] - x) * (decoded[i] - x);
            }
            EXPECT_LT(std::sqrt(errors / squares), 0.01);
        }
    }
}

// Every page state yields the rows that were put in: exactly, or to the accuracy of the block.
TEST(CodecReference, ReadsEveryPageState) {
    using test::PageMix;
    const std::int64_t n_cells = 1000;
    const auto value = [](int stream, std::int64_t cell, int head, int channel) {
        return std::sin(float(cell * 7 + head * 3 + channel + stream));
    };
    for (const PageMix mix : {PageMix::hot, PageMix::pinned, PageMix::cold, PageMix::cold_overlay,
                              PageMix::blocks, PageMix::all_states}) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            test::PageTensor::Spec spec;
            spec.role = role;
            spec.format = find_cold_format("q8");
            spec.shape = {3, 64};
            spec.n_stream = 2;
            spec.n_cells = n_cells;
            spec.mix = mix;
            spec.value = value;
            const test::PageTensor tensor(spec, kernel_set("scalar"));
            for (int stream = 0; stream < spec.n_stream; ++stream) {
                const PageTable& table = tensor.tables()[std::size_t(stream)];
                for (int head = 0; head < spec.shape.n_head; ++head) {
                    const std::vector<double> rows = read_head(table, head, n_cells);
                    ASSERT_EQ(rows.size(), std::size_t(n_cells * 64));
                    for (std::int64_t cell = 0; cell < n_cells; ++cell) {
                        const Page& page = table.pages[cell / kPageTokens];
                        const bool in_block = (page.block_cells() >> (cell % 64) & 1) != 0;
                        const bool is_written = (page.written >> (cell % 64) & 1) != 0;
                        for (int c = 0; c < 64; ++c) {
                            const double expected =
                                !is_written
                                    ? 0.0
                                    : double(fp16_to_fp32(fp32_to_fp16(value(stream, cell, head, c))));
                            ASSERT_NEAR(rows[std::size_t(cell * 64 + c)], expected, in_block ? 0.05 : 0.0);
                        }
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace mixed_kv::reference
