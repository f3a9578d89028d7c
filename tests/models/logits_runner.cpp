// logits-runner: runs one configuration of a model in a process of its own and writes the logits of every
// position.
//
// The plugin reads its settings from the environment when it is loaded, so tests that compare settings start
// this program once for each. The tokens are a function of --seed, the vocabulary and the count: every
// configuration sees the same text.
#include "llama_driver.h"
#include "logits_file.h"

#include "common/command_line.h"
#include "common/run_tool.h"
#include "trace/output_file.h"

#include <nlohmann/json.hpp>

#include <cstring>
#include <map>
#include <optional>
#include <set>

using namespace mixed_kv;
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
    throw tools::UsageError("unknown cache type '" + name + "'");
}

struct Arguments {
    std::string model, out, log, reference;
    CacheOwner owner = CacheOwner::kHost;
    ContextOptions context;
    std::uint64_t n_prompt = 192, n_steps = 0, seed = 1;
    std::int64_t changed_position = -1;
    bool show_placement = false;
};

std::optional<Arguments> parse(int argc, char** argv) {
    const std::map<std::string, CacheOwner> owners = {
        {"host", CacheOwner::kHost}, {"plugin", CacheOwner::kPlugin}, {"default", CacheOwner::kDefault}};
    const std::map<std::string, llama_flash_attn_type> flash_modes = {{"on", LLAMA_FLASH_ATTN_TYPE_ENABLED},
                                                                      {"off", LLAMA_FLASH_ATTN_TYPE_DISABLED},
                                                                      {"auto", LLAMA_FLASH_ATTN_TYPE_AUTO}};
    Arguments a;
    std::string owner = "host", flash_attention = "auto", type_k = "f16", type_v = "f16";
    bool pool = false;
    tools::CommandLine command(
        "logits-runner",
        "Writes the logits of every position for one configuration of model, cache and context.");
    command.option("--model", a.model, "GGUF file").required().value_name("FILE");
    command.option("--out", a.out, "File for the logits").value_name("FILE");
    command.option("--reference", a.reference, "Logits of another run to compare with").value_name("FILE");
    command.option("--log", a.log, "File for what llama.cpp and the backends log").value_name("FILE");
    command.option("--cache", owner, "Whose cache").one_of({"host", "plugin", "default"});
    command.option("--flash-attn", flash_attention, "Flash attention").one_of({"on", "off", "auto"});
    command.option("--type-k", type_k, "Declared type of K");
    command.option("--type-v", type_v, "Declared type of V");
    command.option("--ctx", a.context.n_ctx, "Cells");
    command.option("--batch", a.context.n_batch, "Largest batch");
    command.option("--ubatch", a.context.n_ubatch, "Largest batch computed at once");
    command.option("--threads", a.context.n_threads, "Threads");
    command.flag("--polling-pool", pool, "Attach a polling thread pool, as llama.cpp's own programs do");
    command.flag("--swa-full", a.context.swa_full, "Keep the whole context in sliding-window layers");
    command.option("--prompt", a.n_prompt, "Tokens run in batches");
    command.option("--steps", a.n_steps, "Tokens run one by one after them");
    command.option("--seed", a.seed, "Seed of the tokens");
    command.option("--change-position", a.changed_position, "Replace the token of this position");
    command.flag("--placement", a.show_placement, "Report where the attention of the first graph ran");
    if (!command.parse(argc, argv)) {
        return std::nullopt;
    }
    a.owner = owners.at(owner);
    a.context.flash_attn = flash_modes.at(flash_attention);
    a.context.type_k = cache_type(type_k);
    a.context.type_v = cache_type(type_v);
    a.context.threadpool = pool ? Threadpool::kPolling : Threadpool::kNone;
    return a;
}

Logits run_tokens(const Arguments& arguments, Placement& placement) {
    ContextOptions options = arguments.context;
    if (arguments.show_placement) {
        options.eval_callback = on_node;
        options.eval_callback_data = &placement;
    }
    const Model model(arguments.model, arguments.owner);
    Context context(model, options);
    std::vector<llama_token> tokens =
        random_tokens(arguments.n_prompt + arguments.n_steps, model.n_vocab(), arguments.seed);
    if (arguments.changed_position >= 0) {
        llama_token& token = tokens.at(static_cast<std::size_t>(arguments.changed_position));
        token = token + 1 < model.n_vocab() ? token + 1 : token - 1;
    }
    const auto steps = tokens.begin() + static_cast<std::ptrdiff_t>(arguments.n_prompt);
    Logits logits = context.decode({tokens.begin(), steps});
    placement.done = true;
    for (auto token = steps; token != tokens.end(); ++token) {
        logits.append(context.decode({*token}, static_cast<llama_pos>(token - tokens.begin())));
    }
    return logits;
}

int run(int argc, char** argv) {
    const std::optional<Arguments> arguments = parse(argc, argv);
    if (!arguments) {
        return tools::kExitOk;
    }
    Placement placement;
    const Logits logits = run_tokens(*arguments, placement);
    nlohmann::json report;
    if (!arguments->out.empty()) {
        write_logits(logits, arguments->out);
    }
    report["positions"] = logits.n_rows();
    if (!arguments->reference.empty()) {
        const Comparison comparison = compare(read_logits(arguments->reference), logits);
        report["nmse"] = comparison.nmse;
        report["comparison"] = comparison.text();
    }
    if (arguments->show_placement) {
        report["attention_nodes"] = placement.attention_nodes;
        report["cache_reads"] = placement.cache_reads;
    }
    tools::write_stdout(report.dump() + "\n");
    if (!arguments->log.empty()) {
        std::string log;
        for (const std::string& line : logged_lines()) {
            log += line + '\n';
        }
        trace::write_output_file(arguments->log, log);
    }
    return tools::kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
    return tools::run_tool("logits-runner", [&] { return run(argc, argv); });
}
