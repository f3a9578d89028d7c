// qk over cold pages.

#include "kernels/dotprod/tiles.h"

namespace mixed_kv::kernels::dotprod {

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    void qk_##name##_dotprod(const QkArgs& args) noexcept { shared::qk_cold<Set, bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::dotprod
