#pragma once

#include "formats/format_list.h"
#include "kernels/contract.h"

// Kernels for AVX2 with AVX-VNNI, which adds 256-bit dot products to CPUs without AVX-512: the text of the
// AVX2 set's cold kernels (kernels/avx2/products.h is where they differ), the rest are its functions.
namespace mixed_kv::kernels::avxvnni {

#define MIXED_KV_DECLARE_FORMAT(name, bits)                \
    void qk_##name##_avxvnni(const QkArgs& args) noexcept; \
    void pv_##name##_avxvnni(const PvArgs& args) noexcept;
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DECLARE_FORMAT)
#undef MIXED_KV_DECLARE_FORMAT

extern const KernelSet kKernelSet;

}  // namespace mixed_kv::kernels::avxvnni
