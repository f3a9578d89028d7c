// pv over cold pages.

#include "kernels/neon/tiles.h"

namespace mixed_kv::kernels::neon {

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    void pv_##name##_neon(const PvArgs& args) noexcept { shared::pv_cold<Set, bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::neon
