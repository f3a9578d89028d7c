#pragma once

#include "formats/format_list.h"
#include "kernels/contract.h"

// Products of cold pages with SDOT, which multiplies 16 codes with four bytes. All else is the neon set's.
namespace mixed_kv::kernels::dotprod {

// qk_q4_dotprod and so on, for every cold format.
#define MIXED_KV_DECLARE_FORMAT(name, bits)                \
    void qk_##name##_dotprod(const QkArgs& args) noexcept; \
    void pv_##name##_dotprod(const PvArgs& args) noexcept;
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DECLARE_FORMAT)
#undef MIXED_KV_DECLARE_FORMAT

extern const KernelSet kKernelSet;

}  // namespace mixed_kv::kernels::dotprod
