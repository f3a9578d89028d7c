#pragma once

#include <string>

namespace mixed_kv::tools {

// Why a file cannot be a shared library for this machine, without opening it as one: the dynamic linker maps
// what a file claims to hold, and a truncated one kills the process (SIGBUS). Empty when it looks like a
// library. Never throws; the reason goes on after the file's name: "is a folder".
std::string why_no_library(const std::string& path);

}  // namespace mixed_kv::tools
