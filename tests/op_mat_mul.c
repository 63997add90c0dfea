/* td_op_mat_mul against an f64 product of the decoded weights, for every weight type, odd shapes,
 * views, both modes and non-finite neighbours; and law 1: a row's result does not depend on how
 * many rows run with it or on its place among them.
 *
 * Tolerances. Products are summed in f32: an error of (n_k / 32 + 64) ulp of sum |w x| is far
 * more than the chains can make. Activations of quantized weights are rounded to 8 bits per
 * block of 32: at most amax / 254 each. That is the same rounding on every device but for a
 * GPU's divisions, which may take a tie the other way: beside the scalar device few activations
 * may be one step off. */
#include "op_common.h"

typedef struct {
    const td_type_info *type;
    uint32_t n_k, n_o, n_rows;
    uint32_t x_pad, y_pad; /* columns of the tensors before and behind the views */
    bool has_bias;
    td_mode mode;
} mul_case;

typedef struct {
    bench b;
    td_tensor *x, *y;
} mul_bench;

static mul_bench begin_case(td_device *dev, const mul_case *c, const void *rows, const float *bias)
{
    mul_bench m = {.b = bench_begin(dev, c->mode, c->n_rows, c->n_rows)};
    m.x = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, c->n_rows, c->n_k + 2 * c->x_pad);
    m.y = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, c->n_rows, c->n_o + 2 * c->y_pad);
    td_weight *w = bench_weight(&m.b, c->type, c->n_o, c->n_k, rows);
    td_op_mat_mul(m.b.p, w, c->has_bias ? bench_vector(&m.b, bias, c->n_o) : NULL,
                  td_columns(m.x, c->x_pad, c->n_k), td_columns(m.y, c->y_pad, c->n_o));
    bench_end(&m.b);
    return m;
}

static void set_x(mul_bench *m, const mul_case *c, uint32_t row, const float *values)
{
    float *x = f32_data(m->x) + (size_t)row * (c->n_k + 2 * c->x_pad);
    for (uint32_t i = 0; i < 2 * c->x_pad + c->n_k; i++)
        x[i] = NAN; /* a read outside the view shows */
    memcpy(x + c->x_pad, values, c->n_k * sizeof(float));
}

static const float *get_y(mul_bench *m, const mul_case *c, uint32_t row)
{
    return f32_data(m->y) + (size_t)row * (c->n_o + 2 * c->y_pad) + c->y_pad;
}

static float *new_scalar_results(const mul_case *c, const void *rows, const float *bias,
                                 const float *x)
{
    mul_bench m = begin_case(test_devices[0], c, rows, bias);
    for (uint32_t r = 0; r < c->n_rows; r++)
        set_x(&m, c, r, x + (size_t)r * c->n_k);
    bench_run(&m.b, c->n_rows, c->n_rows);
    float *out = test_alloc((size_t)c->n_rows * c->n_o, sizeof(float));
    for (uint32_t r = 0; r < c->n_rows; r++)
        memcpy(out + (size_t)r * c->n_o, get_y(&m, c, r), c->n_o * sizeof(float));
    bench_destroy(&m.b);
    return out;
}

/* What 8-bit activations may add: sum over blocks of 32 of sum |w| amax / 254. */
static double activation_error(const float *w, const float *x, uint32_t n_k)
{
    double error = 0;
    for (uint32_t k = 0; k < n_k; k += 32) {
        double amax = 0, sum = 0;
        for (uint32_t i = k; i < k + 32 && i < n_k; i++) {
            amax = fmax(amax, fabs((double)x[i]));
            sum += fabs((double)w[i]);
        }
        error += sum * amax / 254.0;
    }
    return error;
}

static void check_row(const td_device *dev, const mul_case *c, const float *decoded,
                      const float *bias, const float *x, const float *y)
{
    char what[128];
    snprintf(what, sizeof what, "%s %u x %u, %u rows, pads %u %u, mode %d", c->type->name, c->n_o,
             c->n_k, c->n_rows, c->x_pad, c->y_pad, (int)c->mode);
    for (uint32_t o = 0; o < c->n_o; o++) {
        const float *w = decoded + (size_t)o * c->n_k;
        double sum = c->has_bias ? (double)bias[o] : 0.0, size = fabs(sum);
        for (uint32_t k = 0; k < c->n_k; k++) {
            sum += (double)w[k] * (double)x[k];
            size += fabs((double)w[k] * (double)x[k]);
        }
        double tolerance = (c->n_k / 32.0 + 64.0) * 0x1p-24 * size + 1e-37;
        if (c->type->has_int8_activations)
            tolerance += 1.001 * activation_error(w, x, c->n_k);
        check_close(y[o], sum, tolerance, o, what, dev);
    }
}

