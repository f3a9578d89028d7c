#pragma once

#include <exception>
#include <new>
#include <utility>

#include "log.h"

namespace mixed_kv::plugin {

// The host calls us through tables of C functions and is C itself for the most part: an exception that leaves
// one of them ends the process. Every entry of every table whose work can fail does it in here.

inline const char* reason_of(const std::exception& e) noexcept {
    return dynamic_cast<const std::bad_alloc*>(&e) != nullptr ? "out of memory" : e.what();
}

// What fn returns; `failed`, after one line that says what failed, when it throws.
template <typename Result, typename Fn>
Result at_border(const char* what, Result failed, Fn&& fn) {
    try {
        return std::forward<Fn>(fn)();
    } catch (const std::exception& e) {
        log_line(GGML_LOG_LEVEL_ERROR, "%s: %s", what, reason_of(e));
        return failed;
    }
}

template <typename Fn>
void at_border(const char* what, Fn&& fn) {
    at_border(what, 0, [&] { return std::forward<Fn>(fn)(), 0; });
}

}  // namespace mixed_kv::plugin
