#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace mixed_kv::test {

struct CommandResult {
    int exit_status = -1;  // 128 + signal when it was killed
    std::string out;
    std::string err;

    std::vector<std::string> err_lines() const;
    // stdout as one JSON value; fails the test when it is not.
    nlohmann::json json() const;
};

using Environment = std::vector<std::pair<std::string, std::string>>;

// Where a program's standard output goes.
enum class Output {
    file,         // kept
    full_disk,    // takes no byte
    broken_pipe,  // nobody reads it
    closed,       // there is none
};

// Runs build/bin/<program> and waits for it. The environment is this process's without any GGML_* and
// MIXED_KV_* variable, plus `environment`.
CommandResult run_tool(const std::string& program, const std::vector<std::string>& arguments,
                       const Environment& environment = {}, Output output = Output::file);

// A small llama-architecture model with random weights, made once per process.
const std::string& random_model();

// The bundled model and held-out text. Empty when models/ has none.
std::string bundled_model();
std::string eval_text();

// A folder of this process, removed at its end.
const std::string& scratch_folder();
std::string write_file(const std::string& name, const std::string& content);

// Text of about n tokens for any model.
std::string long_prompt(int n_words);

}  // namespace mixed_kv::test
