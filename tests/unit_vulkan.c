/* The Vulkan backend apart from its arithmetic (tests/op_*.c has that): enumeration, several
 * devices in one process, weights cut into slabs, submissions cut by time, a lost device, limits.
 * Runs on the first usable device of index 0; skips where there is none. */
#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "kernels/backend.h"
#include "kernels/ops.h"
#include "kernels/vulkan/hazard.h"
#include "kernels/vulkan/probe.h"
#include "kernels/vulkan/push.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N_COLS 256u

static td_device *open_device(void)
{
    td_err err = {0};
    td_device *dev = td_device_create("vulkan:0", &err);
    if (!dev)
        fail_msg("%s", err.message);
    return dev;
}

static td_tensor *make(td_device *dev, const char *name, td_elem elem, td_rows rows,
                       uint32_t n_rows, uint32_t n_cols, bool is_host_visible)
{
    td_err err = {0};
    td_tensor *t = td_tensor_create(
        dev, &(td_tensor_params){name, elem, rows, n_rows, n_cols, is_host_visible}, &err);
    if (!t)
        fail_msg("%s", err.message);
    return t;
}

/* An F32 weight whose row r holds r + 1 in column r % N_COLS and zeros elsewhere. */
static td_weight *make_weight(td_device *dev, uint32_t n_rows)
{
    td_err err = {0};
    td_weight *w = td_weight_create(
        dev, &(td_weight_params){"w", td_type_find(TD_TYPE_F32), n_rows, N_COLS, 0}, &err);
    if (!w)
        fail_msg("%s", err.message);
    float *rows = calloc((size_t)n_rows * N_COLS, sizeof *rows);
    for (uint32_t r = 0; r < n_rows; r++)
        rows[(size_t)r * N_COLS + r % N_COLS] = (float)(r + 1);
    /* In two unequal pieces, neither ending where a slab does. */
    uint32_t half = n_rows / 3 + 1;
    assert_true(td_weight_write(w, 0, half, rows, &err));
    assert_true(td_weight_write(w, half, n_rows - half, rows + (size_t)half * N_COLS, &err));
    free(rows);
    return w;
}

typedef struct { /* x, y = w x + bias, z = y + y */
    td_device *dev;
    td_weight *w, *bias;
    td_tensor *x, *y, *z;
    td_program *p;
} fixture;

static fixture make_fixture(td_device *dev, uint32_t n_out, td_mode mode)
{
    fixture f = {.dev = dev};
    td_err err = {0};
    f.w = make_weight(dev, n_out);
    f.bias = td_weight_create(
        dev, &(td_weight_params){"bias", td_type_find(TD_TYPE_F32), 1, n_out, 0}, &err);
    float *bias = calloc(n_out, sizeof *bias);
    for (uint32_t i = 0; i < n_out; i++)
        bias[i] = (float)(i % 7);
    assert_true(td_weight_write(f.bias, 0, 1, bias, &err));
    free(bias);
    f.x = make(dev, "x", TD_ELEM_F32, TD_ROWS_BATCH, 64, N_COLS, true);
    f.y = make(dev, "y", TD_ELEM_F32, TD_ROWS_BATCH, 64, n_out, false);
    f.z = make(dev, "z", TD_ELEM_F32, TD_ROWS_BATCH, 64, n_out, true);
    f.p = td_program_begin(dev, &(td_program_params){"test", mode, 64, 0}, &err);
    td_op_mat_mul(f.p, f.w, f.bias, td_all(f.x), td_all(f.y));
    td_op_add(f.p, td_all(f.y), td_all(f.y), td_all(f.z));
    if (!td_program_end(f.p, &err))
        fail_msg("%s", err.message);
    float *x = td_tensor_data(f.x);
    for (uint32_t i = 0; i < 64 * N_COLS; i++)
        x[i] = (float)(i / N_COLS + 1) / (float)(1 + i % N_COLS % 5);
    return f;
}

static void destroy_fixture(fixture *f)
{
    td_program_destroy(&f->p);
    td_tensor_destroy(&f->z);
    td_tensor_destroy(&f->y);
    td_tensor_destroy(&f->x);
    td_weight_destroy(&f->bias);
    td_weight_destroy(&f->w);
}

static void run_and_check(fixture *f, uint32_t n_rows)
{
    td_err err = {0};
    uint32_t n_out = td_weight_get_params(f->w)->n_rows;
    if (!td_program_run(f->p, n_rows, 0, &err))
        fail_msg("%s", err.message);
    const float *x = td_tensor_data(f->x), *z = td_tensor_data(f->z);
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t o = 0; o < n_out; o++) {
            float y = (float)(o + 1) * x[r * N_COLS + o % N_COLS] + (float)(o % 7);
            if (z[r * n_out + o] != 2 * y)
                fail_msg("row %u output %u: %g, expected %g", r, o, (double)z[r * n_out + o],
                         (double)(2 * y));
        }
}

static void test_list_describes_devices(void **state)
{
    (void)state;
    td_device_info info[TD_DEVICES_MAX];
    uint32_t n = td_vulkan_list(info, TD_DEVICES_MAX);
    assert_true(n >= 1);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(strncmp(info[i].spec, "vulkan:", 7), 0);
        assert_true(info[i].name[0] && info[i].driver[0] && info[i].vendor[0]);
        assert_int_equal(info[i].is_usable, !info[i].why_not[0]);
        if (info[i].is_usable) {
            assert_true(info[i].memory.n_heaps > 0 && info[i].capacity.total_bytes > 0);
            assert_true(info[i].max_buffer_bytes >= 1u << 27); /* what Vulkan 1.3 promises */
            assert_true(info[i].subgroup_size >= 4);
        }
    }
}