/* Against the scalar device's: the same integers, but for one tie in 512 activations. */
static void check_near_scalar(const td_device *dev, const mul_case *c, const float *decoded,
                              const float *x, const float *y, const float *scalar)
{
    for (uint32_t o = 0; o < c->n_o; o++) {
        double size = 0, largest = 0, amax = 0;
        for (uint32_t k = 0; k < c->n_k; k++) {
            double w = fabs((double)decoded[(size_t)o * c->n_k + k]);
            size += w * fabs((double)x[k]);
            largest = fmax(largest, w);
            amax = fmax(amax, fabs((double)x[k]));
        }
        double tolerance = (c->n_k / 32.0 + 64.0) * 0x1p-24 * (size + 16) + 1e-37;
        tolerance += (double)td_div_up(c->n_k, 512) * largest * amax / 127;
        check_close(y[o], (double)scalar[o], tolerance, o, "near scalar", dev);
    }
}

typedef struct { /* a case's data, and what the scalar device makes of it */
    unsigned char *rows;
    float *decoded, *bias, *x, *scalar;
} mul_data;

static mul_data new_data(const mul_case *c)
{
    mul_data d = {.rows = new_random_rows(c->type, c->n_o, c->n_k, c->n_k * 7919u + c->n_o)};
    d.decoded = new_decoded(c->type, d.rows, c->n_o, c->n_k);
    d.bias = new_random(c->n_o, 3);
    d.x = new_random((size_t)c->n_rows * c->n_k, 11);
    d.scalar = new_scalar_results(c, d.rows, d.bias, d.x);
    return d;
}

static void free_data(mul_data *d)
{
    free(d->scalar);
    free(d->x);
    free(d->bias);
    free(d->decoded);
    free(d->rows);
}

static void check_device(td_device *dev, const mul_case *c, const mul_data *d)
{
    mul_bench m = begin_case(dev, c, d->rows, d->bias);
    for (uint32_t r = 0; r < c->n_rows; r++)
        set_x(&m, c, r, d->x + (size_t)r * c->n_k);
    for (size_t j = 0; j < (size_t)c->n_rows * (c->n_o + 2 * c->y_pad); j++)
        f32_data(m.y)[j] = 12345.0f;
    bench_run(&m.b, c->n_rows, c->n_rows);
    for (uint32_t r = 0; r < c->n_rows; r++) {
        const float *y = get_y(&m, c, r), *x = d->x + (size_t)r * c->n_k;
        const float *want = d->scalar + (size_t)r * c->n_o;
        check_row(dev, c, d->decoded, d->bias, x, y);
        if (is_bit_equal_to_scalar(dev))
            check_same_bits(y, want, c->n_o, "against scalar", dev);
        else
            check_near_scalar(dev, c, d->decoded, x, y, want);
        for (uint32_t j = 1; j <= c->y_pad; j++) { /* nothing outside the view is written */
            assert_true(*(y - j) == 12345.0f);
            assert_true(y[c->n_o + j - 1] == 12345.0f);
        }
    }
    bench_destroy(&m.b);
}

/* On a software GPU a program of its own is compiled for every type, shape and width, which takes
 * longer than all else: there, types beyond one of each kind of shader have one shape and few
 * widths (in CI few kernels, too: CMakeLists.txt). */
static bool has_every_shape(const td_device *dev, const td_type_info *type)
{
    static const char *const of_a_kind[] = {"F32",  "F16",  "Q4_0",  "Q8_0",
                                            "Q4_K", "Q3_K", "MXFP4", "IQ2_XS"};
    bool is_one = !is_software(dev);
    for (size_t i = 0; i < TD_COUNT(of_a_kind); i++)
        is_one |= !strcmp(type->name, of_a_kind[i]);
    return is_one && !(is_software(dev) && getenv("TD_VK_VALIDATION"));
}

/* is_spared: by devices that have not every shape of a type. */
static void check_some(const mul_case *c, bool is_spared)
{
    bool has_any = !is_spared;
    for (size_t i = 1; i < n_test_devices; i++)
        has_any |= has_every_shape(test_devices[i], c->type);
    if (!has_any)
        return;
    mul_data d = new_data(c);
    for (size_t i = 0; i < n_test_devices; i++)
        if (!is_spared || has_every_shape(test_devices[i], c->type))
            check_device(test_devices[i], c, &d);
    free_data(&d);
}

