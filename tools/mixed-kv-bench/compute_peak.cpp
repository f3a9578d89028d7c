#include "mixed-kv-bench/compute_peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "mixed_kv/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace mixed_kv::tools {

namespace {

constexpr int kChains = 12;  // independent sums: latency times width of every unit below

// Runs n steps of kChains instructions; the empty asm keeps the compiler from computing anything once.
using Burn = void (*)(std::int64_t n);

struct Unit {
    const char* name;
    Burn burn;
    bool (*supported)();
    double operations_per_instruction;
};

void burn_scalar(std::int64_t n) {
    float sum[kChains] = {}, x = 1.0f, y = 0.5f;
    for (std::int64_t i = 0; i < n; ++i) {
        for (float& s : sum) {
            asm volatile("" : "+m"(s));
            s = s + x * y;
        }
    }
    asm volatile("" : : "m"(sum));
}

// Asking for amx also gets the operating system's permission to use tiles.
[[maybe_unused]] bool has(std::string_view isa) {
    const auto isas = supported_isas();
    return std::find(isas.begin(), isas.end(), isa) != isas.end();
}

#if defined(__x86_64__)
// Each chain is a variable of its own: an array might live in memory.
#define MIXED_KV_DEFINE_BURN(NAME, TARGET, VECTOR, ZERO, STEP)                                \
    __attribute__((target(TARGET))) void NAME(std::int64_t n) {                               \
        VECTOR x = ZERO, y = ZERO, s0 = ZERO, s1 = ZERO, s2 = ZERO, s3 = ZERO, s4 = ZERO;     \
        VECTOR s5 = ZERO, s6 = ZERO, s7 = ZERO, s8 = ZERO, s9 = ZERO, s10 = ZERO, s11 = ZERO; \
        const auto step = [&](VECTOR & s) __attribute__((always_inline, target(TARGET))) {    \
            asm volatile("" : "+x"(x), "+x"(y));                                              \
            s = STEP;                                                                         \
            asm volatile("" : "+x"(s));                                                       \
        };                                                                                    \
        for (std::int64_t i = 0; i < n; ++i) {                                                \
            step(s0), step(s1), step(s2), step(s3), step(s4), step(s5);                       \
            step(s6), step(s7), step(s8), step(s9), step(s10), step(s11);                     \
        }                                                                                     \
    }
MIXED_KV_DEFINE_BURN(burn_fma, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_fmadd_ps(x, y, s))
MIXED_KV_DEFINE_BURN(burn_madd, "avx2", __m256i, _mm256_setzero_si256(),
                     _mm256_add_epi32(s, _mm256_madd_epi16(x, y)))
// As assembly: the intrinsic needs an option of the compiler.
inline __attribute__((always_inline, target("avx2"))) __m256i dot_pairs(__m256i s, __m256i x, __m256i y) {
    asm volatile("%{vex%} vpdpwssd %2, %1, %0" : "+x"(s) : "x"(x), "x"(y));
    return s;
}
MIXED_KV_DEFINE_BURN(burn_vnni256, "avx2", __m256i, _mm256_setzero_si256(), dot_pairs(s, x, y))
MIXED_KV_DEFINE_BURN(burn_fma512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_fmadd_ps(x, y, s))
MIXED_KV_DEFINE_BURN(burn_vnni512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(),
                     _mm512_dpbusd_epi32(s, x, y))
#undef MIXED_KV_DEFINE_BURN

// Six sums, each twice a step: as assembly, which needs no option of the compiler.
#define MIXED_KV_DEFINE_TILE_BURN(NAME, STEP)                                                               \
    void NAME(std::int64_t n) {                                                                             \
        struct alignas(64) {                                                                                \
            std::uint8_t palette = 1, start_row = 0, reserved0[14] = {};                                    \
            std::uint16_t row_bytes[8] = {64, 64, 64, 64, 64, 64, 64, 64};                                  \
            std::uint8_t reserved1[16] = {}, rows[8] = {16, 16, 16, 16, 16, 16, 16, 16}, reserved2[8] = {}; \
        } config;                                                                                           \
        asm volatile("ldtilecfg %0" : : "m"(config));                                                       \
        for (std::int64_t i = 0; i < n; ++i) {                                                              \
            asm volatile(STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) : :);                              \
            asm volatile(STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) : :);                              \
        }                                                                                                   \
        asm volatile("tilerelease");                                                                        \
    }
#define MIXED_KV_INT8(SUM) "tdpbssd %%tmm7, %%tmm6, %%tmm" #SUM "\n\t"
#define MIXED_KV_BF16(SUM) "tdpbf16ps %%tmm7, %%tmm6, %%tmm" #SUM "\n\t"
MIXED_KV_DEFINE_TILE_BURN(burn_tiles_int8, MIXED_KV_INT8)
MIXED_KV_DEFINE_TILE_BURN(burn_tiles_bf16, MIXED_KV_BF16)
#undef MIXED_KV_DEFINE_TILE_BURN

