#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/backends.h"
#include "common/plugin.h"

namespace mixed_kv::tools {

// What stands between the user and a working mixed cache, and what to do about it.
struct Problem {
    std::string what;
    std::string advice;
};

// One finding: a heading, the text for people, the facts for --json.
struct Finding {
    std::string key;      // of the JSON object
    std::string heading;  // for people
    std::vector<std::string> lines = {};
    nlohmann::ordered_json facts = {};
};

// The ggml that was looked at.
struct Ggml {
    bool fits = false;  // the plugin works with it
    std::string version, commit;
    int api_version = -1;  // of its CPU backend; -1 where it has none
};

struct Diagnosis {
    std::vector<Finding> findings;
    std::vector<Problem> problems;
    Ggml ggml;

    bool healthy() const { return problems.empty(); }
};

// Loads the backends and looks at each part. Adds findings and problems; throws only when llama.cpp itself is
// not usable. Returns the plugin when it is loaded.
std::optional<Plugin> examine_installation(Diagnosis& diagnosis);

// Another installation of llama.cpp: which ggml it has, and whether the plugin fits. Its libraries are not
// loaded into this process. Throws std::runtime_error when there is nothing to look at.
void examine_llama(const std::string& installation, Diagnosis& diagnosis);

// The same in brief for every installation that is found in the usual places.
void examine_installed_llamas(Diagnosis& diagnosis);

struct ModelQuestion {
    std::string path;
    std::uint32_t n_ctx = 0;  // 0: as long as the model was trained for
    ggml_type type_k = GGML_TYPE_F16;
    ggml_type type_v = GGML_TYPE_F16;
};

// What a model would get: creates its cache with the plugin and asks the plugin about it.
void examine_model(const ModelQuestion& question, Plugin& plugin, Diagnosis& diagnosis);

// What examine_model threw, with advice about what it names: a setting, or the model.
Problem problem_with_model(const std::string& what);

}  // namespace mixed_kv::tools
