// qk over cold pages.

#include "kernels/neon/tiles.h"

namespace mixed_kv::kernels::neon {

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    void qk_##name##_neon(const QkArgs& args) noexcept { shared::qk_cold<Set, bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::neon
