#include "common/llama_log.h"

#include <llama.h>

#include <atomic>
#include <cstdio>
#include <mutex>
#include <utility>

namespace mixed_kv::tools {

namespace {

struct Log {
    std::atomic<LogDisplay> display = LogDisplay::errors;
    std::mutex mutex;
    ggml_log_level level = GGML_LOG_LEVEL_INFO;  // of the line at hand, for its continuations
    std::string line;
    std::vector<std::string> errors;
    std::vector<std::string> plugin_lines;
};

Log& process_log() {
    static Log* log = new Log;  // never destroyed: backends may log while the process exits
    return *log;
}

void on_log(ggml_log_level level, const char* text, void*) {
    Log& log = process_log();
    const std::lock_guard lock(log.mutex);
    if (level != GGML_LOG_LEVEL_CONT) {
        log.level = level;
    }
    const LogDisplay display = log.display;
    if (display == LogDisplay::everything ||
        (display == LogDisplay::errors && log.level == GGML_LOG_LEVEL_ERROR)) {
        std::fputs(text, stderr);
    }
    for (const char* c = text; *c != '\0'; c++) {
        if (*c != '\n') {
            log.line += *c;
            continue;
        }
        if (log.level == GGML_LOG_LEVEL_ERROR) {
            log.errors.push_back(log.line);
        }
        if (log.line.rfind("mixed-kv", 0) == 0) {
            log.plugin_lines.push_back(log.line);
        }
        log.line.clear();
    }
}

}  // namespace

void capture_log(LogDisplay display) {
    process_log().display = display;
    llama_log_set(on_log, nullptr);
}

void set_log_display(LogDisplay display) { process_log().display = display; }

std::vector<std::string> take_logged_errors() {
    Log& log = process_log();
    const std::lock_guard lock(log.mutex);
    return std::exchange(log.errors, {});
}

std::vector<std::string> take_plugin_lines() {
    Log& log = process_log();
    const std::lock_guard lock(log.mutex);
    return std::exchange(log.plugin_lines, {});
}

}  // namespace mixed_kv::tools
