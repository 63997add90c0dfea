/* What the op tests share: the devices to test, a bench (one device, one program and the objects
 * it uses), random inputs and comparisons.
 *
 *     for (size_t i = 0; i < n_test_devices; i++) {
 *         bench b = bench_begin(test_devices[i], TD_MODE_VERIFY, 64, 64);
 *         td_tensor *x = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, 64, n_cols);
 *         td_op_...(b.p, ...);
 *         bench_end(&b);
 *         bench_run(&b, n_rows, n_out);
 *         bench_destroy(&b);
 *     }
 *
 * TD_TEST_DEVICES names the devices, comma-separated; the default is host:1, host:2 and vulkan,
 * which is the first usable Vulkan device, a software driver included. TD_TEST_BRIEF asks for the
 * fewest cases that run every shader: what a further driver can show. The scalar device is always
 * test_devices[0]. A device that cannot be created is printed as skipped; a program that is left
 * with the scalar one alone is skipped itself. */
#ifndef TD_TESTS_OP_COMMON_H
#define TD_TESTS_OP_COMMON_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/rng.h"
#include "check/inputs.h"
#include "kernels/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEST_SKIPPED      77 /* exit code of a program that could test nothing */
#define TEST_DEVICES_MAX  8
#define BENCH_OBJECTS_MAX 16

static td_device *test_devices[TEST_DEVICES_MAX];
static size_t n_test_devices;

static inline const char *device_spec(const td_device *dev)
{
    return td_device_get_info(dev)->spec;
}

static inline bool is_vulkan(const td_device *dev)
{
    td_device_kind kind = td_device_get_info(dev)->kind;
    return kind != TD_DEVICE_HOST;
}

static inline bool is_software(const td_device *dev)
{
    return td_device_get_info(dev)->kind == TD_DEVICE_SOFTWARE;
}

static inline bool wants_brief(void) { return getenv("TD_TEST_BRIEF") != NULL; }

static inline void open_device(const char *spec)
{
    td_err err = {0};
    static td_device_info infos[TD_DEVICES_MAX];
    uint32_t n = strcmp(spec, "vulkan") ? 0 : td_device_list(infos, TD_DEVICES_MAX);
    for (uint32_t i = 0; i < n; i++)
        if (infos[i].kind != TD_DEVICE_HOST && infos[i].is_usable) {
            spec = infos[i].spec;
            break;
        }
    td_device *dev = td_device_create(spec, &err);
    if (!dev)
        printf("skipped: device %s: %s\n", spec, err.message);
    else if (n_test_devices == TEST_DEVICES_MAX)
        td_device_destroy(&dev);
    else
        test_devices[n_test_devices++] = dev;
}

/* False where there is none to compare with the scalar one. */
static inline bool open_devices(void)
{
    const char *wanted = getenv("TD_TEST_DEVICES");
    char list[1024];
    snprintf(list, sizeof list, "%s", wanted ? wanted : "host:1,host:2,vulkan");
    open_device("scalar");
    char *rest = list;
    for (char *spec = strtok_r(rest, ",", &rest); spec; spec = strtok_r(NULL, ",", &rest))
        open_device(spec);
    return n_test_devices > 1;
}

static inline bool has_host(void)
{
    for (size_t i = 1; i < n_test_devices; i++)
        if (!is_vulkan(test_devices[i]))
            return true;
    return false;
}

static inline int close_devices(void **state)
{
    (void)state;
    for (size_t i = 0; i < n_test_devices; i++)
        td_device_destroy(&test_devices[i]);
    n_test_devices = 0;
    return 0;
}

/* -- bench ---------------------------------------------------------------------------------- */

typedef struct {
    td_device *dev;
    td_program *p;
    td_tensor *tensors[BENCH_OBJECTS_MAX];
    td_weight *weights[BENCH_OBJECTS_MAX];
    td_kv *kvs[BENCH_OBJECTS_MAX];
    td_state *states[BENCH_OBJECTS_MAX];
    size_t n_tensors, n_weights, n_kvs, n_states;
} bench;

static inline void must(bool is_ok, const td_err *err)
{
    if (!is_ok)
        fail_msg("%s", err->message);
}

