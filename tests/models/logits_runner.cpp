// logits-runner: runs one configuration of a model in a process of its own and writes the logits of every
// position.
//
// The plugin reads its settings from the environment when it is loaded, so tests that compare settings start
// this program once for each. The tokens are a function of --seed, the vocabulary and the count: every
// configuration sees the same text.
#include "llama_driver.h"
#include "logits_file.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <set>

using namespace mixed_kv::test;

namespace {

/// Where the attention of one graph ran, gathered by the evaluation callback.
struct Placement {
    std::map<std::string, int> attention_nodes;  // flash attention nodes by buffer of their output
    std::map<std::string, int>
        cache_reads;             // the same by buffer of their K, or "copy" for a scheduler's copy
    std::set<const void*> seen;  // outputs seen, to stop after the first graph
    bool done = false;
};

std::string buffer_name(const ggml_tensor* tensor) {
    const ggml_tensor* root = tensor->view_src != nullptr ? tensor->view_src : tensor;
    return root->buffer != nullptr ? ggml_backend_buffer_name(root->buffer) : "none";
}

bool on_node(ggml_tensor* tensor, bool ask, void* data) {
    auto& placement = *static_cast<Placement*>(data);
    if (placement.done || tensor->op != GGML_OP_FLASH_ATTN_EXT) {
        return false;
    }
    if (!ask) {
        placement.attention_nodes[buffer_name(tensor)]++;
        const ggml_tensor* k = tensor->src[1];
        const ggml_tensor* root = k->view_src != nullptr ? k->view_src : k;
        const bool is_cache = std::strncmp(root->name, "cache_", 6) == 0;
        placement.cache_reads[is_cache ? buffer_name(k) : "copy"]++;
    }
    return true;
}

ggml_type cache_type(const std::string& name) {
    for (const ggml_type type :
         {GGML_TYPE_F16, GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        if (name == ggml_type_name(type)) {
            return type;
        }
    }
    throw std::invalid_argument("unknown cache type '" + name + "'");
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Writes the logits of every position for one configuration of model, cache and context."};
    const std::map<std::string, CacheOwner> owners = {
        {"host", CacheOwner::kHost}, {"plugin", CacheOwner::kPlugin}, {"default", CacheOwner::kDefault}};
    const std::map<std::string, llama_flash_attn_type> flash_modes = {{"on", LLAMA_FLASH_ATTN_TYPE_ENABLED},
                                                                      {"off", LLAMA_FLASH_ATTN_TYPE_DISABLED},
                                                                      {"auto", LLAMA_FLASH_ATTN_TYPE_AUTO}};
    ContextOptions options;
    std::string model_path, out, log_path, reference_path, type_k = "f16", type_v = "f16";
    CacheOwner owner = CacheOwner::kHost;
    std::size_t n_prompt = 192, n_steps = 0;
    std::uint64_t seed = 1;
    long changed_position = -1;
    bool show_placement = false, pool = false;
    app.add_option("--model", model_path, "GGUF file")->required();
    app.add_option("--out", out, "File for the logits");
    app.add_option("--reference", reference_path, "Logits of another run to compare with");
    app.add_option("--log", log_path, "File for what llama.cpp and the backends log");
    app.add_option("--cache", owner, "Whose cache")->transform(CLI::CheckedTransformer(owners));
    app.add_option("--flash-attn", options.flash_attn)->transform(CLI::CheckedTransformer(flash_modes));
    app.add_option("--type-k", type_k, "Declared type of K")->capture_default_str();
    app.add_option("--type-v", type_v, "Declared type of V")->capture_default_str();
    app.add_option("--ctx", options.n_ctx)->capture_default_str();
    app.add_option("--batch", options.n_batch)->capture_default_str();
    app.add_option("--ubatch", options.n_ubatch)->capture_default_str();
    app.add_option("--threads", options.n_threads)->capture_default_str();
    app.add_flag("--polling-pool", pool, "Attach a polling thread pool, as llama.cpp's own programs do");
    app.add_flag("--swa-full", options.swa_full, "Keep the whole context in sliding-window layers");
    app.add_option("--prompt", n_prompt, "Tokens run in batches")->capture_default_str();
    app.add_option("--steps", n_steps, "Tokens run one by one after them")->capture_default_str();
    app.add_option("--seed", seed, "Seed of the tokens")->capture_default_str();
    app.add_option("--change-position", changed_position, "Replace the token of this position");
    app.add_flag("--placement", show_placement, "Report where the attention of the first graph ran");
    CLI11_PARSE(app, argc, argv);

    try {
        Placement placement;
        options.type_k = cache_type(type_k);
        options.type_v = cache_type(type_v);
        options.threadpool = pool ? Threadpool::kPolling : Threadpool::kNone;
        if (show_placement) {
            options.eval_callback = on_node;
            options.eval_callback_data = &placement;
        }
        nlohmann::json report;
        {
            const Model model(model_path, owner);
            Context context(model, options);
            std::vector<llama_token> tokens = random_tokens(n_prompt + n_steps, model.n_vocab(), seed);
            if (changed_position >= 0) {
                llama_token& token = tokens.at(static_cast<std::size_t>(changed_position));
                token = token + 1 < model.n_vocab() ? token + 1 : token - 1;
            }
            const auto steps = tokens.begin() + static_cast<std::ptrdiff_t>(n_prompt);
            Logits logits = context.decode({tokens.begin(), steps});
            placement.done = true;
            for (auto token = steps; token != tokens.end(); ++token) {
                logits.append(context.decode({*token}, static_cast<llama_pos>(token - tokens.begin())));
            }
            if (!out.empty()) {
                write_logits(logits, out);
            }
            report["positions"] = logits.n_rows();
            if (!reference_path.empty()) {
                const Comparison comparison = compare(read_logits(reference_path), logits);
                report["nmse"] = comparison.nmse;
                report["comparison"] = comparison.text();
            }
        }
        if (show_placement) {
            report["attention_nodes"] = placement.attention_nodes;
            report["cache_reads"] = placement.cache_reads;
        }
        std::printf("%s\n", report.dump().c_str());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "logits-runner: %s\n", error.what());
        return 1;
    }
    if (!log_path.empty()) {
        std::ofstream log(log_path);
        for (const std::string& line : logged_lines()) {
            log << line << '\n';
        }
    }
    return 0;
}
