#include "mixed-kv-bench/model_bench.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>

#include "common/llama_log.h"
#include "mixed-kv-bench/model_contexts.h"
#include "mixed-kv-bench/read_bandwidth.h"
#include "mixed-kv-bench/synthetic_state.h"

namespace mixed_kv::tools {

namespace {

constexpr double kSecondsPerRound = 0.1;
constexpr int kMinTokensPerRound = 3, kMaxTokensPerRound = 16;
constexpr std::int64_t kSeedTokens = 256;  // computed for real, then repeated
constexpr std::size_t kBandwidthSampleBytes = std::size_t(256) << 20;

struct BatchFree {
    void operator()(llama_batch* batch) const {
        llama_batch_free(*batch);
        delete batch;
    }
};
using BatchHandle = std::unique_ptr<llama_batch, BatchFree>;

// A context under test.
struct Contestant {
    ModelPair::NamedContext named;
    int n_seq = 1;
    std::vector<llama_token> step_tokens;  // of every sequence
    BatchHandle batch{new llama_batch(llama_batch_init(int(step_tokens.size()) * n_seq, 0, 1))};
    std::vector<std::int64_t> length = std::vector<std::int64_t>(std::size_t(n_seq));
    std::vector<double> rates = {};  // tokens per second of single steps, all sequences together

    const std::string& name() const { return named.name; }
    Context& context() const { return *named.context; }

    // One token, or one ubatch of a prompt, of every sequence in one batch; seconds.
    double step() {
        batch->n_tokens = 0;
        for (int s = 0; s < n_seq; ++s) {
            for (std::size_t i = 0; i < step_tokens.size(); ++i) {
                const int at = batch->n_tokens++;
                batch->token[at] = step_tokens[i];
                batch->pos[at] = llama_pos(length[std::size_t(s)]++);
                batch->n_seq_id[at] = 1;
                batch->seq_id[at][0] = s;
                batch->logits[at] = i + 1 == step_tokens.size();
            }
        }
        const auto begin = std::chrono::steady_clock::now();
        context().decode(*batch);
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }

    void run_round() {
        const double n_tokens = double(step_tokens.size()) * n_seq;
        if (step_tokens.size() > 1) {  // long enough that waking threads does not count
            rates.push_back(n_tokens / step());
            return;
        }
        step();  // wakes threads, and brings back what others have driven out of the caches
        double seconds = 0;
        for (int i = 0; i < kMaxTokensPerRound && (i < kMinTokensPerRound || seconds < kSecondsPerRound);
             ++i) {
            const double took = step();
            seconds += took;
            rates.push_back(n_tokens / took);
        }
    }

    // Brings every sequence to exactly `depth` tokens.
    void fill(std::int64_t depth, std::int32_t n_vocab) {
        llama_memory_clear(context().memory(), true);
        std::fill(length.begin(), length.end(), 0);
        if (depth == 0) return;
        const auto tokens = some_tokens(std::size_t(std::min(depth, kSeedTokens)), n_vocab);
        context().decode(tokens.data(), int(tokens.size()));
        if (depth > kSeedTokens || n_seq > 1)
            fill_by_repetition(context().get(), std::uint32_t(depth), n_seq);
        std::fill(length.begin(), length.end(), depth);
    }

