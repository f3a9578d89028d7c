#include "common/generation_options.h"

#include <cmath>
#include <random>

#include "common/cpu_topology.h"
#include "common/run_tool.h"
#include "common/text_file.h"

namespace mixed_kv::tools {

namespace {

constexpr int kMaxThreads = 512;  // GGML_MAX_N_THREADS
constexpr int kMaxBatch = 1 << 20;

llama_flash_attn_type parse_flash_attention(const std::string& name) {
    if (name == "on") {
        return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    }
    return name == "off" ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_AUTO;
}

std::string prompt_of_file(const std::string& path) {
    std::string text = read_text_file("the prompt file", path);
    if (!text.empty() && text.back() == '\n') {
        text.pop_back();  // as llama-cli: an editor's final line break is no part of the prompt
    }
    return text;
}

}  // namespace

ggml_type parse_cache_type(const std::string& option, const std::string& name) {
    const std::optional<ggml_type> type = cache_type_from_name(name);
    if (!type) {
        throw UsageError(option + ": unknown cache type '" + name + "', expected one of " +
                         cache_type_names());
    }
    return *type;
}

void GenerationOptions::add_to(CommandLine& command, GenerationArguments& arguments,
                               const std::string& layers_help) {
    command.option("-m,--model", arguments.model, "GGUF model").required().value_name("FILE");
    command.option("-p,--prompt", prompt_, "Text to continue; may be empty").value_name("TEXT");
    command.option("-f,--file", prompt_file_, "File with the text to continue").value_name("FILE");
    command.option("-n,--predict", arguments.n_predict, "Tokens to generate").at_least(0);
    command
        .option("-c,--ctx-size", arguments.n_ctx,
                "Context in tokens; 0: as long as the model was trained for (default: that, at most 4096)")
        .value_name("N");
    command.option("-b,--batch-size", arguments.context.n_batch, "Largest batch given to llama.cpp at once")
        .range(1, kMaxBatch);
    command.option("-ub,--ubatch-size", arguments.context.n_ubatch, "largest batch computed at once")
        .range(1, kMaxBatch);
    command.option("-t,--threads", threads_, "Threads (default: the number of cores)").range(1, kMaxThreads);
    command.option("-tb,--threads-batch", threads_batch_, "threads for the prompt (default: as -t)")
        .range(1, kMaxThreads);
    command.option("--temp", arguments.temperature, "Temperature; 0: always the most probable token");
    command.option("-s,--seed", seed_, "Seed of the sampler (default: random)");
    command.option("-ctk,--cache-type-k", type_k_, "llama.cpp's type of K; other than f16 stays unmixed")
        .value_name("TYPE");
    command.option("-ctv,--cache-type-v", type_v_, "llama.cpp's type of V").value_name("TYPE");
    command.option("-ngl,--n-gpu-layers", arguments.n_gpu_layers, layers_help);
    command
        .option("-fa,--flash-attn", flash_attention_,
                "flash attention, alone it means on; without it nothing is mixed")
        .one_of({"auto", "on", "off"})
        .alone("on");
    llama_.add_to(command);
    cache_.add_to(command);
}

void GenerationOptions::finish(GenerationArguments& arguments) const {
    llama_.use();
    if (prompt_.has_value() == prompt_file_.has_value()) {
        throw UsageError(prompt_ ? "give -p TEXT or -f FILE, not both"
                                 : "no prompt: give -p TEXT or -f FILE");
    }
    if (!std::isfinite(arguments.temperature) || arguments.temperature < 0) {
        throw UsageError("--temp: must be a number of at least 0");
    }
    arguments.context.type_k = parse_cache_type("-ctk", type_k_);
    arguments.context.type_v = parse_cache_type("-ctv", type_v_);
    arguments.context.flash_attention = parse_flash_attention(flash_attention_);
    arguments.context.n_threads = threads_ ? *threads_ : usable_cores();
    arguments.context.n_threads_batch = threads_batch_ ? *threads_batch_ : arguments.context.n_threads;
    arguments.seed = seed_ ? *seed_ : std::random_device{}();
    arguments.prompt = prompt_ ? *prompt_ : prompt_of_file(*prompt_file_);
    cache_.export_and_check();
}

}  // namespace mixed_kv::tools
