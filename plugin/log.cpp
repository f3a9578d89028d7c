#include "log.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace mixed_kv::plugin {
namespace {

constexpr char kPrefix[] = "mixed-kv: ";
constexpr std::size_t kMaxLine = 2048;

}  // namespace

void log_line(ggml_log_level level, const char* format, ...) noexcept {
    char line[kMaxLine];
    constexpr std::size_t kText = sizeof kPrefix - 1;
    std::memcpy(line, kPrefix, kText);
    va_list args;
    va_start(args, format);
    std::vsnprintf(line + kText, kMaxLine - kText - 1, format, args);
    va_end(args);
    std::strcat(line, "\n");
    ggml_log_callback callback = nullptr;
    void* data = nullptr;
    ggml_log_get(&callback, &data);
    if (callback != nullptr) callback(level, line, data);
}

}  // namespace mixed_kv::plugin
