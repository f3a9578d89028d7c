#pragma once

#include <string>
#include <vector>

namespace mixed_kv::tools {

enum class LogDisplay {
    errors,      // llama.cpp's errors
    everything,  // all of its log
    nothing,     // kept only; the caller reports what went wrong
};

// Takes over llama.cpp's and ggml's log for the rest of the process. Call before backends are loaded.
void capture_log(LogDisplay display);

// What is shown from now on.
void set_log_display(LogDisplay display);

// The errors logged so far, one line each, oldest first; taking them empties the list. They name the cause
// when a llama.cpp function returns no more than null.
std::vector<std::string> take_logged_errors();

// The same for the plugin's own lines (they begin with "mixed-kv") of any level.
std::vector<std::string> take_plugin_lines();

}  // namespace mixed_kv::tools
