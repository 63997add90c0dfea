/* td_op_swiglu against silu(gate) * up in f64, over the range where the exponential overflows and
 * underflows, in place and not, with gate and up as column windows of one tensor; row invariance
 * beside hostile rows. */
#include "op_common.h"

#define N_ROWS 6u

typedef enum { TO_OTHER, TO_GATE, TO_UP } destination;

typedef struct {
    bench b;
    td_view gate, up, y;
} swiglu_bench;

static swiglu_bench begin_case(td_device *dev, uint32_t n_cols, destination to)
{
    swiglu_bench m = {.b = bench_begin(dev, TD_MODE_VERIFY, N_ROWS, 0)};
    td_tensor *fused = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, 2 * n_cols);
    m.gate = td_columns(fused, 0, n_cols);
    m.up = td_columns(fused, n_cols, n_cols);
    m.y = to == TO_GATE ? m.gate
          : to == TO_UP ? m.up
                        : td_all(bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, n_cols));
    td_op_swiglu(m.b.p, m.gate, m.up, m.y);
    bench_end(&m.b);
    return m;
}

static double silu(double x) { return x / (1.0 + exp(-x)); }

static void check_case(uint32_t n_cols, destination to)
{
    static const float points[] = {0.0f,   -0.0f,  1.0f,    -1.0f, 20.0f, -20.0f, 80.0f,
                                   -80.0f, 100.0f, -104.0f, 1e4f,  -1e4f, 1e30f,  -1e30f};
    size_t n = (size_t)N_ROWS * n_cols;
    float *gate = new_random(n, 1), *up = new_random(n, 2), *scalar = new_random(n, 3);
    for (size_t i = 0; i < n; i++)
        gate[i] = i % 3 ? gate[i] * 8.0f : points[i / 3 % TD_COUNT(points)];
    for (size_t d = 0; d < n_test_devices; d++) {
        swiglu_bench m = begin_case(test_devices[d], n_cols, to);
        for (uint32_t r = 0; r < N_ROWS; r++) {
            memcpy(view_row(m.gate, r), gate + (size_t)r * n_cols, n_cols * sizeof(float));
            memcpy(view_row(m.up, r), up + (size_t)r * n_cols, n_cols * sizeof(float));
        }
        bench_run(&m.b, N_ROWS, 0);
        for (uint32_t r = 0; r < N_ROWS; r++) {
            float *y = view_row(m.y, r);
            for (uint32_t i = 0; i < n_cols; i++) {
                size_t at = (size_t)r * n_cols + i;
                double want = silu((double)gate[at]) * (double)up[at];
                /* exp of a large argument loses as many ulp as the argument is long. */
                double size = fabs(want) * (1.0 + fmin(fabs((double)gate[at]), 100.0));
                check_close(y[i], want, 4e-7 * size + 1e-36, at, "swiglu", test_devices[d]);
            }
            if (d == 0)
                memcpy(scalar + (size_t)r * n_cols, y, n_cols * sizeof(float));
            else if (is_bit_equal_to_scalar(test_devices[d]))
                check_same_bits(y, scalar + (size_t)r * n_cols, n_cols, "against scalar",
                                test_devices[d]);
        }
        bench_destroy(&m.b);
    }
    free(scalar);
    free(up);
    free(gate);
}

static void test_swiglu_matches_its_formula(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 7, 256, 257, 4097};
    for (size_t i = 0; i < TD_COUNT(sizes); i++)
        for (int to = 0; to < 3; to++)
            check_case(sizes[i], (destination)to);
}

static void test_hostile_rows_stay_alone(void **state)
{
    (void)state;
    enum { N_COLS = 70 };
    static const float hostile[] = {INFINITY, -INFINITY, NAN, 3e38f, 1e-42f};
    for (size_t d = 0; d < n_test_devices; d++) {
        float want[N_COLS];
        for (size_t h = 0; h <= TD_COUNT(hostile); h++) { /* the first turn runs the row alone */
            swiglu_bench m = begin_case(test_devices[d], N_COLS, TO_OTHER);
            uint32_t n_rows = h ? N_ROWS : 1, probe = h ? (uint32_t)h % N_ROWS : 0;
            for (uint32_t r = 0; r < n_rows; r++)
                for (uint32_t i = 0; i < N_COLS; i++) {
                    view_row(m.gate, r)[i] = r == probe ? test_random(8, i) : hostile[h - 1];
                    view_row(m.up, r)[i] = r == probe ? test_random(9, i) : hostile[h - 1];
                }
            bench_run(&m.b, n_rows, 0);
            if (!h)
                memcpy(want, view_row(m.y, 0), sizeof want);
            check_same_bits(view_row(m.y, probe), want, N_COLS, "beside hostile rows",
                            test_devices[d]);
            if (h == 3) /* NaN stays visible */
                assert_true(isnan(view_row(m.y, probe ? 0 : 1)[0]) != 0);
            bench_destroy(&m.b);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swiglu_matches_its_formula),
        cmocka_unit_test(test_hostile_rows_stay_alone),
    };
    return TEST_MAIN(tests);
}
