/* The kernels in AVX-512 F, BW, VL and VNNI; only td_host_find_kernels may choose them. */
#include "kernels/host/host.h"

#if defined(__x86_64__)

#include "base/check.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c"))),                 \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")
#endif

#define INLINE   TD_HOST_INLINE
#define KERNELS  td_host_kernels_avx512
#define ISA_NAME "avx512-vnni"

#include "kernels/host/vec_avx512.h"

#include "kernels/host/body_table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
