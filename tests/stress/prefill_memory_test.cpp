// Memory while a long prompt is read: the cache is cold as it goes, so the peak is the final cache, the FP16
// rows of the ubatches in flight, the host's own compute buffers and a bounded rest.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "plugin_test.h"
#include "process_memory.h"
#include "random_model.h"

using namespace mixed_kv::test;

namespace {

constexpr double kMiB = 1024.0 * 1024.0;
constexpr std::uint32_t kLayers = 4, kHeads = 8, kHeadDim = 128, kUbatch = 512;
constexpr double kRowBytes = 2.0 * kHeads * kHeadDim;  // of one K or V row in FP16
constexpr double kRest = 64.0;                         // MiB

// Highest VmRSS since the last reset, in bytes.
std::size_t peak_resident_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        unsigned long long kib = 0;
        if (std::sscanf(line.c_str(), "VmHWM: %llu kB", &kib) == 1) return kib * 1024;
    }
    return 0;
}

bool reset_peak() {
    std::ofstream file("/proc/self/clear_refs");
    file << "5";
    file.close();
    return bool(file);
}

// What llama.cpp says of the buffers it reserves for computing, in MiB.
double compute_buffers_mib() {
    double sum = 0;
    for (const std::string& line : logged_lines()) {
        const auto at = line.find("compute buffer size");
        const auto equals = line.find('=', at);
        if (at != std::string::npos && equals != std::string::npos)
            sum += std::atof(line.c_str() + equals + 1);
    }
    return sum;
}

double cache_mib() {
    mixed_kv_counters c;
    plugin_api().counters(&c);
    return double(c.arena_resident_bytes + c.pinned_bytes + c.bookkeeping_bytes) / kMiB;
}

}  // namespace

TEST(PrefillMemory, PeakIsTheFinalCacheAndWhatIsInFlight) {
    const char* text = std::getenv("MIXED_KV_PREFILL_TOKENS");
    const auto n_tokens = std::uint32_t(text != nullptr ? std::atoi(text) : 8192);
    char error[256] = "";
    ASSERT_EQ(plugin_api().configure("k=q4,v=q4,window=64,sinks=4", error, sizeof error), 1) << error;
    {
        const Model model(random_model_file(mostly_cache(kLayers, kHeads, kHeadDim)), CacheOwner::kPlugin);
        clear_log();
        ContextOptions options;
        options.n_ctx = n_tokens;
        options.n_batch = options.n_ubatch = kUbatch;
        options.n_threads = 2;
        Context context(model, options);
        const double compute = compute_buffers_mib();
        ASSERT_GT(compute, 0.0) << "llama.cpp no longer says how large its compute buffers are";
        const auto tokens = random_tokens(n_tokens, 320, 1);
        const double before = double(resident_bytes()) / kMiB;
        if (!reset_peak()) GTEST_SKIP() << "this system does not reset VmHWM";
        for (std::uint32_t done = 0; done < n_tokens; done += kUbatch) {
            context.prefill({tokens.begin() + done, tokens.begin() + done + kUbatch}, llama_pos(done));
        }
        const double peak = double(peak_resident_bytes()) / kMiB;
        const double cache = cache_mib();
        const double in_flight = kLayers * 2 * kUbatch * kRowBytes / kMiB;
        const double f16 = kLayers * 2 * double(n_tokens) * kRowBytes / kMiB;
        const double excess = peak - before - cache;
        std::printf(
            "%u tokens: cache %.1f MiB (%.1f in FP16), peak %.1f MiB above the empty context: %.1f MiB more "
            "than the cache; allowed are %.1f of rows in flight, %.1f of compute buffers and %.0f\n",
            n_tokens, cache, f16, peak - before, excess, in_flight, compute, kRest);
        EXPECT_LT(excess, kRest + in_flight + compute);
        // The cache is final: nearly all of it cold. A prompt held in FP16 until its end would not pass.
        EXPECT_LT(cache, 0.4 * f16);
        EXPECT_GT(f16 - cache, kRest + in_flight);
    }
    plugin_api().configure("", nullptr, 0);
}
