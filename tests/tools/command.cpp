#include "command.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

extern char** environ;  // POSIX

namespace mixed_kv::test {

namespace fs = std::filesystem;

namespace {

// Removed when the process ends.
struct ScratchFolder {
    std::string path;
    ScratchFolder() {
        std::string name = (fs::temp_directory_path() / "mixed-kv-tools-XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr) {
            throw std::runtime_error("cannot make a folder in " + fs::temp_directory_path().string());
        }
        path = name;
    }
    ~ScratchFolder() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
    ScratchFolder(const ScratchFolder&) = delete;
    ScratchFolder& operator=(const ScratchFolder&) = delete;
};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::string> clean_environment(const Environment& added) {
    std::vector<std::string> result;
    for (char** entry = environ; *entry != nullptr; entry++) {
        const std::string text = *entry;
        if (text.rfind("GGML_", 0) != 0 && text.rfind("MIXED_KV_", 0) != 0) {
            result.push_back(text);
        }
    }
    for (const auto& [name, value] : added) {
        result.push_back(name + "=" + value);
    }
    return result;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
    std::vector<char*> result;
    for (std::string& text : strings) {
        result.push_back(text.data());
    }
    result.push_back(nullptr);
    return result;
}

int open_output(Output output, const std::string& path) {
    if (output == Output::full_disk) {
        return open("/dev/full", O_WRONLY);
    }
    int ends[2] = {-1, -1};
    if (output == Output::broken_pipe && pipe(ends) == 0) {
        close(ends[0]);
        return ends[1];
    }
    return open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
}

}  // namespace

std::vector<std::string> CommandResult::err_lines() const {
    std::vector<std::string> lines;
    std::istringstream text(err);
    for (std::string line; std::getline(text, line);) {
        lines.push_back(line);
    }
    return lines;
}

nlohmann::json CommandResult::json() const {
    nlohmann::json value = nlohmann::json::parse(out, nullptr, false);
    EXPECT_FALSE(value.is_discarded()) << "not one JSON value: " << out << "\nstderr: " << err;
    return value.is_discarded() ? nlohmann::json::object() : value;
}

CommandResult run_tool(const std::string& program, const std::vector<std::string>& arguments,
                       const Environment& environment, Output output) {
    std::vector<std::string> argument_texts = {std::string(MIXED_KV_BIN_DIR) + "/" + program};
    argument_texts.insert(argument_texts.end(), arguments.begin(), arguments.end());
    std::vector<std::string> environment_texts = clean_environment(environment);
    const std::vector<char*> argv = pointers(argument_texts);
    const std::vector<char*> envp = pointers(environment_texts);
    // Files, not pipes: no reader has to keep up.
    const std::string out_path = scratch_folder() + "/stdout", err_path = scratch_folder() + "/stderr";

    const pid_t child = fork();
    if (child < 0) {
        throw std::runtime_error("fork failed");
    }
    if (child == 0) {
        const int in = open("/dev/null", O_RDONLY);
        const int out = open_output(output, out_path);
        const int err = open(err_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (in < 0 || out < 0 || err < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) {
            _exit(126);
        }
        if (output == Output::closed) {
            close(1);
        }
        execve(argv[0], argv.data(), envp.data());
        _exit(127);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    CommandResult result;
    result.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    result.out = read_file(out_path);
    result.err = read_file(err_path);
    return result;
}

const std::string& scratch_folder() {
    static const ScratchFolder folder;
    return folder.path;
}

std::string write_file(const std::string& name, const std::string& content) {
    const std::string path = scratch_folder() + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
}

const std::string& random_model() {
    static const std::string path = [] {
        std::string file = scratch_folder() + "/random.gguf";
        const CommandResult made = run_tool("make-random-model", {"--arch", "llama", "--out", file});
        if (made.exit_status != 0) {
            throw std::runtime_error("make-random-model failed: " + made.err);
        }
        return file;
    }();
    return path;
}

std::string bundled_model() {
    std::vector<std::string> models;
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(MIXED_KV_MODEL_DIR, ignored)) {
        if (entry.path().extension() == ".gguf") {
            models.push_back(entry.path().string());
        }
    }
    std::sort(models.begin(), models.end());
    return models.empty() ? "" : models.front();
}

std::string eval_text() { return read_file(std::string(MIXED_KV_MODEL_DIR) + "/eval.txt"); }

std::string long_prompt(int n_words) {
    std::string text;
    for (int i = 0; i < n_words; i++) {
        if (i > 0) {
            text += ' ';
        }
        text += std::to_string(i * 7919 % 1000);
    }
    return text;
}

}  // namespace mixed_kv::test
