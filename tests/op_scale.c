/* td_op_scale and td_op_softcap against their formulas in f64, in place and not, with a factor for
 * each row and without; NaN stays visible. */
#include "op_common.h"

#define N_ROWS 5u

typedef enum { SCALE, SCALE_ROWS, SOFTCAP } op_kind;

static double expected(op_kind kind, double x, double factor, double of_row)
{
    if (kind == SOFTCAP)
        return factor * tanh(x / factor);
    return x * factor * (kind == SCALE_ROWS ? of_row : 1.0);
}

static void check_case(op_kind kind, uint32_t n_cols, float factor, bool is_in_place)
{
    uint32_t stride = n_cols + 3;
    float *values = new_random((size_t)N_ROWS * stride, 5), *scalar = NULL;
    for (uint32_t i = 0; i < N_ROWS * stride; i++) /* from far below the cap to far above */
        values[i] *= ldexpf(1, (int)(i % 20) - 8);
    for (size_t d = 0; d < n_test_devices; d++) {
        td_device *dev = test_devices[d];
        bench b = bench_begin(dev, TD_MODE_VERIFY, N_ROWS, 0);
        td_tensor *x = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, stride);
        td_tensor *y =
            is_in_place ? x : bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, stride);
        td_tensor *factors = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, 2);
        td_view in = td_columns(x, 2, n_cols), out = td_columns(y, 2, n_cols);
        if (kind == SOFTCAP)
            td_op_softcap(b.p, in, factor, out);
        else
            td_op_scale(b.p, in, factor,
                        kind == SCALE_ROWS ? td_columns(factors, 1, 1) : (td_view){NULL, 0, 0},
                        out);
        bench_end(&b);
        memcpy(f32_data(x), values, (size_t)N_ROWS * stride * sizeof(float));
        for (uint32_t r = 0; r < N_ROWS; r++)
            view_row(td_all(factors), r)[1] = 0.25f + (float)r;
        view_row(in, 2)[0] = NAN;
        bench_run(&b, N_ROWS, 0);
        assert_true(isnan(view_row(out, 2)[0]) != 0);
        view_row(out, 2)[0] = 0;
        for (uint32_t r = 0; r < N_ROWS; r++)
            for (uint32_t i = r == 2; i < n_cols; i++) {
                double v = (double)values[r * stride + 2 + i];
                double want = expected(kind, v, (double)factor, 0.25 + r);
                double size = kind == SOFTCAP ? fabs((double)factor) + fabs(want) : fabs(want);
                check_close(view_row(out, r)[i], want, 3e-7 * size, r * n_cols + i, "scale", dev);
            }
        if (d == 0) {
            scalar = test_alloc((size_t)N_ROWS * stride, sizeof(float));
            memcpy(scalar, f32_data(y), (size_t)N_ROWS * stride * sizeof(float));
        } else if (is_bit_equal_to_scalar(dev)) {
            check_same_bits(f32_data(y), scalar, (size_t)N_ROWS * stride, "against scalar", dev);
        }
        bench_destroy(&b);
    }
    free(scalar);
    free(values);
}

static void test_scale_multiplies_by_a_constant_and_by_rows(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 17, 256, 259, 1000};
    for (size_t i = 0; i < TD_COUNT(sizes); i++)
        for (int in_place = 0; in_place < 2; in_place++) {
            check_case(SCALE, sizes[i], 0.37f, in_place);
            check_case(SCALE_ROWS, sizes[i], 1.0f, in_place);
            check_case(SCALE_ROWS, sizes[i], -2.5f, in_place);
        }
}

static void test_softcap_bends_towards_its_cap(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 17, 256, 259, 1000};
    for (size_t i = 0; i < TD_COUNT(sizes); i++)
        for (int in_place = 0; in_place < 2; in_place++) {
            check_case(SOFTCAP, sizes[i], 30.0f, in_place);
            check_case(SOFTCAP, sizes[i], 0.5f, in_place);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scale_multiplies_by_a_constant_and_by_rows),
        cmocka_unit_test(test_softcap_bends_towards_its_cap),
    };
    return TEST_MAIN(tests);
}
