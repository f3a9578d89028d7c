#pragma once

#include "kv_buffer.h"
#include "mixed_kv_api.h"

namespace mixed_kv::plugin {

// The table behind mixed_kv_get_api; null for a version we do not speak.
const mixed_kv_api* api(std::uint32_t version);

mixed_kv_tensor_info describe_entry(const KvEntry& entry);

}  // namespace mixed_kv::plugin
