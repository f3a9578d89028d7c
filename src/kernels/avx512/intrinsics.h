#pragma once

// Where these kernels' _mm512_* functions come from: the compiler, or, in the test build that runs this very
// source on CPUs without AVX-512, an emulation (tests/kernels/emulation).
#if defined(MIXED_KV_AVX512_EMULATED)
#include "avx512_emulation.h"
#else
#include <immintrin.h>
#endif
