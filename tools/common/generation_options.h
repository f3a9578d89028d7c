#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/cache_options.h"
#include "common/command_line.h"
#include "common/llama_handles.h"
#include "common/llama_option.h"

namespace mixed_kv::tools {

// What a program that continues a text is told, as llama.cpp's own programs are.
struct GenerationArguments {
    std::string model;
    std::string prompt;
    int n_predict = 128;
    std::optional<std::uint32_t> n_ctx;  // as asked; 0: as long as the model was trained for
    ContextOptions context;              // batch sizes, threads, cache types, flash attention
    float temperature = 0.8F;
    std::uint32_t seed = 0;
    int n_gpu_layers = -1;
};

// The options behind that, and those of the cache.
class GenerationOptions {
  public:
    // The arguments' values are the defaults. layers_help: what -ngl means to the program.
    void add_to(CommandLine& command, GenerationArguments& arguments, const std::string& layers_help);
    // After parsing: takes the llama.cpp that was asked for, reads the prompt, and exports the cache's
    // settings to the environment. Throws UsageError, std::runtime_error for a prompt file that cannot be
    // read, and mixed_kv::Error for a setting.
    void finish(GenerationArguments& arguments) const;

  private:
    std::optional<std::string> prompt_, prompt_file_;
    std::string type_k_ = "f16", type_v_ = "f16", flash_attention_ = "auto";
    std::optional<int> threads_, threads_batch_;
    std::optional<std::uint32_t> seed_;
    CacheOptions cache_;
    LlamaOption llama_;
};

// A cache type of llama.cpp that an option names. Throws UsageError.
ggml_type parse_cache_type(const std::string& option, const std::string& name);

}  // namespace mixed_kv::tools
