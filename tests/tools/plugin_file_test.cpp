// GGML_BACKEND_PATH that names something the dynamic linker must not be given, or cannot use: every tool that
// loads the plugin says what it is, in one line.
#include <elf.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "command.h"
#include "common/library_file.h"

namespace mixed_kv::test {

namespace {

std::string plugin_bytes() {
    std::ifstream file(MIXED_KV_PLUGIN_FILE, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::string truncated_to(std::size_t size) {
    return write_file("truncated-" + std::to_string(size) + ".so", plugin_bytes().substr(0, size));
}

std::string for_machine(int machine, unsigned char elf_class = ELFCLASS64) {
    std::string bytes = plugin_bytes().substr(0, 4096);
    Elf64_Ehdr header;
    std::memcpy(&header, bytes.data(), sizeof header);
    header.e_machine = static_cast<Elf64_Half>(machine);
    header.e_ident[EI_CLASS] = elf_class;
    std::memcpy(bytes.data(), &header, sizeof header);
    return write_file("machine-" + std::to_string(machine) + ".so", bytes);
}

TEST(LibraryFile, AWholeOneIsFine) {
    EXPECT_EQ(tools::why_no_library(MIXED_KV_PLUGIN_FILE), "");
    EXPECT_EQ(tools::why_no_library(MIXED_KV_GGML_BASE_FILE), "");
}

TEST(LibraryFile, EveryPrefixOfOneIsNone) {
    const std::size_t size = plugin_bytes().size();
    for (const std::size_t length :
         {std::size_t{0}, std::size_t{3}, std::size_t{17}, std::size_t{63}, std::size_t{64}, std::size_t{200},
          std::size_t{4096}, size / 2, size - 4096, size - 1}) {
        EXPECT_NE(tools::why_no_library(truncated_to(length)), "") << length << " bytes of " << size;
    }
}

TEST(LibraryFile, SaysWhatAFileIs) {
    EXPECT_EQ(tools::why_no_library("/no/plugin.so"), "does not exist");
    EXPECT_EQ(tools::why_no_library("/etc"), "is a folder, not a library");
    EXPECT_EQ(tools::why_no_library("/dev/null"), "is no regular file");
    EXPECT_EQ(tools::why_no_library(truncated_to(0)), "is empty");
    EXPECT_NE(tools::why_no_library(write_file("text.so", "GROUP ( libggml.so )\n")).find("another kind"),
              std::string::npos);
    EXPECT_NE(tools::why_no_library(for_machine(EM_RISCV)).find("is for RISC-V"), std::string::npos);
    EXPECT_NE(tools::why_no_library(for_machine(EM_386, ELFCLASS32)).find("is for 32-bit x86"),
              std::string::npos);
}

// Every tool that loads the plugin, with what makes it come that far.
class ToolsWithABadPlugin : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(ToolsWithABadPlugin, SayWhatItIs) {
    std::vector<std::string> arguments = GetParam();
    const std::string tool = arguments.front();
    arguments.erase(arguments.begin());
    for (std::string& argument : arguments) {
        if (argument == "MODEL") {
            argument = random_model();
        } else if (argument == "TEXT") {
            argument = write_file("text.txt", long_prompt(400));
        } else if (argument == "TRACE") {
            argument = scratch_folder() + "/trace.gguf";
        }
    }
    const std::pair<std::string, std::string> bad[] = {
        {truncated_to(plugin_bytes().size() / 2), "is truncated"},
        {"/etc", "is a folder"},
        {"/etc/passwd", "is no library"},
        {for_machine(EM_RISCV), "is for"},
    };
    for (const auto& [path, says] : bad) {
        const CommandResult result = run_tool(tool, arguments, {{"GGML_BACKEND_PATH", path}});
        EXPECT_EQ(result.exit_status, 1) << path << ": " << result.err;
        const std::string& said = tool == "mixed-kv-doctor" ? result.out : result.err;
        EXPECT_NE(said.find(path + " " + says), std::string::npos) << said;
        if (tool != "mixed-kv-doctor") {
            EXPECT_EQ(result.err_lines().size(), 1U) << result.err;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Table, ToolsWithABadPlugin,
                         testing::Values(std::vector<std::string>{"mixed-kv-doctor"},
                                         std::vector<std::string>{"mixed-kv-run", "-m", "MODEL", "-p", "a"}));

}  // namespace

}  // namespace mixed_kv::test
