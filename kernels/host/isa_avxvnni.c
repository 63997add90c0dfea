/* The kernels in AVX2, FMA, F16C and AVX-VNNI, the 256-bit dot products of CPUs without AVX-512;
 * only td_host_find_kernels may choose them. */
#include "kernels/host/host.h"

#if defined(__x86_64__)

#include "base/check.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avxvnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avxvnni,avx2,fma,f16c")
#endif

#define INLINE     TD_HOST_INLINE
#define KERNELS    td_host_kernels_avxvnni
#define ISA_NAME   "avxvnni"
#define VEC_DPBUSD _mm256_dpbusd_avx_epi32

#include "kernels/host/vec_avx2.h"

#include "kernels/host/body_table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
