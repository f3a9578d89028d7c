#include <gtest/gtest.h>

#include <vector>

#include "mixed_kv/flash_decode.h"
#include "support/random.h"

namespace mixed_kv::test {
namespace {

// Cell by cell, what classify() says in words.
MaskPages::Kind expected_kind(const MaskView& mask, int stream, int head, std::int64_t tile,
                              std::int64_t page, std::int64_t n_q, std::int64_t n_kv) {
    bool any_zero = false, any_hidden = false, any_other = false;
    for (std::int64_t q = tile * MaskPages::kTileQueries;
         q < std::min(n_q, (tile + 1) * MaskPages::kTileQueries); ++q) {
        for (std::int64_t cell = page * kPageTokens; cell < (page + 1) * kPageTokens; ++cell) {
            const fp16_t m = cell < n_kv ? mask.row(stream, head, q)[cell] : kMaskedOut;
            (m == 0 ? any_zero : m == kMaskedOut ? any_hidden : any_other) = true;
        }
    }
    if (any_other || (any_zero && any_hidden)) return MaskPages::mixed;
    return any_zero ? MaskPages::visible : MaskPages::hidden;
}

TEST(MaskPages, AgreesWithCellByCell) {
    Random random(3);
    MaskPages pages;
    for (int round = 0; round < 200; ++round) {
        const int n_stream = 1 + random.below(3), n_head = random.below(2) == 0 ? 1 : 3;
        const std::int64_t n_q = 1 + random.below(40), n_kv = 1 + random.below(400);
        const std::int64_t stride = n_kv + random.below(3);  // rows at any alignment
        std::vector<fp16_t> data(std::size_t(n_stream * n_head * n_q * stride), 0x7e01);
        for (std::size_t row = 0; row < data.size() / std::size_t(stride); ++row) {
            const auto query = std::int64_t(row) % n_q;
            const std::int64_t end = n_kv * (query + 1) / n_q;  // causal, with a few oddities
            for (std::int64_t cell = 0; cell < n_kv; ++cell) {
                data[row * std::size_t(stride) + std::size_t(cell)] = cell < end ? fp16_t(0) : kMaskedOut;
            }
            if (random.below(4) == 0) {
                constexpr fp16_t kOdd[] = {0x0000, 0xfc00, 0x8000, 0xbc00, 0x7e00};
                data[row * std::size_t(stride) + std::size_t(random.below(int(n_kv)))] =
                    kOdd[random.below(5)];
            }
        }
        MaskView mask;
        mask.data = data.data();
        mask.row_stride_bytes = stride * 2;
        mask.head_stride_bytes = n_q * mask.row_stride_bytes;
        mask.stream_stride_bytes = n_head * mask.head_stride_bytes;
        mask.n_head = n_head;
        mask.n_stream = n_stream;
        const int asked_streams = n_stream + random.below(3);  // broadcast
        pages.classify(mask, asked_streams, n_q, n_kv);
        EXPECT_EQ(pages.n_pages(), (n_kv + 63) / 64);
        for (int stream = 0; stream < asked_streams; ++stream) {
            for (int head = 0; head < 6; ++head) {
                for (std::int64_t tile = 0; tile < pages.n_tiles(); ++tile) {
                    for (std::int64_t page = 0; page < pages.n_pages(); ++page) {
                        ASSERT_EQ(pages.kind(stream, head, tile, page),
                                  expected_kind(mask, stream, head, tile, page, n_q, n_kv));
                    }
                }
            }
        }
    }
}

TEST(MaskPages, NullMaskShowsEverything) {
    MaskPages pages;
    pages.classify({}, 2, 20, 130);
    EXPECT_EQ(pages.kind(1, 5, 1, 0), MaskPages::visible);
    EXPECT_EQ(pages.kind(1, 5, 1, 1), MaskPages::visible);
    EXPECT_EQ(pages.kind(1, 5, 1, 2), MaskPages::mixed);  // two cells of 64
    pages.classify({}, 1, 1, 128);
    EXPECT_EQ(pages.kind(0, 0, 0, 1), MaskPages::visible);
}

}  // namespace
}  // namespace mixed_kv::test