static void expect_refused(const char *spec, const char *word)
{
    td_err err = {0};
    td_device *dev = td_device_create(spec, &err);
    assert_null(dev);
    assert_int_equal(err.code, TD_E_USAGE);
    if (!strstr(err.message, word))
        fail_msg("\"%s\" does not say \"%s\"", err.message, word);
}

static void test_unknown_specs_are_refused_with_the_list(void **state)
{
    (void)state;
    td_device_info info;
    assert_int_equal(td_vulkan_list(&info, 1), 1);
    expect_refused("vulkan:99", info.name);
    expect_refused("vulkan:no such thing", info.name);
    expect_refused("vulkan:", "vulkan:INDEX");
}

static void test_name_substring_finds_the_device(void **state)
{
    (void)state;
    td_device_info info[TD_DEVICES_MAX];
    uint32_t n = td_vulkan_list(info, TD_DEVICES_MAX);
    char spec[320];
    snprintf(spec, sizeof spec, "vulkan:%s", info[0].name);
    if (n > 1) {
        expect_refused("vulkan: ", "ambiguous"); /* names have spaces */
        return;
    }
    td_err err = {0};
    td_device *dev = td_device_create(spec, &err);
    if (!dev)
        fail_msg("%s", err.message);
    assert_string_equal(td_device_get_info(dev)->spec, "vulkan:0");
    td_device_destroy(&dev);
}

static void test_two_devices_of_one_gpu_work_side_by_side(void **state)
{
    (void)state;
    td_device *a = open_device(), *b = open_device();
    fixture fa = make_fixture(a, 100, TD_MODE_VERIFY), fb = make_fixture(b, 37, TD_MODE_VERIFY);
    for (uint32_t n = 1; n <= 64; n = n * 3 + 1) {
        run_and_check(&fa, n);
        run_and_check(&fb, n);
    }
    destroy_fixture(&fa);
    td_device_destroy(&a);
    run_and_check(&fb, 5);
    destroy_fixture(&fb);
    td_device_destroy(&b);
}

static void test_memory_is_counted_and_given_back(void **state)
{
    (void)state;
    td_device *dev = open_device();
    uint64_t before, during, after, budget;
    td_device_memory(dev, &before, &budget);
    fixture f = make_fixture(dev, 1000, TD_MODE_VERIFY);
    td_device_memory(dev, &during, &budget);
    assert_true(during >= before + 1000 * N_COLS * 4 && during <= budget);
    destroy_fixture(&f);
    td_device_memory(dev, &after, &budget);
    assert_true(after <= before + (17u << 20)); /* the staging buffer may stay */
    td_device_destroy(&dev);
}

static void test_weights_larger_than_a_range_are_cut_by_rows(void **state)
{
    (void)state;
    setenv("TD_VK_LIMIT", "maxStorageBufferRange=262144", 1); /* 256 rows of 1 KiB */
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 1000, TD_MODE_VERIFY);
    assert_int_equal(td_vulkan_count_slabs(f.w), 4);
    run_and_check(&f, 1);
    run_and_check(&f, 33);
    destroy_fixture(&f);
    f = make_fixture(dev, 1000, TD_MODE_PREFILL);
    run_and_check(&f, 64);

    /* Embedding rows out of every slab. */
    td_err err = {0};
    td_tensor *ids = make(dev, "ids", TD_ELEM_I32, TD_ROWS_BATCH, 4, 1, true);
    td_tensor *y = make(dev, "y", TD_ELEM_F32, TD_ROWS_BATCH, 4, N_COLS, true);
    td_program *p =
        td_program_begin(dev, &(td_program_params){"embed", TD_MODE_VERIFY, 4, 0}, &err);
    td_op_embed(p, f.w, td_all(ids), td_all(y));
    assert_true(td_program_end(p, &err));
    const int32_t wanted[4] = {999, 0, 256, 511};
    memcpy(td_tensor_data(ids), wanted, sizeof wanted);
    assert_true(td_program_run(p, 4, 0, &err));
    for (uint32_t r = 0; r < 4; r++)
        for (uint32_t c = 0; c < N_COLS; c++)
            assert_true(((float *)td_tensor_data(y))[r * N_COLS + c] ==
                        (c == (uint32_t)wanted[r] % N_COLS ? (float)(wanted[r] + 1) : 0.0f));
    td_program_destroy(&p);
    td_tensor_destroy(&ids);
    td_tensor_destroy(&y);
    destroy_fixture(&f);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LIMIT");
}

/* As on a GPU whose memory the host cannot see; the weight takes the staging ring round and on. */
static void test_weights_go_through_staging(void **state)
{
    (void)state;
    setenv("TD_VK_LIMIT", "directWriteBytes=1", 1);
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 50000, TD_MODE_VERIFY);
    run_and_check(&f, 1);
    destroy_fixture(&f);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LIMIT");
}

#define N_PASSES                                                                                   \
    (TD_PREFILL_ROWS_MAX / 128) /* over a weight at most: a workgroup each for a panel */

