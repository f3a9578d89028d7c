#include "mixed-kv-bench/model_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>

#include "common/command_line.h"
#include "common/cpu_topology.h"
#include "common/llama_handles.h"
#include "common/llama_log.h"
#include "common/resident_memory.h"
#include "mixed-kv-bench/read_bandwidth.h"
#include "mixed-kv-bench/synthetic_state.h"

namespace mixed_kv::tools {

namespace {

constexpr double kSecondsPerRound = 0.1;
constexpr int kMinTokensPerRound = 3, kMaxTokensPerRound = 16;
constexpr int kSeedTokens = 256;  // computed for real, then repeated
constexpr std::size_t kBandwidthSampleBytes = std::size_t(256) << 20;

std::vector<llama_token> some_tokens(std::size_t n, std::int32_t n_vocab) {
    std::vector<llama_token> tokens(n);
    for (std::size_t i = 0; i < n; ++i) tokens[i] = llama_token((i * 7919 + 11) % std::size_t(n_vocab));
    return tokens;
}

// A context under test.
struct Contestant {
    Contestant(std::string name_in, std::unique_ptr<Context> context_in, std::vector<llama_token> tokens)
        : name(std::move(name_in)), context(std::move(context_in)), step_tokens(std::move(tokens)) {}
    std::string name;  // host type, or "ours"
    std::unique_ptr<Context> context;
    std::vector<llama_token> step_tokens;
    std::vector<double> rates;  // tokens per second of single steps

    // Decodes one token, or one ubatch of a prompt; seconds.
    double step() const {
        const auto begin = std::chrono::steady_clock::now();
        context->decode(step_tokens.data(), int(step_tokens.size()));
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }

    void run_round() {
        if (step_tokens.size() > 1) {  // long enough that waking threads does not count
            rates.push_back(double(step_tokens.size()) / step());
            return;
        }
        step();  // wakes this context's threads
        double seconds = 0;
        for (int i = 0; i < kMaxTokensPerRound && (i < kMinTokensPerRound || seconds < kSecondsPerRound);
             ++i) {
            const double token = step();
            seconds += token;
            rates.push_back(1.0 / token);
        }
    }
};

// Brings sequence 0 to exactly `depth` tokens.
void fill(const Contestant& c, std::int64_t depth, std::int32_t n_vocab) {
    llama_memory_clear(c.context->memory(), true);
    if (depth == 0) return;
    const auto tokens = some_tokens(std::size_t(std::min<std::int64_t>(depth, kSeedTokens)), n_vocab);
    c.context->decode(tokens.data(), int(tokens.size()));
    if (depth > std::int64_t(tokens.size())) extend_by_repetition(c.context->get(), std::uint32_t(depth));
}

void back_to(const Contestant& c, std::int64_t depth) {
    if (!llama_memory_seq_rm(c.context->memory(), 0, llama_pos(depth), -1))
        throw std::runtime_error("the model's memory cannot drop its last tokens");
}

std::uint64_t plugin_cache_bytes(const Plugin& plugin) {
    const mixed_kv_counters c = plugin.counters();
    return c.hot_bytes + c.cold_bytes + c.overlay_bytes + c.pinned_bytes;
}

void check_memory(const llama_model* model, const BenchArguments& arguments, std::int64_t n_ctx) {
    const double row = 2.0 * llama_model_n_layer(model) * llama_model_n_head_kv(model) *
                       (double(llama_model_n_embd(model)) / llama_model_n_head(model));
    // Every context in FP16, and one state beside them while it is filled.
    const double needed = row * 2 * double(n_ctx) * double(arguments.host_types.size() + 3);
    if (needed > double(available_memory_bytes())) {
        throw std::runtime_error(fmt::format(
            "--depths up to {} need about {} MiB and {} are available; --host with "
            "fewer types takes less",
            arguments.depths.back(), std::uint64_t(needed) >> 20, available_memory_bytes() >> 20));
    }
}

}  // namespace

ModelReport run_model_bench(const BenchArguments& arguments) {
    if (arguments.k.size() != 1 || arguments.v.size() != 1)
        throw UsageError("model: give one --k and one --v");
    ModelReport report;
    BenchMachine& machine = report.machine;
    machine.cpu = cpu_model_name();
    machine.isa = arguments.isa;
    machine.n_threads = arguments.n_threads;
    machine.last_level_cache_bytes = last_level_cache_bytes();
    set_rotation(machine, arguments);
    report.model = arguments.model;
    report.n_prompt = arguments.n_prompt;
    report.window = arguments.window;
    report.sinks = arguments.sinks;

    const Plugin plugin = load_plugin();
    const std::string settings =
        fmt::format("k={},v={},window={},sinks={},isa={}", arguments.k.front(), arguments.v.front(),
                    arguments.window, arguments.sinks, arguments.isa);
    char error[256] = "";
    if (plugin.api().configure(settings.c_str(), error, sizeof error) == 0) throw UsageError(error);
    const ModelHandle our_model = load_model({arguments.model, CacheOwner::plugin, plugin.device()});
    ModelHandle host_model;
    if (!arguments.host_types.empty()) host_model = load_model({arguments.model, CacheOwner::host});
    char description[128] = "";
    llama_model_desc(our_model.get(), description, sizeof description);
    report.description = description;
    report.weight_bytes = llama_model_size(our_model.get());
    const std::int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(our_model.get()));

