/* A cache whose keys, values or both are rotated (device.h). Truth is the matrix itself, in f64: of
 * group of g columns H[i][j] = (-1)^(bits that i and j share) / sqrt(g). */
#include "op_common.h"

#include "kernels/host/arith.h"

enum { N_HEAD_KV = 2, GROUP = 3, N_POSITIONS = 150, ROWS_MAX = 40, N_PAGES = 3, DIM_MAX = 320 };

typedef struct {
    const char *type_k, *type_v;
    uint32_t dim_k, dim_v, window;
    bool rotates_k, rotates_v;
} rotate_case;

/* y = H x */
static void multiply(const float *x, uint32_t n, double *y)
{
    for (uint32_t at = 0, size; at < n; at += size) {
        for (size = 1; size <= (n - at) / 2; size *= 2)
            ;
        for (uint32_t i = 0; i < size; i++) {
            y[at + i] = 0;
            for (uint32_t j = 0; j < size; j++)
                y[at + i] += (__builtin_popcount(i & j) % 2 ? -1 : 1) * (double)x[at + j];
            y[at + i] /= sqrt(size);
        }
    }
}

static void test_a_rotation_is_its_matrix_and_its_own_inverse(void **state)
{
    (void)state;
    static const uint32_t dims[] = {1, 3, 16, 20, 64, 72, 80, 96, 128, 192, 256, 300};
    for (size_t d = 0; d < TD_COUNT(dims); d++) {
        uint32_t n = dims[d];
        float *x = new_random(n, 3), y[DIM_MAX];
        double want[DIM_MAX], before = 0, behind = 0;
        memcpy(y, x, n * sizeof *x);
        td_arith_rotate(y, n);
        multiply(x, n, want);
        for (uint32_t i = 0; i < n; i++) {
            assert_true(fabs((double)y[i] - want[i]) < 2e-6);
            before += (double)x[i] * (double)x[i];
            behind += (double)y[i] * (double)y[i];
        }
        assert_true(fabs(before - behind) < 1e-5 * before);
        td_arith_rotate(y, n);
        for (uint32_t i = 0; i < n; i++)
            assert_true(fabs((double)y[i] - (double)x[i]) < 2e-6);
        free(x);
    }
}

/* Attention of all positions, fed `width` at a time: [N_POSITIONS][heads][dim_v]. */
static float *new_attended(td_device *dev, const rotate_case *c, uint32_t width)
{
    const uint32_t n_head = N_HEAD_KV * GROUP, n_y = n_head * c->dim_v;
    bench b = bench_begin(dev, TD_MODE_VERIFY, ROWS_MAX, 0);
    td_tensor *k = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, N_HEAD_KV * c->dim_k);
    td_tensor *v = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, N_HEAD_KV * c->dim_v);
    td_tensor *q = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, n_head * c->dim_k);
    td_tensor *y = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, n_y);
    td_batch_tensors batch = {
        .positions = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1),
        .slots = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1),
        .pages = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_FIXED, 1, N_PAGES),
    };
    for (int32_t i = 0; i < N_PAGES; i++)
        i32_data(batch.pages)[i] = N_PAGES - 1 - i;
    td_kv *kv = bench_kv(&b, &(td_kv_params){.type_k = td_type_find_name(c->type_k),
                                             .type_v = td_type_find_name(c->type_v),
                                             .n_head_kv = N_HEAD_KV,
                                             .head_dim_k = c->dim_k,
                                             .head_dim_v = c->dim_v,
                                             .n_pages = N_PAGES,
                                             .rotates_k = c->rotates_k,
                                             .rotates_v = c->rotates_v});
    td_attention_params params = {.n_head = n_head, .scale = 0.2f, .window = c->window};
    td_op_kv_store(b.p, kv, td_all(k), td_all(v), &batch);
    td_op_attention(b.p, kv, td_all(q), td_all(y), &params, &batch);
    bench_end(&b);
    float *out = test_alloc((size_t)N_POSITIONS * n_y, sizeof *out);
    for (uint32_t at = 0, n; at < N_POSITIONS; at += n) {
        n = td_min_u32(width, N_POSITIONS - at);
        for (uint32_t r = 0; r < n; r++) {
            i32_data(batch.positions)[r] = (int32_t)(at + r);
            fill_random(view_row(td_all(k), r), N_HEAD_KV * c->dim_k, 3 * (at + r));
            fill_random(view_row(td_all(v), r), N_HEAD_KV * c->dim_v, 3 * (at + r) + 1);
            fill_random(view_row(td_all(q), r), n_head * c->dim_k, 3 * (at + r) + 2);
        }
        bench_run(&b, n, 0);
        memcpy(out + (size_t)at * n_y, f32_data(y), (size_t)n * n_y * sizeof *out);
    }
    bench_destroy(&b);
    return out;
}