static void check_case(const mul_case *c) { check_some(c, false); }

static void test_mat_mul_is_right_for_every_type_and_shape(void **state)
{
    (void)state;
    for (size_t t = 0; t < TD_COUNT(weight_types); t++) {
        const td_type_info *type = chosen_type(t);
        if (!type)
            continue;
        uint32_t block = type->block_elements;
        for (int mode = 0; mode < 2; mode++) {
            const mul_case cases[] = {
                {type, block, 1, 1, 0, 0, false, (td_mode)mode},
                {type, block * 3, 5, 3, 0, 0, true, (td_mode)mode},
                {type, td_round_up(1056, block), 67, 9, 4, 4, true, (td_mode)mode},
                {type, td_round_up(96, block), 65, 37, 3, 1, true, (td_mode)mode},
                {type, block == 1 ? 8 : block, 4097, 2, 0, 0, false, (td_mode)mode},
                {type, block, 1100, 7, 0, 0, true, (td_mode)mode}, /* several outputs a lane */
                {type, 16384, 65, 1, 0, 0, false, (td_mode)mode},  /* several slices */
            };
            for (size_t i = 0; i < TD_COUNT(cases); i++)
                check_some(&cases[i], i != 2 && i != 3);
        }
    }
}

static void test_plain_types_take_odd_lengths(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {1, 2, 3, 5, 7, 9, 31, 33, 127, 130, 1001};
    for (size_t t = 0; t < N_PLAIN_TYPES; t++)
        for (size_t i = 0; i < TD_COUNT(lengths); i++)
            for (int mode = 0; mode < 2; mode++) {
                const td_type_info *type = chosen_type(t);
                if (!type)
                    continue;
                check_case(
                    &(mul_case){type, lengths[i], 9, 5, (uint32_t)i % 5, 1, true, (td_mode)mode});
                check_case(&(mul_case){type, lengths[i], 6, 2, 0, 0, false, (td_mode)mode});
            }
}

static void test_prefill_takes_a_full_chunk(void **state)
{
    (void)state;
    check_case(&(mul_case){td_type_find(TD_TYPE_Q4_K), 256, 70, TD_PREFILL_ROWS_MAX, 0, 0, true,
                           TD_MODE_PREFILL});
    check_case(&(mul_case){td_type_find(TD_TYPE_F16), 100, 130, 65, 0, 0, false, TD_MODE_PREFILL});
}

/* The row under test among others, in every batch size and at several places. */
static void check_invariance(td_device *dev, const mul_case *c, const void *rows, bool has_all)
{
    static const uint32_t all[] = {1, 2, 3, 5, 8, 9, 16, 17, 33, 64}, few[] = {1, 3, 16, 64};
    const uint32_t *sizes = has_all ? all : few;
    mul_bench m = begin_case(dev, c, rows, NULL);
    float *probe = new_random(c->n_k, 77), *others = new_random((size_t)64 * c->n_k, 78);
    float *want = test_alloc(c->n_o, sizeof(float));
    for (size_t s = 0; s < (has_all ? TD_COUNT(all) : TD_COUNT(few)); s++) {
        const uint32_t places[] = {0, sizes[s] / 2, sizes[s] - 1};
        for (size_t i = 0; i < TD_COUNT(places); i++) {
            for (uint32_t r = 0; r < sizes[s]; r++)
                set_x(&m, c, r, others + (size_t)((r + s) % 64) * c->n_k);
            set_x(&m, c, places[i], probe);
            bench_run(&m.b, sizes[s], sizes[s]);
            if (s == 0 && i == 0)
                memcpy(want, get_y(&m, c, 0), c->n_o * sizeof(float));
            check_same_bits(get_y(&m, c, places[i]), want, c->n_o, "row invariance", dev);
        }
    }
    bench_destroy(&m.b);
    free(want);
    free(others);
    free(probe);
}

