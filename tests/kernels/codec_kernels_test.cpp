// Encoders write the scalar codec's bytes, decoders read exactly its values, on every instruction set.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::testing {
namespace {

class CodecKernels : public IsaTest {
  protected:
    // Encodes with the tested kernels and the definition, from guarded rows of this stride; equal or the test
    // fails.
    void expect_same_bytes(const ColdFormat& format, int index, KvRole role, int dim, int stride,
                           const std::vector<std::uint16_t>& rows, std::uint64_t counted) {
        const Guarded<std::uint16_t> in(std::size_t(kPageTokens - 1) * stride + dim);
        for (int t = 0; t < kPageTokens; ++t) {
            std::copy_n(rows.data() + std::ptrdiff_t(t) * dim, dim, in.data() + std::ptrdiff_t(t) * stride);
        }
        const Guarded<std::byte> got(format.block_bytes(role, dim)), want(got.size());
        const kernels::EncodeArgs args{in.data(), stride, dim, counted, got.data()};
        kernels::EncodeArgs scalar_args = args;
        scalar_args.block = want.data();
        const bool is_key = role == KvRole::key;
        const kernels::FormatKernels& k = kernels().formats[index];
        const bool ok = is_key ? k.encode_key(args) : k.encode_value(args);
        const bool scalar_ok = is_key ? formats::encode_key(format.code_bits, scalar_args)
                                      : formats::encode_value(format.code_bits, scalar_args);
        ASSERT_EQ(ok, scalar_ok);
        const auto differs =
            std::mismatch(got.data(), got.data() + got.size(), want.data()).first - got.data();
        ASSERT_EQ(std::size_t(differs), got.size()) << "first different byte";
    }
};

TEST_P(CodecKernels, EncodersWriteTheDefinedBytes) {
    std::mt19937 rng(11);
    for (int index = 0; index < int(cold_formats().size()); ++index) {
        const ColdFormat& format = cold_formats()[index];
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            for (const int dim : kHeadDims) {
                for (const RowData kind : kAllRowData) {
                    SCOPED_TRACE(std::string(format.name) + (role == KvRole::key ? " key " : " value ") +
                                 to_string(kind) + " head_dim " + std::to_string(dim));
                    const auto rows = make_rows(kind, dim, rng);
                    const std::uint64_t some = (std::uint64_t(rng()) << 32 | rng()) & ~std::uint64_t{15};
                    expect_same_bytes(format, index, role, dim, dim, rows, ~std::uint64_t{0});
                    expect_same_bytes(format, index, role, dim, 2 * dim + 1, rows, some);
                    if (HasFatalFailure()) {
                        return;
                    }
                }
            }
        }
    }
}

TEST_P(CodecKernels, UncountedRowsMayHoldAnything) {
    std::mt19937 rng(12);
    constexpr std::uint64_t counted = 0x00ffffff7ffffff0;
    for (int index = 0; index < int(cold_formats().size()); ++index) {
        const ColdFormat& format = cold_formats()[index];
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            for (const int dim : {40, 64, 96}) {
                auto rows = make_rows(RowData::gaussian, dim, rng);
                const auto clean = rows;
                for (int t = 0; t < kPageTokens; ++t) {
                    if ((counted >> t & 1) == 0) {
                        for (int c = 0; c < dim; ++c) {
                            const std::uint16_t bad[] = {0x7c00, 0xfc00, 0x7e00, 0x7bff};
                            rows[std::size_t(t) * dim + c] = bad[(t + c) % 4];
                        }
                    }
                }
                expect_same_bytes(format, index, role, dim, dim, rows, counted);
                expect_same_bytes(format, index, role, dim, dim, rows, 0);
                if (HasFatalFailure()) {
                    return;
                }
                // They do not influence the counted rows' values.
                const EncodedPage a(format, role, dim, rows, counted), b(format, role, dim, clean, counted);
                for (int t = 0; t < kPageTokens; ++t) {
                    for (int c = 0; c < dim && (counted >> t & 1) != 0; ++c) {
                        ASSERT_EQ(a.reader().value(t, c), b.reader().value(t, c));
                    }
                    for (int c = 0; c < dim; ++c) {
                        ASSERT_TRUE(std::isfinite(a.reader().value(t, c)));
                    }
                }
            }
        }
    }
}