static void test_more_rows_than_workgroups_are_cut(void **state)
{
    (void)state;
    char limit[64];
    snprintf(limit, sizeof limit, "maxComputeWorkGroupCount=%u", 4 * N_PASSES);
    setenv("TD_VK_LIMIT", limit, 1);
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 1000, TD_MODE_VERIFY);
    assert_int_equal(td_vulkan_count_slabs(f.w), td_div_up(1000, 4 * TD_VK_PANEL));
    run_and_check(&f, 2);
    destroy_fixture(&f);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LIMIT");
}

static void expect_no_memory(const char *limit, const char *word)
{
    setenv("TD_VK_LIMIT", limit, 1);
    td_device *dev = open_device();
    td_err err = {0};
    td_tensor *t = td_tensor_create(
        dev, &(td_tensor_params){"big", TD_ELEM_F32, TD_ROWS_BATCH, 64, 1 << 16, false}, &err);
    assert_null(t);
    assert_int_equal(err.code, TD_E_NOMEM);
    if (!strstr(err.message, word) || !strstr(err.message, "tensor big"))
        fail_msg("\"%s\" does not name the tensor and %s", err.message, word);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LIMIT");
}

static void test_out_of_memory_names_the_limit(void **state)
{
    (void)state;
    expect_no_memory("heapBudget=8388608", "heap 0");
    expect_no_memory("maxStorageBufferRange=1048576", "maxStorageBufferRange");
    expect_no_memory("maxBufferSize=1048576", "maxBufferSize");
    expect_no_memory("maxMemoryAllocationSize=1048576", "maxMemoryAllocationSize");
}

static void test_limits_that_are_not_understood_are_refused(void **state)
{
    (void)state;
    const char *bad[] = {"maxStorageBufferRange", "maxStorageBufferRange=", "x=1",
                         "maxBufferSize=0",       "maxBufferSize=1k",       "maxBufferSize=1,,"};
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        setenv("TD_VK_LIMIT", bad[i], 1);
        expect_refused("vulkan:0", "TD_VK_LIMIT");
    }
    unsetenv("TD_VK_LIMIT");
}

static void test_a_gpu_with_too_little_is_listed_with_the_reason(void **state)
{
    (void)state;
    static const char *const needed[] = {"maxComputeWorkGroupCount[1]",
                                         "maxComputeWorkGroupCount[2]",
                                         "maxComputeWorkGroupInvocations",
                                         "maxComputeWorkGroupSize",
                                         "maxComputeSharedMemorySize",
                                         "maxPushConstantsSize",
                                         "maxPerStageDescriptorStorageBuffers",
                                         "maxDescriptorSetStorageBuffers",
                                         "maxPerStageResources"};
    for (size_t i = 0; i < TD_COUNT(needed); i++) {
        char limit[96];
        td_device_info info;
        snprintf(limit, sizeof limit, "%s=7", needed[i]);
        setenv("TD_VK_LIMIT", limit, 1);
        assert_int_equal(td_vulkan_list(&info, 1), 1);
        assert_false(info.is_usable);
        if (!strstr(info.why_not, needed[i]) || !strstr(info.why_not, "is 7, "))
            fail_msg("%s: \"%s\"", limit, info.why_not);
        expect_refused("vulkan:0", needed[i]);
    }
    unsetenv("TD_VK_LIMIT");
}

#define WIDE_COLS 8192u /* several slices of k, also on a software driver */
#define WIDE_ROWS 70u

/* One row times a matrix of several slices, with what TD_VK_LIMIT says. */
static void multiply_wide(const char *limit, float *y)
{
    td_err err = {0};
    if (limit)
        setenv("TD_VK_LIMIT", limit, 1);
    td_device *dev = open_device();
    td_weight *w = td_weight_create(
        dev, &(td_weight_params){"w", td_type_find(TD_TYPE_F32), WIDE_ROWS, WIDE_COLS, 0}, &err);
    float *rows = calloc((size_t)WIDE_ROWS * WIDE_COLS, sizeof *rows);
    for (uint32_t i = 0; i < WIDE_ROWS * WIDE_COLS; i++)
        rows[i] = (float)((i * 2654435761u >> 8) % 2001) * 1e-3f - 1;
    assert_true(w && td_weight_write(w, 0, WIDE_ROWS, rows, &err));
    td_tensor *x = make(dev, "x", TD_ELEM_F32, TD_ROWS_BATCH, 1, WIDE_COLS, true);
    td_tensor *out = make(dev, "y", TD_ELEM_F32, TD_ROWS_BATCH, 1, WIDE_ROWS, true);
    memcpy(td_tensor_data(x), rows, WIDE_COLS * sizeof *rows);
    free(rows);
    td_program *p = td_program_begin(dev, &(td_program_params){"wide", TD_MODE_VERIFY, 1, 0}, &err);
    td_op_mat_mul(p, w, NULL, td_all(x), td_all(out));
    if (!td_program_end(p, &err) || !td_program_run(p, 1, 0, &err))
        fail_msg("%s", err.message);
    memcpy(y, td_tensor_data(out), WIDE_ROWS * sizeof *y);
    td_program_destroy(&p);
    td_tensor_destroy(&out);
    td_tensor_destroy(&x);
    td_weight_destroy(&w);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LIMIT");
}