static inline bench bench_begin(td_device *dev, td_mode mode, uint32_t n_rows, uint32_t n_out)
{
    td_err err = {0};
    bench b = {.dev = dev};
    b.p = td_program_begin(dev, &(td_program_params){"test", mode, n_rows, n_out}, &err);
    must(b.p != NULL, &err);
    return b;
}

static inline td_tensor *bench_tensor(bench *b, td_elem elem, td_rows rows, uint32_t n_rows,
                                      uint32_t n_cols)
{
    td_err err = {0};
    TD_ASSERT(b->n_tensors < BENCH_OBJECTS_MAX);
    td_tensor *t = td_tensor_create(
        b->dev, &(td_tensor_params){"test", elem, rows, n_rows, n_cols, true}, &err);
    must(t != NULL, &err);
    assert_non_null(td_tensor_data(t));
    b->tensors[b->n_tensors++] = t;
    return t;
}

/* Of n_groups matrices of equal size. */
static inline td_weight *bench_groups(bench *b, const td_type_info *type, uint32_t n_rows,
                                      uint32_t n_cols, uint32_t n_groups, const void *bytes)
{
    td_err err = {0};
    TD_ASSERT(b->n_weights < BENCH_OBJECTS_MAX);
    td_weight *w =
        td_weight_create(b->dev, &(td_weight_params){"test", type, n_rows, n_cols, n_groups}, &err);
    must(w != NULL, &err);
    b->weights[b->n_weights++] = w;
    /* In two pieces, as a loader would. */
    uint32_t n_first = n_rows / 2;
    const unsigned char *rest = (const unsigned char *)bytes + n_first * td_row_bytes(type, n_cols);
    if (n_first)
        must(td_weight_write(w, 0, n_first, bytes, &err), &err);
    must(td_weight_write(w, n_first, n_rows - n_first, rest, &err), &err);
    return w;
}

static inline td_weight *bench_weight(bench *b, const td_type_info *type, uint32_t n_rows,
                                      uint32_t n_cols, const void *bytes)
{
    return bench_groups(b, type, n_rows, n_cols, 0, bytes);
}

static inline td_weight *bench_vector(bench *b, const float *values, uint32_t n)
{
    return bench_weight(b, td_type_find(TD_TYPE_F32), 1, n, values);
}

static inline td_kv *bench_kv(bench *b, const td_kv_params *params)
{
    td_err err = {0};
    TD_ASSERT(b->n_kvs < BENCH_OBJECTS_MAX);
    td_kv *kv = td_kv_create(b->dev, params, &err);
    must(kv != NULL, &err);
    b->kvs[b->n_kvs++] = kv;
    return kv;
}

static inline td_state *bench_state(bench *b, const td_state_params *params)
{
    td_err err = {0};
    TD_ASSERT(b->n_states < BENCH_OBJECTS_MAX);
    td_state *state = td_state_create(b->dev, params, &err);
    must(state != NULL, &err);
    b->states[b->n_states++] = state;
    return state;
}

static inline void bench_end(bench *b)
{
    td_err err = {0};
    must(td_program_end(b->p, &err), &err);
}

static inline void bench_run(bench *b, uint32_t n_rows, uint32_t n_out)
{
    td_err err = {0};
    must(td_program_run(b->p, n_rows, n_out, &err), &err);
}

static inline void bench_destroy(bench *b)
{
    td_program_destroy(&b->p);
    for (size_t i = 0; i < b->n_tensors; i++)
        td_tensor_destroy(&b->tensors[i]);
    for (size_t i = 0; i < b->n_weights; i++)
        td_weight_destroy(&b->weights[i]);
    for (size_t i = 0; i < b->n_kvs; i++)
        td_kv_destroy(&b->kvs[i]);
    for (size_t i = 0; i < b->n_states; i++)
        td_state_destroy(&b->states[i]);
}

static inline float *f32_data(td_tensor *t) { return td_tensor_data(t); }
static inline int32_t *i32_data(td_tensor *t) { return td_tensor_data(t); }

/* Row `row` of a view of a host-visible tensor. */
static inline float *view_row(td_view v, uint32_t row)
{
    return f32_data(v.t) + (size_t)row * td_tensor_get_params(v.t)->n_cols + v.col0;
}

