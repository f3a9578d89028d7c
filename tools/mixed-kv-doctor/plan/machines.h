#pragma once

#include <string>
#include <vector>

#include "mixed-kv-doctor/plan/sizing.h"

namespace mixed_kv::tools {

// The machines of a JSON file, in its order: a list of objects with name, memory_mib, gb_s, link_mbit and
// latency_ms. Throws std::runtime_error, one line with the file and the place: no JSON, a key that is
// unknown, missing or given twice, a value that is not a positive number, two machines of one name.
std::vector<Machine> read_machines(const std::string& path);

}  // namespace mixed_kv::tools
