/* td_op_gather: copies the wanted rows bit for bit, repeated and out of order, from a window; with
 * no outputs it does nothing. */
#include "op_common.h"

#define N_ROWS 9u

static void check_gather(td_device *dev, uint32_t n_cols, uint32_t pad, uint32_t n_out)
{
    bench b = bench_begin(dev, TD_MODE_VERIFY, N_ROWS, N_ROWS);
    td_tensor *x = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, n_cols + 2 * pad);
    td_tensor *rows = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_OUT, N_ROWS, 1);
    td_tensor *y = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_OUT, N_ROWS, n_cols);
    td_op_gather(b.p, td_columns(x, pad, n_cols), rows, td_all(y));
    bench_end(&b);
    fill_random(f32_data(x), (size_t)N_ROWS * (n_cols + 2 * pad), 5);
    f32_data(x)[pad] = NAN; /* copied as it is */
    for (size_t i = 0; i < (size_t)N_ROWS * n_cols; i++)
        f32_data(y)[i] = 12345.0f;
    static const int32_t picks[N_ROWS] = {8, 0, 3, 3, 7, 0, 1, 2, 8};
    memcpy(i32_data(rows), picks, sizeof picks);
    bench_run(&b, N_ROWS, n_out);
    for (uint32_t r = 0; r < N_ROWS; r++) {
        const float *got = f32_data(y) + (size_t)r * n_cols;
        if (r < n_out)
            check_same_bits(got, view_row(td_columns(x, pad, n_cols), (uint32_t)picks[r]), n_cols,
                            "gather", dev);
        else
            assert_true(got[0] == 12345.0f && got[n_cols - 1] == 12345.0f);
    }
    bench_destroy(&b);
}

static void test_gather_copies_the_wanted_rows(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 5, 256, 257, 4097};
    for (size_t d = 0; d < n_test_devices; d++)
        for (size_t i = 0; i < TD_COUNT(sizes); i++) {
            check_gather(test_devices[d], sizes[i], 0, N_ROWS);
            check_gather(test_devices[d], sizes[i], 3, 4);
            check_gather(test_devices[d], sizes[i], 0, 0);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gather_copies_the_wanted_rows),
    };
    return TEST_MAIN(tests);
}
