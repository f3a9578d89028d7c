#include "kernels/avx2/cold_keys.h"

#include "formats/format_list.h"

namespace mixed_kv::kernels::avx2 {

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    void qk_##name##_avx2(const QkArgs& args) noexcept { qk_cold<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx2