static void test_products_do_not_need_full_subgroups(void **state)
{
    (void)state;
    float full[WIDE_ROWS], others[WIDE_ROWS];
    multiply_wide(NULL, full);
    multiply_wide("computeFullSubgroups=0", others);
    double sum = 0;
    for (uint32_t k = 0; k < WIDE_COLS; k++) { /* row 0 is x itself */
        double x = (double)((float)((k * 2654435761u >> 8) % 2001) * 1e-3f - 1);
        sum += x * x;
    }
    assert_true(fabs((double)full[0] - sum) < 1e-4 * sum);
    assert_memory_equal(full, others, sizeof full);
}

static void test_long_programs_are_cut_into_submissions(void **state)
{
    (void)state;
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 1000, TD_MODE_VERIFY);
    run_and_check(&f, 2);
    assert_true(td_vulkan_count_submissions(f.p, 2, 0) >= 1);
    /* Say a multiply-add takes 0.5 us: 256 ms for the weight, which is cut inside its dispatch. */
    td_vulkan_set_cost(f.p, 0.5);
    run_and_check(&f, 2);
    uint32_t n = td_vulkan_count_submissions(f.p, 2, 0);
    assert_true(n >= 256e3 / 75000);
    run_and_check(&f, 2); /* the second run knows that it takes some milliseconds */
    assert_true(td_vulkan_count_submissions(f.p, 2, 0) < n);
    destroy_fixture(&f);
    td_device_destroy(&dev);
}

static void test_barriers_only_where_data_flows(void **state)
{
    (void)state;
    td_device *dev = open_device();
    td_err err = {0};
    td_tensor *t[5];
    for (int i = 0; i < 5; i++)
        t[i] = make(dev, "t", TD_ELEM_F32, TD_ROWS_BATCH, 2, 300, true);
    td_program *p = td_program_begin(dev, &(td_program_params){"flow", TD_MODE_VERIFY, 2, 0}, &err);
    td_op_add(p, td_all(t[0]), td_all(t[1]), td_all(t[2]));
    td_op_add(p, td_all(t[0]), td_all(t[1]), td_all(t[3])); /* independent */
    td_op_add(p, td_all(t[2]), td_all(t[3]), td_all(t[4])); /* reads both: barrier */
    td_op_add(p, td_all(t[4]), td_all(t[0]), td_all(t[4])); /* in place: barrier */
    td_op_add(p, td_all(t[1]), td_all(t[1]), td_all(t[0])); /* overwrites what was read: barrier */
    assert_true(td_program_end(p, &err));
    float *a = td_tensor_data(t[0]), *b = td_tensor_data(t[1]);
    for (int i = 0; i < 600; i++) {
        a[i] = (float)i;
        b[i] = (float)(1000 - 2 * i);
    }
    assert_true(td_program_run(p, 2, 0, &err));
    assert_int_equal(td_vulkan_count_barriers(p, 2, 0), 3);
    for (int i = 0; i < 600; i++) {
        assert_true(((float *)td_tensor_data(t[4]))[i] == (float)(2 * (1000 - i) + i));
        assert_true(a[i] == (float)(2 * (1000 - 2 * i)));
    }
    td_program_destroy(&p);
    for (int i = 0; i < 5; i++)
        td_tensor_destroy(&t[i]);
    td_device_destroy(&dev);
}

/* x + x, five times over, then y = x + x of another program, twice: in one submission once it is
 * known how little they take, and in their order. */
static void test_programs_run_together(void **state)
{
    (void)state;
    td_device *dev = open_device();
    td_err err = {0};
    td_tensor *x = make(dev, "x", TD_ELEM_F32, TD_ROWS_BATCH, 2, 300, true);
    td_tensor *y = make(dev, "y", TD_ELEM_F32, TD_ROWS_BATCH, 2, 300, true);
    td_program *twice =
        td_program_begin(dev, &(td_program_params){"twice", TD_MODE_VERIFY, 2, 0}, &err);
    td_op_add(twice, td_all(x), td_all(x), td_all(x));
    assert_true(td_program_end(twice, &err));
    td_program *last =
        td_program_begin(dev, &(td_program_params){"last", TD_MODE_VERIFY, 2, 0}, &err);
    td_op_add(last, td_all(x), td_all(x), td_all(y));
    assert_true(td_program_end(last, &err));
    const td_program_call calls[] = {{twice, 2, 0, 5}, {last, 1, 0, 2}, {last, 2, 0, 1}};
    for (uint32_t round = 0; round < 4; round++) {
        float *values = td_tensor_data(x);
        for (int i = 0; i < 600; i++)
            values[i] = (float)i;
        uint64_t before = td_vulkan_count_submitted(dev);
        if (!td_programs_run(calls, 3, &err))
            fail_msg("%s", err.message);
        if (round == 3)
            assert_int_equal(td_vulkan_count_submitted(dev) - before, 1);
        for (int i = 0; i < 600; i++) {
            assert_true(values[i] == (float)(32 * i));
            assert_true(((float *)td_tensor_data(y))[i] == (float)(64 * i));
        }
    }
    /* More command buffers than a submission takes. */
    float *values = td_tensor_data(x);
    for (int i = 0; i < 600; i++)
        values[i] = 0x1p-100f;
    assert_true(td_programs_run(&(td_program_call){twice, 2, 0, 150}, 1, &err));
    assert_true(values[599] == 0x1p50f);
    td_program_destroy(&twice);
    td_program_destroy(&last);
    td_tensor_destroy(&x);
    td_tensor_destroy(&y);
    td_device_destroy(&dev);
}

