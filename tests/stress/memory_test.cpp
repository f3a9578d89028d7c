// What the plugin promises at creation is what the kernel counts, at any fill; GGML_MIXED_KV_LIMIT_MB;
// automatic context sizes.
#include <gtest/gtest.h>

#include <fit.h>
#include <ggml-backend.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "plugin_test.h"
#include "process_memory.h"
#include "random_model.h"

using namespace mixed_kv::test;

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

// Large enough caches that one per cent means something: 2 layers, 8 KV heads of 128, 16 KiB of FP16 per
// token.
const std::string& wide_model() {
    struct File {
        std::string path = small_model() + ".wide";
        File() {
            RandomModelSpec spec = random_model_spec("llama");
            spec.n_layer = 4;
            spec.n_embd = 128;
            spec.n_ff = 64;
            spec.n_vocab = 320;
            spec.n_head = spec.n_head_kv = 8;
            spec.head_dim = 128;
            write_random_model(spec, path);
        }
        ~File() { std::remove(path.c_str()); }
    };
    static const File file;
    return file.path;
}

void configure(const std::string& text) {
    char error[256];
    ASSERT_EQ(plugin_api().configure(text.c_str(), error, sizeof error), 1) << error;
}

double resident_mib() {
    std::vector<mixed_kv_range> ranges(plugin_api().ranges(nullptr, 0));
    plugin_api().ranges(ranges.data(), ranges.size());
    double bytes = 0;
    for (const mixed_kv_range& r : ranges)
        bytes += double(resident_bytes(
            r.begin, std::size_t(static_cast<const char*>(r.end) - static_cast<const char*>(r.begin))));
    mixed_kv_counters c;
    plugin_api().counters(&c);
    return (bytes + double(c.bookkeeping_bytes)) / kMiB;
}

// The figure in "..., 12.3 MiB (F16: 64.0 MiB)" of the last cache's line.
double promised_mib() {
    std::string text(plugin_api().report(nullptr, 0) + 1, '\0');
    plugin_api().report(text.data(), text.size());
    const auto end = text.rfind(" MiB (F16");
    if (end == std::string::npos) return -1;
    return std::stod(text.substr(text.rfind(' ', end - 1) + 1));
}

struct Fit {
    llama_model_params model;
    std::uint32_t n_ctx;
    common_params_fit_status status;
};

// What llama.cpp's --fit, as its programs call it, makes of a context of n_ctx tokens; 0: its own choice.
Fit fit(std::uint32_t n_ctx) {
    static ggml_backend_dev_t devices[] = {plugin_device(), nullptr};
    static std::vector<float> split(llama_max_devices());
    static std::vector<llama_model_tensor_buft_override> overrides(llama_max_tensor_buft_overrides());
    Fit result{llama_model_default_params(), 0, COMMON_PARAMS_FIT_STATUS_ERROR};
    result.model.devices = devices;
    llama_context_params context = llama_context_default_params();
    context.n_ctx = n_ctx;
    context.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    std::fill(split.begin(), split.end(), 0.0f);
    std::vector<std::size_t> margins(llama_max_devices(), std::size_t(1024) << 20);
    result.status = common_fit_params(wide_model().c_str(), &result.model, &context, split.data(),
                                      overrides.data(), margins.data(), 256, nullptr, GGML_LOG_LEVEL_ERROR);
    result.n_ctx = context.n_ctx;
    return result;
}

}  // namespace

TEST(CacheMemory, PromiseAtFullLengthIsWhatIsResident) {
    const Model model(wide_model(), CacheOwner::kPlugin);
    for (const char* settings :
         {"window=64,sinks=4,k=q4,v=q4", "window=256,sinks=16,k=f16,v=q8", "window=0,sinks=0,k=q8,v=q3"}) {
        SCOPED_TRACE(settings);
        configure(settings);
        ContextOptions options;
        options.n_ctx = 2048;
        options.n_ubatch = 64;
        options.n_threads = 1;
        Context context(model, options);
        const double promised = promised_mib();
        context.prefill(random_tokens(2048 - 8, 320, 1));
        for (int i = 0; i < 8; ++i) context.prefill({llama_token(20 + i)}, 2040 + i);
        const double resident = resident_mib();
        std::printf("%-32s promised %.2f MiB, resident %.2f MiB\n", settings, promised, resident);
        EXPECT_NEAR(resident, promised, std::max(1.0, 0.01 * promised));
        EXPECT_GT(promised, 1.0);
    }
    configure("");
}

