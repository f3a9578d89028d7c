// Every architecture against the CPU cache: the harness itself, then the plugin with exact and with cold
// rows.
//
// The reference is the host's own cache, all tokens in ubatches of 64. There llama.cpp's flash attention
// works in F32 tiles, so it is exact up to F32 rounding. With fewer rows per ubatch it accumulates V in F16
// and is itself about 2e-6 (NMSE) away from that: too far to serve as a reference for a bound of 1e-6.
#include "logits_file.h"
#include "random_model.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace mixed_kv::test {
namespace {

namespace fs = std::filesystem;

// Measured: 1e-13 to 1e-8 for F16 storage, 6e-6 to 8e-5 for 8-bit rows.
constexpr double kExactNmse = 1e-6;
// The host against itself, F16 accumulation with small ubatches: 4e-7 to 7e-6 measured.
constexpr double kHostNmse = 3e-5;
constexpr std::size_t kTokens =
    192;                            // three ubatches of the reference, more than every model's sliding window
constexpr std::size_t kSteps = 64;  // of these, run one by one by the plugin

/// The plugin under test: what GGML_BACKEND_PATH says, otherwise the build's own. Empty when it is not there.
std::string plugin_path() {
    const char* given = std::getenv("GGML_BACKEND_PATH");
    const std::string path = given != nullptr ? given : MIXED_KV_TEST_PLUGIN;
    return fs::exists(path) ? path : "";
}

/// Rows [first, last) of logits.
Logits rows(const Logits& logits, std::size_t first, std::size_t last) {
    Logits part;
    part.n_vocab = logits.n_vocab;
    part.values.assign(logits.row(first), logits.row(last));
    return part;
}

class Architectures : public testing::TestWithParam<std::string> {
  protected:
    void SetUp() override {
        for (const RandomModelPreset& preset : random_model_presets()) {
            if (preset.name == GetParam()) {
                preset_ = &preset;
            }
        }
        std::string pattern = (fs::temp_directory_path() / "mixed-kv-arch-XXXXXX").string();
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        folder_ = pattern;
        model_ = (folder_ / "model.gguf").string();
        write_random_model(preset_->spec, model_);
    }

    void TearDown() override {
        if (!folder_.empty()) {
            fs::remove_all(folder_);
        }
    }

    struct Run {
        Logits logits;
        nlohmann::json report;
        std::string log;
    };

    /// Runs logits-runner in a process of its own with variables added to the environment, for example "A=1
    /// B=2".
    Run run(const std::string& arguments, const std::string& environment = "") {
        const std::string out = (folder_ / "logits").string(), log = (folder_ / "log").string(),
                          report = (folder_ / "report").string(), errors = (folder_ / "errors").string();
        const std::string command = "env " + environment +
                                    " '" MIXED_KV_TEST_RUNNER "' --threads 1 --model '" + model_ +
                                    "' --out '" + out + "' --log '" + log + "' " + arguments + " > '" +
                                    report + "' 2> '" + errors + "'";
        const int status = std::system(command.c_str());
        if (status != 0) {
            throw std::runtime_error("status " + std::to_string(status) + " of: " + command + "\n" +
                                     read(errors) + read(log));
        }
        return {read_logits(out), nlohmann::json::parse(read(report)), read(log)};
    }

    /// The reference, see the top of the file. Without the plugin, so that nothing of it can take part.
    Run run_reference(const std::string& more = "") {
        return run("--cache host --ubatch 64 --prompt " + std::to_string(kTokens) + " " + more,
                   "-u GGML_BACKEND_PATH");
    }

    /// The plugin's cache, a long prompt and then single steps, as in real use.
    Run run_plugin(const std::string& environment, const std::string& more = "") {
        return run("--cache plugin --ubatch 64 --prompt " + std::to_string(kTokens - kSteps) + " --steps " +
                       std::to_string(kSteps) + " " + more,
                   environment + " GGML_BACKEND_PATH='" + plugin_path() + "'");
    }

    const RandomModelPreset* preset_ = nullptr;
    std::string model_;

  private:
    static std::string read(const std::string& path) {
        std::ifstream file(path);
        std::stringstream text;
        text << file.rdbuf();
        return text.str();
    }

