/* td_op_mat_mul_experts: for each row and choice bit for bit what td_op_mat_mul gives for the
 * expert's matrix and that row alone on the same device (which op_mat_mul.c holds against f64), in
 * every batch width, however the choices fall: all rows one expert, each its own, at random; x
 * shared by a row's choices or of their own; two products and their sum in one program; weights
 * cut into several buffers. And td_op_experts_sum against f64. */
#include "op_common.h"

#include "kernels/vulkan/probe.h"

typedef enum { RANDOM, ALL_ONE, SPREAD } falling; /* of the choices */

typedef struct {
    const char *type;
    uint32_t n_experts, n_used, m, n_k;
    uint32_t n_rows_max;
    bool has_bias, is_x_own; /* x of each choice */
    td_mode mode;
} expert_case;

typedef struct {
    unsigned char *rows;
    float *bias;
    float *x;    /* [n_rows_max][n_used][n_k], the first of a row's where they share one */
    float *want; /* [n_experts][n_rows_max][n_used][m] */
} expert_data;

static size_t n_choices(const expert_case *c) { return (size_t)c->n_rows_max * c->n_used; }

static const float *x_of(const expert_case *c, const expert_data *d, uint32_t row, uint32_t i)
{
    return d->x + ((size_t)row * c->n_used + (c->is_x_own ? i : 0)) * c->n_k;
}

/* What each expert makes of every x, by td_op_mat_mul, one row at a time. */
static void fill_expected(td_device *dev, const expert_case *c, expert_data *d)
{
    const td_type_info *type = td_type_find_name(c->type);
    for (uint32_t e = 0; e < c->n_experts; e++) {
        bench b = bench_begin(dev, c->mode, 1, 0);
        td_tensor *x = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, 1, c->n_k);
        td_tensor *y = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, 1, c->m);
        td_weight *w = bench_weight(&b, type, c->m, c->n_k,
                                    d->rows + (size_t)e * c->m * td_row_bytes(type, c->n_k));
        td_weight *bias = c->has_bias ? bench_vector(&b, d->bias + (size_t)e * c->m, c->m) : NULL;
        td_op_mat_mul(b.p, w, bias, td_all(x), td_all(y));
        bench_end(&b);
        for (uint32_t r = 0; r < c->n_rows_max; r++)
            for (uint32_t i = 0; i < c->n_used; i++) {
                size_t at = ((e * n_choices(c)) + (size_t)r * c->n_used + i) * c->m;
                if (i && !c->is_x_own) {
                    memcpy(d->want + at, d->want + at - c->m, c->m * sizeof(float));
                    continue;
                }
                memcpy(f32_data(x), x_of(c, d, r, i), c->n_k * sizeof(float));
                bench_run(&b, 1, 0);
                memcpy(d->want + at, f32_data(y), c->m * sizeof(float));
            }
        bench_destroy(&b);
    }
}

static expert_data new_data(td_device *dev, const expert_case *c)
{
    const td_type_info *type = td_type_find_name(c->type);
    expert_data d = {
        .rows = new_random_rows(type, (size_t)c->n_experts * c->m, c->n_k, 71),
        .bias = new_random((size_t)c->n_experts * c->m, 72),
        .x = new_random(n_choices(c) * c->n_k, 73),
        .want = test_alloc(c->n_experts * n_choices(c) * c->m, sizeof(float)),
    };
    fill_expected(dev, c, &d);
    return d;
}

static void free_data(expert_data *d)
{
    free(d->want);
    free(d->x);
    free(d->bias);
    free(d->rows);
}

typedef struct {
    bench b;
    td_tensor *experts;
    td_view x, y, z; /* z: the same once more, with the lists of the first */
} expert_bench;