/* Opens host:n at a level; NULL when this CPU's best is below it. */
static inline td_device *open_level(const char *level, uint32_t n_threads)
{
    td_err err = {0};
    char spec[16];
    snprintf(spec, sizeof spec, "host:%u", n_threads);
    setenv("TD_HOST_ISA", level, 1);
    td_device *dev = td_device_create(spec, &err);
    unsetenv("TD_HOST_ISA");
    must(dev != NULL, &err);
    if (strncmp(td_device_get_info(dev)->driver, level, strlen(level)) == 0)
        return dev;
    print_message("skipped: this CPU has no %s\n", level);
    td_device_destroy(&dev);
    return NULL;
}

/* -- inputs --------------------------------------------------------------------------------- */

static inline void *test_alloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    TD_ASSERT(p);
    return p;
}

/* Uniform in [-1, 1), the same for the same (seed, i). */
static inline float test_random(uint64_t seed, size_t i) { return td_input_random(seed, i); }

static inline void fill_random(float *out, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        out[i] = test_random(seed, i);
}

static inline float *new_random(size_t n, uint64_t seed)
{
    float *out = test_alloc(n, sizeof(float));
    fill_random(out, n, seed);
    return out;
}

/* Rows of any weight type with values of about 1. */
static inline unsigned char *new_random_rows(const td_type_info *type, size_t n_rows, size_t n_cols,
                                             uint64_t seed)
{
    unsigned char *rows = test_alloc(n_rows * td_row_bytes(type, n_cols), 1);
    td_input_rows(type, n_rows, n_cols, seed, rows);
    return rows;
}

static inline float *new_decoded(const td_type_info *type, const unsigned char *rows, size_t n_rows,
                                 size_t n_cols)
{
    float *values = test_alloc(n_rows * n_cols, sizeof(float));
    for (size_t r = 0; r < n_rows; r++)
        type->dequantize(rows + r * td_row_bytes(type, n_cols), values + r * n_cols, n_cols);
    return values;
}

#define weight_types  td_input_weight_types
#define cache_types   td_input_cache_types
#define N_PLAIN_TYPES TD_INPUT_PLAIN_TYPES /* the first of them: any row length */

/* Type t, or NULL where TD_TEST_TYPES leaves it out: names, comma-separated; behind a '-', all but
 * them. */
static inline const td_type_info *chosen_type(size_t t)
{
    const char *wanted = getenv("TD_TEST_TYPES");
    size_t n = strlen(weight_types[t]);
    bool is_all_but = wanted && *wanted == '-', is_named = false;
    for (const char *at = wanted ? wanted + is_all_but : ""; *at;
         at += strcspn(at, ","), at += *at == ',')
        is_named |= !strncmp(at, weight_types[t], n) && (!at[n] || at[n] == ',');
    return wanted && is_named == is_all_but ? NULL : td_type_find_name(weight_types[t]);
}

/* -- comparisons ---------------------------------------------------------------------------- */

static inline bool is_same_bits(const float *a, const float *b, size_t n)
{
    return memcmp(a, b, n * sizeof(float)) == 0;
}

static inline void check_same_bits(const float *got, const float *want, size_t n, const char *what,
                                   const td_device *dev)
{
    for (size_t i = 0; i < n; i++)
        if (!is_same_bits(&got[i], &want[i], 1))
            fail_msg("%s: %s: element %zu is %a, expected the bits of %a", device_spec(dev), what,
                     i, (double)got[i], (double)want[i]);
}

/* |got - want| <= tolerance; a NaN is never close. */
static inline void check_close(float got, double want, double tolerance, size_t i, const char *what,
                               const td_device *dev)
{
    if (!(fabs((double)got - want) <= tolerance))
        fail_msg("%s: %s: element %zu is %.9g, expected %.9g within %.3g", device_spec(dev), what,
                 i, (double)got, want, tolerance);
}

/* The host and the scalar device agree bit for bit. */
static inline bool is_bit_equal_to_scalar(const td_device *dev) { return !is_vulkan(dev); }

/* TD_TEST_FILTER: a pattern (*, ?) of the tests that run; unset: all. */
#define TEST_MAIN(tests)                                                                           \
    (cmocka_set_test_filter(getenv("TD_TEST_FILTER")),                                             \
     open_devices() ? cmocka_run_group_tests(tests, NULL, close_devices) : TEST_SKIPPED)

#endif
