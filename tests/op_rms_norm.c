/* td_op_rms_norm against its formula in f64: whole rows and heads, with and without a weight, in
 * place and not; row invariance; hostile neighbours. */
#include "op_common.h"

typedef struct {
    uint32_t n_cols, n_groups;
    bool has_weight, is_in_place;
    uint32_t pad;
} norm_case;

typedef struct {
    bench b;
    td_tensor *x, *y;
    uint32_t stride;
} norm_bench;

#define EPS 1e-5f

static norm_bench begin_case(td_device *dev, const norm_case *c, const float *weight)
{
    norm_bench m = {.b = bench_begin(dev, TD_MODE_VERIFY, 64, 0), .stride = c->n_cols + 2 * c->pad};
    m.x = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, 64, m.stride);
    m.y = c->is_in_place ? m.x : bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, 64, m.stride);
    td_op_rms_norm(m.b.p, td_columns(m.x, c->pad, c->n_cols),
                   c->has_weight ? bench_vector(&m.b, weight, c->n_cols / c->n_groups) : NULL,
                   c->n_groups, EPS, td_columns(m.y, c->pad, c->n_cols));
    bench_end(&m.b);
    return m;
}

static void set_x(norm_bench *m, const norm_case *c, uint32_t row, const float *values)
{
    for (uint32_t i = 0; i < m->stride; i++)
        f32_data(m->x)[row * m->stride + i] = NAN;
    memcpy(f32_data(m->x) + row * m->stride + c->pad, values, c->n_cols * sizeof(float));
}

static const float *get_y(norm_bench *m, const norm_case *c, uint32_t row)
{
    return f32_data(m->y) + row * m->stride + c->pad;
}

static void check_values(td_device *dev, const norm_case *c, const float *weight, const float *x,
                         const float *y)
{
    uint32_t n = c->n_cols / c->n_groups;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += (double)x[g * n + i] * (double)x[g * n + i];
        double scale = 1.0 / sqrt(sum / n + (double)EPS);
        for (uint32_t i = 0; i < n; i++) {
            double want = (double)x[g * n + i] * scale * (c->has_weight ? (double)weight[i] : 1.0);
            check_close(y[g * n + i], want, 3e-6 * fabs(want) + 1e-30, g * n + i, "rms_norm", dev);
        }
    }
}

static void test_rms_norm_matches_its_formula(void **state)
{
    (void)state;
    static const norm_case cases[] = {
        {1, 1, true, false, 0},      {5, 1, true, false, 1},      {128, 1, false, false, 0},
        {1000, 1, true, true, 0},    {4097, 1, true, false, 0},   {24 * 7, 7, true, true, 4},
        {64 * 8, 8, false, true, 0}, {33 * 3, 3, true, false, 3},
    };
    for (size_t k = 0; k < TD_COUNT(cases); k++) {
        const norm_case *c = &cases[k];
        float *weight = new_random(c->n_cols, 5), *x = new_random((size_t)5 * c->n_cols, k);
        for (uint32_t i = 0; i < c->n_cols; i++) { /* sizes far apart */
            x[c->n_cols + i] *= 1e-6f;
            x[2 * c->n_cols + i] *= 1e6f;
            x[3 * c->n_cols + i] = 0;
        }
        float *scalar = test_alloc((size_t)5 * c->n_cols, sizeof(float));
        for (size_t i = 0; i < n_test_devices; i++) {
            norm_bench m = begin_case(test_devices[i], c, weight);
            for (uint32_t r = 0; r < 5; r++)
                set_x(&m, c, r, x + (size_t)r * c->n_cols);
            bench_run(&m.b, 5, 0);
            for (uint32_t r = 0; r < 5; r++) {
                const float *y = get_y(&m, c, r);
                float *want = scalar + (size_t)r * c->n_cols;
                check_values(test_devices[i], c, weight, x + (size_t)r * c->n_cols, y);
                if (i == 0)
                    memcpy(want, y, c->n_cols * sizeof(float));
                else if (is_bit_equal_to_scalar(test_devices[i]))
                    check_same_bits(y, want, c->n_cols, "against scalar", test_devices[i]);
            }
            bench_destroy(&m.b);
        }
        free(scalar);
        free(x);
        free(weight);
    }
}

static void test_a_row_does_not_depend_on_its_batch(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 5, 16, 17, 33, 64};
    static const float hostile[] = {INFINITY, NAN, 1e30f, 1e-42f, -INFINITY, 0.0f, 3.0f};
    const norm_case c = {576, 1, true, false, 0};
    float *weight = new_random(c.n_cols, 5), *probe = new_random(c.n_cols, 6);
    float *other = test_alloc(c.n_cols, sizeof(float)), *want = test_alloc(c.n_cols, sizeof(float));
    for (size_t i = 0; i < n_test_devices; i++) {
        norm_bench m = begin_case(test_devices[i], &c, weight);
        for (size_t s = 0; s < TD_COUNT(sizes); s++) {
            const uint32_t places[] = {0, sizes[s] / 2, sizes[s] - 1};
            for (size_t k = 0; k < TD_COUNT(places); k++) {
                for (uint32_t j = 0; j < c.n_cols; j++)
                    other[j] = hostile[s];
                for (uint32_t r = 0; r < sizes[s]; r++)
                    set_x(&m, &c, r, other);
                set_x(&m, &c, places[k], probe);
                bench_run(&m.b, sizes[s], 0);
                if (s == 0 && k == 0)
                    memcpy(want, get_y(&m, &c, 0), c.n_cols * sizeof(float));
                check_same_bits(get_y(&m, &c, places[k]), want, c.n_cols, "row invariance",
                                test_devices[i]);
            }
        }
        bench_destroy(&m.b);
    }
    free(want);
    free(other);
    free(probe);
    free(weight);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rms_norm_matches_its_formula),
        cmocka_unit_test(test_a_row_does_not_depend_on_its_batch),
    };
    return TEST_MAIN(tests);
}