static void test_a_row_does_not_depend_on_its_batch(void **state)
{
    (void)state;
    for (size_t t = 0; t < TD_COUNT(weight_types); t++) {
        const td_type_info *type = chosen_type(t);
        if (!type)
            continue;
        uint32_t n_k = td_round_up(992, type->block_elements);
        const mul_case cases[] = {
            {type, n_k, 43, 64, 0, 0, false, TD_MODE_VERIFY},
            {type, 256, 1090, 64, 0, 0, false, TD_MODE_VERIFY}, /* several outputs a lane */
            {type, 16384, 5, 64, 0, 0, false, TD_MODE_VERIFY},  /* several slices */
        };
        for (size_t k = 0; k < TD_COUNT(cases); k++) {
            unsigned char *rows = new_random_rows(type, cases[k].n_o, cases[k].n_k, 5);
            /* The scalar device takes rows one by one, and long: the small case is enough. */
            for (size_t i = k == 0 ? 0 : 1; i < n_test_devices; i++)
                if (k == 0 || has_every_shape(test_devices[i], type))
                    check_invariance(test_devices[i], &cases[k], rows,
                                     k == 0 && has_every_shape(test_devices[i], type));
            free(rows);
        }
    }
}

/* Rows of Inf, NaN, huge and denormal numbers beside finite ones: those keep their bits. */
static void check_hostile_neighbours(td_device *dev, const mul_case *c, const void *rows)
{
    static const float hostile[] = {INFINITY, -INFINITY, NAN, 1e30f, -1e38f, 1e-42f, 0.0f};
    mul_bench m = begin_case(dev, c, rows, NULL);
    float *probe = new_random(c->n_k, 91), *bad = test_alloc(c->n_k, sizeof(float));
    float *want = test_alloc(c->n_o, sizeof(float));
    set_x(&m, c, 0, probe);
    bench_run(&m.b, 1, 1);
    memcpy(want, get_y(&m, c, 0), c->n_o * sizeof(float));
    for (size_t h = 0; h < TD_COUNT(hostile); h++) {
        for (uint32_t k = 0; k < c->n_k; k++)
            bad[k] = hostile[h];
        for (uint32_t r = 0; r < c->n_rows; r++)
            set_x(&m, c, r, r % 2 ? probe : bad);
        bench_run(&m.b, c->n_rows, c->n_rows);
        for (uint32_t r = 0; r < c->n_rows; r++) {
            const float *y = get_y(&m, c, r);
            if (r % 2)
                check_same_bits(y, want, c->n_o, "beside hostile rows", dev);
            else if (!isfinite(hostile[h]))
                assert_false(isfinite(y[0]) != 0);
            else if (hostile[h] == 0.0f)
                assert_true(y[0] == 0.0f);
        }
    }
    bench_destroy(&m.b);
    free(want);
    free(bad);
    free(probe);
}

/* A weight row whose scale or values are not finite spoils its own output alone. */
static void check_hostile_weight(td_device *dev, const mul_case *c, const unsigned char *rows)
{
    const uint32_t bad_row = 2;
    size_t row_bytes = td_row_bytes(c->type, c->n_k);
    unsigned char *spoiled = test_alloc(c->n_o, row_bytes);
    memcpy(spoiled, rows, c->n_o * row_bytes);
    memset(spoiled + bad_row * row_bytes, 0xff, row_bytes); /* NaN */
    float *probe = new_random(c->n_k, 91);
    mul_bench good = begin_case(dev, c, rows, NULL), bad = begin_case(dev, c, spoiled, NULL);
    set_x(&good, c, 0, probe);
    set_x(&bad, c, 0, probe);
    bench_run(&good.b, 1, 1);
    bench_run(&bad.b, 1, 1);
    for (uint32_t o = 0; o < c->n_o; o++) {
        if (o == bad_row)
            assert_true(isnan(get_y(&bad, c, 0)[o]) != 0);
        else
            check_same_bits(get_y(&bad, c, 0) + o, get_y(&good, c, 0) + o, 1, "beside a NaN weight",
                            dev);
    }
    bench_destroy(&bad.b);
    bench_destroy(&good.b);
    free(probe);
    free(spoiled);
}

/* The scales of these are exponents, all of them finite. */
static bool has_nan(const td_type_info *type)
{
    return type->id != TD_TYPE_MXFP4 && type->id != TD_TYPE_NVFP4;
}

static void test_finite_rows_are_unaffected_by_hostile_ones(void **state)
{
    (void)state;
    for (size_t t = 0; t < TD_COUNT(weight_types); t++) {
        const td_type_info *type = chosen_type(t);
        if (!type)
            continue;
        for (int mode = 0; mode < 2; mode++) {
            mul_case c = {type,         td_round_up(64, type->block_elements), 21, 6, 1, 0, false,
                          (td_mode)mode};
            unsigned char *rows = new_random_rows(type, c.n_o, c.n_k, 6);
            for (size_t i = 0; i < n_test_devices; i++) {
                if (c.mode == TD_MODE_VERIFY && has_nan(type))
                    check_hostile_weight(test_devices[i], &c, rows);
                check_hostile_neighbours(test_devices[i], &c, rows);
            }
            free(rows);
        }
    }
}

