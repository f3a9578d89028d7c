#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <string>

#include "mixed_kv/error.h"
#include "mixed_kv/setting_table.h"

namespace mixed_kv::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

Settings read(const std::map<std::string, std::string>& variables) {
    return Settings::from_environment([&](const char* name) -> std::optional<std::string> {
        const auto found = variables.find(name);
        if (found == variables.end()) return std::nullopt;
        return found->second;
    });
}

std::string refusal(const std::map<std::string, std::string>& variables) {
    try {
        read(variables);
    } catch (const Error& error) {
        return error.what();
    }
    return "accepted";
}

TEST(Settings, Defaults) {
    const Settings settings = read({});
    EXPECT_EQ(settings.window, 64);
    EXPECT_EQ(settings.sinks, 4);
    EXPECT_EQ(format_name(settings.key_format), "q4");
    EXPECT_EQ(format_name(settings.value_format), "q4");
    EXPECT_EQ(settings.verbose, 0);
    EXPECT_EQ(settings.limit_mb, 0);
}

TEST(Settings, EveryVariable) {
    const Settings settings = read({{"GGML_MIXED_KV_WINDOW", "0"},
                                    {"GGML_MIXED_KV_SINKS", "65536"},
                                    {"GGML_MIXED_KV_K", "q8"},
                                    {"GGML_MIXED_KV_V", "f16"},
                                    {"GGML_MIXED_KV_VERBOSE", "2"},
                                    {"GGML_MIXED_KV_LIMIT_MB", "512"}});
    EXPECT_EQ(settings.window, 0);
    EXPECT_EQ(settings.sinks, 65536);
    EXPECT_EQ(format_name(settings.key_format), "q8");
    EXPECT_EQ(settings.value_format, nullptr);
    EXPECT_EQ(format_name(settings.value_format), "f16");
    EXPECT_EQ(settings.verbose, 2);
    EXPECT_EQ(settings.limit_mb, 512);
    EXPECT_EQ(read({{"GGML_MIXED_KV_WINDOW", "1048576"}}).window, 1 << 20);
    for (const ColdFormat& format : cold_formats()) {
        EXPECT_EQ(read({{"GGML_MIXED_KV_K", std::string(format.name)}}).key_format, &format);
    }
}

TEST(Settings, RefusesWithOneLine) {
    const std::map<std::string, std::vector<std::string>> bad = {
        {"GGML_MIXED_KV_WINDOW",
         {"", "-1", "1048577", "64 ", " 64", "+64", "6.4", "0x40", "many", "99999999999999999999", "64\n"}},
        {"GGML_MIXED_KV_SINKS", {"", "-4", "65537", "4rows"}},
        {"GGML_MIXED_KV_VERBOSE", {"", "3", "-1", "yes"}},
        {"GGML_MIXED_KV_K", {"", "q9", "Q4", "f32", "q4 ", "fp16"}},
        {"GGML_MIXED_KV_V", {"", "q4_0"}},
    };
    for (const auto& [name, values] : bad) {
        for (const std::string& value : values) {
            EXPECT_THAT(refusal({{name, value}}), AllOf(HasSubstr(name + "='"), HasSubstr("accepted")));
            if (value != "64\n") {
                EXPECT_THAT(refusal({{name, value}}), HasSubstr("'" + value + "'"));
            }
            EXPECT_THAT(refusal({{name, value}}), Not(HasSubstr("\n"))) << "one line";
        }
    }
    EXPECT_THAT(refusal({{"GGML_MIXED_KV_K", "q9"}}),
                AllOf(HasSubstr("f16"), HasSubstr("q8"), HasSubstr("q4")));
    EXPECT_THAT(refusal({{"GGML_MIXED_KV_SINKS", "x"}}), HasSubstr("0 to 65536"));
}

TEST(Settings, PresetsAndWhatIsSaidBesidesThem) {
    ASSERT_FALSE(presets().empty());
    for (const Preset& preset : presets()) {
        const Settings settings = read({{"GGML_MIXED_KV", std::string(preset.name)}});
        EXPECT_EQ(settings.preset, preset.name);
        EXPECT_EQ(settings.window, preset.window);
        EXPECT_EQ(settings.sinks, preset.sinks);
        EXPECT_EQ(format_name(settings.key_format), preset.key_format);
        EXPECT_EQ(format_name(settings.value_format), preset.value_format);
        // What is set explicitly wins, the rest stays the preset's.
        const Settings changed = read({{"GGML_MIXED_KV", std::string(preset.name)},
                                       {"GGML_MIXED_KV_WINDOW", "7"},
                                       {"GGML_MIXED_KV_V", "q2"}});
        EXPECT_EQ(changed.window, 7);
        EXPECT_EQ(changed.sinks, preset.sinks);
        EXPECT_EQ(format_name(changed.key_format), preset.key_format);
        EXPECT_EQ(format_name(changed.value_format), "q2");
    }
    EXPECT_EQ(read({}).preset, presets().front().name);
    for (const char* value : {"", "Small", "best", "small "}) {
        EXPECT_THAT(refusal({{"GGML_MIXED_KV", value}}),
                    AllOf(HasSubstr("GGML_MIXED_KV='"), HasSubstr("quality"), HasSubstr("small")));
    }
}

