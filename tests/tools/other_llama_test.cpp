// Another llama.cpp than the one that the programs were linked with: found, looked at, and run on.
#include <gtest/gtest.h>

#include <filesystem>

#include "command.h"

namespace mixed_kv::test {

namespace {

namespace fs = std::filesystem;

fs::path own_folder() { return fs::canonical(fs::path(MIXED_KV_GGML_BASE_FILE).parent_path()); }

// Another build of the same release, for the programs: the same libraries elsewhere, libllama and libggml
// named as in llama.cpp's archives.
std::string copied_llama() {
    static const std::string folder = [] {
        const fs::path copy = fs::path(scratch_folder()) / "copied-llama";
        fs::create_directories(copy);
        for (const fs::directory_entry& entry : fs::directory_iterator(own_folder())) {
            const std::string name = entry.path().filename().string();
            if (name.rfind("libggml.", 0) == 0) {
                fs::copy_file(entry.path(), copy / "libggml.so.0");
            } else if (name.rfind("libllama.", 0) == 0) {
                fs::copy_file(entry.path(), copy / "libllama.so.0");
            } else if (name.rfind("libggml-", 0) == 0) {
                fs::copy_file(entry.path(), copy / name);
            }
        }
        return fs::canonical(copy).string();
    }();
    return folder;
}

std::vector<std::string> short_run(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"-m",  random_model(), "-p", long_prompt(40), "-n", "2", "-c",
                                          "512", "-t",           "1",  "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
}

TEST(OtherLlama, ProgramsRunOnIt) {
    const CommandResult result = run_tool("mixed-kv-run", short_run({"--llama", copied_llama()}));
    EXPECT_EQ(result.exit_status, 0) << result.err;
    EXPECT_TRUE(result.json().at("active").get<bool>());
    // The doctor says which one that is.
    const nlohmann::json doctor =
        run_tool("mixed-kv-doctor", {"--json"}, {{"MIXED_KV_LLAMA_LIB_DIR", copied_llama()}}).json();
    EXPECT_TRUE(doctor.at("healthy").get<bool>());
    for (const char* key : {"library", "ggml_library", "cpu_backend"}) {
        const auto file = doctor.at("llama_cpp").at(key).get<std::string>();
        EXPECT_EQ(fs::path(file).parent_path().string(), copied_llama()) << key;
    }
}

TEST(OtherLlama, IsLookedAtWithoutBeingLoaded) {
    const nlohmann::json json = run_tool("mixed-kv-doctor", {"--json", "--llama", copied_llama()}).json();
    EXPECT_TRUE(json.at("fits").get<bool>());
    EXPECT_EQ(json.at("api_version"), 2);
    EXPECT_EQ(json.at("llama_cpp").at("folder"), copied_llama());
}

TEST(OtherLlama, IsFound) {
    const CommandResult result =
        run_tool("mixed-kv-doctor", {"--json", "--find"}, {{"MIXED_KV_LLAMA_LIB_DIR", copied_llama()}});
    EXPECT_EQ(result.exit_status, 0) << result.out;
    const nlohmann::json json = result.json();
    std::vector<std::string> folders;
    for (const nlohmann::json& installation : json.at("installations")) {
        folders.push_back(installation.at("folder"));
    }
    ASSERT_GE(folders.size(), 2U);
    EXPECT_EQ(folders[0], copied_llama());
    EXPECT_EQ(folders[1], own_folder().string());
}

TEST(OtherLlama, WhatIsNoneIsSaidInOneLine) {
    const std::string half = scratch_folder() + "/half-llama", spaced = scratch_folder() + "/a llama";
    fs::create_directories(half);
    fs::create_directories(spaced);
    fs::copy_file(MIXED_KV_GGML_BASE_FILE, half + "/libggml-base.so");
    fs::copy_file(MIXED_KV_GGML_BASE_FILE, spaced + "/libggml-base.so");
    const std::pair<std::string, std::string> bad[] = {
        {"/no/such/folder", "there is no /no/such/folder"},
        {"/etc/passwd", "/etc/passwd is no folder"},
        {"/etc", "no libggml-base.so in /etc nor where installations have it below"},
        {half, "half of an installation: "},
        {spaced, "takes no name with a space or colon"},
    };
    for (const auto& [folder, says] : bad) {
        const CommandResult result = run_tool("mixed-kv-run", short_run({"--llama", folder}));
        EXPECT_EQ(result.exit_status, 1) << folder;
        ASSERT_EQ(result.err_lines().size(), 1U) << result.err;
        EXPECT_EQ(result.err_lines().front().rfind("mixed-kv-run: error: --llama: ", 0), 0U) << result.err;
        EXPECT_NE(result.err.find(says), std::string::npos) << result.err;
    }
}

}  // namespace

}  // namespace mixed_kv::test
