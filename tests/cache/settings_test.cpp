#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <optional>
#include <string>

#include "mixed_kv/error.h"
#include "mixed_kv/settings.h"

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
}

TEST(Settings, EveryVariable) {
    const Settings settings = read({{"GGML_MIXED_KV_WINDOW", "0"},
                                    {"GGML_MIXED_KV_SINKS", "65536"},
                                    {"GGML_MIXED_KV_K", "q8"},
                                    {"GGML_MIXED_KV_V", "f16"},
                                    {"GGML_MIXED_KV_VERBOSE", "2"}});
    EXPECT_EQ(settings.window, 0);
    EXPECT_EQ(settings.sinks, 65536);
    EXPECT_EQ(format_name(settings.key_format), "q8");
    EXPECT_EQ(settings.value_format, nullptr);
    EXPECT_EQ(format_name(settings.value_format), "f16");
    EXPECT_EQ(settings.verbose, 2);
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
    unsetenv("GGML_MIXED_KV_WINDOW");
    EXPECT_EQ(Settings::from_environment().window, 64);
}

}  // namespace
}  // namespace mixed_kv::test
