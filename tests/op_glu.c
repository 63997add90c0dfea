/* td_op_glu against its formulas in f64, of every kind, over the range where exponentials overflow
 * and underflow and values are clamped; in place and not, with gate and up as column windows of one
 * tensor, with one gate for all columns, with scales; row invariance beside hostile rows. */
#include "op_common.h"

#define N_ROWS 6u

typedef enum { TO_OTHER, TO_GATE, TO_UP } destination;

typedef struct {
    td_glu_kind kind;
    uint32_t n_cols, n_gates, n_scales;
    destination to;
    uint32_t n_groups; /* of gate and up, which alternate; 0: one */
} glu_case;

typedef struct {
    bench b;
    td_view gate, up, y;
    td_tensor *scales;
} glu_bench;

static glu_bench begin_case(td_device *dev, const glu_case *c)
{
    glu_bench m = {.b = bench_begin(dev, TD_MODE_VERIFY, N_ROWS, 0)};
    uint32_t n = c->n_cols;
    td_tensor *fused = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, c->n_gates + n);
    m.gate = td_columns(fused, 0, c->n_gates);
    m.up = td_columns(fused, c->n_gates, n);
    m.y = c->to == TO_GATE ? m.gate
          : c->to == TO_UP ? m.up
                           : td_all(bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, n));
    if (c->n_scales)
        m.scales = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, c->n_scales);
    uint32_t group = n / td_max_u32(c->n_groups, 1), span = 2 * n - group;
    if (c->n_groups)
        td_op_glu_groups(m.b.p, c->kind, td_columns(fused, 0, span), td_columns(fused, group, span),
                         c->n_groups, 2 * group, m.scales, m.y);
    else
        td_op_glu(m.b.p, c->kind, m.gate, m.up, m.scales, m.y);
    bench_end(&m.b);
    return m;
}

/* Row r of gate and up as they lie for the case. */
static void put_row(const glu_case *c, const glu_bench *m, uint32_t r, const float *gate,
                    const float *up)
{
    uint32_t n_groups = td_max_u32(c->n_groups, 1), n = c->n_cols / n_groups;
    if (!c->n_groups) {
        memcpy(view_row(m->gate, r), gate, c->n_gates * sizeof *gate);
        memcpy(view_row(m->up, r), up, c->n_cols * sizeof *up);
        return;
    }
    for (uint32_t g = 0; g < n_groups; g++) {
        memcpy(view_row(td_all(m->gate.t), r) + 2 * g * n, gate + g * n, n * sizeof *gate);
        memcpy(view_row(td_all(m->gate.t), r) + (2 * g + 1) * n, up + g * n, n * sizeof *up);
    }
}

/* Also, through *size, how large what is added up and multiplied gets. */
static double glu(td_glu_kind kind, double g, double u, double *size)
{
    double factor;
    switch (kind) {
    case TD_GLU_SILU:
        factor = g / (1.0 + exp(-g));
        break;
    case TD_GLU_GELU: /* 1 + tanh(z) in a form that is exact for large negative z */
        factor =
            g / (1.0 + exp(-2.0 * sqrt(2.0 / 3.14159265358979323846) * (g + 0.044715 * g * g * g)));
        break;
    case TD_GLU_CLAMPED:
        g = fmin(g, 7.0);
        u = fmin(fmax(u, -7.0), 7.0) + 1.0;
        factor = g / (1.0 + exp(-1.702 * g));
        break;
    default:
        factor = 1.0 / (1.0 + exp(-g));
    }
    /* exp of a large argument loses as many ulp as the argument is long. */
    *size = fabs(factor * u) * (1.0 + fmin(2.0 * fabs(g), 200.0)) + fabs(factor);
    /* tanh near -1 has no relative precision: what is left is g times an ulp of 1. */
    if (kind == TD_GLU_GELU)
        *size += fabs(fmin(fabs(g), 10.0) * u);
    return factor * u;
}