static expert_bench begin_case(td_device *dev, const expert_case *c, const expert_data *d)
{
    expert_bench m = {.b = bench_begin(dev, c->mode, c->n_rows_max, 0)};
    uint32_t n = c->n_rows_max, n_x = c->is_x_own ? c->n_used * c->n_k : c->n_k;
    m.experts = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_BATCH, n, c->n_used);
    m.x = td_columns(bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, n, n_x + 4), 4, n_x);
    td_tensor *y = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, n, 2 * c->n_used * c->m + 1);
    m.y = td_columns(y, 1, c->n_used * c->m);
    m.z = td_columns(y, 1 + c->n_used * c->m, c->n_used * c->m);
    td_weight *w = bench_groups(&m.b, td_type_find_name(c->type), c->n_experts * c->m, c->n_k,
                                c->n_experts, d->rows);
    td_weight *bias = c->has_bias ? bench_vector(&m.b, d->bias, c->n_experts * c->m) : NULL;
    td_op_mat_mul_experts(m.b.p, w, bias, m.experts, m.x, m.y);
    td_op_mat_mul_experts(m.b.p, w, bias, m.experts, m.x, m.z);
    bench_end(&m.b);
    return m;
}

/* n_used different experts of a row. */
static void choose(const expert_case *c, falling how, uint32_t row, uint32_t seed, int32_t *out)
{
    uint32_t first = how == ALL_ONE  ? c->n_experts - 1
                     : how == SPREAD ? row * c->n_used
                                     : td_noise_bits(seed, row, 0);
    uint32_t step = how == RANDOM ? 1 + td_noise_bits(seed, row, 1) % 3 : 1;
    while (c->n_experts % step == 0 && step > 1)
        step--;
    for (uint32_t i = 0; i < c->n_used; i++)
        out[i] = (int32_t)((first + i * step) % c->n_experts);
}

static void check_run(td_device *dev, expert_bench *m, const expert_case *c, const expert_data *d,
                      falling how, uint32_t n_rows)
{
    uint32_t row_words = 2 * c->n_used * c->m + 1;
    for (uint32_t r = 0; r < n_rows; r++) {
        choose(c, how, r, n_rows, i32_data(m->experts) + r * c->n_used);
        for (uint32_t i = 0; i < (c->is_x_own ? c->n_used : 1); i++)
            memcpy(view_row(m->x, r) + i * c->n_k, x_of(c, d, r, i), c->n_k * sizeof(float));
        for (uint32_t i = 0; i < row_words; i++)
            view_row(td_all(m->y.t), r)[i] = 12345.0f;
    }
    bench_run(&m->b, n_rows, 0);
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t i = 0; i < c->n_used; i++) {
            uint32_t e = (uint32_t)i32_data(m->experts)[r * c->n_used + i];
            const float *want = d->want + (e * n_choices(c) + (size_t)r * c->n_used + i) * c->m;
            check_same_bits(view_row(m->y, r) + i * c->m, want, c->m, "expert alone", dev);
            check_same_bits(view_row(m->z, r) + i * c->m, want, c->m, "expert again", dev);
        }
    assert_true(view_row(td_all(m->y.t), 0)[0] == 12345.0f);
}

static void check_case(td_device *dev, const expert_case *c)
{
    static const uint32_t widths[] = {1, 2, 3, 5, 8, 17, 64, 200};
    expert_data d = new_data(dev, c);
    expert_bench m = begin_case(dev, c, &d);
    for (size_t i = 0; i < TD_COUNT(widths); i++)
        for (int how = 0; how < 3 && widths[i] <= c->n_rows_max; how++)
            check_run(dev, &m, c, &d, (falling)how, widths[i]);
    bench_destroy(&m.b);
    free_data(&d);
}

static void test_a_choice_is_a_product_of_its_own(void **state)
{
    (void)state;
    const expert_case cases[] = {
        {"F32", 8, 2, 43, 33, 64, true, false, TD_MODE_VERIFY},
        {"F16", 32, 4, 64, 64, 17, false, true, TD_MODE_VERIFY},
        {"Q8_0", 16, 4, 70, 96, 17, true, false, TD_MODE_VERIFY},
        {"Q8_0", 8, 3, 64, 96, 64, false, true, TD_MODE_VERIFY},
        {"Q4_K", 8, 8, 10, 256, 8, true, true, TD_MODE_VERIFY},
        {"Q4_0", 5, 1, 128, 256, 17, false, false, TD_MODE_VERIFY},
    };
    for (size_t i = 0; i < TD_COUNT(cases); i++)
        for (size_t d = 0; d < n_test_devices; d++)
            check_case(test_devices[d], &cases[i]);
}