// "q4/q8 ..." of layers 0 .. n - 1.
std::string formats(const Settings& settings, int n) {
    std::string text;
    for (int layer = 0; layer < n; ++layer) {
        if (layer > 0) text += ' ';
        text += format_name(settings.format(KvRole::key, layer, n));
        text += '/';
        text += format_name(settings.format(KvRole::value, layer, n));
    }
    return text;
}

std::string with_layers(const std::string& rules, int n) {
    return formats(
        read({{"GGML_MIXED_KV_K", "q4"}, {"GGML_MIXED_KV_V", "q3"}, {"GGML_MIXED_KV_LAYERS", rules}}), n);
}

TEST(Settings, LayerRules) {
    EXPECT_EQ(with_layers("1:q8", 3), "q4/q3 q8/q8 q4/q3");
    EXPECT_EQ(with_layers("0-1,-2--1:q8", 6), "q8/q8 q8/q8 q4/q3 q4/q3 q8/q8 q8/q8");
    EXPECT_EQ(with_layers("-1:q6/q5,0:-/f16", 3), "q4/f16 q4/q3 q6/q5");
    EXPECT_EQ(with_layers("0--1:q8,1:q2/-", 3), "q8/q8 q2/q8 q8/q8") << "the last rule that speaks wins";
    EXPECT_EQ(with_layers("1--2:q8", 4), "q4/q3 q8/q8 q8/q8 q4/q3");
    EXPECT_EQ(with_layers("7:q8,-9:q8", 2), "q4/q3 q4/q3") << "layers that this model lacks";
    EXPECT_EQ(with_layers("-5--1:q8", 2), "q8/q8 q8/q8");
}

TEST(Settings, LayerRulesAreRefusedWithTheReason) {
    const std::vector<std::pair<std::string, std::string>> bad = {{"", "no layer"},
                                                                  {"q8", "no layer"},
                                                                  {"0", "not followed by a colon"},
                                                                  {"0:q8,1", "not followed"},
                                                                  {"0:", "names no format"},
                                                                  {"0:q9", "names no format"},
                                                                  {"0:q8/", "names no format"},
                                                                  {"0:-", "neither"},
                                                                  {"0:-/-", "neither"},
                                                                  {"3-1:q8", "empty range"},
                                                                  {"-1--2:q8", "empty range"},
                                                                  {"-1-2:q8", "from the end"},
                                                                  {"0-:q8", "no layer"},
                                                                  {"0,:q8", "no layer"},
                                                                  {"0 :q8", "no layer"},
                                                                  {"+1:q8", "no layer"},
                                                                  {"0:q8,", "no layer"},
                                                                  {"0:q8:q8", "names no format"},
                                                                  {"0:k=q8", "names no format"},
                                                                  {"10000:q8", "no layer"},
                                                                  {"0:q8\n", "names no format"},
                                                                  {"0-1-2:q8", "no layer"},
                                                                  {"99999999999:q8", "no layer"}};
    for (const auto& [rules, why] : bad) {
        EXPECT_THAT(refusal({{"GGML_MIXED_KV_LAYERS", rules}}),
                    AllOf(HasSubstr("GGML_MIXED_KV_LAYERS='"), HasSubstr(why), HasSubstr("accepted"),
                          Not(HasSubstr("\n"))))
            << rules;
    }
}

// Two layers of one head; K is four times as sensitive as V, layer 0 a hundred times as layer 1.
Calibration example() {
    Calibration calibration;
    calibration.model = "example";
    for (int layer = 0; layer < 2; ++layer) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            Calibration::Tensor tensor{layer, role, 64, 64, {}};
            const double size = (role == KvRole::key ? 4.0 : 1.0) / (layer == 0 ? 1 : 100);
            for (const ColdFormat& format : cold_formats()) {
                tensor.kld.push_back(size * std::pow(4.0, -format.code_bits));
            }
            calibration.tensors.push_back(tensor);
        }
    }
    return calibration;
}