    void back_to(std::int64_t depth) {
        for (int s = 0; s < n_seq; ++s) {
            if (!llama_memory_seq_rm(context().memory(), s, llama_pos(depth), -1))
                throw std::runtime_error("the model's memory cannot drop its last tokens");
        }
        std::fill(length.begin(), length.end(), depth);
    }
};

ContextOptions context_options(const BenchArguments& arguments, int n_seq) {
    const int n_prompt = arguments.n_prompt;
    const std::int64_t most_tokens = n_prompt == 1 ? kMaxTokensPerRound + 2 : n_prompt;
    // A sequence's cells are padded to 256.
    const std::int64_t n_ctx_seq = (arguments.depths.back() + most_tokens + 255) / 256 * 256;
    ContextOptions options;
    options.n_ctx = std::uint32_t(n_ctx_seq * n_seq);
    options.n_seq_max = std::uint32_t(n_seq);
    options.kv_unified = arguments.kv_unified;
    options.n_batch = std::uint32_t(std::max<std::int64_t>(kSeedTokens, std::int64_t(n_prompt) * n_seq));
    options.n_ubatch = options.n_batch;
    return options;
}

std::vector<Contestant> open_contestants(const ModelPair& models, const BenchArguments& arguments,
                                         int n_seq) {
    // One token, always the same: generation.
    const std::vector<llama_token> step_tokens =
        arguments.n_prompt == 1 ? std::vector<llama_token>{5}
                                : some_tokens(std::size_t(arguments.n_prompt), models.n_vocab());
    std::vector<Contestant> contestants;
    for (ModelPair::NamedContext& context :
         models.open_contexts(context_options(arguments, n_seq), arguments))
        contestants.push_back({std::move(context), n_seq, step_tokens});
    return contestants;
}

ModelCase run_case(const ModelPair& models, std::vector<Contestant>& contestants, ReadBandwidth& bandwidth,
                   const BenchArguments& arguments, std::int64_t depth) {
    for (Contestant& c : contestants) {
        c.fill(depth, models.n_vocab());
        c.rates.clear();
        for (int i = 0; i < (arguments.n_prompt == 1 ? 2 : 1); ++i) c.step();  // warm-up
        c.back_to(depth);
    }
    ModelCase result;
    result.depth = depth;
    result.n_parallel = contestants.front().n_seq;
    result.k = arguments.k.front();
    result.v = arguments.v.front();
    result.kv_bytes = depth == 0 ? 0 : models.our_cache_bytes();
    bandwidth.next_group();
    for (int round = 0; round < arguments.n_rounds; ++round) {
        bandwidth.sample(kBandwidthSampleBytes);
        // Nobody is always the first after the read, which leaves nothing of ours in the caches.
        for (std::size_t i = 0; i < contestants.size(); ++i) {
            Contestant& c = contestants[(std::size_t(round) + i) % contestants.size()];
            c.run_round();
            c.back_to(depth);
        }
    }
    result.tokens_per_second = spread_of(contestants.front().rates);
    for (std::size_t i = 1; i < contestants.size(); ++i) {
        const Spread rates = spread_of(contestants[i].rates);
        Spread& best = result.host[contestants[i].name()];
        if (rates.median > best.median) best = rates;
    }
    return result;
}

}  // namespace

ModelReport run_model_bench(const BenchArguments& arguments) {
    ModelReport report;
    BenchMachine& machine = report.machine;
    machine = describe_machine(arguments);
    report.model = arguments.model;
    report.n_prompt = arguments.n_prompt;
    report.kv_unified = arguments.kv_unified;
    report.window = arguments.window;
    report.sinks = arguments.sinks;

    const ModelPair models(arguments);
    report.description = models.description();
    report.weight_bytes = models.weight_bytes();
    ReadBandwidth bandwidth(machine.rotation_bytes, arguments.n_threads);
    const int most = *std::max_element(arguments.n_parallel.begin(), arguments.n_parallel.end());
    models.check_memory(arguments, context_options(arguments, most).n_ctx, arguments.depths.back());
    bandwidth.choose_pattern(3);
    for (const int n_seq : arguments.n_parallel) {
        std::vector<Contestant> contestants = open_contestants(models, arguments, n_seq);
        for (const std::int64_t depth : arguments.depths)
            report.cases.push_back(run_case(models, contestants, bandwidth, arguments, depth));
    }
    if (const std::vector<std::string> said = take_logged_errors(); !said.empty())
        throw std::runtime_error(said.front());
    machine.read_bandwidth = bandwidth.bytes_per_second();
    machine.read_samples = bandwidth.n_samples();
    machine.read_pattern = bandwidth.pattern();
    for (ModelCase& c : report.cases) {
        if (arguments.n_prompt > 1) break;
        c.tokens_per_second_ceiling =
            c.n_parallel * machine.read_bandwidth / double(report.weight_bytes + c.kv_bytes);
        c.fits_cache = report.weight_bytes + c.kv_bytes <= machine.last_level_cache_bytes ||
                       c.tokens_per_second.median > c.tokens_per_second_ceiling;
    }
    return report;
}

}  // namespace mixed_kv::tools