static void test_prefill_takes_many_rows_of_an_expert(void **state)
{
    (void)state;
    const expert_case c = {"Q8_0", 4, 2, 20, 32, 200, true, false, TD_MODE_PREFILL};
    for (size_t d = 0; d < n_test_devices; d++)
        check_case(test_devices[d], &c);
}

/* Vulkan: a buffer takes some experts of several, as those of large models do. */
static void test_experts_lie_in_several_buffers(void **state)
{
    (void)state;
    const expert_case c = {"F32", 8, 3, 70, 64, 8, true, false, TD_MODE_VERIFY};
    td_err err = {0};
    for (size_t d = 0; d < n_test_devices; d++) {
        if (!is_vulkan(test_devices[d]))
            continue;
        setenv("TD_VK_LIMIT", "maxStorageBufferRange=100000", 1); /* of 32 KiB each */
        td_device *dev = td_device_create(device_spec(test_devices[d]), &err);
        unsetenv("TD_VK_LIMIT");
        must(dev != NULL, &err);
        td_weight *w = td_weight_create(dev,
                                        &(td_weight_params){.name = "test",
                                                            .type = td_type_find(TD_TYPE_F32),
                                                            .n_rows = c.n_experts * c.m,
                                                            .n_cols = c.n_k,
                                                            .n_groups = c.n_experts},
                                        &err);
        must(w != NULL, &err);
        assert_true(td_vulkan_count_slabs(w) > 1);
        td_weight_destroy(&w);
        check_case(dev, &c);
        td_device_destroy(&dev);
    }
}

static void test_experts_are_summed_in_order(void **state)
{
    (void)state;
    enum { N_ROWS = 5, USED = 6, COLS = 300 };
    float *x = new_random((size_t)N_ROWS * USED * COLS, 8), *w = new_random(N_ROWS * USED, 9);
    float scalar[N_ROWS * COLS];
    for (size_t d = 0; d < n_test_devices; d++) {
        bench b = bench_begin(test_devices[d], TD_MODE_VERIFY, N_ROWS, 0);
        td_tensor *xt = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, USED * COLS);
        td_tensor *wt = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, USED);
        td_tensor *y = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, COLS);
        td_op_experts_sum(b.p, td_all(xt), wt, td_all(y));
        bench_end(&b);
        memcpy(f32_data(xt), x, (size_t)N_ROWS * USED * COLS * sizeof(float));
        memcpy(f32_data(wt), w, (size_t)N_ROWS * USED * sizeof(float));
        bench_run(&b, N_ROWS, 0);
        for (uint32_t r = 0; r < N_ROWS; r++)
            for (uint32_t i = 0; i < COLS; i++) {
                double sum = 0, size = 0;
                for (uint32_t k = 0; k < USED; k++) {
                    double term =
                        (double)w[r * USED + k] * (double)x[((size_t)r * USED + k) * COLS + i];
                    sum += term;
                    size += fabs(term);
                }
                check_close(view_row(td_all(y), r)[i], sum, 4e-7 * size, i, "sum", test_devices[d]);
            }
        if (d == 0)
            memcpy(scalar, f32_data(y), sizeof scalar);
        else if (is_bit_equal_to_scalar(test_devices[d]))
            check_same_bits(f32_data(y), scalar, N_ROWS * COLS, "against scalar", test_devices[d]);
        bench_destroy(&b);
    }
    free(w);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_choice_is_a_product_of_its_own),
        cmocka_unit_test(test_prefill_takes_many_rows_of_an_expert),
        cmocka_unit_test(test_experts_lie_in_several_buffers),
        cmocka_unit_test(test_experts_are_summed_in_order),
    };
    return TEST_MAIN(tests);
}
