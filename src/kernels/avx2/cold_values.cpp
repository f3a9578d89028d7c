#include "kernels/avx2/cold_values.h"

#include "formats/format_list.h"

namespace mixed_kv::kernels::avx2 {

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    void pv_##name##_avx2(const PvArgs& args) noexcept { pv_cold<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx2
