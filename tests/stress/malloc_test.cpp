// A whole run, from loading the plugin to the first tokens, with one request for memory refused to whoever
// makes it: the program, llama.cpp, ggml, the loader, the plugin. A child of its own for each request.
// Nothing that the plugin takes part in ends the process or throws out of it, what is refused is said in one
// line, and everything works when it is asked for again. Processes that llama.cpp or ggml end by themselves
// are listed by cause.
//
// MIXED_KV_MALLOC_FAULTS: how many requests of each part are refused, one after the other from the first on.
// Without it a few, spread over all.
#include <cxxabi.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "malloc_hooks.h"
#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

constexpr unsigned kSecondsBeforeAHang = 60;
constexpr long kFew = 6;
constexpr std::size_t kTokens = 70;  // the next one freezes a page of them
constexpr int kWorked = 0, kEscaped = 10, kNotAfterwards = 11;

enum Part { kPlugin, kModel, kContext, kDecode, kParts };
constexpr const char* kNames[] = {"loading the plugin", "loading the model", "making a context", "decoding"};

struct Shared {
    FaultReport fault;
    bool failed;         // the call that a request was refused in returned a failure
    std::size_t n_said;  // bytes that had been said by then
    char escaped[256];
};

// What a program does, part by part. A part that failed can be done again.
class Program {
  public:
    // n_threads: of decoding. With more than one the plugin lends the host a pool.
    bool run(Part part, int n_threads = 1) {
        switch (part) {
            case kPlugin:
                return ggml_backend_load(path_.c_str()) != nullptr;
            case kModel: {
                llama_model_params params = llama_model_default_params();
                ggml_backend_dev_t devices[] = {plugin_device(), nullptr};
                params.devices = devices;
                model_ = llama_model_load_from_file(MIXED_KV_MODEL, params);
                return model_ != nullptr;
            }
            case kContext: {
                llama_context_params params = llama_context_default_params();
                params.n_ctx = 256;
                params.n_ubatch = 64;
                params.n_threads = params.n_threads_batch = 1;
                context_ = llama_init_from_model(model_, params);
                return context_ != nullptr;
            }
            default:
                llama_set_n_threads(context_, n_threads, n_threads);
                llama_memory_clear(llama_get_memory(context_), true);
                return decode(kTokens, 1) && decode(1, 2);
        }
    }

  private:
    bool decode(std::size_t n, std::uint64_t seed) {
        std::vector<llama_token> tokens = random_tokens(n, 200, seed);
        return llama_decode(context_, llama_batch_get_one(tokens.data(), std::int32_t(n))) == 0;
    }

    const std::string path_ = std::getenv("GGML_BACKEND_PATH");
    llama_model* model_ = nullptr;
    llama_context* context_ = nullptr;
};

// Errors, and everything that the plugin says. Needs no memory.
void say_errors(ggml_log_level level, const char* text, void*) {
    if (level != GGML_LOG_LEVEL_ERROR && std::strncmp(text, "mixed-kv: ", 10) != 0) return;
    (void)!write(STDERR_FILENO, text, std::strlen(text));
}

std::size_t n_said() { return std::size_t(lseek(STDERR_FILENO, 0, SEEK_CUR)); }

// Whether a function of ggml's CPU backend that the plugin had called ended the process, and did so before it
// came back: computing a graph, making a backend and a thread pool do, where they get no memory. llama.cpp
// calls the same functions for each of its own graphs.
bool is_ggmls_own(const FaultReport& fault) {
    const std::string refused = fault.refused_at, died = fault.died_at;
    const std::size_t plugin = refused.find("libggml-mixed-kv"), then = died.find("libggml-mixed-kv");
    if (fault.signal == 0 || plugin == std::string::npos || then == std::string::npos) return false;
    return refused.find("libggml-cpu") < plugin && refused.substr(plugin) == died.substr(then);
}

// In the child.
int run_with_fault(Program& program, Part part, Requests which, long n, Shared& shared) {
    alarm(kSecondsBeforeAHang);
    llama_log_set(say_errors, nullptr);
    arm(which, n, shared.fault);
    try {
        shared.failed = !program.run(part, which == Requests::under_plugin ? 2 : 1);
    } catch (const std::exception& error) {
        disarm();
        shared.n_said = n_said();
        std::snprintf(shared.escaped, sizeof shared.escaped, "%s", error.what());
        return kEscaped;
    }
    disarm();
    shared.n_said = n_said();
    for (int later = shared.failed ? part : part + 1; later < kParts; ++later) {
        if (!program.run(Part(later))) return kNotAfterwards;
    }
    return kWorked;
}

class Malloc : public testing::Test {
  protected:
    struct Result {
        int status;  // of the exit, or 128 + a signal
        std::string said;
    };

    Malloc() {
        void* memory =
            mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        shared_ = new (memory) Shared{};
        said_ = std::tmpfile();
        if (const char* text = std::getenv("MIXED_KV_MALLOC_FAULTS")) all_up_to_ = std::atol(text);
    }
    ~Malloc() override {
        std::fclose(said_);
        munmap(shared_, sizeof(Shared));
    }