bool has_amx() { return has("amx"); }
#elif defined(__aarch64__)
// As assembly, which needs no option of the compiler.
#define MIXED_KV_DEFINE_BURN(NAME, STEP)                                      \
    void NAME(std::int64_t n) {                                               \
        const int32x4_t x = vdupq_n_s32(0), y = x;                            \
        int32x4_t s0 = x, s1 = x, s2 = x, s3 = x, s4 = x, s5 = x;             \
        int32x4_t s6 = x, s7 = x, s8 = x, s9 = x, s10 = x, s11 = x;           \
        const auto step = [&](int32x4_t & s) __attribute__((always_inline)) { \
            asm volatile(STEP : "+w"(s) : "w"(x), "w"(y));                    \
        };                                                                    \
        for (std::int64_t i = 0; i < n; ++i) {                                \
            step(s0), step(s1), step(s2), step(s3), step(s4), step(s5);       \
            step(s6), step(s7), step(s8), step(s9), step(s10), step(s11);     \
        }                                                                     \
    }
MIXED_KV_DEFINE_BURN(burn_fma, "fmla %0.4s, %1.4s, %2.4s")
MIXED_KV_DEFINE_BURN(burn_smlal, "smlal %0.4s, %1.4h, %2.4h")
MIXED_KV_DEFINE_BURN(burn_sdot, ".arch_extension dotprod\n\tsdot %0.4s, %1.16b, %2.16b")
MIXED_KV_DEFINE_BURN(burn_usmmla, ".arch_extension i8mm\n\tusmmla %0.4s, %1.16b, %2.16b")
#undef MIXED_KV_DEFINE_BURN
#endif

const Unit kUnits[] = {
    {"scalar f32", burn_scalar, [] { return true; }, 2},
#if defined(__x86_64__)
    {"fma f32 avx2", burn_fma, [] { return bool(__builtin_cpu_supports("fma")); }, 16},
    {"vpmaddwd int16 avx2", burn_madd, [] { return bool(__builtin_cpu_supports("avx2")); }, 32},
    {"vpdpwssd int16 avxvnni", burn_vnni256, [] { return has("avxvnni"); }, 32},
    {"fma f32 avx512", burn_fma512, [] { return bool(__builtin_cpu_supports("avx512f")); }, 32},
    {"2 x tdpbssd int8 amx", burn_tiles_int8, has_amx, 2 * 16 * 16 * 64 / 2.0},
    {"3 x tdpbf16ps amx", burn_tiles_bf16, has_amx, 2 * 16 * 16 * 32 / 3.0},
    {"2 x vpdpbusd int8 avx512", burn_vnni512, [] { return bool(__builtin_cpu_supports("avx512vnni")); },
     128 / 2.0},
#elif defined(__aarch64__)
    {"fma f32 neon", burn_fma, [] { return true; }, 8},
    {"smlal int16 neon", burn_smlal, [] { return true; }, 8},
    {"2 x sdot int8", burn_sdot, [] { return has("dotprod"); }, 32 / 2.0},
    {"2 x usmmla int8", burn_usmmla, [] { return has("i8mm"); }, 64 / 2.0},
#endif
};

double seconds(Burn burn, std::int64_t n, int n_threads) {
    std::vector<std::thread> threads;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 1; i < n_threads; ++i) threads.emplace_back([&] { burn(n); });
    burn(n);
    for (std::thread& t : threads) t.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

std::string unit_used(const std::string& isa, const std::string& format, std::int64_t n_rows) {
    const bool f16 = format == "f16";
    // Fewer rows are not worth their tiles (kernels/amx).
    if (isa == "amx" && n_rows >= (f16 ? 28 : 9)) return f16 ? "3 x tdpbf16ps amx" : "2 x tdpbssd int8 amx";
    if (isa == "amx" || isa == "avx512") return f16 ? "fma f32 avx512" : "2 x vpdpbusd int8 avx512";
    if (isa == "avxvnni" && !f16) return "vpdpwssd int16 avxvnni";
    if (isa == "avx2" || isa == "avxvnni") return f16 ? "fma f32 avx2" : "vpmaddwd int16 avx2";
    if (f16 && (isa == "neon" || isa == "dotprod" || isa == "i8mm")) return "fma f32 neon";
    if (isa == "neon") return "smlal int16 neon";
    if (isa == "dotprod") return "2 x sdot int8";
    if (isa == "i8mm") return "2 x usmmla int8";
    return "scalar f32";
}

std::map<std::string, double> units_used(const std::string& isa, const AttentionShape& shape,
                                         const std::string& k, const std::string& v) {
    const std::int64_t n_rows = shape.n_q * shape.n_head / shape.n_head_kv;
    const double hot = shape.hot_share();
    std::map<std::string, double> units;
    if (hot > 0) units[unit_used(isa, "f16", n_rows)] += hot;
    for (const std::string& format : {k, v}) {
        if (hot < 1) units[unit_used(isa, format, n_rows)] += (1 - hot) / 2;
    }
    return units;
}

ComputePeak measure_peak(const std::string& name, int n_threads) {
    const auto* unit =
        std::find_if(std::begin(kUnits), std::end(kUnits), [&](const Unit& u) { return name == u.name; });
    if (unit == std::end(kUnits) || !unit->supported())
        throw std::runtime_error("this CPU has no unit '" + name + "'");
    std::int64_t n = 1 << 14;
    while (seconds(unit->burn, n, n_threads) < 0.01) n *= 2;
    // The fastest pass: whatever else runs on the machine only slows the others down.
    double fastest = 1e300;
    for (int i = 0; i < 9; ++i) fastest = std::min(fastest, seconds(unit->burn, n, n_threads));
    return {name, double(n) * kChains * n_threads * unit->operations_per_instruction / fastest};
}

}  // namespace mixed_kv::tools
