#include "amx_emulation.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace mixed_kv::emulation {
namespace {

constexpr int kTiles = 8, kMaxRows = 16, kMaxBytes = 64;

struct Tile {
    int rows = 0, bytes = 0;  // 0: not configured
    std::uint8_t data[kMaxRows][kMaxBytes] = {};
};

struct State {
    std::uint8_t config[64] = {};
    bool configured = false;
    Tile tiles[kTiles];
};

thread_local State state;

[[noreturn]] void fault(const char* instruction, const char* what) {
    std::fprintf(stderr, "AMX fault: %s: %s\n", instruction, what);
    std::abort();
}

Tile& tile_at(const char* instruction, int tile) {
    if (!state.configured) fault(instruction, "tiles are not configured");
    if (tile < 0 || tile >= kTiles) fault(instruction, "no such tile");
    if (state.tiles[tile].rows == 0) fault(instruction, "this tile is not configured");
    return state.tiles[tile];
}

bool any(const std::uint8_t* bytes, int first, int last) {
    for (int i = first; i <= last; ++i) {
        if (bytes[i] != 0) return true;
    }
    return false;
}

struct Operands {
    Tile &sum, &a, &b;
};

Operands operands(const char* instruction, int sum, int a, int b) {
    if (sum == a || sum == b || a == b) fault(instruction, "the same tile twice");
    const Operands o{tile_at(instruction, sum), tile_at(instruction, a), tile_at(instruction, b)};
    if (o.sum.bytes % 4 != 0 || o.a.bytes % 4 != 0 || o.b.bytes % 4 != 0)
        fault(instruction, "row bytes are no multiple of 4");
    if (o.sum.rows != o.a.rows) fault(instruction, "sum and first operand differ in rows");
    if (o.a.bytes / 4 != o.b.rows) fault(instruction, "the operands' summed lengths differ");
    if (o.sum.bytes != o.b.bytes) fault(instruction, "sum and second operand differ in columns");
    return o;
}

// Subnormal numbers count as zero, as operands and as results.
float flushed(float x) {
    return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

// All numbers of a tile, row by row.
template <typename To, typename From, int kPerRow = kMaxBytes / int(sizeof(From)), typename Convert>
void all_of(const Tile& t, To (&out)[kMaxRows][kPerRow], Convert&& convert) {
    for (int r = 0; r < kMaxRows; ++r) {
        for (int i = 0; i < kPerRow; ++i) {
            From x;
            std::memcpy(&x, t.data[r] + std::size_t(i) * sizeof x, sizeof x);
            out[r][i] = convert(x);
        }
    }
}

float from_bf16(std::uint16_t x) {
    const std::uint32_t bits = std::uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return flushed(value);
}

}  // namespace

void tile_load_config(const void* config) {
    std::uint8_t c[64];
    std::memcpy(c, config, sizeof c);
    constexpr const char* kName = "ldtilecfg";
    if (c[0] == 0) {
        state = State{};
        return;
    }
    if (c[0] != 1) fault(kName, "no such palette");
    if (any(c, 2, 15) || any(c, 32, 47) || any(c, 56, 63)) fault(kName, "a reserved byte is not zero");
    State next;
    for (int i = 0; i < kTiles; ++i) {
        next.tiles[i].bytes = c[16 + 2 * i] | c[17 + 2 * i] << 8;
        next.tiles[i].rows = c[48 + i];
        if (next.tiles[i].bytes > kMaxBytes || next.tiles[i].rows > kMaxRows) fault(kName, "tile too large");
        if ((next.tiles[i].bytes == 0) != (next.tiles[i].rows == 0))
            fault(kName, "rows without columns, or columns without rows");
    }
    std::memcpy(next.config, c, sizeof c);
    next.configured = true;
    state = next;  // tiles are cleared
}

void tile_store_config(void* config) { std::memcpy(config, state.config, sizeof state.config); }

void tile_release() { state = State{}; }

void tile_zero(int tile) {
    Tile& t = tile_at("tilezero", tile);
    std::memset(t.data, 0, sizeof t.data);
}

void tile_load(int tile, const void* from, std::ptrdiff_t stride_bytes) {
    Tile& t = tile_at("tileloadd", tile);
    std::memset(t.data, 0, sizeof t.data);
    for (int r = 0; r < t.rows; ++r) {
        std::memcpy(t.data[r], static_cast<const std::byte*>(from) + r * stride_bytes, std::size_t(t.bytes));
    }
}

void tile_store(int tile, void* to, std::ptrdiff_t stride_bytes) {
    const Tile& t = tile_at("tilestored", tile);
    for (int r = 0; r < t.rows; ++r) {
        std::memcpy(static_cast<std::byte*>(to) + r * stride_bytes, t.data[r], std::size_t(t.bytes));
    }
}

void tile_dpbssd(int sum, int a, int b) {
    const Operands o = operands("tdpbssd", sum, a, b);
    std::int32_t x[kMaxRows][64], y[kMaxRows][64];
    std::uint32_t totals[kMaxRows][16];
    const auto widen = [](std::int8_t value) { return std::int32_t(value); };
    all_of<std::int32_t, std::int8_t>(o.a, x, widen);
    all_of<std::int32_t, std::int8_t>(o.b, y, widen);
    std::memcpy(totals, o.sum.data, sizeof totals);
    for (int m = 0; m < o.sum.rows; ++m) {
        for (int k = 0; k < o.a.bytes; ++k) {
            for (int n = 0; n < o.sum.bytes / 4; ++n) {
                totals[m][n] += static_cast<std::uint32_t>(x[m][k] * y[k / 4][4 * n + k % 4]);
            }
        }
    }
    std::memcpy(o.sum.data, totals, sizeof totals);
}

// Sums of even and of odd numbers apart, one FMA after the other, both added at the end.
void tile_dpbf16ps(int sum, int a, int b) {
    const Operands o = operands("tdpbf16ps", sum, a, b);
    float x[kMaxRows][32], y[kMaxRows][32], totals[kMaxRows][16];
    all_of<float, std::uint16_t>(o.a, x, from_bf16);
    all_of<float, std::uint16_t>(o.b, y, from_bf16);
    std::memcpy(totals, o.sum.data, sizeof totals);
    for (int m = 0; m < o.sum.rows; ++m) {
        float parts[32] = {};
        for (int k = 0; k < o.a.bytes / 4; ++k) {
            for (int i = 0; i < o.sum.bytes / 2; ++i) {
                parts[i] = flushed(std::fma(x[m][2 * k + i % 2], y[k][i], parts[i]));
            }
        }
        for (int n = 0; n < o.sum.bytes / 4; ++n) {
            totals[m][n] = flushed(flushed(totals[m][n]) + flushed(parts[2 * n] + parts[2 * n + 1]));
        }
    }
    std::memcpy(o.sum.data, totals, sizeof totals);
}

}  // namespace mixed_kv::emulation