    Result child(Part part, Requests which, long n) {
        *shared_ = {};
        (void)!ftruncate(fileno(said_), 0);
        std::rewind(said_);
        std::fflush(nullptr);
        const pid_t pid = fork();
        if (pid == 0) {
            dup2(fileno(said_), STDERR_FILENO);
            _exit(run_with_fault(program_, part, which, n, *shared_));
        }
        int status = 0;
        EXPECT_EQ(waitpid(pid, &status, 0), pid);
        Result result{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), ""};
        char text[4096];
        std::rewind(said_);
        for (std::size_t got; (got = std::fread(text, 1, sizeof text, said_)) > 0;)
            result.said.append(text, got);
        return result;
    }

    // Until the call returned that a request was refused in.
    int lines_of_ours(const Result& result) const {
        const std::string said = result.said.substr(0, shared_->n_said);
        int n = 0;
        // The line about the cache is not about the request.
        for (std::size_t at = 0; (at = said.find("mixed-kv: ", at)) != std::string::npos; ++at)
            n += said.find("mixed-kv: cache of ", at) != at;
        return n;
    }

    // The requests of one part, refused one after the other.
    void refuse(Part part, Requests which) {
        SCOPED_TRACE(kNames[part]);
        const Result undisturbed = child(part, which, 0);
        ASSERT_EQ(undisturbed.status, kWorked) << undisturbed.said;
        const long n_requests = shared_->fault.n_requests;
        const long last = all_up_to_ > 0 ? std::min(all_up_to_, n_requests) : n_requests;
        const long step = all_up_to_ > 0 ? 1 : std::max(1L, n_requests / kFew);
        int n_refused = 0, n_failed = 0;
        std::map<std::string, std::vector<long>> hosts_own;
        for (long n = 1; n <= last; n += step) {
            SCOPED_TRACE(n);
            const Result result = child(part, which, n);
            const FaultReport& fault = shared_->fault;
            if (!fault.refused) continue;  // threads: not every run makes the same requests
            ++n_refused;
            n_failed += shared_->failed;
            const bool ours = (fault.refused_under_plugin || fault.died_under_plugin) && !is_ggmls_own(fault);
            if (result.status == kWorked) {
                // The host says what it was told, the plugin what it could not do itself.
                EXPECT_LE(lines_of_ours(result), 1) << result.said << fault.refused_at;
                if (shared_->failed && ours) {
                    EXPECT_GT(shared_->n_said, 0U) << fault.refused_at;
                }
            } else if (result.status > 128 || result.status == kEscaped) {
                if (ours) {
                    ADD_FAILURE() << "status " << result.status << " " << shared_->escaped
                                  << "\nrefused: " << fault.refused_at << "\ndied: " << fault.died_at << "\n"
                                  << result.said;
                } else {
                    hosts_own[cause(result, fault)].push_back(n);
                }
            } else {
                ADD_FAILURE() << "status " << result.status << ", refused: " << fault.refused_at << "\n"
                              << result.said;
            }
        }
        std::printf("%s: %ld requests, %d refused, %d calls failed\n", kNames[part], n_requests, n_refused,
                    n_failed);
        for (const auto& [why, where] : hosts_own) {
            std::printf("  the host's own, %zu (%ld%s): %s\n", where.size(), where.front(),
                        where.size() > 1 ? ", ..." : "", why.c_str());
        }
    }

    // How the process ended, and the innermost function of llama.cpp's or ggml's with a name of its own.
    static std::string cause(const Result& result, const FaultReport& fault) {
        const std::string how = result.status == kEscaped ? "exception" : strsignal(result.status - 128);
        const std::string stack = fault.refused_at;
        for (std::size_t at = 0, end = 0; end != std::string::npos; at = end + 3) {
            end = stack.find(" < ", at);
            const std::string frame = stack.substr(at, end == std::string::npos ? end : end - at);
            const std::size_t name = frame.find('!');
            if (name == std::string::npos || frame.rfind("lib", 0) != 0) continue;
            const std::unique_ptr<char, decltype(&std::free)> readable(
                abi::__cxa_demangle(frame.c_str() + name + 1, nullptr, nullptr, nullptr), std::free);
            std::string function = readable ? readable.get() : frame.substr(name + 1);
            function.resize(std::min(function.size(), function.find('(')));
            const bool allocates = function == "operator new" || function == "ggml_aligned_malloc";
            if (!allocates && frame.rfind("libc.so", 0) != 0 && function.find("std::") == std::string::npos &&
                function.rfind("_ZNSt", 0) != 0 && frame.find("libstdc++") == std::string::npos)
                return how + " in " + function;
        }
        return how + ": " + stack;
    }

    Program program_;
    Shared* shared_;
    std::FILE* said_;
    long all_up_to_ = 0;
};

}  // namespace

// In the order of a program: the parts before are done once, in the parent.
TEST_F(Malloc, OneRequestRefused) {
    llama_log_set(say_errors, nullptr);
    setenv("GGML_NO_BACKTRACE", "1", 1);  // ggml would start a debugger
    unsetenv("GGML_BACKEND_PATH");        // the plugin is a part of its own
    ggml_backend_load_all_from_path(MIXED_KV_LLAMA_LIB_DIR);
    llama_backend_init();
    for (const Part part : {kPlugin, kModel, kContext, kDecode}) {
        for (const Requests which : {Requests::all, Requests::under_plugin}) refuse(part, which);
        if (part < kDecode) {
            ASSERT_TRUE(program_.run(part));
        }
    }
}