    fs::path folder_;
};

#define SKIP_WITHOUT_PLUGIN()                                                                  \
    if (plugin_path().empty()) {                                                               \
        GTEST_SKIP() << "no plugin at " MIXED_KV_TEST_PLUGIN " and none in GGML_BACKEND_PATH"; \
    }

TEST_P(Architectures, HostIsRepeatableAndNearItselfInOtherBatches) {
    const Run reference = run_reference();
    const Comparison again = compare(reference.logits, run_reference().logits);
    EXPECT_EQ(again.max_abs, 0) << again.text();
    const Comparison small = compare(reference.logits, run("--ubatch 13", "-u GGML_BACKEND_PATH").logits);
    EXPECT_TRUE(small.nmse <= kHostNmse) << small.text();
    const Comparison no_flash =
        compare(reference.logits, run("--flash-attn off", "-u GGML_BACKEND_PATH").logits);
    EXPECT_TRUE(no_flash.nmse <= kHostNmse) << no_flash.text();
}

TEST_P(Architectures, FarTokensMatter) {
    const Run reference = run_reference();
    const std::size_t changed = kTokens - 40;  // within every sliding window
    const Run other = run_reference("--change-position " + std::to_string(changed));
    // causal: nothing before the change notices, everything after it does
    EXPECT_EQ(compare(rows(reference.logits, 0, changed), rows(other.logits, 0, changed)).max_abs, 0);
    const Comparison after =
        compare(rows(reference.logits, changed + 10, kTokens), rows(other.logits, changed + 10, kTokens));
    EXPECT_TRUE(after.nmse >= 100 * kExactNmse) << after.text();
}

TEST_P(Architectures, AnEightBitCacheOfTheHostMissesTheBound) {
    if (!preset_->has_kv_cache) {
        GTEST_SKIP() << "no KV cache";
    }
    if (preset_->spec.head_dim % 32 != 0) {
        GTEST_SKIP() << "llama.cpp takes q8_0 for multiples of 32 only";
    }
    const Comparison q8 =
        compare(run_reference().logits, run_reference("--type-k q8_0 --type-v q8_0").logits);
    EXPECT_TRUE(q8.nmse > 10 * kExactNmse) << q8.text();
}

TEST_P(Architectures, PluginWithExactRowsEqualsTheCpuCache) {
    SKIP_WITHOUT_PLUGIN();
    const Run exact = run_plugin("GGML_MIXED_KV_K=f16 GGML_MIXED_KV_V=f16");
    const Run reference = run_reference();
    const Comparison comparison = compare(reference.logits, exact.logits);
    RecordProperty("nmse", comparison.text());
    EXPECT_TRUE(comparison.nmse <= kExactNmse) << comparison.text() << '\n' << exact.log;
    // The same for every single position, so that one wrong row cannot hide among the others.
    EXPECT_TRUE(comparison.worst_row_nmse <= kExactNmse) << comparison.text() << '\n' << exact.log;
}

TEST_P(Architectures, PluginWithEightBitRowsMissesTheBound) {
    SKIP_WITHOUT_PLUGIN();
    if (!preset_->has_kv_cache) {
        GTEST_SKIP() << "no KV cache";
    }
    const Run cold =
        run_plugin("GGML_MIXED_KV_K=q8 GGML_MIXED_KV_V=q8 GGML_MIXED_KV_WINDOW=0 GGML_MIXED_KV_SINKS=0");
    const Comparison comparison = compare(run_reference().logits, cold.logits);
    RecordProperty("nmse", comparison.text());
    EXPECT_TRUE(comparison.nmse > kExactNmse) << comparison.text() << '\n' << cold.log;
    EXPECT_TRUE(comparison.nmse <= 1e-2) << comparison.text() << '\n' << cold.log;
}

TEST_P(Architectures, AttentionRunsOnThePlugin) {
    SKIP_WITHOUT_PLUGIN();
    const Run where = run_plugin("GGML_MIXED_KV_K=f16 GGML_MIXED_KV_V=f16", "--placement");
    int on_cpu = 0, on_plugin = 0;
    for (const auto& [buffer, n] : where.report["attention_nodes"].items()) {
        (buffer == "CPU" ? on_cpu : on_plugin) += n.get<int>();
    }
    EXPECT_EQ(on_plugin > 0, preset_->has_kv_cache) << where.report;
    EXPECT_EQ(on_cpu, 0) << where.report;
}

std::vector<std::string> preset_names() {
    std::vector<std::string> names;
    for (const RandomModelPreset& preset : random_model_presets()) {
        if (!preset.benchmark_only) {
            names.push_back(preset.name);
        }
    }
    return names;
}

INSTANTIATE_TEST_SUITE_P(Presets, Architectures, testing::ValuesIn(preset_names()), [](const auto& preset) {
    std::string name = preset.param;
    std::erase(name, '-');
    return name;
});

}  // namespace
}  // namespace mixed_kv::test
