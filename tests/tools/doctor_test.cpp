#include <gtest/gtest.h>

#include "command.h"

namespace mixed_kv::test {

namespace {

CommandResult doctor(const std::vector<std::string>& arguments = {}, const Environment& environment = {}) {
    return run_tool("mixed-kv-doctor", arguments, environment);
}

TEST(Doctor, HealthyInstallation) {
    const CommandResult result = doctor();
    EXPECT_EQ(result.exit_status, 0) << result.out << result.err;
    for (const char* part : {"llama.cpp", "ggml", "plugin", "MixedKV", "IGPU",
                             "kernels:", "GGML_MIXED_KV_WINDOW", "default", "all is well"}) {
        EXPECT_NE(result.out.find(part), std::string::npos) << part << " is not in: " << result.out;
    }
}

TEST(Doctor, JsonHasTheFacts) {
    const CommandResult result = doctor({"--json"}, {{"GGML_MIXED_KV_WINDOW", "32"}});
    EXPECT_EQ(result.exit_status, 0) << result.err;
    const nlohmann::json json = result.json();
    EXPECT_TRUE(json.at("healthy").get<bool>());
    EXPECT_TRUE(json.at("plugin").at("loaded").get<bool>());
    EXPECT_TRUE(json.at("plugin").at("matches").get<bool>());
    EXPECT_EQ(json.at("plugin").at("built_for_version"), json.at("llama_cpp").at("ggml_version"));
    EXPECT_EQ(json.at("settings").at("GGML_MIXED_KV_WINDOW").at("value"), "32");
    EXPECT_TRUE(json.at("settings").at("GGML_MIXED_KV_WINDOW").at("set").get<bool>());
    EXPECT_FALSE(json.at("settings").at("GGML_MIXED_KV_K").at("set").get<bool>());
    EXPECT_NE(json.at("cpu").at("isa"), "none");
}

TEST(Doctor, SaysWhatAModelWouldGet) {
    const CommandResult result = doctor({"--json", "-m", random_model(), "-c", "1024"});
    EXPECT_EQ(result.exit_status, 0) << result.out << result.err;
    const nlohmann::json model = result.json().at("model");
    EXPECT_TRUE(model.at("active").get<bool>());
    EXPECT_EQ(model.at("n_ctx"), 1024);
    EXPECT_EQ(model.at("tensors").size(), 2 * model.at("n_layer").get<std::size_t>());
    EXPECT_LT(model.at("cold_bytes_full"), model.at("f16_bytes"));
    EXPECT_FALSE(model.at("report").empty());

    const CommandResult text = doctor({"-m", random_model(), "-c", "1024"});
    EXPECT_NE(text.out.find("mixed"), std::string::npos);
}

TEST(Doctor, SaysWhyAModelWouldGetNothing) {
    const CommandResult result =
        doctor({"--json", "-m", random_model(), "-c", "1024", "-ctk", "q8_0", "-ctv", "q8_0"});
    EXPECT_EQ(result.exit_status, 1);
    const nlohmann::json json = result.json();
    EXPECT_FALSE(json.at("healthy").get<bool>());
    EXPECT_FALSE(json.at("model").at("active").get<bool>());
    EXPECT_FALSE(json.at("problems").empty());
}

struct Ailment {
    std::string name;
    Environment environment;
    std::vector<std::string> arguments;
    std::string says;
};

void PrintTo(const Ailment& ailment, std::ostream* out) { *out << ailment.name; }

const Ailment kAilments[] = {
    {"NoPluginFile", {{"GGML_BACKEND_PATH", "/no/plugin.so"}}, {}, "/no/plugin.so does not exist"},
    {"TextFile", {{"GGML_BACKEND_PATH", "/etc/passwd"}}, {}, "/etc/passwd is no library"},
    {"Folder", {{"GGML_BACKEND_PATH", "/etc"}}, {}, "/etc is a folder"},
    {"Device", {{"GGML_BACKEND_PATH", "/dev/null"}}, {}, "/dev/null is no regular file"},
    {"NoBackend", {{"GGML_BACKEND_PATH", MIXED_KV_GGML_BASE_FILE}}, {}, "is no ggml backend"},
    {"UnknownFormat", {{"GGML_MIXED_KV_V", "q77"}}, {}, "q77"},
    {"MisspeltSetting", {{"GGML_MIXED_KV_WINDWO", "5"}}, {}, "GGML_MIXED_KV_WINDWO"},
    {"UnknownIsa", {{"MIXED_KV_ISA", "mmx"}}, {}, "mmx"},
    {"NoModel", {}, {"-m", "no/such/model.gguf"}, "no/such/model.gguf"},
};

class DoctorFinds : public testing::TestWithParam<Ailment> {};

TEST_P(DoctorFinds, AilmentAndAdvice) {
    const CommandResult result = doctor(GetParam().arguments, GetParam().environment);
    EXPECT_EQ(result.exit_status, 1) << result.err;
    EXPECT_NE(result.out.find(GetParam().says), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("what to do"), std::string::npos) << result.out;
    std::vector<std::string> with_json = GetParam().arguments;
    with_json.emplace_back("--json");
    const nlohmann::json json = doctor(with_json, GetParam().environment).json();
    EXPECT_FALSE(json.at("healthy").get<bool>());
    EXPECT_FALSE(json.at("problems").empty());
}

INSTANTIATE_TEST_SUITE_P(Table, DoctorFinds, testing::ValuesIn(kAilments),
                         [](const testing::TestParamInfo<Ailment>& test) { return test.param.name; });

// The limit in the environment and as an option; both are listed, refused, and advised about.
TEST(Doctor, ALimitThatIsTooLow) {
    const std::vector<std::string> model = {"--json", "-m", random_model(), "-c", "4096"};
    std::vector<std::string> with_option = model;
    with_option.insert(with_option.end(), {"--kv-limit-mb", "1"});
    for (const CommandResult& result :
         {doctor(model, {{"GGML_MIXED_KV_LIMIT_MB", "1"}}), doctor(with_option)}) {
        EXPECT_EQ(result.exit_status, 1) << result.out;
        const nlohmann::json json = result.json();
        EXPECT_EQ(json.at("settings").at("GGML_MIXED_KV_LIMIT_MB").at("value"), "1");
        ASSERT_EQ(json.at("problems").size(), 1U) << json.at("problems");
        const auto advice = json.at("problems").front().at("advice").get<std::string>();
        EXPECT_NE(advice.find("raise GGML_MIXED_KV_LIMIT_MB"), std::string::npos) << advice;
    }
    const CommandResult none = doctor();
    EXPECT_NE(none.out.find("GGML_MIXED_KV_LIMIT_MB"), std::string::npos) << none.out;
}

TEST(Doctor, SaysHowLongABudgetStaysExact) {
    const std::vector<std::string> model = {"--json", "-m", random_model(), "-c", "8192"};
    const auto with_budget = [&](const std::string& budget) {
        std::vector<std::string> arguments = model;
        arguments.insert(arguments.end(), {"--kv-budget", budget});
        return doctor(arguments);
    };
    const CommandResult result = with_budget("40%");
    EXPECT_EQ(result.exit_status, 0) << result.out << result.err;
    const nlohmann::json about = result.json().at("model");
    const auto said = about.at("report").dump();
    EXPECT_NE(said.find("budget 40 % of F16, ladder f16,q8,q4,q3"), std::string::npos) << said;
    EXPECT_NE(said.find("exact up to "), std::string::npos) << said;
    EXPECT_NE(said.find("q8 from there"), std::string::npos) << said;
    EXPECT_LE(about.at("budget_bytes").get<double>(), 0.4 * about.at("f16_bytes").get<double>());
    const CommandResult refused = with_budget("1%");
    EXPECT_EQ(refused.exit_status, 1);
    EXPECT_NE(refused.out.find("raise GGML_MIXED_KV_BUDGET_MB"), std::string::npos) << refused.out;
    EXPECT_NE(refused.out.find("would do"), std::string::npos) << refused.out;
}

TEST(Doctor, UsageErrorsAreOneLine) {
    const CommandResult result = doctor({"--frobnicate"});
    EXPECT_EQ(result.exit_status, 2);
    ASSERT_EQ(result.err_lines().size(), 1U) << result.err;
    EXPECT_EQ(result.err_lines().front().rfind("mixed-kv-doctor: error: ", 0), 0U);
}

}  // namespace

}  // namespace mixed_kv::test
