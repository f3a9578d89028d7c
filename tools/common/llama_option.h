#pragma once

#include <optional>
#include <string>

#include "common/command_line.h"

namespace mixed_kv::tools {

// --llama FOLDER and MIXED_KV_LLAMA_LIB_DIR of programs that run models: another build of the same release
// than the one they were linked with.
class LlamaOption {
  public:
    void add_to(CommandLine& command);
    // After parsing, before anything is done: takes the libraries of that folder, by starting this program
    // again. Returns where they are in use, or none are asked for. Throws std::runtime_error for a folder
    // without libraries and for another release, whose structures differ.
    void use() const;

  private:
    std::optional<std::string> folder_;
};

}  // namespace mixed_kv::tools
