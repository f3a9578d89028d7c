#pragma once

#include <pthread.h>

#include <new>

namespace mixed_kv::plugin {

// A value per thread, made on first use. A thread_local in a library that is loaded at run time ends the
// process when there is no memory for it; this one says so.
template <typename T>
class ThreadState {
  public:
    ThreadState() noexcept {
        usable_ = pthread_key_create(&key_, [](void* state) { delete static_cast<T*>(state); }) == 0;
    }
    ThreadState(const ThreadState&) = delete;
    ThreadState& operator=(const ThreadState&) = delete;

    // This thread's value; null where there is none yet and no memory for one.
    T* get() noexcept {
        if (!usable_) return nullptr;
        if (auto* state = static_cast<T*>(pthread_getspecific(key_))) return state;
        T* state = new (std::nothrow) T;
        if (state != nullptr && pthread_setspecific(key_, state) != 0) {
            delete state;
            return nullptr;
        }
        return state;
    }

  private:
    pthread_key_t key_{};
    bool usable_ = false;
};

}  // namespace mixed_kv::plugin