static td_device_counts counts_of(const td_device *dev)
{
    td_device_counts c;
    td_device_get_counts(dev, &c);
    return c;
}

/* One submission and one wait; nothing is made: no command buffer, no descriptors, no memory. */
static void test_a_replayed_run_only_submits_and_waits(void **state)
{
    (void)state;
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 100, TD_MODE_VERIFY);
    for (uint32_t i = 0; i < 8; i++) /* the first ones learn how the program is cut */
        run_and_check(&f, 3);
    for (uint32_t i = 0; i < 70; i++) { /* and one in 64 */
        td_device_counts before = counts_of(dev);
        uint64_t n_allocations = td_alloc_count();
        run_and_check(&f, 3);
        td_device_counts after = counts_of(dev);
        assert_int_equal(td_alloc_count(), n_allocations);
        assert_int_equal(after.n_submissions - before.n_submissions, 1);
        assert_int_equal(after.n_waits - before.n_waits, 1);
        assert_int_equal(after.n_recordings, before.n_recordings);
        assert_int_equal(after.n_sets_written, before.n_sets_written);
    }
    destroy_fixture(&f);
    td_device_destroy(&dev);
}

/* What is expected next is recorded between the submission of a run and the end of it: then the
 * next run makes nothing, and computes the same. */
static void test_the_next_run_is_recorded_while_one_runs(void **state)
{
    (void)state;
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 300, TD_MODE_PREFILL); /* of which no neighbours are guessed */
    for (uint32_t i = 0; i < 8; i++) /* the first ones learn how the program is cut */
        run_and_check(&f, 40);
    td_device_counts before = counts_of(dev);
    td_program_expect(f.p, 9, 0);
    assert_int_equal(counts_of(dev).n_recordings, before.n_recordings); /* not in the hint */
    run_and_check(&f, 40);
    td_device_counts ahead = counts_of(dev);
    assert_int_equal(ahead.n_recordings - before.n_recordings, 1);
    assert_int_equal(ahead.n_recorded_ahead - before.n_recorded_ahead, 1);
    assert_int_equal(ahead.n_waits - before.n_waits, 1);
    run_and_check(&f, 9);
    assert_int_equal(counts_of(dev).n_recordings, ahead.n_recordings);
    td_program_expect(f.p, 9, 0); /* there it is: nothing to do */
    run_and_check(&f, 40);
    assert_int_equal(counts_of(dev).n_recordings, ahead.n_recordings);
    destroy_fixture(&f);
    /* A program that goes takes its hint along. */
    f = make_fixture(dev, 30, TD_MODE_PREFILL);
    fixture g = make_fixture(dev, 30, TD_MODE_PREFILL);
    td_program_expect(f.p, 9, 0);
    destroy_fixture(&f);
    before = counts_of(dev);
    run_and_check(&g, 2);
    assert_int_equal(counts_of(dev).n_recordings - before.n_recordings, 1);
    destroy_fixture(&g);
    td_device_destroy(&dev);
}

/* A draft that grows or shrinks by a token finds its verification recorded. */
static void test_rows_more_and_less_are_recorded_ahead(void **state)
{
    (void)state;
    const char *validation = getenv("TD_VK_VALIDATION");
    if (validation && !strcmp(validation, "gpu")) {
        print_message(
            "GPU-assisted validation waits at every submission: nothing runs meanwhile\n");
        skip();
    }
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 3000, TD_MODE_VERIFY);
    for (uint32_t n = 1; n <= 8; n++) /* on a software driver only what needs no other pipeline */
        run_and_check(&f, n);
    td_device_counts before = counts_of(dev);
    for (uint32_t i = 0; i < 20 && counts_of(dev).n_recordings == before.n_recordings; i++)
        run_and_check(&f, 8 - i % 8); /* until one takes longer than the host to look */
    run_and_check(&f, 64);
    assert_true(counts_of(dev).n_recorded_ahead > 0);
    destroy_fixture(&f);
    td_device_destroy(&dev);
}

static void test_tensors_the_host_cannot_see_are_read(void **state)
{
    (void)state;
    setenv("TD_VK_LIMIT", "directWriteBytes=1", 1);
    td_device *dev = open_device();
    td_err err = {0};
    td_tensor *x = make(dev, "x", TD_ELEM_F32, TD_ROWS_BATCH, 3, 1000, true);
    td_tensor *y = make(dev, "y", TD_ELEM_F32, TD_ROWS_BATCH, 3, 1000, false);
    td_program *p = td_program_begin(dev, &(td_program_params){"p", TD_MODE_VERIFY, 3, 0}, &err);
    td_op_add(p, td_all(x), td_all(x), td_all(y));
    assert_true(td_program_end(p, &err));
    float *values = td_tensor_data(x);
    for (int i = 0; i < 3000; i++)
        values[i] = (float)i;
    assert_true(td_program_run(p, 3, 0, &err));
    assert_null(td_tensor_data(y));
    for (uint32_t first = 1; first < 3; first++) {
        const float *rows = td_tensor_read(y, first, 3 - first, &err);
        assert_non_null(rows);
        for (uint32_t i = 0; i < (3 - first) * 1000; i++)
            assert_true(rows[i] == (float)(2 * (first * 1000 + i)));
    }
    td_program_destroy(&p);
    td_tensor_destroy(&x);
    td_tensor_destroy(&y);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LIMIT");
}

