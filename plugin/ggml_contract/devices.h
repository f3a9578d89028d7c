#pragma once

#include "ggml-backend.h"

namespace mixed_kv::plugin {

// A device that wraps others for -sm tensor: GGML_BACKEND_DEVICE_TYPE_META, which ggml has since 0.10.
// Compared by its number, after ACCEL, so that it is known to plugins compiled for earlier ones, too.
inline bool is_wrapper(ggml_backend_dev_t device) {
    return int(ggml_backend_dev_type(device)) == int(GGML_BACKEND_DEVICE_TYPE_ACCEL) + 1;
}

}  // namespace mixed_kv::plugin
