// Models whose header says what llama.cpp does not expect: one line, never its own assertion.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

#include "command.h"
#include "trace/gguf_reader.h"

namespace mixed_kv::test {

namespace {

std::string file_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

constexpr std::uint32_t kU32 = 4;  // GGUF's number of the type

// Where the value of a key lies; npos: there is none of type u32.
std::size_t value_position(const std::string& bytes, const std::string& key) {
    const std::size_t at = bytes.find(key);
    std::uint32_t type = 0;
    if (at == std::string::npos) return at;
    std::memcpy(&type, &bytes[at + key.size()], sizeof type);
    return type == kU32 ? at + key.size() + sizeof type : std::string::npos;
}

std::string changed_model(const std::string& model, const std::string& key, std::uint32_t value) {
    std::string bytes = file_bytes(model);
    std::memcpy(&bytes.at(value_position(bytes, key)), &value, sizeof value);
    return write_file("changed.gguf", bytes);
}

std::string mixture_of_experts() {
    static const std::string path = [] {
        std::string file = scratch_folder() + "/experts.gguf";
        const CommandResult made = run_tool("make-random-model", {"--arch", "gpt-oss", "--out", file});
        EXPECT_EQ(made.exit_status, 0) << made.err;
        return file;
    }();
    return path;
}

CommandResult run(const std::string& model) {
    return run_tool("mixed-kv-run", {"-m", model, "-p", "a b c", "-n", "2", "-c", "64", "-t", "1"});
}

void expect_refusal(const CommandResult& result, const std::string& program, const std::string& says) {
    EXPECT_EQ(result.exit_status, 1) << result.err;
    ASSERT_EQ(result.err_lines().size(), 1U) << result.err;
    EXPECT_EQ(result.err.rfind(program + ": error: ", 0), 0U) << result.err;
    EXPECT_NE(result.err.find(says), std::string::npos) << result.err;
}

TEST(ModelHeader, LayersThatCannotBe) {
    for (const std::uint32_t n : {0U, 513U, 0x7fffffffU, 0xffffffffU}) {
        const std::string model = changed_model(random_model(), "llama.block_count", n);
        const std::string says = "llama.block_count = " + std::to_string(n);
        expect_refusal(run(model), "mixed-kv-run", says);
        const CommandResult doctor = run_tool("mixed-kv-doctor", {"-m", model, "-c", "64"});
        EXPECT_EQ(doctor.exit_status, 1);
        EXPECT_NE(doctor.out.find(says), std::string::npos) << doctor.out;
    }
    const std::string model = changed_model(random_model(), "llama.block_count", 0);
    const std::string text = write_file("text.txt", long_prompt(200));
    const std::vector<std::vector<std::string>> others = {
        {"kqv-trace-monitor", "-m", model, "-p", "a", "-n", "1"},
        {"mixed-kv-eval", "-m", model, "-f", text, "-c", "64"},
        {"mixed-kv-bench", "model", "-m", model, "--depths", "0"},
        {"mixed-kv-bench", "prompt", "-m", model, "--n-prompt", "64"}};
    for (const auto& command : others) {
        expect_refusal(run_tool(command.front(), {command.begin() + 1, command.end()}), command.front(),
                       "llama.block_count = 0");
    }
}

TEST(ModelHeader, ExpertsThatCannotBe) {
    const std::string good = mixture_of_experts();
    EXPECT_EQ(run(good).exit_status, 0);
    const std::pair<const char*, std::uint32_t> changes[] = {{"gpt-oss.expert_count", 0},
                                                             {"gpt-oss.expert_count", 4096},
                                                             {"gpt-oss.expert_used_count", 0},
                                                             {"gpt-oss.expert_used_count", 4096}};
    for (const auto& [key, value] : changes) {
        expect_refusal(run(changed_model(good, key, value)), "mixed-kv-run", "gpt-oss.expert");
    }
}

// Every number in a model's header that llama.cpp reads as one of its architecture.
std::vector<std::string> numbers_of(const std::string& model) {
    const trace::GgufReader reader(model);
    const std::string prefix = reader.get<std::string>("general.architecture") + ".";
    std::vector<std::string> keys;
    for (std::size_t i = 0; i < reader.n_kv(); ++i) {
        const std::string key(reader.key(i));
        if (key.starts_with(prefix) && reader.kv_type(i) == trace::GgufType::u32 && !reader.kv_is_array(i))
            keys.push_back(key);
    }
    return keys;
}

void expect_an_end(const std::string& good, const std::string& key, std::uint32_t value) {
    const CommandResult result = run(changed_model(good, key, value));
    EXPECT_LE(result.exit_status, 2) << good << ", " << key << " = " << value << ": " << result.err;
    EXPECT_EQ(result.out.find("GGML_ASSERT"), std::string::npos) << result.out;
    // What the plugin says of the cache comes before, where the model got that far.
    if (result.exit_status != 0) {
        EXPECT_NE(result.err.find("mixed-kv-run: error: "), std::string::npos) << key << " = " << value;
    }
}

// Whatever number a header has, the tool comes to an end by itself.
TEST(ModelHeader, NoNumberEndsTheProcess) {
    for (const std::string& good : {random_model(), mixture_of_experts()}) {
        const std::vector<std::string> keys = numbers_of(good);
        EXPECT_GE(keys.size(), 8U) << good;
        for (const std::string& key : keys) {
            for (const std::uint32_t value : {0U, 1U, 3U, 0x7fffffffU, 0xffffffffU})
                expect_an_end(good, key, value);
        }
    }
}

// All architectures, in the long target.
TEST(ModelHeader, NoNumberOfAnyArchitectureEndsTheProcess) {
    if (std::getenv("MIXED_KV_ALL_HEADERS") == nullptr) GTEST_SKIP() << "long: MIXED_KV_ALL_HEADERS=1";
    std::istringstream list(run_tool("make-random-model", {"--list"}).out);
    int n_models = 0;
    for (std::string line; std::getline(list, line);) {
        if (line.ends_with("(large)")) continue;  // for benchmarks
        const std::string preset = line.substr(0, line.find(' '));
        const std::string good = scratch_folder() + "/" + preset + ".gguf";
        ASSERT_EQ(run_tool("make-random-model", {"--arch", preset, "--out", good}).exit_status, 0) << preset;
        ++n_models;
        for (const std::string& key : numbers_of(good)) {
            for (const std::uint32_t value :
                 {0U, 1U, 2U, 3U, 7U, 65U, 1000U, 0x7fffffffU, 0x80000000U, 0xffffffffU})
                expect_an_end(good, key, value);
        }
    }
    EXPECT_GE(n_models, 10);
}

}  // namespace

}  // namespace mixed_kv::test