static void test_hazard_tracker_sees_every_kind(void **state)
{
    (void)state;
    static td_vk_hazard h;
    const char a = 0, b = 0, c = 0;
    const td_vk_access read_a = {&a, 0, 9, false, 0, 0}, read_b = {&b, 0, 9, false, 0, 0};
    const td_vk_access read_c = {&c, 0, 9, false, 0, 0}, write_b = {&b, 0, 9, true, 0, 0};
    const td_vk_access in_place[] = {read_a, {&a, 0, 9, true, 0, 0}};
    assert_false(td_vk_hazard_add(&h, (td_vk_access[]){read_a, write_b}, 2));
    assert_false(
        td_vk_hazard_add(&h, (td_vk_access[]){read_a, {&c, 0, 9, true, 0, 0}}, 2)); /* reads */
    assert_true(td_vk_hazard_add(&h, &read_b, 1));  /* read after write */
    assert_false(td_vk_hazard_add(&h, &read_c, 1)); /* the barrier covered c as well */
    assert_true(td_vk_hazard_add(&h, &write_b, 1)); /* write after read */
    assert_true(td_vk_hazard_add(&h, &write_b, 1)); /* write after write */
    assert_false(td_vk_hazard_add(&h, in_place, 2));
    assert_true(td_vk_hazard_add(&h, in_place, 2));
    td_vk_hazard_reset(&h);
    assert_false(td_vk_hazard_add(&h, in_place, 2));
    /* Columns: beside each other, touching, and of another buffer. */
    assert_false(td_vk_hazard_add(&h, &(td_vk_access){&a, 9, 12, true, 0, 0}, 1));
    assert_false(td_vk_hazard_add(&h, &(td_vk_access){&b, 0, 12, true, 0, 0}, 1));
    assert_false(td_vk_hazard_add(&h, &(td_vk_access){&a, 12, 12, false, 0, 0}, 1)); /* nothing */
    assert_true(td_vk_hazard_add(&h, &(td_vk_access){&a, 11, 13, false, 0, 0}, 1));
    /* Parts of heads: of 10 columns each the first 4, the last 6; 5 of those; heads of 5. */
    td_vk_hazard_reset(&h);
    assert_false(td_vk_hazard_add(&h, &(td_vk_access){&a, 3, 37, true, 10, 4}, 1));
    assert_false(td_vk_hazard_add(&h, &(td_vk_access){&a, 7, 43, true, 10, 6}, 1));
    assert_true(td_vk_hazard_add(&h, &(td_vk_access){&a, 8, 43, false, 10, 6}, 1)); /* wraps */
    assert_false(td_vk_hazard_add(&h, &(td_vk_access){&a, 4, 43, true, 10, 4}, 1));
    assert_true(td_vk_hazard_add(&h, &(td_vk_access){&a, 7, 43, false, 10, 5}, 1));
    assert_true(td_vk_hazard_add(&h, &(td_vk_access){&a, 13, 43, true, 5, 1}, 1));
    assert_true(td_vk_hazard_add(&h, &(td_vk_access){&a, 14, 43, true, 0, 0}, 1));
    /* More than are kept: one barrier too many, none too few. */
    td_vk_hazard_reset(&h);
    char many[TD_VK_HAZARDS_MAX + 1];
    for (uint32_t i = 0; i < TD_COUNT(many); i++)
        assert_int_equal(td_vk_hazard_add(&h, &(td_vk_access){&many[i], 0, 1, true, 0, 0}, 1),
                         i == TD_VK_HAZARDS_MAX);
}

/* Chains that have nothing to do with each other: their first steps stand together, then their
 * second ones; the longest one's length is the number of groups, and no step comes before one that
 * it waits for, however far apart they are. */
static void test_steps_are_ordered_by_what_they_wait_for(void **state)
{
    (void)state;
    enum { N = 900, CHAINS = 3 };
    td_err err = {0};
    static td_vk_access accesses[N];
    static td_vk_accesses steps[N];
    static uint32_t order[N], places[N];
    char buffers[N];
    for (uint32_t i = 0; i < N; i++) { /* one chain after another; then pairs, far apart */
        uint32_t which = i < 300 ? i / 100 : CHAINS + (i - 300) % 300;
        accesses[i] = (td_vk_access){&buffers[which], 0, 1, i % 2 == 0 || i < 300, 0, 0};
        steps[i] = (td_vk_accesses){&accesses[i], 1};
    }
    static td_vk_hazard h;
    assert_true(td_vk_order(steps, N, order, &err));
    for (uint32_t i = 0; i < N; i++)
        places[order[i]] = i;
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t k = 0; k < i; k++)
            if (td_vk_is_conflict(&accesses[i], 1, &accesses[k], 1))
                assert_true(places[k] < places[i]);
    uint32_t n_barriers = 0;
    for (uint32_t i = 0; i < 300; i++)
        n_barriers += td_vk_hazard_add(&h, &accesses[order[i]], 1);
    assert_in_range(n_barriers, 1, 102); /* not 297 */
}