/* Every kernel of the host, not only those of this CPU's best level; rows in tiles of all sizes. */
static void test_levels_agree_with_scalar(void **state)
{
    (void)state;
    if (!has_host()) {
        print_message("skipped: the host is not among the devices\n");
        skip();
    }
    static const char *const levels[] = {"generic", "avx2", "avxvnni", "avx512"};
    for (size_t l = 0; l < TD_COUNT(levels); l++) {
        td_device *dev = open_level(levels[l], 2);
        if (!dev)
            continue;
        for (size_t t = 0; t < TD_COUNT(weight_types); t++) {
            const td_type_info *type = chosen_type(t);
            if (!type)
                continue;
            for (uint32_t n_rows = 1; n_rows <= 17; n_rows += n_rows < 9 ? 1 : 4) {
                uint32_t n_k = type->block_elements * (type->block_elements < 256 ? 11 : 2);
                mul_case c = {type, n_k, 37, n_rows, 1, 2, n_rows % 2 == 0, TD_MODE_VERIFY};
                mul_data d = new_data(&c);
                check_device(dev, &c, &d);
                free_data(&d);
            }
        }
        td_device_destroy(&dev);
    }
}

/* Every byte of a block becomes `byte` where that leaves its values finite and of usual size: so
 * the quants become the largest or the smallest there are, and the scales stay. */
static void make_extreme(const td_type_info *type, unsigned char *block, unsigned char byte)
{
    float values[256];
    for (uint32_t i = 0; i < type->block_bytes; i++) {
        unsigned char before = block[i];
        block[i] = byte;
        type->dequantize(block, values, type->block_elements);
        for (uint32_t j = 0; j < type->block_elements; j++)
            if (!(fabsf(values[j]) < 1e3f))
                block[i] = before;
    }
}

/* Sums of the largest products: nothing overflows on the way, at any level of the host. */
static void test_largest_products_do_not_overflow(void **state)
{
    (void)state;
    static const char *const levels[] = {"generic", "avx2", "avxvnni", "avx512"};
    static const unsigned char bytes[] = {0x00, 0x7f, 0x80, 0xff};
    for (size_t l = 0; l < TD_COUNT(levels); l++) {
        td_device *dev = open_level(levels[l], 1);
        if (!dev)
            continue;
        for (size_t t = 0; t < TD_COUNT(weight_types); t++) {
            const td_type_info *type = chosen_type(t);
            if (!type || !type->has_int8_activations)
                continue;
            const mul_case c = {type,  type->block_elements, TD_COUNT(bytes), 6, 0, 0,
                                false, TD_MODE_VERIFY};
            mul_data d = new_data(&c);
            for (size_t i = 0; i < TD_COUNT(bytes); i++)
                make_extreme(type, d.rows + i * type->block_bytes, bytes[i]);
            for (uint32_t r = 0; r < c.n_rows; r++) /* of one sign, in turns, half and half */
                for (uint32_t k = 0; k < c.n_k; k++)
                    d.x[r * c.n_k + k] = (r % 3 == 0   ? true
                                          : r % 3 == 1 ? k % 2 == 0
                                                       : k % 32 < 16) == (r < 3)
                                             ? 1.0f
                                             : -1.0f;
            free(d.scalar);
            free(d.decoded);
            d.scalar = new_scalar_results(&c, d.rows, d.bias, d.x);
            d.decoded = new_decoded(type, d.rows, c.n_o, c.n_k);
            check_device(dev, &c, &d);
            free_data(&d);
        }
        td_device_destroy(&dev);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mat_mul_is_right_for_every_type_and_shape),
        cmocka_unit_test(test_plain_types_take_odd_lengths),
        cmocka_unit_test(test_prefill_takes_a_full_chunk),
        cmocka_unit_test(test_a_row_does_not_depend_on_its_batch),
        cmocka_unit_test(test_finite_rows_are_unaffected_by_hostile_ones),
        cmocka_unit_test(test_levels_agree_with_scalar),
        cmocka_unit_test(test_largest_products_do_not_overflow),
    };
    return TEST_MAIN(tests);
}
