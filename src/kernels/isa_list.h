#pragma once

#include "kernels/contract.h"

// The kernel sets of this build, fastest first; MIXED_KV_HAVE_* come from src/kernels/CMakeLists.txt. A new
// instruction set is one folder and one line here.
namespace mixed_kv::kernels {

#if defined(MIXED_KV_HAVE_AMX)
namespace amx {
extern const KernelSet kKernelSet;
}
#endif
#if defined(MIXED_KV_HAVE_AVX512)
namespace avx512 {
extern const KernelSet kKernelSet;
}
#endif
#if defined(MIXED_KV_HAVE_AVXVNNI)
namespace avxvnni {
extern const KernelSet kKernelSet;
}
#endif
#if defined(MIXED_KV_HAVE_AVX2)
namespace avx2 {
extern const KernelSet kKernelSet;
}
#endif
#if defined(MIXED_KV_HAVE_I8MM)
namespace i8mm {
extern const KernelSet kKernelSet;
}
#endif
#if defined(MIXED_KV_HAVE_DOTPROD)
namespace dotprod {
extern const KernelSet kKernelSet;
}
#endif
#if defined(MIXED_KV_HAVE_NEON)
namespace neon {
extern const KernelSet kKernelSet;
}
#endif
namespace scalar {
extern const KernelSet kKernelSet;
}

inline constexpr const KernelSet* kKernelSets[] = {
#if defined(MIXED_KV_HAVE_AMX)
    &amx::kKernelSet,
#endif
#if defined(MIXED_KV_HAVE_AVX512)
    &avx512::kKernelSet,
#endif
#if defined(MIXED_KV_HAVE_AVXVNNI)
    &avxvnni::kKernelSet,
#endif
#if defined(MIXED_KV_HAVE_AVX2)
    &avx2::kKernelSet,
#endif
#if defined(MIXED_KV_HAVE_I8MM)
    &i8mm::kKernelSet,
#endif
#if defined(MIXED_KV_HAVE_DOTPROD)
    &dotprod::kKernelSet,
#endif
#if defined(MIXED_KV_HAVE_NEON)
    &neon::kKernelSet,
#endif
    &scalar::kKernelSet,
};

}  // namespace mixed_kv::kernels