// The formula of docs/memory.md at any fill, for one sequence that grows token by token.
TEST(CacheMemory, FormulaHoldsAtAnyFill) {
    const int window = 64, sinks = 4, n_layer = 4, n_head = 8, head_dim = 128;
    configure("window=64,sinks=4,k=q4,v=q8");
    const Model model(wide_model(), CacheOwner::kPlugin);
    ContextOptions options;
    options.n_ctx = 2048;
    options.n_ubatch = 64;
    options.n_threads = 1;
    Context context(model, options);
    const double empty = resident_mib();
    const auto tokens = random_tokens(2048, 320, 1);
    std::size_t done = 0;
    for (const std::size_t fill : {10, 63, 64, 65, 129, 200, 500, 1000}) {
        const auto prompt_end = std::ptrdiff_t(std::max(done, fill - std::min<std::size_t>(fill, 2)));
        context.prefill({tokens.begin() + std::ptrdiff_t(done), tokens.begin() + prompt_end},
                        llama_pos(done));
        for (auto i = std::size_t(prompt_end); i < fill; ++i) context.prefill({tokens[i]}, llama_pos(i));
        done = fill;
        const double pages = double((fill + 63) / 64);
        const double cold = double(std::max<long>(0, long(fill) - window) / 64);
        double bytes = 0;
        for (const double bits :
             {4.25, 8.5}) {  // docs/cold-formats.md, head_dim 128: K bits + 0.5, V bits + 0.25
            const double row = 2.0 * n_head * head_dim;
            bytes += n_layer *
                     ((pages - cold) * 64 * row + cold * 64 * row * bits / 16 + (cold > 0 ? sinks * row : 0));
        }
        const double expected = empty + bytes / kMiB, resident = resident_mib();
        std::printf("%5zu rows: formula %.2f MiB, resident %.2f MiB\n", fill, expected, resident);
        EXPECT_NEAR(resident, expected, std::max(1.0, 0.01 * expected)) << fill;
    }
    configure("");
}

TEST(CacheMemory, LimitRefusesAtCreation) {
    const Model model(wide_model(), CacheOwner::kPlugin);
    ContextOptions options;
    options.n_ctx = 4096;
    // 64 MiB of FP16, about 19 with q4.
    configure("k=q4,v=q4,limit_mb=15");
    clear_log();
    EXPECT_THROW(Context(model, options), std::runtime_error);
    const auto lines = logged_lines();
    const auto says = [](const std::string& line) {
        return line.find("GGML_MIXED_KV_LIMIT_MB=15: refused") != std::string::npos;
    };
    EXPECT_EQ(std::count_if(lines.begin(), lines.end(), says), 1);
    mixed_kv_counters c;
    plugin_api().counters(&c);
    EXPECT_EQ(c.n_caches, 0u);

    configure("k=q4,v=q4,limit_mb=25");
    {
        Context first(model, options);
        EXPECT_THROW(Context(model, options), std::runtime_error) << "two of them exceed it";
    }
    EXPECT_NO_THROW(Context(model, options)) << "the first is gone";
    configure("");
}

TEST(CacheMemory, AutomaticContextSizeFitsTheLimit) {
    load_backends();
    configure("k=f16,v=f16,limit_mb=20");
    const Fit f16 = fit(0);
    configure("k=q4,v=q4,limit_mb=20");
    const Fit q4 = fit(0);
    std::printf("20 MiB: --fit chooses %u tokens with f16, %u with q4\n", f16.n_ctx, q4.n_ctx);
    EXPECT_EQ(f16.status, COMMON_PARAMS_FIT_STATUS_SUCCESS);
    EXPECT_EQ(q4.status, COMMON_PARAMS_FIT_STATUS_SUCCESS);
    EXPECT_GT(q4.n_ctx, f16.n_ctx * 2);
    // And what was chosen can be created.
    const Model model(wide_model(), CacheOwner::kPlugin);
    ContextOptions options;
    options.n_ctx = q4.n_ctx;
    EXPECT_NO_THROW(Context(model, options));
    configure("");
}

// Whatever the limit: all layers stay with the plugin, and the context is within the limit or refused in one
// line. --fit once moved the layers to the CPU, for a cache that was neither limited nor mixed.
TEST(CacheMemory, FitNeverTakesLayersForTheLimit) {
    load_backends();
    int created = 0, refused = 0;
    for (const int limit_mb : {1, 5, 20, 100, 500}) {
        for (const std::uint32_t n_ctx : {0u, 4096u, 16384u}) {
            SCOPED_TRACE(std::to_string(limit_mb) + " MiB, " + std::to_string(n_ctx) + " tokens");
            configure("k=q4,v=q4,limit_mb=" + std::to_string(limit_mb));
            const Fit fitted = fit(n_ctx);
            EXPECT_EQ(fitted.model.n_gpu_layers, llama_model_default_params().n_gpu_layers);
            EXPECT_TRUE(n_ctx == 0 || fitted.n_ctx == n_ctx);
            clear_log();
            const Model model(wide_model(), CacheOwner::kPlugin);
            ContextOptions options;
            options.n_ctx = fitted.n_ctx;
            try {
                Context context(model, options);
                mixed_kv_counters c;
                plugin_api().counters(&c);
                EXPECT_EQ(c.n_tensors_mixed, 8u);  // K and V of 4 layers
                EXPECT_LE(promised_mib(), limit_mb);
                ++created;
            } catch (const std::runtime_error&) {
                const auto lines = logged_lines();
                EXPECT_EQ(std::count_if(lines.begin(), lines.end(),
                                        [](const std::string& line) {
                                            return line.rfind("mixed-kv: ", 0) == 0 &&
                                                   line.find("refused") != std::string::npos;
                                        }),
                          1);
                ++refused;
            }
        }
    }
    std::printf("%d created, %d refused\n", created, refused);
    EXPECT_GT(created, 4);
    EXPECT_GT(refused, 2);
    configure("");
}
