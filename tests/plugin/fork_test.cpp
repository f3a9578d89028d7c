// Servers that load a model, compute with it, and fork: parent and child both go on, with the same results.
// Only the thread that called fork() exists in the child.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

constexpr unsigned kSecondsBeforeAHang = 100;

ContextOptions threads(int n) {
    ContextOptions options;
    options.n_ctx = 256;
    options.n_ubatch = 64;
    options.n_threads = n;
    return options;
}
ContextOptions two_threads() { return threads(2); }

class Forked : public testing::Test {
  protected:
    const Model model_{small_model(), CacheOwner::kPlugin};
    const std::vector<llama_token> prompt_ = random_tokens(100, model_.n_vocab(), 4);

    // Decodes a prompt and one more token, at which its first page freezes.
    std::vector<float> work(Context& context) const {
        context.clear();
        Logits logits = context.prefill(prompt_);
        context.generate(7, llama_pos(prompt_.size()), 1, 0, &logits);
        return logits.values;
    }

    const std::vector<float> expected_ = [this] {
        Context context(model_, two_threads());
        return work(context);
    }();
};

// Those whose children make threads.
class ForkedWithThreads : public Forked {
#if defined(__SANITIZE_THREAD__)
    void SetUp() override { GTEST_SKIP() << "ThreadSanitizer takes a child's threads for its parent's"; }
#endif
};

// Runs fn in a child. 0: it returned true; 1: false; a signal's number + 128; SIGALRM's is a hang.
int in_child(const std::function<bool()>& fn) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(kSecondsBeforeAHang);
        // The driver's own log has a lock, which another thread may have held.
        llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
        bool good = false;
        try {
            good = fn();
        } catch (const std::exception& e) {
            std::fprintf(stderr, "in the child: %s\n", e.what());
        }
        _exit(good ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

TEST_F(ForkedWithThreads, ChildAndParentGoOnWithTheSameContext) {
    Context context(model_, two_threads());
    ASSERT_EQ(work(context), expected_);
    for (int round = 0; round < 2; ++round) {
        SCOPED_TRACE(round);
        EXPECT_EQ(in_child([&] { return work(context) == expected_; }), 0);
        EXPECT_EQ(work(context), expected_);
    }
}

TEST_F(ForkedWithThreads, ChildMakesAContextOfItsOwn) {
    Context context(model_, two_threads());
    ASSERT_EQ(work(context), expected_);
    EXPECT_EQ(in_child([&] {
                  Context fresh(model_, two_threads());
                  return work(fresh) == expected_ && work(context) == expected_;
              }),
              0);
}

// The parent's context is gone, its pool waits for the next one.
TEST_F(ForkedWithThreads, ChildDoesNotTakeAPoolFromTheParentsStock) {
    {
        Context context(model_, two_threads());
        ASSERT_EQ(work(context), expected_);
    }
    EXPECT_EQ(in_child([&] {
                  Context fresh(model_, two_threads());
                  return work(fresh) == expected_;
              }),
              0);
}

TEST_F(ForkedWithThreads, ContextOfAnotherThread) {
    Context context(model_, two_threads());
    std::thread([&] { work(context); }).join();
    EXPECT_EQ(in_child([&] { return work(context) == expected_; }), 0);
    EXPECT_EQ(work(context), expected_);
}

TEST_F(ForkedWithThreads, Grandchild) {
    Context context(model_, two_threads());
    ASSERT_EQ(work(context), expected_);
    EXPECT_EQ(in_child([&] {
                  return work(context) == expected_ &&
                         in_child([&] { return work(context) == expected_; }) == 0 &&
                         work(context) == expected_;
              }),
              0);
}

// Between two splits of a graph: the callback asks for one node, and forks when it has been computed.
TEST_F(ForkedWithThreads, InMidGraph) {
    struct State {
        int result = -1;
        bool done = false;
        static bool callback(ggml_tensor* node, bool ask, void* data) {
            auto& state = *static_cast<State*>(data);
            if (state.done || std::strcmp(node->name, "l_out-0") != 0) return !ask;
            if (ask) return true;
            state.done = true;
            state.result = fork();
            if (state.result == 0) alarm(kSecondsBeforeAHang);
            return true;
        }
    } state;
    ContextOptions options = two_threads();
    options.eval_callback = State::callback;
    options.eval_callback_data = &state;
    Context context(model_, options);
    const bool good = work(context) == expected_;
    if (state.result == 0) _exit(good && work(context) == expected_ ? 0 : 1);
    EXPECT_TRUE(good);
    ASSERT_GT(state.result, 0);
    int status = 0;
    ASSERT_EQ(waitpid(state.result, &status, 0), state.result);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_EQ(work(context), expected_);
}

// Other threads hold the plugin's locks all the time: one computes, one asks.
TEST_F(Forked, WhileOtherThreadsComputeAndAsk) {
    Context context(model_, threads(1));
    const std::vector<float> expected = work(context);
    std::atomic<bool> stop{false};
    std::thread computes([&] {
        while (!stop) {
            Context other(model_, threads(1));
            work(other);
        }
    });
    std::thread asks([&] {
        std::vector<mixed_kv_tensor_info> tensors(64);
        mixed_kv_counters counters;
        char error[64];
        while (!stop) {
            plugin_api().counters(&counters);
            plugin_api().tensors(tensors.data(), tensors.size());
            plugin_api().report(nullptr, 0);
            plugin_api().configure("", error, sizeof error);
        }
    });
    for (int round = 0; round < 20; ++round) {
        SCOPED_TRACE(round);
        EXPECT_EQ(in_child([&] {
                      mixed_kv_counters counters;
                      plugin_api().report(nullptr, 0);
                      plugin_api().counters(&counters);
                      return work(context) == expected;
                  }),
                  0);
    }
    stop = true;
    computes.join();
    asks.join();
    EXPECT_EQ(work(context), expected);
}
