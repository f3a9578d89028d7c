// Models whose header says what llama.cpp does not expect: one line, never its own assertion.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>

#include "command.h"

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

// Whatever number a header has, the tool comes to an end by itself.
TEST(ModelHeader, NoNumberEndsTheProcess) {
    for (const std::string& good : {random_model(), mixture_of_experts()}) {
        const std::string bytes = file_bytes(good);
        const std::string prefix = good == random_model() ? "llama." : "gpt-oss.";
        int n_fields = 0;
        for (const char* field :
             {"block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
              "attention.head_count", "attention.head_count_kv", "attention.key_length",
              "attention.value_length", "attention.sliding_window", "rope.dimension_count", "expert_count",
              "expert_used_count", "expert_feed_forward_length"}) {
            const std::string key = prefix + field;
            if (value_position(bytes, key) == std::string::npos) continue;
            ++n_fields;
            for (const std::uint32_t value : {0U, 1U, 3U, 0x7fffffffU, 0xffffffffU}) {
                const CommandResult result = run(changed_model(good, key, value));
                EXPECT_LE(result.exit_status, 2) << key << " = " << value << ": " << result.err;
                EXPECT_EQ(result.out.find("GGML_ASSERT"), std::string::npos) << result.out;
            }
        }
        EXPECT_GE(n_fields, 8) << prefix;
    }
}

}  // namespace

}  // namespace mixed_kv::test
