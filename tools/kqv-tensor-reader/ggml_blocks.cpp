#include "kqv-tensor-reader/ggml_blocks.h"

#include <cstdint>
#include <cstring>

#include "mixed_kv/fp16.h"

namespace mixed_kv::trace_tools {

namespace {

constexpr int kHalf = 16;  // a block of 32 values: nibble i holds value i (low) and value 16 + i (high)

float fp16_at(const std::byte* at) {
    fp16_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return fp16_to_fp32(bits);
}

unsigned byte_at(const std::byte* at, int i) { return std::to_integer<unsigned>(at[i]); }

// d fp16, 32 x int8
void decode_q8_0(const std::byte* block, float* out) {
    const float d = fp16_at(block);
    for (int i = 0; i < 32; ++i) out[i] = d * float(int8_t(byte_at(block + 2, i)));
}

// [fp16 d][fp16 m if kHasMin][32 high bits if kHasHigh][16 bytes of nibbles]
template <bool kHasMin, bool kHasHigh>
void decode_nibbles(const std::byte* block, float* out) {
    const float d = fp16_at(block);
    const float m = kHasMin ? fp16_at(block + 2) : 0.0F;
    const std::byte* at = block + (kHasMin ? 4 : 2);
    uint32_t high = 0;
    if (kHasHigh) {
        std::memcpy(&high, at, sizeof high);
        at += sizeof high;
    }
    // Without a minimum codes are centred.
    const int centre = kHasMin ? 0 : (kHasHigh ? 16 : 8);
    for (int i = 0; i < kHalf; ++i) {
        const int low_code = int((byte_at(at, i) & 15U) | (high >> i & 1U) << 4);
        const int high_code = int(byte_at(at, i) >> 4 | (high >> (i + kHalf) & 1U) << 4);
        out[i] = float(low_code - centre) * d + m;
        out[i + kHalf] = float(high_code - centre) * d + m;
    }
}

void decode_iq4_nl(const std::byte* block, float* out) {
    static constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                           1,    13,   25,  38,  53,  69,  89,  113};
    const float d = fp16_at(block);
    for (int i = 0; i < kHalf; ++i) {
        const unsigned codes = byte_at(block + 2, i);
        out[i] = d * float(kValues[codes & 15U]);
        out[i + kHalf] = d * float(kValues[codes >> 4]);
    }
}

}  // namespace

BlockDecoder find_block_decoder(trace::GgmlType type) noexcept {
    switch (type) {
        case trace::GgmlType::q8_0:
            return decode_q8_0;
        case trace::GgmlType::q4_0:
            return decode_nibbles<false, false>;
        case trace::GgmlType::q4_1:
            return decode_nibbles<true, false>;
        case trace::GgmlType::q5_0:
            return decode_nibbles<false, true>;
        case trace::GgmlType::q5_1:
            return decode_nibbles<true, true>;
        case trace::GgmlType::iq4_nl:
            return decode_iq4_nl;
        default:
            return nullptr;
    }
}

}  // namespace mixed_kv::trace_tools