static void check_case(const glu_case *c)
{
    static const float points[] = {0.0f,   -0.0f,  1.0f,    -1.0f, 20.0f, -20.0f, 80.0f,
                                   -80.0f, 100.0f, -104.0f, 1e4f,  -1e4f, 1e18f,  -1e18f};
    size_t n = (size_t)N_ROWS * c->n_cols;
    float *gate = new_random(n, 1), *up = new_random(n, 2), *scalar = new_random(n, 3);
    float *scales = new_random((size_t)N_ROWS * (c->n_scales + 1), 4);
    char what[64];
    snprintf(what, sizeof what, "glu %d, %u columns, %u scales, to %d", (int)c->kind, c->n_cols,
             c->n_scales, (int)c->to);
    for (size_t i = 0; i < n; i++) {
        gate[i] = i % 3 ? gate[i] * 8.0f : points[i / 3 % TD_COUNT(points)];
        up[i] *= 10.0f;
    }
    for (size_t d = 0; d < n_test_devices; d++) {
        glu_bench m = begin_case(test_devices[d], c);
        for (uint32_t r = 0; r < N_ROWS; r++) {
            put_row(c, &m, r, gate + (size_t)r * c->n_cols, up + (size_t)r * c->n_cols);
            if (m.scales)
                memcpy(view_row(td_all(m.scales), r), scales + (size_t)r * c->n_scales,
                       c->n_scales * sizeof(float));
        }
        bench_run(&m.b, N_ROWS, 0);
        for (uint32_t r = 0; r < N_ROWS; r++) {
            float *y = view_row(m.y, r);
            for (uint32_t i = 0; i < c->n_cols; i++) {
                size_t at = (size_t)r * c->n_cols + i;
                float g = gate[(size_t)r * c->n_cols + (c->n_gates == 1 ? 0 : i)], u = up[at];
                if (c->n_scales) { /* rounded to f32, as clamps are not continuous in the ulp */
                    float scale = scales[r * c->n_scales + i / (c->n_cols / c->n_scales)];
                    g *= scale;
                    u *= scale;
                }
                double size, want = glu(c->kind, (double)g, (double)u, &size);
                check_close(y[i], want, 4e-7 * size + 1e-36, at, what, test_devices[d]);
            }
            if (d == 0)
                memcpy(scalar + (size_t)r * c->n_cols, y, c->n_cols * sizeof(float));
            else if (is_bit_equal_to_scalar(test_devices[d]))
                check_same_bits(y, scalar + (size_t)r * c->n_cols, c->n_cols, what,
                                test_devices[d]);
        }
        bench_destroy(&m.b);
    }
    free(scales);
    free(scalar);
    free(up);
    free(gate);
}

static void test_glu_matches_its_formula(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 7, 256, 257, 1025};
    for (int kind = TD_GLU_SILU; kind <= TD_GLU_SIGMOID; kind++)
        for (size_t i = 0; i < TD_COUNT(sizes); i++)
            for (int to = 0; to < 3; to++)
                check_case(
                    &(glu_case){(td_glu_kind)kind, sizes[i], sizes[i], 0, (destination)to, 0});
}

static void test_one_gate_serves_all_columns(void **state)
{
    (void)state;
    check_case(&(glu_case){TD_GLU_SIGMOID, 300, 1, 0, TO_OTHER, 0});
    check_case(&(glu_case){TD_GLU_SIGMOID, 64, 1, 0, TO_UP, 0});
}

static void test_groups_of_columns_are_scaled_first(void **state)
{
    (void)state;
    for (int kind = TD_GLU_SILU; kind <= TD_GLU_SIGMOID; kind++) {
        check_case(&(glu_case){(td_glu_kind)kind, 300, 300, 1, TO_OTHER, 0});
        check_case(&(glu_case){(td_glu_kind)kind, 8 * 37, 8 * 37, 8, TO_GATE, 0});
        check_case(&(glu_case){(td_glu_kind)kind, 4 * 64, 4 * 64, 4, TO_UP, 0});
    }
}

static void test_groups_of_gate_and_up_alternate(void **state)
{
    (void)state;
    check_case(&(glu_case){TD_GLU_SILU, 8 * 37, 8 * 37, 0, TO_OTHER, 8});
    check_case(&(glu_case){TD_GLU_CLAMPED, 2 * 512, 2 * 512, 0, TO_OTHER, 2});
    check_case(&(glu_case){TD_GLU_GELU, 4 * 64, 4 * 64, 4, TO_OTHER, 4});
    check_case(&(glu_case){TD_GLU_SILU, 64, 64, 2, TO_OTHER, 1});
}

static void test_hostile_rows_stay_alone(void **state)
{
    (void)state;
    enum { N_COLS = 70 };
    static const float hostile[] = {INFINITY, -INFINITY, NAN, 3e38f, 1e-42f};
    for (size_t k = 0; k < 4 * n_test_devices; k++) {
        td_device *dev = test_devices[k / 4];
        float want[N_COLS];
        for (size_t h = 0; h <= TD_COUNT(hostile); h++) { /* the first turn runs the row alone */
            glu_bench m =
                begin_case(dev, &(glu_case){(td_glu_kind)(k % 4), N_COLS, N_COLS, 0, 0, 0});
            uint32_t n_rows = h ? N_ROWS : 1, probe = h ? (uint32_t)h % N_ROWS : 0;
            for (uint32_t r = 0; r < n_rows; r++)
                for (uint32_t i = 0; i < N_COLS; i++) {
                    view_row(m.gate, r)[i] = r == probe ? test_random(8, i) : hostile[h - 1];
                    view_row(m.up, r)[i] =
                        r == probe || h == 3 ? test_random(9, i) : hostile[h - 1];
                }
            bench_run(&m.b, n_rows, 0);
            if (!h)
                memcpy(want, view_row(m.y, 0), sizeof want);
            check_same_bits(view_row(m.y, probe), want, N_COLS, "beside hostile rows", dev);
            if (h == 3) /* a NaN of the gate stays visible */
                assert_true(isnan(view_row(m.y, probe ? 0 : 1)[0]) != 0);
            bench_destroy(&m.b);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_glu_matches_its_formula),
        cmocka_unit_test(test_one_gate_serves_all_columns),
        cmocka_unit_test(test_groups_of_columns_are_scaled_first),
        cmocka_unit_test(test_groups_of_gate_and_up_alternate),
        cmocka_unit_test(test_hostile_rows_stay_alone),
    };
    return TEST_MAIN(tests);
}
