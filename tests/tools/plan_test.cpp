// mixed-kv-doctor --plan as a program.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "command.h"

namespace mixed_kv::test {

namespace {

constexpr const char* kMachines = R"([
    {"name": "left", "memory_mib": 4096, "gb_s": 20, "link_mbit": 1000, "latency_ms": 0.3},
    {"name": "right", "memory_mib": 4096, "gb_s": 20, "link_mbit": 1000, "latency_ms": 0.3}])";

CommandResult plan(const std::string& machines, std::vector<std::string> more = {},
                   const Environment& environment = {}) {
    std::vector<std::string> arguments = {"-m", random_model(), "--plan", "--machines",
                                          write_file("machines.json", machines)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_tool("mixed-kv-doctor", arguments, environment);
}

TEST(DoctorPlan, SaysWhatFitsAndHowFast) {
    const CommandResult result = plan(kMachines, {"-c", "4096", "--sequences", "3", "--json"});
    ASSERT_EQ(result.exit_status, 0) << result.out << result.err;
    const nlohmann::json json = result.json();
    EXPECT_TRUE(json.at("healthy").get<bool>());
    const nlohmann::json& facts = json.at("plan");
    EXPECT_TRUE(facts.at("fits").get<bool>());
    EXPECT_EQ(facts.at("context"), 4096);
    EXPECT_EQ(facts.at("sequences"), 3);
    EXPECT_GT(facts.at("tokens_per_second"), 0.0);
    EXPECT_LT(facts.at("cache_bytes_per_sequence"), facts.at("cache_f16_bytes_per_sequence"));
    EXPECT_EQ(facts.at("ways").size(), 2U);
    int sequences = 0;
    for (const auto& chain : facts.at("chains")) sequences += chain.at("sequences").get<int>();
    EXPECT_EQ(sequences, 3);

    const CommandResult text = plan(kMachines, {"-c", "4096"});
    EXPECT_EQ(text.exit_status, 0) << text.err;
    for (const char* part : {"left", "--tensor-split", "tokens/s", "F16"})
        EXPECT_NE(text.out.find(part), std::string::npos) << part << " is not in: " << text.out;
}

// The plan and the plugin itself must say the same of a cache.
TEST(DoctorPlan, AgreesWithThePluginAboutTheCache) {
    const CommandResult planned = plan(kMachines, {"-c", "65536", "--json"});
    ASSERT_EQ(planned.exit_status, 0) << planned.out << planned.err;
    const CommandResult made = run_tool("mixed-kv-doctor", {"-m", random_model(), "-c", "65536", "--json"});
    ASSERT_EQ(made.exit_status, 0) << made.out << made.err;
    const nlohmann::json facts_made = made.json();
    double mixed = 0, f16 = 0;
    for (const auto& line : facts_made.at("model").at("report")) {
        const auto text = line.get<std::string>();
        const auto at = text.find("at full length, ");
        if (at == std::string::npos) continue;
        ASSERT_EQ(std::sscanf(text.c_str() + at, "at full length, %lf MiB (F16: %lf MiB)", &mixed, &f16), 2);
    }
    ASSERT_GT(f16, 0);
    const double mib = 1024.0 * 1024.0;
    const auto facts = planned.json().at("plan");
    EXPECT_NEAR(facts.at("cache_f16_bytes_per_sequence").get<double>() / mib, f16, 0.1);
    // The plugin counts its records, too.
    EXPECT_NEAR(facts.at("cache_bytes_per_sequence").get<double>() / mib, mixed, 0.1 + 0.05 * mixed);
}

TEST(DoctorPlan, WhatDoesNotFitIsAProblemWithAdvice) {
    const char* small =
        R"([{"name": "a", "memory_mib": 1, "gb_s": 20, "link_mbit": 1000, "latency_ms": 0.3}])";
    const CommandResult result = plan(small, {"-c", "4096"});
    EXPECT_EQ(result.exit_status, 1);
    EXPECT_NE(result.out.find("not fit"), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("what to do"), std::string::npos) << result.out;
}

struct BadMachines {
    std::string name, file, says;
};
void PrintTo(const BadMachines& bad, std::ostream* out) { *out << bad.name; }

std::string machine(const std::string& name, const std::string& memory, const std::string& more = "") {
    return R"({"name": )" + name + R"(, "memory_mib": )" + memory +
           R"(, "gb_s": 2, "link_mbit": 3, "latency_ms": 4)" + more + "}";
}

const BadMachines kBad[] = {
    {"Empty", "", "parse error"},
    {"NoJson", "[{]", "parse error"},
    {"NoList", machine("\"a\"", "1"), "must be a list"},
    {"NoMachine", "[]", "at least one machine"},
    {"NoObject", "[1]", "machine 1"},
    {"UnknownKey", "[" + machine("\"a\"", "1", R"(, "cores": 4)") + "]", "\"cores\" is unknown"},
    {"MissingKey", R"([{"name": "a", "memory_mib": 1, "gb_s": 2, "link_mbit": 3}])", "latency_ms is missing"},
    {"NoName", R"([{"memory_mib": 1, "gb_s": 2, "link_mbit": 3, "latency_ms": 4}])", "name is missing"},
    {"NameNoText", "[" + machine("7", "1") + "]", "name is 7"},
    {"Zero", "[" + machine("\"a\"", "0") + "]", "memory_mib is 0"},
    {"Negative", "[" + machine("\"a\"", "-5") + "]", "memory_mib is -5"},
    {"Text", "[" + machine("\"a\"", "\"8 GiB\"") + "]", "memory_mib is \"8 GiB\""},
    {"TooLarge", "[" + machine("\"a\"", "1e999") + "]", "machines.json"},
    {"Twice", "[" + machine("\"a\"", "1", R"(, "gb_s": 5)") + "]", "\"gb_s\" is given twice"},
    {"SameName", "[" + machine("\"a\"", "1") + "," + machine("\"a\"", "1") + "]", "machine 2"},
};

class DoctorRefuses : public testing::TestWithParam<BadMachines> {};

TEST_P(DoctorRefuses, InOneLine) {
    const CommandResult result = plan(GetParam().file);
    EXPECT_EQ(result.exit_status, 1) << result.out;
    ASSERT_EQ(result.err_lines().size(), 1U) << result.err;
    EXPECT_NE(result.err.find(GetParam().says), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("machines.json"), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
}

INSTANTIATE_TEST_SUITE_P(Table, DoctorRefuses, testing::ValuesIn(kBad),
                         [](const testing::TestParamInfo<BadMachines>& test) { return test.param.name; });

TEST(DoctorPlan, OtherFilesAndSettingsThatAreWrong) {
    const std::string machines = write_file("machines.json", kMachines);
    const std::vector<std::string> no_model = {"-m", "no/such.gguf", "--plan", "--machines", machines};
    const std::vector<std::string> no_list = {"-m", random_model(), "--plan", "--machines", "no/such.json"};
    for (const auto& arguments : {no_model, no_list}) {
        const CommandResult result = run_tool("mixed-kv-doctor", arguments);
        EXPECT_EQ(result.exit_status, 1);
        EXPECT_EQ(result.err_lines().size(), 1U) << result.err;
    }
    const CommandResult setting = plan(kMachines, {}, {{"GGML_MIXED_KV_K", "q77"}});
    EXPECT_EQ(setting.exit_status, 1);
    ASSERT_EQ(setting.err_lines().size(), 1U) << setting.err;
    EXPECT_NE(setting.err.find("GGML_MIXED_KV_K='q77'"), std::string::npos) << setting.err;
}

TEST(DoctorPlan, OptionsThatNeedEachOther) {
    const std::string machines = write_file("machines.json", kMachines);
    const std::vector<std::vector<std::string>> wrong = {
        {"--plan", "-m", random_model()},
        {"--plan", "--machines", machines},
        {"--machines", machines, "-m", random_model()},
        {"--sequences", "2"},
        {"--plan", "-m", random_model(), "--machines", machines, "--sequences", "0"},
        {"--plan", "-m", random_model(), "--machines", machines, "--llama", "/usr"}};
    for (const auto& arguments : wrong) {
        const CommandResult result = run_tool("mixed-kv-doctor", arguments);
        EXPECT_EQ(result.exit_status, 2) << result.out;
        EXPECT_EQ(result.err_lines().size(), 1U) << result.err;
    }
}

}  // namespace

}  // namespace mixed_kv::test