// Writes text to a file of its own for this test.
std::string file_with(const std::string& text) {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    const std::string path = testing::TempDir() + "mixed-kv-" + test->name() + ".txt";
    std::ofstream(path) << text;
    return path;
}

TEST(Settings, BitsFollowTheCalibration) {
    const std::string path = file_with(example().to_text());
    const auto with_bits = [&](const std::string& bits) {
        return read({{"GGML_MIXED_KV_BITS", bits}, {"GGML_MIXED_KV_CALIBRATION", path}});
    };
    double last = std::numeric_limits<double>::infinity();
    for (const char* bits : {"2.5", "3", "3.5", "4.25", "5", "6", "8.5", "16"}) {
        const Settings settings = with_bits(bits);
        ASSERT_NE(settings.allocation, nullptr);
        EXPECT_LE(settings.allocation->bits(), std::stod(bits));
        EXPECT_LE(settings.allocation->expected_kld(), last) << "more bits never lose more";
        last = settings.allocation->expected_kld();
        EXPECT_GE(settings.format(KvRole::key, 0, 2)->code_bits,
                  settings.format(KvRole::value, 0, 2)->code_bits);
        EXPECT_GE(settings.format(KvRole::key, 0, 2)->code_bits,
                  settings.format(KvRole::key, 1, 2)->code_bits);
    }
    EXPECT_EQ(formats(with_bits("2.5"), 2), "q2/q2 q2/q2");
    EXPECT_EQ(formats(with_bits("8.5"), 2), "q8/q8 q8/q8");
    EXPECT_NE(formats(with_bits("4.5"), 2), "q4/q4 q4/q4") << "a uniform choice loses more";
    EXPECT_THAT(refusal({{"GGML_MIXED_KV_BITS", "2.4"}, {"GGML_MIXED_KV_CALIBRATION", path}}),
                HasSubstr("smallest formats need 2.4375 bits"));
    // A rule for a layer is stronger than the budget.
    EXPECT_EQ(formats(read({{"GGML_MIXED_KV_BITS", "2.5"},
                            {"GGML_MIXED_KV_CALIBRATION", path},
                            {"GGML_MIXED_KV_LAYERS", "-1:q8"}}),
                      2),
              "q2/q2 q8/q8");
    // Another model's tensors.
    const Settings settings = with_bits("4");
    EXPECT_NO_THROW((void)settings.allocation->format(KvRole::value, 1, 64));
    EXPECT_THROW((void)settings.allocation->format(KvRole::value, 2, 64), Error);
    EXPECT_THROW((void)settings.allocation->format(KvRole::value, 1, 128), Error);
    std::filesystem::remove(path);
}

TEST(Settings, BitsAreRefusedWithTheReason) {
    const std::string path = file_with(example().to_text());
    const std::string bits = "GGML_MIXED_KV_BITS", file = "GGML_MIXED_KV_CALIBRATION";
    for (const char* value : {"", "four", "0", "-4", "17", "nan", "inf", "4.25 ", "4,25"}) {
        EXPECT_THAT(refusal({{bits, value}, {file, path}}),
                    AllOf(HasSubstr(bits + "='"), HasSubstr("accepted")));
    }
    EXPECT_THAT(refusal({{bits, "4"}}), AllOf(HasSubstr(file), HasSubstr("--calibrate")));
    EXPECT_THAT(refusal({{file, path}}), HasSubstr(bits));
    EXPECT_THAT(refusal({{bits, "4"}, {file, path}, {"GGML_MIXED_KV_K", "q4"}}),
                HasSubstr("GGML_MIXED_KV_K"));
    EXPECT_THAT(refusal({{bits, "4"}, {file, "/no/such/file"}}), HasSubstr("'/no/such/file' cannot be read"));
    EXPECT_THAT(refusal({{bits, "4"}, {file, testing::TempDir()}}), HasSubstr("cannot be read"));
    std::filesystem::remove(path);
}

