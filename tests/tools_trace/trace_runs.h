#pragma once

#include <string>
#include <vector>

#include "command.h"

namespace mixed_kv::test {

// A random model of that preset (make-random-model --list), made once per process.
const std::string& random_model(const std::string& preset);

// A path in the scratch folder.
std::string scratch(const std::string& name);

// Runs kqv-trace-monitor quietly on one thread and expects success.
CommandResult record(const std::string& model, const std::string& trace,
                     const std::vector<std::string>& more);

// Runs kqv-tensor-reader.
CommandResult read_trace(const std::string& trace, const std::vector<std::string>& more = {});

// CPU time of all children so far, in seconds: what other programs do at the same time does not count.
double seconds_of_children();

// Runs a program of ours quietly and expects success. Returns its largest resident set, in bytes.
double memory_of(const std::string& program, std::vector<std::string> arguments);

// Content of a file, "" if there is none.
std::string read_text(const std::string& path);

// Under a sanitizer, time and memory mean nothing.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// Space-separated letters, about n tokens for a random model.
std::string letters(int n);

}  // namespace mixed_kv::test
