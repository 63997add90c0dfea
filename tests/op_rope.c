/* td_op_rope against its formula in f64: both kinds, partial rotation at the beginning of a head
 * and inside, many heads, column windows of x and of the angles; columns it must not touch keep
 * their bits. */
#include "op_common.h"

typedef struct {
    td_rope_kind kind;
    uint32_t n_heads, head_dim, n_rot, pad;
    uint32_t col0; /* of the rotated columns in a head */
} rope_case;

#define N_ROWS 9u

static void rotate(const rope_case *c, const float *in, const float *cos_sin, double *out,
                   double *sizes)
{
    for (uint32_t h = 0; h < c->n_heads; h++) {
        const float *x = in + h * c->head_dim;
        double *y = out + h * c->head_dim, *size = sizes + h * c->head_dim;
        for (uint32_t i = 0; i < c->head_dim; i++) {
            y[i] = (double)x[i];
            size[i] = 0; /* exact */
        }
        for (uint32_t i = 0; i < c->n_rot / 2; i++) {
            uint32_t a = c->col0 + (c->kind == TD_ROPE_NORM ? 2 * i : i);
            uint32_t b = c->kind == TD_ROPE_NORM ? a + 1 : a + c->n_rot / 2;
            double cosine = (double)cos_sin[2 * i], sine = (double)cos_sin[2 * i + 1];
            y[a] = (double)x[a] * cosine - (double)x[b] * sine;
            y[b] = (double)x[a] * sine + (double)x[b] * cosine;
            size[a] = size[b] = fabs((double)x[a]) + fabs((double)x[b]);
        }
    }
}

static void check_case(const rope_case *c)
{
    uint32_t n_cols = c->n_heads * c->head_dim, stride = n_cols + 2 * c->pad;
    float *x0 = new_random((size_t)N_ROWS * stride, 4),
          *scalar = new_random((size_t)N_ROWS * stride, 4);
    float *angles = test_alloc((size_t)N_ROWS * c->n_rot, sizeof(float));
    double *want = test_alloc(n_cols, sizeof(double)), *sizes = test_alloc(n_cols, sizeof(double));
    for (uint32_t i = 0; i < N_ROWS * c->n_rot / 2; i++) {
        angles[2 * i] = (float)cos(i * 0.37);
        angles[2 * i + 1] = (float)sin(i * 0.37);
    }
    for (size_t d = 0; d < n_test_devices; d++) {
        bench b = bench_begin(test_devices[d], TD_MODE_VERIFY, N_ROWS, 0);
        td_tensor *x = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, stride);
        td_tensor *cos_sin =
            bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, c->n_rot + c->pad);
        td_view angle = td_columns(cos_sin, c->pad, c->n_rot);
        td_op_rope(b.p, td_columns(x, c->pad, n_cols), angle, c->kind, c->head_dim, c->col0);
        bench_end(&b);
        memcpy(f32_data(x), x0, (size_t)N_ROWS * stride * sizeof(float));
        for (uint32_t r = 0; r < N_ROWS; r++)
            memcpy(view_row(angle, r), angles + r * c->n_rot, c->n_rot * sizeof(float));
        bench_run(&b, N_ROWS - 1, 0);
        for (uint32_t r = 0; r < N_ROWS - 1; r++) {
            const float *before = x0 + r * stride, *after = f32_data(x) + r * stride;
            rotate(c, before + c->pad, angles + r * c->n_rot, want, sizes);
            for (uint32_t i = 0; i < n_cols; i++)
                check_close(after[c->pad + i], want[i], 3e-7 * sizes[i], i, "rope",
                            test_devices[d]);
            check_same_bits(after, before, c->pad, "before the view", test_devices[d]);
            check_same_bits(after + c->pad + n_cols, before + c->pad + n_cols, c->pad,
                            "behind the view", test_devices[d]);
        }
        check_same_bits(f32_data(x) + (N_ROWS - 1) * stride, x0 + (N_ROWS - 1) * stride, stride,
                        "a row that did not run", test_devices[d]);
        if (d == 0)
            memcpy(scalar, f32_data(x), (size_t)N_ROWS * stride * sizeof(float));
        else if (is_bit_equal_to_scalar(test_devices[d]))
            check_same_bits(f32_data(x), scalar, (size_t)N_ROWS * stride, "against scalar",
                            test_devices[d]);
        bench_destroy(&b);
    }
    free(sizes);
    free(want);
    free(angles);
    free(scalar);
    free(x0);
}

static void test_rope_rotates_pairs_of_both_kinds(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        check_case(&(rope_case){(td_rope_kind)kind, 1, 2, 2, 0, 0});
        check_case(&(rope_case){(td_rope_kind)kind, 7, 24, 24, 3, 0});
        check_case(&(rope_case){(td_rope_kind)kind, 3, 64, 20, 0, 0});
        check_case(&(rope_case){(td_rope_kind)kind, 32, 128, 128, 4, 0});
        check_case(&(rope_case){(td_rope_kind)kind, 2, 33, 6, 1, 0});
        check_case(&(rope_case){(td_rope_kind)kind, 3, 192, 64, 0, 128});
        check_case(&(rope_case){(td_rope_kind)kind, 2, 33, 6, 1, 9});
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_rotates_pairs_of_both_kinds),
    };
    return TEST_MAIN(tests);
}