TEST_P(CodecKernels, NotFiniteCountedRowsAreRefused) {
    std::mt19937 rng(13);
    for (int index = 0; index < int(cold_formats().size()); ++index) {
        const kernels::FormatKernels& k = kernels().formats[index];
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            for (const int dim : {40, 64, 576}) {
                for (const std::uint16_t bad : {0x7c00, 0xfc00, 0x7e01, 0xffff}) {
                    auto rows = make_rows(RowData::gaussian, dim, rng);
                    rows[rng() % rows.size()] = bad;
                    const Guarded<std::byte> block(cold_formats()[index].block_bytes(role, dim));
                    const kernels::EncodeArgs args{rows.data(), dim, dim, ~std::uint64_t{0}, block.data()};
                    ASSERT_FALSE(role == KvRole::key ? k.encode_key(args) : k.encode_value(args));
                    for (const std::byte b : block.span()) {
                        ASSERT_EQ(b, std::byte{0xff});  // untouched
                    }
                }
            }
        }
    }
}

TEST_P(CodecKernels, RotatedRowsBeyondBinary16AreRefused) {
    const std::vector<std::uint16_t> rows(std::size_t(kPageTokens) * 64,
                                          0xfbff);  // -65504 * sqrt(64) in channel 0
    for (int index = 0; index < int(cold_formats().size()); ++index) {
        const Guarded<std::byte> block(cold_formats()[index].block_bytes(KvRole::value, 64));
        const kernels::EncodeArgs args{rows.data(), 64, 64, ~std::uint64_t{0}, block.data()};
        ASSERT_FALSE(kernels().formats[index].encode_value(args));
        for (const std::byte b : block.span()) {
            ASSERT_EQ(b, std::byte{0xff});
        }
    }
}

TEST_P(CodecKernels, DecodersReturnTheDefinedValues) {
    std::mt19937 rng(14);
    for (int index = 0; index < int(cold_formats().size()); ++index) {
        const ColdFormat& format = cold_formats()[index];
        const kernels::FormatKernels& k = kernels().formats[index];
        for (const int dim : kHeadDims) {
            for (const RowData kind : {RowData::outlier_channels, RowData::huge, RowData::graded}) {
                const auto rows = make_rows(kind, dim, rng);
                for (const KvRole role : {KvRole::key, KvRole::value}) {
                    const EncodedPage page(format, role, dim, rows);
                    const formats::BlockReader reader = page.reader();
                    for (const bool transposed : {false, true}) {
                        const int n_out = transposed ? dim : kPageTokens;
                        const int width = transposed ? kPageTokens : dim;
                        const int stride = transposed ? 67 : dim + 3;
                        const Guarded<float> out(std::size_t(n_out - 1) * stride + width);
                        const kernels::DecodeArgs args{page.page(), out.data(), stride, transposed};
                        role == KvRole::key ? k.decode_key(args) : k.decode_value(args);
                        for (int t = 0; t < kPageTokens; ++t) {
                            for (int c = 0; c < dim; ++c) {
                                const float got = transposed ? out[std::size_t(c) * stride + t]
                                                             : out[std::size_t(t) * stride + c];
                                ASSERT_EQ(got, reader.value(t, c))
                                    << format.name << " head_dim " << dim << " token " << t << " channel "
                                    << c << " transposed " << transposed << " key " << (role == KvRole::key);
                            }
                        }
                    }
                }
            }
        }
    }
}

MIXED_KV_FOR_EVERY_ISA(CodecKernels);

}  // namespace
}  // namespace mixed_kv::testing