/* What a row computes does not depend on how many there are, bit for bit. */
static void test_rows_do_not_depend_on_their_number(void **state)
{
    (void)state;
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 50, TD_MODE_VERIFY);
    td_err err = {0};
    float *x = td_tensor_data(f.x), rows[64 * 50];
    for (uint32_t i = 0; i < 64 * N_COLS; i++)
        x[i] = (float)((i * 2654435761u >> 8) % 2000) / 997.0f - 1.0f;
    assert_true(td_program_run(f.p, 64, 0, &err));
    memcpy(rows, td_tensor_data(f.z), sizeof rows);
    for (uint32_t n = 1; n < 64; n = n < 20 ? n + 1 : n + 11) {
        memset(td_tensor_data(f.z), 0, sizeof rows);
        assert_true(td_program_run(f.p, n, 0, &err));
        assert_memory_equal(td_tensor_data(f.z), rows, n * 50 * sizeof *rows);
    }
    destroy_fixture(&f);
    td_device_destroy(&dev);
}

/* A row that sees one position only gets its values back; pages, slots and positions that do not
 * exist are neither written nor read (GPU-assisted validation watches that). */
static void test_cache_stores_and_ignores_what_is_outside(void **state)
{
    (void)state;
    enum { HEADS = 2, DIM = 40, ROWS = 4 };
    td_device *dev = open_device();
    td_err err = {0};
    const td_type_info *type = td_type_find(TD_TYPE_F32);
    td_kv *kv = td_kv_create(
        dev, &(td_kv_params){type, type, HEADS, DIM, DIM, 3, false, false, false}, &err);
    assert_non_null(kv);
    td_tensor *q = make(dev, "q", TD_ELEM_F32, TD_ROWS_BATCH, ROWS, 3 * HEADS * DIM, true);
    td_tensor *y = make(dev, "y", TD_ELEM_F32, TD_ROWS_BATCH, ROWS, HEADS * DIM, true);
    td_batch_tensors batch = {
        make(dev, "positions", TD_ELEM_I32, TD_ROWS_BATCH, ROWS, 1, true),
        make(dev, "slots", TD_ELEM_I32, TD_ROWS_BATCH, ROWS, 1, true),
        make(dev, "pages", TD_ELEM_I32, TD_ROWS_FIXED, 2, 2, true),
        NULL,
    };
    td_program *p =
        td_program_begin(dev, &(td_program_params){"cache", TD_MODE_VERIFY, ROWS, 0}, &err);
    td_view k = td_columns(q, HEADS * DIM, HEADS * DIM);
    td_view v = td_columns(q, 2 * HEADS * DIM, HEADS * DIM);
    td_op_kv_store(p, kv, k, v, &batch);
    td_op_attention(p, kv, td_columns(q, 0, HEADS * DIM), td_all(y),
                    &(td_attention_params){.n_head = HEADS, .scale = 0.1f, .window = 1}, &batch);
    if (!td_program_end(p, &err))
        fail_msg("%s", err.message);
    float *x = td_tensor_data(q);
    for (uint32_t i = 0; i < ROWS * 3 * HEADS * DIM; i++)
        x[i] = (float)(i % 101) - 50.0f;
    /* Rows: one that is there; a page, a slot and a position that are not. */
    memcpy(td_tensor_data(batch.positions), (int32_t[]){70, 3, 0, 128}, 4 * ROWS);
    memcpy(td_tensor_data(batch.slots), (int32_t[]){0, 1, 1000000, 0}, 4 * ROWS);
    memcpy(td_tensor_data(batch.pages), (int32_t[]){0, 2, 3, -1}, 4 * ROWS);
    if (!td_program_run(p, ROWS, 0, &err))
        fail_msg("%s", err.message);
    const float *out = td_tensor_data(y);
    for (uint32_t c = 0; c < HEADS * DIM; c++)
        assert_true(out[c] == x[2 * HEADS * DIM + c]);
    td_program_destroy(&p);
    td_tensor_destroy(&batch.positions);
    td_tensor_destroy(&batch.slots);
    td_tensor_destroy(&batch.pages);
    td_tensor_destroy(&q);
    td_tensor_destroy(&y);
    td_kv_destroy(&kv);
    td_device_destroy(&dev);
}

static void test_lost_device_stays_lost(void **state)
{
    (void)state;
    setenv("TD_VK_LOSE_AFTER", "40", 1);
    td_device *dev = open_device();
    fixture f = make_fixture(dev, 10, TD_MODE_VERIFY);
    td_err err = {0};
    bool is_ok = true;
    for (int i = 0; i < 100 && is_ok; i++)
        is_ok = td_program_run(f.p, 1, 0, &err);
    assert_false(is_ok);
    assert_int_equal(err.code, TD_E_DEVICE_LOST);
    td_err_clear(&err);
    assert_false(td_program_run(f.p, 2, 0, &err));
    assert_int_equal(err.code, TD_E_DEVICE_LOST);
    td_err_clear(&err);
    float row[N_COLS] = {0};
    assert_false(td_weight_write(f.w, 0, 1, row, &err));
    assert_int_equal(err.code, TD_E_DEVICE_LOST);
    td_err_clear(&err);
    assert_null(td_tensor_create(
        dev, &(td_tensor_params){"t", TD_ELEM_F32, TD_ROWS_BATCH, 1, 1, false}, &err));
    assert_int_equal(err.code, TD_E_DEVICE_LOST);
    destroy_fixture(&f);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LOSE_AFTER");
}