    ContextOptions options;
    const int most_tokens = std::max(kMaxTokensPerRound, arguments.n_prompt);
    options.n_ctx = std::uint32_t((arguments.depths.back() + most_tokens + 256) / 256 * 256);
    options.n_batch = options.n_ubatch = std::uint32_t(std::max(kSeedTokens, arguments.n_prompt));
    options.n_threads = options.n_threads_batch = arguments.n_threads;
    options.flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    check_memory(our_model.get(), arguments, options.n_ctx);
    std::vector<Contestant> contestants;
    // One token, always the same: generation.
    const std::vector<llama_token> step_tokens = arguments.n_prompt == 1
                                                     ? std::vector<llama_token>{5}
                                                     : some_tokens(std::size_t(arguments.n_prompt), n_vocab);
    contestants.emplace_back("ours", std::make_unique<Context>(our_model.get(), options), step_tokens);
    for (const std::string& type : arguments.host_types) {
        options.type_k = options.type_v = *cache_type_from_name(type);
        contestants.emplace_back(type, std::make_unique<Context>(host_model.get(), options), step_tokens);
    }
    ReadBandwidth bandwidth(machine.rotation_bytes, arguments.n_threads);
    bandwidth.choose_pattern(3);

    for (const std::int64_t depth : arguments.depths) {
        for (Contestant& c : contestants) {
            fill(c, depth, n_vocab);
            c.rates.clear();
            for (int i = 0; i < (arguments.n_prompt == 1 ? 2 : 1); ++i) c.step();  // warm-up
            back_to(c, depth);
        }
        ModelCase result;
        result.depth = depth;
        result.k = arguments.k.front();
        result.v = arguments.v.front();
        result.kv_bytes = depth == 0 ? 0 : plugin_cache_bytes(plugin);
        bandwidth.next_group();
        for (int round = 0; round < arguments.n_rounds; ++round) {
            bandwidth.sample(kBandwidthSampleBytes);
            for (Contestant& c : contestants) {
                c.run_round();
                back_to(c, depth);
            }
        }
        result.tokens_per_second = spread_of(contestants.front().rates);
        for (std::size_t i = 1; i < contestants.size(); ++i)
            result.host[contestants[i].name] = spread_of(contestants[i].rates);
        report.cases.push_back(std::move(result));
    }
    if (const std::vector<std::string> said = take_logged_errors(); !said.empty())
        throw std::runtime_error(said.front());
    machine.read_bandwidth = bandwidth.bytes_per_second();
    machine.read_samples = bandwidth.n_samples();
    machine.read_pattern = bandwidth.pattern();
    for (ModelCase& c : report.cases) {
        if (arguments.n_prompt > 1) break;
        c.tokens_per_second_ceiling = machine.read_bandwidth / double(report.weight_bytes + c.kv_bytes);
    }
    return report;
}

}  // namespace mixed_kv::tools
