/* td_op_mat_mul_groups: bit for bit what td_op_mat_mul gives for each group's matrix alone on the
 * same device (which op_mat_mul.c holds against f64): groups that are no multiple of anything,
 * heads that stand apart in x and y, one input for all groups, prefill and every row of a verify
 * batch; between the groups of y nothing is written. */
#include "op_common.h"

#define ROWS_MAX  37u
#define UNTOUCHED 12345.0f

typedef struct {
    const char *type;
    uint32_t n_groups, m, n_k; /* m outputs of each group */
    uint32_t x_stride, y_stride;
    uint32_t n_rows;
    td_mode mode;
} group_case;

static uint32_t x_cols(const group_case *c) { return (c->n_groups - 1) * c->x_stride + c->n_k; }
static uint32_t y_cols(const group_case *c) { return (c->n_groups - 1) * c->y_stride + c->m; }

/* Group g of every row by td_op_mat_mul: [n_rows][m]. */
static float *new_expected(td_device *dev, const group_case *c, uint32_t g,
                           const unsigned char *rows, const float *x)
{
    const td_type_info *type = td_type_find_name(c->type);
    bench b = bench_begin(dev, c->mode, c->n_rows, 0);
    td_tensor *in = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, c->n_rows, c->n_k);
    td_tensor *out = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, c->n_rows, c->m);
    td_weight *w =
        bench_weight(&b, type, c->m, c->n_k, rows + (size_t)g * c->m * td_row_bytes(type, c->n_k));
    td_op_mat_mul(b.p, w, NULL, td_all(in), td_all(out));
    bench_end(&b);
    for (uint32_t r = 0; r < c->n_rows; r++)
        memcpy(view_row(td_all(in), r), x + (size_t)r * x_cols(c) + g * c->x_stride,
               c->n_k * sizeof(float));
    bench_run(&b, c->n_rows, 0);
    float *y = test_alloc((size_t)c->n_rows * c->m, sizeof(float));
    memcpy(y, f32_data(out), (size_t)c->n_rows * c->m * sizeof(float));
    bench_destroy(&b);
    return y;
}

static void check_device(td_device *dev, const group_case *c, const unsigned char *rows,
                         const float *values)
{
    bench b = bench_begin(dev, c->mode, c->n_rows, 0);
    td_tensor *xt = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, c->n_rows, x_cols(c) + 4);
    td_tensor *yt = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, c->n_rows, y_cols(c) + 2);
    td_view x = td_columns(xt, 4, x_cols(c)), y = td_columns(yt, 1, y_cols(c));
    td_weight *w =
        bench_groups(&b, td_type_find_name(c->type), c->n_groups * c->m, c->n_k, c->n_groups, rows);
    td_op_mat_mul_groups(b.p, w, x, c->x_stride, y, c->y_stride);
    bench_end(&b);
    for (uint32_t r = 0; r < c->n_rows; r++) {
        view_row(td_all(xt), r)[0] = NAN;
        memcpy(view_row(x, r), values + (size_t)r * x_cols(c), x_cols(c) * sizeof(float));
        for (uint32_t i = 0; i < y_cols(c) + 2; i++)
            view_row(td_all(yt), r)[i] = UNTOUCHED;
    }
    bench_run(&b, c->n_rows, 0);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        float *want = new_expected(dev, c, g, rows, values);
        for (uint32_t r = 0; r < c->n_rows; r++) {
            const float *got = view_row(y, r) + g * c->y_stride;
            check_same_bits(got, want + (size_t)r * c->m, c->m, "a group and its matrix", dev);
            for (uint32_t i = c->m; i < c->y_stride && g + 1 < c->n_groups; i++)
                assert_true(got[i] == UNTOUCHED);
        }
        free(want);
    }
    for (uint32_t r = 0; r < c->n_rows; r++) {
        assert_true(view_row(td_all(yt), r)[0] == UNTOUCHED);
        assert_true(view_row(y, r)[y_cols(c)] == UNTOUCHED);
    }
    bench_destroy(&b);
}

static void check_case(const group_case *c)
{
    const td_type_info *type = td_type_find_name(c->type);
    unsigned char *rows = new_random_rows(type, (size_t)c->n_groups * c->m, c->n_k, 61);
    float *x = new_random((size_t)c->n_rows * x_cols(c), 62);
    for (size_t d = 0; d < n_test_devices; d++)
        check_device(test_devices[d], c, rows, x);
    free(x);
    free(rows);
}

static void test_groups_are_products_of_their_own(void **state)
{
    (void)state;
    static const char *const types[] = {"F32", "F16", "Q8_0", "Q4_0"};
    for (size_t t = 0; t < TD_COUNT(types); t++)
        for (int mode = 0; mode < 2; mode++) {
            const group_case cases[] = {
                {types[t], 3, 43, 96, 96, 43, 5, (td_mode)mode},
                {types[t], 4, 64, 64, 64, 80, 1, (td_mode)mode},
                {types[t], 2, 100, 128, 128, 101, 9, (td_mode)mode},
                {types[t], 5, 7, 32, 0, 16, 3, (td_mode)mode},
                {types[t], 1, 65, 64, 0, 65, ROWS_MAX, (td_mode)mode},
            };
            for (size_t i = 0; i < TD_COUNT(cases); i++)
                check_case(&cases[i]);
        }
}

static void test_large_blocks_and_odd_lengths(void **state)
{
    (void)state;
    check_case(&(group_case){"Q4_K", 3, 30, 512, 512, 32, 2, TD_MODE_VERIFY});
    check_case(&(group_case){"Q6_K", 2, 70, 256, 256, 70, 17, TD_MODE_VERIFY});
    check_case(&(group_case){"F32", 3, 5, 33, 33, 6, 2, TD_MODE_VERIFY});
    check_case(&(group_case){"BF16", 16, 1, 16, 16, 1, 2, TD_MODE_VERIFY});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups_are_products_of_their_own),
        cmocka_unit_test(test_large_blocks_and_odd_lengths),
    };
    return TEST_MAIN(tests);
}