TEST(Calibration, TextRoundTripAndRefusals) {
    const std::string good = example().to_text();
    EXPECT_EQ(Calibration::from_text(good).to_text(), good);
    const auto refused = [](const std::string& text) -> std::string {
        try {
            Calibration::from_text(text);
        } catch (const Error& error) {
            return error.what();
        }
        return "accepted";
    };
    const std::string header = good.substr(0, good.find('\n', good.find('\n') + 1) + 1);
    const std::string line = good.substr(header.size(), good.find('\n', header.size()) - header.size());
    EXPECT_THAT(refused(header + line), "accepted");
    EXPECT_THAT(refused(""), HasSubstr("no tensors"));
    EXPECT_THAT(refused(header), HasSubstr("no tensors"));
    EXPECT_THAT(refused("mixed-kv-calibration 2\n"), HasSubstr("line 1"));
    EXPECT_THAT(refused(header + line + "\n" + line), AllOf(HasSubstr("line 4"), HasSubstr("twice")));
    EXPECT_THAT(refused(header + line + " q1 0"), HasSubstr("line 3"));
    EXPECT_THAT(refused(header + "x" + line.substr(1)), HasSubstr("k or v"));
    EXPECT_THAT(refused(header + line.substr(0, line.rfind(' ')) + " -1"), HasSubstr("KLD"));
    EXPECT_THAT(refused(header + line.substr(0, line.rfind(' ')) + " nan"), HasSubstr("KLD"));
    EXPECT_THAT(refused(header + "k 0 65 64" + line.substr(9)), HasSubstr("heads"));
    EXPECT_THAT(refused(header + "k -1 64 64" + line.substr(9)), HasSubstr("layer"));
}

TEST(Settings, ProcessEnvironment) {
    ASSERT_EQ(setenv("GGML_MIXED_KV_WINDOW", "128", 1), 0);
    EXPECT_EQ(Settings::from_environment().window, 128);
    ASSERT_EQ(setenv("GGML_MIXED_KV_WINDOWS", "128", 1), 0);
    try {
        Settings::from_environment();
        ADD_FAILURE() << "a misspelt name was accepted";
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), AllOf(HasSubstr("GGML_MIXED_KV_WINDOWS='128'"),
                                        HasSubstr("GGML_MIXED_KV_SINKS"), Not(HasSubstr("\n"))));
    }
    unsetenv("GGML_MIXED_KV_WINDOWS");
    ASSERT_EQ(setenv("GGML_MIXED_KVS", "small", 1), 0);
    EXPECT_THROW(Settings::from_environment(), Error);
    unsetenv("GGML_MIXED_KVS");
    unsetenv("GGML_MIXED_KV_WINDOW");
    EXPECT_EQ(Settings::from_environment().window, 64);
}

// The table is what everybody else goes by: the environment, the text of the plugin's interface, the tools'
// options, mixed-kv-doctor. So each of its rows has to be known to all of them, and to the documentation.
TEST(SettingTable, EveryRowIsKnownEverywhere) {
    const std::map<std::string, std::string> good = {
        {"preset", "small"}, {"window", "8"},      {"sinks", "2"},    {"k", "q8"},
        {"v", "q5"},         {"layers", "0:q8"},   {"bits", "4.25"},  {"verbose", "1"},
        {"limit_mb", "7"},   {"calibration", "x"}, {"budget", "0.5"}, {"ladder", "f16,q8"}};
    std::ifstream file(MIXED_KV_SOURCE_DIR "/docs/settings.md");
    const std::string documentation{std::istreambuf_iterator<char>(file), {}};
    for (const Setting& setting : setting_table()) {
        const auto value = good.find(setting.name);
        ASSERT_NE(value, good.end()) << setting.name << " is new: give this test a value of it";
        const auto of_text = settings_of_text(setting.name + ("=" + value->second));
        EXPECT_EQ(of_text, (std::map<std::string, std::string>{{setting.variable, value->second}}));
        if (setting.read != nullptr) {
            // A ladder says something only together with a budget.
            auto all = of_text;
            if (setting.name == std::string("ladder")) all["GGML_MIXED_KV_BUDGET_MB"] = "1";
            EXPECT_EQ(refusal(all), "accepted");
            EXPECT_THAT(refusal({{setting.variable, "?"}}),
                        HasSubstr(setting.variable + std::string("='?'")));
        }
        EXPECT_THAT(documentation,
                    HasSubstr("| `" + std::string(setting.variable) + "` | `" + setting.option() + "` |"));
        setenv(setting.variable, "?", 1);
        EXPECT_THROW(Settings::from_environment(), Error) << setting.variable;
        unsetenv(setting.variable);
    }
    EXPECT_EQ(setting_table().size(), good.size());
}

TEST(SettingTable, WhatIsShownIsInEffect) {
    const Settings settings = read({{"GGML_MIXED_KV", "small"}, {"GGML_MIXED_KV_LIMIT_MB", "12"}});
    std::map<std::string, std::string> shown;
    for (const Setting& setting : setting_table()) shown[setting.name] = setting.shown(settings);
    EXPECT_EQ(shown, (std::map<std::string, std::string>{{"preset", "small"},
                                                         {"window", "32"},
                                                         {"sinks", "4"},
                                                         {"k", "q3"},
                                                         {"v", "q3"},
                                                         {"layers", "-"},
                                                         {"bits", "-"},
                                                         {"calibration", "-"},
                                                         {"budget", "-"},
                                                         {"ladder", "-"},
                                                         {"verbose", "0"},
                                                         {"limit_mb", "12"}}));
}

