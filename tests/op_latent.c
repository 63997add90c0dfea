/* A latent cache keeps a key whose first columns are the value too, once. What is read from it is
 * what two caches would give, bit for bit, for every type whose blocks end where the value does. */
#include "op_common.h"

enum { N_HEAD = 10, N_POSITIONS = 150, ROWS_MAX = 9, N_PAGES = 3 };

typedef struct {
    const char *type;
    uint32_t dim_k, dim_v;
    bool rotates;
} latent_case;

static const latent_case cases[] = {
    {"f16", 80, 64, false}, {"q8_0", 96, 64, true},   {"f32", 27, 18, false},
    {"q4_0", 48, 32, true}, {"q8_0", 576, 512, true}, {"bf16", 40, 32, true},
    {"q5_1", 96, 64, true}, {"q6_0", 64, 32, false},
};

/* Attention of the last rows of a sequence whose positions were stored ROWS_MAX at a time; freed by
 * the caller. */
static float *attend(td_device *dev, const latent_case *c, bool is_latent, uint32_t n_rows)
{
    bench b = bench_begin(dev, TD_MODE_VERIFY, ROWS_MAX, 0);
    const td_type_info *type = td_type_find_name(c->type);
    td_tensor *k = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, c->dim_k);
    td_tensor *q = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, N_HEAD * c->dim_k);
    td_tensor *y = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, N_HEAD * c->dim_v);
    td_batch_tensors batch = {
        .positions = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1),
        .slots = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1),
        .pages = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_FIXED, 1, N_PAGES),
    };
    for (int32_t i = 0; i < N_PAGES; i++)
        i32_data(batch.pages)[i] = N_PAGES - 1 - i;
    td_kv *kv = bench_kv(&b, &(td_kv_params){type, type, 1, c->dim_k, c->dim_v, N_PAGES, is_latent,
                                             c->rotates, c->rotates});
    td_attention_params params = {.n_head = N_HEAD, .scale = 0.2f};
    td_op_kv_store(b.p, kv, td_all(k), td_columns(k, 0, c->dim_v), &batch);
    td_op_attention(b.p, kv, td_all(q), td_all(y), &params, &batch);
    bench_end(&b);
    for (uint32_t at = 0; at < N_POSITIONS;) {
        uint32_t left = N_POSITIONS - at, n = left > n_rows ? ROWS_MAX : left;
        if (left > n_rows && left - n_rows < n)
            n = left - n_rows;
        fill_random(f32_data(q), (size_t)ROWS_MAX * N_HEAD * c->dim_k, 5); /* it may be rotated */
        for (uint32_t r = 0; r < n; r++) {
            i32_data(batch.positions)[r] = (int32_t)(at + r);
            for (uint32_t d = 0; d < c->dim_k; d++)
                f32_data(k)[r * c->dim_k + d] = test_random(7, (at + r) * 1000 + d);
        }
        bench_run(&b, n, 0);
        at += n;
    }
    float *out = test_alloc((size_t)n_rows * N_HEAD * c->dim_v, sizeof *out);
    memcpy(out, f32_data(y), (size_t)n_rows * N_HEAD * c->dim_v * sizeof *out);
    bench_destroy(&b);
    return out;
}

static void test_latent_cache_is_as_two(void **state)
{
    (void)state;
    static const uint32_t rows[] = {1, ROWS_MAX};
    for (size_t i = 0; i < (wants_brief() ? 2 : TD_COUNT(cases)); i++)
        for (size_t r = 0; r < TD_COUNT(rows); r++) {
            size_t n = (size_t)rows[r] * N_HEAD * cases[i].dim_v;
            float *want = NULL;
            for (size_t d = 0; d < n_test_devices; d++) {
                td_device *dev = test_devices[d];
                bool is_long = cases[i].dim_k > 96 && is_vulkan(dev); /* a minute of compiling */
                if (is_long)
                    continue;
                char what[64];
                snprintf(what, sizeof what, "%s %u/%u, %u rows", cases[i].type, cases[i].dim_k,
                         cases[i].dim_v, rows[r]);
                float *two = attend(dev, &cases[i], false, rows[r]);
                float *one = attend(dev, &cases[i], true, rows[r]);
                check_same_bits(one, two, n, what, dev);
                if (want && is_bit_equal_to_scalar(dev))
                    check_same_bits(one, want, n, what, dev);
                double error =
                    td_type_find_name(cases[i].type)->block_elements > 1 ? 0x1p-12 : 3e-5;
                for (size_t e = 0; want && e < n; e++)
                    check_close(one[e], (double)want[e], error, e, what, dev);
                free(two);
                if (!want)
                    want = one;
                else
                    free(one);
            }
            free(want);
        }
}

static void test_latent_cache_takes_what_its_keys_take(void **state)
{
    (void)state;
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    td_kv_params two = {f16, f16, 1, 576, 512, 40, false, false, false}, one = two;
    one.is_latent = true;
    for (size_t d = 0; d < n_test_devices; d++) {
        uint64_t n_two = td_kv_bytes(test_devices[d], &two);
        uint64_t n_one = td_kv_bytes(test_devices[d], &one);
        assert_true(n_one >= 40ull * TD_PAGE_POSITIONS * 576 * 2);
        assert_true((double)n_one <= 0.55 * (double)n_two);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_latent_cache_is_as_two),
        cmocka_unit_test(test_latent_cache_takes_what_its_keys_take),
    };
    return TEST_MAIN(tests);
}
