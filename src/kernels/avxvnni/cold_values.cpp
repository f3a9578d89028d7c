#include "kernels/avx2/cold_values.h"

#include "kernels/avxvnni/avxvnni.h"

namespace mixed_kv::kernels::avxvnni {

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    void pv_##name##_avxvnni(const PvArgs& args) noexcept { avx2::pv_cold<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avxvnni