/* Opens a device, builds a small program and runs it; false with err set at the first failure. */
static bool build_and_run(td_err *err)
{
    td_device *dev = td_device_create("vulkan:0", err);
    td_weight *w = NULL;
    td_tensor *x = NULL, *y = NULL;
    td_program *p = NULL;
    bool is_ok = dev != NULL;
    float rows[8 * 16] = {0};
    if (is_ok)
        w = td_weight_create(dev, &(td_weight_params){"w", td_type_find(TD_TYPE_F32), 8, 16, 0},
                             err);
    if (w)
        x = td_tensor_create(dev, &(td_tensor_params){"x", TD_ELEM_F32, TD_ROWS_BATCH, 2, 16, true},
                             err);
    if (x)
        y = td_tensor_create(dev, &(td_tensor_params){"y", TD_ELEM_F32, TD_ROWS_BATCH, 2, 8, false},
                             err);
    is_ok = y && td_weight_write(w, 0, 8, rows, err);
    if (is_ok)
        p = td_program_begin(dev, &(td_program_params){"p", TD_MODE_VERIFY, 2, 0}, err);
    if (p)
        td_op_mat_mul(p, w, NULL, td_all(x), td_all(y));
    is_ok = p && td_program_end(p, err) && td_program_run(p, 2, 0, err);
    td_program_destroy(&p);
    td_tensor_destroy(&y);
    td_tensor_destroy(&x);
    td_weight_destroy(&w);
    td_device_destroy(&dev);
    return is_ok;
}

/* At whichever submission, of an upload or of a program: the text names the Vulkan call. */
static void test_a_loss_is_told_with_the_call_that_found_it(void **state)
{
    (void)state;
    bool is_ok = false;
    uint32_t n = 0;
    setenv("TD_VK_LIMIT", "directWriteBytes=1", 1);
    while (!is_ok && ++n < 100) {
        char text[16];
        td_err err = {0};
        snprintf(text, sizeof text, "%u", n);
        setenv("TD_VK_LOSE_AFTER", text, 1);
        is_ok = build_and_run(&err);
        if (!is_ok && !strstr(err.message, "): vkQueueSubmit2: device lost"))
            fail_msg("after %u submissions: %s", n, err.message);
    }
    assert_true(is_ok && n > 2);
    unsetenv("TD_VK_LOSE_AFTER");
    unsetenv("TD_VK_LIMIT");
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    bool is_ok = false;
    uint64_t n = 0;
    td_log_level level = td_log_get_level();
    td_log_set_level(TD_LOG_ERROR); /* a cache of pipelines that cannot be read is no error */
    while (!is_ok && n < 1000) {
        td_err err = {0};
        td_alloc_fail_at(++n);
        is_ok = build_and_run(&err);
        td_alloc_fail_at(0);
        if (!is_ok)
            assert_int_equal(err.code, TD_E_NOMEM);
    }
    td_log_set_level(level);
    assert_true(is_ok && n > 10);
}

static void test_bandwidth_is_measured(void **state)
{
    (void)state;
    if (getenv("TD_VK_VALIDATION")) /* says nothing new, and is slow under the layers */
        skip();
    setenv("TD_VK_LIMIT", "heapBudget=67108864", 1);
    td_device *dev = open_device();
    td_err err = {0};
    double bytes_per_s = 0;
    if (!td_device_measure_bandwidth(dev, &bytes_per_s, &err))
        fail_msg("%s", err.message);
    assert_true(bytes_per_s > 1e6 && bytes_per_s < 1e14);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LIMIT");
}

int main(void)
{
    td_device_info info;
    if (!td_vulkan_list(&info, 1) || !info.is_usable) {
        fprintf(stderr, "skipped: no usable Vulkan device of index 0\n");
        return 77;
    }
    fprintf(stderr, "device: %s, %s\n", info.name, info.driver);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list_describes_devices),
        cmocka_unit_test(test_unknown_specs_are_refused_with_the_list),
        cmocka_unit_test(test_name_substring_finds_the_device),
        cmocka_unit_test(test_two_devices_of_one_gpu_work_side_by_side),
        cmocka_unit_test(test_memory_is_counted_and_given_back),
        cmocka_unit_test(test_weights_larger_than_a_range_are_cut_by_rows),
        cmocka_unit_test(test_weights_go_through_staging),
        cmocka_unit_test(test_more_rows_than_workgroups_are_cut),
        cmocka_unit_test(test_out_of_memory_names_the_limit),
        cmocka_unit_test(test_limits_that_are_not_understood_are_refused),
        cmocka_unit_test(test_a_gpu_with_too_little_is_listed_with_the_reason),
        cmocka_unit_test(test_products_do_not_need_full_subgroups),
        cmocka_unit_test(test_long_programs_are_cut_into_submissions),
        cmocka_unit_test(test_barriers_only_where_data_flows),
        cmocka_unit_test(test_programs_run_together),
        cmocka_unit_test(test_a_replayed_run_only_submits_and_waits),
        cmocka_unit_test(test_the_next_run_is_recorded_while_one_runs),
        cmocka_unit_test(test_rows_more_and_less_are_recorded_ahead),
        cmocka_unit_test(test_tensors_the_host_cannot_see_are_read),
        cmocka_unit_test(test_hazard_tracker_sees_every_kind),
        cmocka_unit_test(test_steps_are_ordered_by_what_they_wait_for),
        cmocka_unit_test(test_rows_do_not_depend_on_their_number),
        cmocka_unit_test(test_cache_stores_and_ignores_what_is_outside),
        cmocka_unit_test(test_lost_device_stays_lost),
        cmocka_unit_test(test_a_loss_is_told_with_the_call_that_found_it),
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_bandwidth_is_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