/* A window of one position shows a value as it is kept: rotated, rounded, rotated back. */
static void check_kept(td_device *dev, const rotate_case *c, const float *y)
{
    const td_type_info *type = td_type_find_name(c->type_v);
    uint32_t n = c->dim_v, padded = td_round_up(n, type->block_elements);
    uint8_t blocks[DIM_MAX * 4];
    for (uint32_t p = 0; p < N_POSITIONS; p++) {
        float v[N_HEAD_KV * DIM_MAX], row[DIM_MAX] = {0};
        double want[DIM_MAX];
        fill_random(v, N_HEAD_KV * n, 3 * p + 1);
        for (uint32_t h = 0; h < N_HEAD_KV * GROUP; h++) {
            memcpy(row, v + h / GROUP * n, n * sizeof *row);
            td_arith_rotate(row, n); /* to the bit, since rounding to the type may hang on it */
            memset(row + n, 0, (padded - n) * sizeof *row);
            type->quantize(row, blocks, padded);
            type->dequantize(blocks, row, padded);
            multiply(row, n, want);
            for (uint32_t i = 0; i < n; i++)
                check_close(y[(p * N_HEAD_KV * GROUP + h) * n + i], want[i],
                            is_vulkan(dev) ? 2e-5 : 4e-4, i, "a value as it is kept", dev);
        }
    }
}

static void test_a_rotated_cache_gives_what_a_plain_one_does(void **state)
{
    (void)state;
    static const rotate_case cases[] = {
        {"F32", "F32", 128, 128, 0, true, true}, {"F16", "F32", 80, 24, 0, true, false},
        {"F32", "F16", 40, 96, 70, false, true}, {"F32", "F32", 5, 300, 0, true, true},
        {"F32", "F32", 192, 64, 9, true, true},
    };
    for (size_t i = 0; i < (wants_brief() ? 2 : TD_COUNT(cases)); i++)
        for (size_t d = 0; d < n_test_devices; d++) {
            rotate_case plain = cases[i];
            plain.rotates_k = plain.rotates_v = false;
            bool is_half = !strcmp(plain.type_k, "F16") || !strcmp(plain.type_v, "F16");
            float *y = new_attended(test_devices[d], &cases[i], ROWS_MAX);
            float *want = new_attended(test_devices[d], &plain, ROWS_MAX);
            for (size_t e = 0; e < (size_t)N_POSITIONS * N_HEAD_KV * GROUP * plain.dim_v; e++)
                check_close(y[e], (double)want[e], is_half ? 2e-3 : 5e-6, e, "rotated",
                            test_devices[d]);
            free(y);
            free(want);
        }
}

/* And every row is the same alone as among others. */
static void test_a_rotated_cache_keeps_the_rotated(void **state)
{
    (void)state;
    static const rotate_case cases[] = {
        {"Q4_0", "Q4_0", 128, 64, 1, true, true},  {"F16", "Q8_0", 32, 96, 1, false, true},
        {"Q8_0", "Q4_0", 80, 80, 1, true, true},   {"Q4_0", "F16", 64, 20, 1, true, true},
        {"Q4_0", "Q4_0", 256, 256, 1, true, true}, {"Q8_0", "F32", 72, 300, 1, true, true},
    };
    for (size_t i = 0; i < (wants_brief() ? 2 : TD_COUNT(cases)); i++) {
        size_t n = (size_t)N_POSITIONS * N_HEAD_KV * GROUP * cases[i].dim_v;
        rotate_case wide = cases[i];
        wide.window = 0;
        float *scalar = NULL;
        for (size_t d = 0; d < n_test_devices; d++) {
            td_device *dev = test_devices[d];
            float *kept = new_attended(dev, &cases[i], 33);
            if (!is_vulkan(dev) || strcmp(cases[i].type_v, "Q4_0") != 0) /* another scale there */
                check_kept(dev, &cases[i], kept);
            free(kept);
            float *y = new_attended(dev, &wide, ROWS_MAX), *singly = new_attended(dev, &wide, 1);
            check_same_bits(singly, y, n, "rows alone", dev);
            if (scalar && is_bit_equal_to_scalar(dev))
                check_same_bits(y, scalar, n, "against scalar", dev);
            free(singly);
            if (!scalar)
                scalar = y;
            else
                free(y);
        }
        free(scalar);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_rotation_is_its_matrix_and_its_own_inverse),
        cmocka_unit_test(test_a_rotated_cache_gives_what_a_plain_one_does),
        cmocka_unit_test(test_a_rotated_cache_keeps_the_rotated),
    };
    return TEST_MAIN(tests);
}
