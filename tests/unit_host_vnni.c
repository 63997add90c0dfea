/* The AVX-VNNI level's products on CPUs that lack its instruction: the same source, with that one
 * instruction put together from AVX2's, against the level in plain C, bit for bit. */
#include "kernels/host/host.h"

#include "op_common.h"

#if defined(__x86_64__)

#include "base/check.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

/* Exact, since two products of a byte each fit into the int32 they are summed in. */
static inline __m256i dpbusd(__m256i acc, __m256i u, __m256i q)
{
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                     _mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(q, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}

#undef EACH
#define INLINE     TD_HOST_INLINE
#define KERNELS    kernels_vnni
#define ISA_NAME   "avxvnni, put together"
#define VEC_DPBUSD dpbusd

extern const td_host_kernels kernels_vnni;

#include "kernels/host/vec_avx2.h"

#include "kernels/host/body_table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define N_O        37u
#define N_ROWS_MAX 17u

static void check_type(td_device *dev, const td_type_info *type)
{
    td_err err = {0};
    uint32_t n_k = type->block_elements * (type->block_elements < 256 ? 11 : 2);
    td_weight_params params = {"w", type, N_O, n_k, 0};
    td_weight *w = td_weight_create(dev, &params, &err);
    must(w != NULL, &err);
    unsigned char *rows = new_random_rows(type, N_O, n_k, type->id);
    must(td_weight_write(w, 0, N_O, rows, &err), &err);
    float *x = new_random((size_t)N_ROWS_MAX * n_k, 11), y[2][N_ROWS_MAX * N_O];
    td_act_block *act = test_alloc((size_t)N_ROWS_MAX * n_k / TD_ACT_BLOCK, sizeof *act);
    td_host_kernels_generic.quantize(x, N_ROWS_MAX * n_k, act);
    for (uint32_t n = 1; n <= N_ROWS_MAX; n += n < 9 ? 1 : 4) {
        for (int i = 0; i < 2; i++) {
            td_host_mat_mul m = {.w = (const td_host_weight *)w,
                                 .act = act,
                                 .y = y[i],
                                 .x_stride = n_k,
                                 .y_stride = N_O,
                                 .n_rows = n,
                                 .panel_end = 3};
            (i ? kernels_vnni : td_host_kernels_generic).mat_mul(&m);
        }
        for (uint32_t j = 0; j < n * N_O; j++)
            if (!is_same_bits(&y[1][j], &y[0][j], 1))
                fail_msg("%s, %u rows: output %u is %a, expected %a", type->name, n, j,
                         (double)y[1][j], (double)y[0][j]);
    }
    free(act);
    free(x);
    free(rows);
    td_weight_destroy(&w);
}

static void test_every_quantized_type(void **state)
{
    (void)state;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        print_message("skipped: this CPU has no AVX2\n");
        skip();
    }
    td_err err = {0};
    td_device *dev = td_device_create("host:1", &err);
    must(dev != NULL, &err);
    for (size_t t = 0; t < TD_COUNT(weight_types); t++) {
        const td_type_info *type = chosen_type(t);
        if (type && type->has_int8_activations)
            check_type(dev, type);
    }
    td_device_destroy(&dev);
}

#else

static void test_every_quantized_type(void **state)
{
    (void)state;
    print_message("skipped: no x86-64\n");
    skip();
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_quantized_type)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