TEST(Settings, Budget) {
    Settings settings = read({{"GGML_MIXED_KV_BUDGET_MB", "4096"}});
    EXPECT_EQ(settings.budget.bytes(0), 4096.0 * 1024 * 1024);
    EXPECT_EQ(ladder_text(settings.ladder), "f16,q8,q4,q3");
    EXPECT_EQ(format_name(settings.key_format), "q3");  // what the smallest size is counted with
    settings = read({{"GGML_MIXED_KV_BUDGET_MB", "12.5%"},
                     {"GGML_MIXED_KV_LADDER", "f16,q6,q2"},
                     {"GGML_MIXED_KV", "small"}});
    EXPECT_EQ(settings.budget.bytes(800), 100);
    EXPECT_EQ(ladder_text(settings.ladder), "f16,q6,q2");
    EXPECT_EQ(settings.window, 32);

    const auto of_ladder = [](const char* ladder) {
        return refusal({{"GGML_MIXED_KV_BUDGET_MB", "1"}, {"GGML_MIXED_KV_LADDER", ladder}});
    };
    EXPECT_THAT(of_ladder("f16,q4,q8"), HasSubstr("q8 is not narrower than q4 before it"));
    EXPECT_THAT(of_ladder("f16,q4,q4"), HasSubstr("not narrower"));
    EXPECT_THAT(of_ladder("f16,q7"), HasSubstr("'q7' is no format; f16 q8 q6 q5 q4 q3 q2 are"));
    EXPECT_THAT(of_ladder("q8,q4"), HasSubstr("begins with f16"));
    EXPECT_THAT(of_ladder("f16"), HasSubstr("a format below f16"));
    EXPECT_THAT(of_ladder(""), HasSubstr("begins with f16"));
    EXPECT_THAT(of_ladder("f16,"), HasSubstr("'' is no format"));
    EXPECT_THAT(refusal({{"GGML_MIXED_KV_LADDER", "f16,q4"}}),
                HasSubstr("together with GGML_MIXED_KV_BUDGET_MB"));
    for (const char* wrong : {"0", "-1", "0%", "101%", "%", "", "4k", "nan", "inf", "1e400", "1 "}) {
        EXPECT_THAT(
            refusal({{"GGML_MIXED_KV_BUDGET_MB", wrong}}),
            AllOf(HasSubstr("GGML_MIXED_KV_BUDGET_MB='" + std::string(wrong) + "'"), Not(HasSubstr("\n"))));
    }
    for (const auto& [variable, value] :
         std::map<std::string, std::string>{{"GGML_MIXED_KV_K", "q4"},
                                            {"GGML_MIXED_KV_V", "f16"},
                                            {"GGML_MIXED_KV_LAYERS", "0:q8"},
                                            {"GGML_MIXED_KV_LIMIT_MB", "100"}}) {
        EXPECT_THAT(refusal({{"GGML_MIXED_KV_BUDGET_MB", "64"}, {variable, value}}),
                    AllOf(HasSubstr("GGML_MIXED_KV_BUDGET_MB='64'"), HasSubstr("without " + variable)));
    }
}

TEST(SettingTable, TextOfSeveralSettings) {
    EXPECT_EQ(settings_of_text("budget=25%,ladder=f16,q8,q3,window=4"),
              (std::map<std::string, std::string>{{"GGML_MIXED_KV_BUDGET_MB", "25%"},
                                                  {"GGML_MIXED_KV_LADDER", "f16,q8,q3"},
                                                  {"GGML_MIXED_KV_WINDOW", "4"}}));
    EXPECT_EQ(settings_of_text("K=q4,layers=0,-1:q8,isa=scalar,limit_mb=5"),
              (std::map<std::string, std::string>{{"GGML_MIXED_KV_K", "q4"},
                                                  {"GGML_MIXED_KV_LAYERS", "0,-1:q8"},
                                                  {"MIXED_KV_ISA", "scalar"},
                                                  {"GGML_MIXED_KV_LIMIT_MB", "5"}}));
    for (const char* wrong : {"window", "windwo=5", "=5", ","}) {
        EXPECT_THROW(settings_of_text(wrong), Error) << wrong;
    }
}

}  // namespace
}  // namespace mixed_kv::test
