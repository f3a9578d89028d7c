// A process that forks while a thread of a lent pool holds the pool's lock, as each does for a moment when it
// goes to sleep after a graph. In the child nobody will ever open that lock.
#include <dlfcn.h>
#include <ggml-cpu.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

constexpr unsigned kSecondsBeforeAHang = 100;

// The next thread of ggml's CPU backend that is about to sleep stays awake, its lock held, until it is let
// go.
std::atomic<bool> hold_next{false}, held{false}, let_go{false};

bool is_ggml_cpu(void* address) {
    Dl_info info;
    return dladdr(address, &info) != 0 && info.dli_fname != nullptr &&
           std::strstr(info.dli_fname, "libggml-cpu") != nullptr;
}

}  // namespace

// In place of glibc's, for every library of this process. The caller holds the mutex.
extern "C" __attribute__((visibility("default"))) int pthread_cond_wait(pthread_cond_t* condition,
                                                                        pthread_mutex_t* mutex) {
    static const auto original = reinterpret_cast<decltype(&pthread_cond_wait)>([] {
        for (const char* version : {"GLIBC_2.3.2", "GLIBC_2.17"}) {
            if (void* found = dlvsym(RTLD_NEXT, "pthread_cond_wait", version)) return found;
        }
        return dlsym(RTLD_NEXT, "pthread_cond_wait");
    }());
    if (hold_next && is_ggml_cpu(__builtin_return_address(0)) && hold_next.exchange(false)) {
        held = true;
        while (!let_go) usleep(1000);
    }
    return original(condition, mutex);
}

namespace {

class ForkedWithALockHeld : public testing::Test {
  protected:
    static ContextOptions two_threads() {
        ContextOptions options;
        options.n_ctx = 256;
        options.n_ubatch = 64;
        options.n_threads = 2;
        return options;
    }
    std::vector<float> work(Context& context) const {
        context.clear();
        return context.prefill(prompt_).values;
    }
    // A thread computes with the context and ends; a thread of the pool that it was lent then holds the lock.
    void compute_until_a_lock_is_held() {
        for (int round = 0; round < 100 && !held; ++round) {
            std::thread([&] {
                work(context_);
                hold_next = true;
            }).join();
            for (int i = 0; i < 100 && !held; ++i) usleep(1000);
            hold_next = false;  // too late, they sleep already
        }
        ASSERT_TRUE(held);
    }
    void TearDown() override {
        let_go = true;
        EXPECT_EQ(work(context_), expected_);
        held = let_go = false;
    }
    int in_child(const std::function<bool()>& fn) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(kSecondsBeforeAHang);
            llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
            _exit(fn() ? 0 : 1);
        }
        int status = 0;
        EXPECT_EQ(waitpid(child, &status, 0), child);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

    const Model model_{small_model(), CacheOwner::kPlugin};
    const std::vector<llama_token> prompt_ = random_tokens(100, model_.n_vocab(), 4);
    Context context_{model_, two_threads()};
    const std::vector<float> expected_ = work(context_);
};

TEST_F(ForkedWithALockHeld, ChildGoesOnWithTheSameContext) {
    compute_until_a_lock_is_held();
    EXPECT_EQ(in_child([&] { return work(context_) == expected_; }), 0);
}

TEST_F(ForkedWithALockHeld, ChildGivesTheContextAPoolOfItsOwn) {
    compute_until_a_lock_is_held();
    EXPECT_EQ(in_child([&] {
                  ggml_backend_reg_t cpu =
                      ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
                  const auto make = reinterpret_cast<decltype(&ggml_threadpool_new)>(
                      ggml_backend_reg_get_proc_address(cpu, "ggml_threadpool_new"));
                  ggml_threadpool_params params = ggml_threadpool_params_default(2);
                  ggml_threadpool_t pool = make(&params);
                  llama_attach_threadpool(context_.get(), pool, pool);
                  return work(context_) == expected_;
              }),
              0);
}

}  // namespace
