/* td_op_add: exact on every device (an IEEE sum has one rounding), in place and not, on windows. */
#include "op_common.h"

#define N_ROWS 6u

typedef enum { TO_OTHER, TO_A, TO_B } destination;

static void check_add(td_device *dev, uint32_t n_cols, destination to, uint32_t n_run)
{
    static const float odd[] = {0.0f, -0.0f, 1e30f, -1e30f, 1e-30f, 16777216.0f};
    bench b = bench_begin(dev, TD_MODE_PREFILL, N_ROWS, 0);
    td_tensor *both = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, 2 * n_cols + 1);
    td_view a = td_columns(both, 1, n_cols), c = td_columns(both, 1 + n_cols, n_cols);
    td_view y = to == TO_A   ? a
                : to == TO_B ? c
                             : td_all(bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, n_cols));
    td_op_add(b.p, a, c, y);
    bench_end(&b);
    size_t n = (size_t)N_ROWS * n_cols;
    float *x = new_random(n, 1), *z = new_random(n, 2), *want = test_alloc(n, sizeof(float));
    for (uint32_t r = 0; r < N_ROWS; r++)
        for (uint32_t i = 0; i < n_cols; i++) {
            size_t at = (size_t)r * n_cols + i;
            if (i % 5 == 0)
                z[at] = odd[at % TD_COUNT(odd)];
            want[at] = x[at] + z[at];
            view_row(y, r)[i] = 12345.0f;
            view_row(a, r)[i] = x[at];
            view_row(c, r)[i] = z[at];
        }
    bench_run(&b, n_run, 0);
    for (uint32_t r = 0; r < N_ROWS; r++) {
        if (r < n_run)
            check_same_bits(view_row(y, r), want + (size_t)r * n_cols, n_cols, "add", dev);
        else if (to == TO_OTHER)
            assert_true(view_row(y, r)[0] == 12345.0f);
    }
    free(want);
    free(z);
    free(x);
    bench_destroy(&b);
}

static void test_add_is_exact(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 3, 256, 257, 4097};
    for (size_t d = 0; d < n_test_devices; d++)
        for (size_t i = 0; i < TD_COUNT(sizes); i++)
            for (int to = 0; to < 3; to++)
                check_add(test_devices[d], sizes[i], (destination)to, 1 + (uint32_t)i % N_ROWS);
}

static void test_add_keeps_hostile_values_in_their_place(void **state)
{
    (void)state;
    for (size_t d = 0; d < n_test_devices; d++) {
        bench b = bench_begin(test_devices[d], TD_MODE_VERIFY, 2, 0);
        td_tensor *a = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, 2, 4);
        td_tensor *c = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, 2, 4);
        td_tensor *y = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, 2, 4);
        td_op_add(b.p, td_all(a), td_all(c), td_all(y));
        bench_end(&b);
        const float left[8] = {INFINITY, NAN, INFINITY, 3e38f, 1.0f, 2.0f, 3.0f, 4.0f};
        const float right[8] = {1.0f, 1.0f, -INFINITY, 3e38f, 1.0f, 1.0f, 1.0f, 1.0f};
        memcpy(f32_data(a), left, sizeof left);
        memcpy(f32_data(c), right, sizeof right);
        bench_run(&b, 2, 0);
        const float *out = f32_data(y);
        assert_true(out[0] == INFINITY && isnan(out[1]) && isnan(out[2]) && out[3] == INFINITY);
        assert_true(out[4] == 2.0f && out[5] == 3.0f && out[6] == 4.0f && out[7] == 5.0f);
        bench_destroy(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_is_exact),
        cmocka_unit_test(test_add_keeps_hostile_values_in_their_place),
    };
    return TEST_MAIN(tests);
}
