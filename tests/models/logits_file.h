// Logits on disk, between a test and the processes it starts.
#pragma once

#include "llama_driver.h"

#include <string>

namespace mixed_kv::test {

/// Both throw std::runtime_error, naming the file.
void write_logits(const Logits& logits, const std::string& path);
Logits read_logits(const std::string& path);

}  // namespace mixed_kv::test
