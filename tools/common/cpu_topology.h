#pragma once

#include <string>

namespace mixed_kv::tools {

// CPUs this process may run on (its affinity mask).
int usable_cpus();

// Cores behind those CPUs: two hyper-threads of a core count once. What llama.cpp's programs use by default.
int usable_cores();

// "model name" of /proc/cpuinfo; empty when there is none.
std::string cpu_model_name();

}  // namespace mixed_kv::tools
