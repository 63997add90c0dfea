/* Op times and counts of a program, on every device: names, calls, sums, and that a profile changes
 * no result. */
#include "op_common.h"

enum { N_IN = 256, N_MID = 512 };

typedef struct { /* y = w2 (w1 x + w1 x), and both are equal: "mat_mul F32 512x256" twice */
    bench b;
    td_tensor *x, *y;
} fixture;

static fixture make(td_device *dev)
{
    fixture f = {.b = bench_begin(dev, TD_MODE_VERIFY, 4, 0)};
    float *values = new_random((size_t)N_IN * N_MID, 1);
    const td_type_info *type = td_type_find(TD_TYPE_F32);
    td_weight *up = bench_weight(&f.b, type, N_MID, N_IN, values);
    td_weight *down = bench_weight(&f.b, type, N_IN, N_MID, values);
    f.x = bench_tensor(&f.b, TD_ELEM_F32, TD_ROWS_BATCH, 4, N_IN);
    td_tensor *a = bench_tensor(&f.b, TD_ELEM_F32, TD_ROWS_BATCH, 4, N_MID);
    td_tensor *c = bench_tensor(&f.b, TD_ELEM_F32, TD_ROWS_BATCH, 4, N_MID);
    f.y = bench_tensor(&f.b, TD_ELEM_F32, TD_ROWS_BATCH, 4, N_IN);
    td_op_mat_mul(f.b.p, up, NULL, td_all(f.x), td_all(a));
    td_op_mat_mul(f.b.p, up, NULL, td_all(f.x), td_all(c));
    td_op_add(f.b.p, td_all(a), td_all(c), td_all(a));
    td_op_mat_mul(f.b.p, down, NULL, td_all(a), td_all(f.y));
    bench_end(&f.b);
    fill_random(f32_data(f.x), 4 * N_IN, 2);
    free(values);
    return f;
}

static void test_ops_are_timed_by_name(void **state)
{
    (void)state;
    for (size_t d = 0; d < n_test_devices; d++) {
        fixture f = make(test_devices[d]);
        td_op_time times[8];
        td_err err = {0};
        bench_run(&f.b, 3, 0);
        float *want = test_alloc(3 * N_IN, sizeof *want);
        memcpy(want, f32_data(f.y), 3 * N_IN * sizeof *want);
        assert_int_equal(td_program_op_times(f.b.p, times, 8), 0);
        must(td_program_profile(f.b.p, true, &err), &err);
        for (int i = 0; i < 5; i++)
            bench_run(&f.b, 3, 0);
        check_same_bits(f32_data(f.y), want, 3 * N_IN, "profiled", f.b.dev);
        assert_int_equal(td_program_op_times(f.b.p, times, 8), 3);
        assert_string_equal(times[0].name, "mat_mul F32 512x256");
        assert_string_equal(times[1].name, "add 512");
        assert_string_equal(times[2].name, "mat_mul F32 256x512");
        assert_int_equal(times[0].n_calls, 10);
        assert_int_equal(times[1].n_calls, 5);
        assert_int_equal(times[2].n_calls, 5);
        td_program_counts counts;
        td_program_get_counts(f.b.p, &counts);
        double sum = 0;
        for (int i = 0; i < 3; i++) {
            assert_true(times[i].seconds > 0 && times[i].seconds < 100);
            sum += times[i].seconds;
        }
        assert_true(fabs(sum - counts.busy_seconds) < 1e-9 + 1e-6 * sum);
        assert_int_equal(counts.n_runs, 5);
        assert_true(counts.run_seconds > 0 && counts.busy_seconds < counts.run_seconds * 1.01);
        if (is_vulkan(f.b.dev)) {
            assert_true(counts.n_dispatches >= 20); /* a long one may be cut */
            assert_true(counts.n_submissions >= 5);
            /* Before add, and after it; where a run is cut there, its next part begins with one. */
            assert_true(counts.n_barriers <= 2 * 5);
            assert_true(counts.n_barriers + counts.n_submissions >= 2 * 5 + 5);
            assert_true(times[0].traffic.there == 10.0 * 4 * N_IN * N_MID);
            assert_true(times[0].traffic.issued == times[0].traffic.there);
            assert_true(counts.gap_seconds >= 0 && counts.gap_seconds < counts.run_seconds);
        }
        /* max cuts; off keeps the sums and adds nothing; on begins anew. */
        assert_int_equal(td_program_op_times(f.b.p, times, 2), 2);
        must(td_program_profile(f.b.p, false, &err), &err);
        bench_run(&f.b, 3, 0);
        check_same_bits(f32_data(f.y), want, 3 * N_IN, "after the profile", f.b.dev);
        assert_int_equal(td_program_op_times(f.b.p, times, 8), 3);
        assert_int_equal(times[0].n_calls, 10);
        must(td_program_profile(f.b.p, true, &err), &err);
        assert_int_equal(td_program_op_times(f.b.p, times, 8), 0);
        free(want);
        bench_destroy(&f.b);
    }
}

/* How often a weight's bytes are asked for by n rows. */
static double passes(td_device *dev, td_mode mode, uint32_t n)
{
    bench b = bench_begin(dev, mode, n, 0);
    float *values = new_random((size_t)N_IN * N_MID, 1);
    td_weight *w = bench_weight(&b, td_type_find(TD_TYPE_F32), N_MID, N_IN, values);
    td_tensor *x = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, n, N_IN);
    td_tensor *y = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, n, N_MID);
    td_op_mat_mul(b.p, w, NULL, td_all(x), td_all(y));
    bench_end(&b);
    td_err err = {0};
    td_op_time time;
    must(td_program_profile(b.p, true, &err), &err);
    bench_run(&b, n, 0);
    assert_int_equal(td_program_op_times(b.p, &time, 1), 1);
    bench_destroy(&b);
    free(values);
    return time.traffic.issued / time.traffic.there;
}

static void test_many_rows_share_a_weight(void **state)
{
    (void)state;
    for (size_t d = 0; d < n_test_devices; d++) {
        if (!is_vulkan(test_devices[d]))
            continue;
        assert_true(passes(test_devices[d], TD_MODE_VERIFY, 17) <= 1.1);
        assert_true(passes(test_devices[d], TD_MODE_VERIFY, TD_VERIFY_ROWS_MAX) <= 1.1);
        assert_true(passes(test_devices[d], TD_MODE_PREFILL, TD_PREFILL_ROWS_MAX) <= 2);
    }
}

static void test_device_without_timestamps_says_so(void **state)
{
    (void)state;
    td_device_info infos[2];
    if (td_device_list(infos, 2) < 2 || !infos[1].is_usable)
        skip();
    setenv("TD_VK_LIMIT", "timestampValidBits=32", 1);
    td_err err = {0};
    td_device *dev = td_device_create("vulkan:0", &err);
    must(dev != NULL, &err);
    fixture f = make(dev);
    bench_run(&f.b, 1, 0);
    assert_false(td_program_profile(f.b.p, true, &err));
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    assert_non_null(strstr(err.message, "timestamps"));
    bench_run(&f.b, 1, 0);
    bench_destroy(&f.b);
    td_device_destroy(&dev);
    unsetenv("TD_VK_LIMIT");
}

static void test_times_of_one_name_add_up(void **state)
{
    (void)state;
    td_op_time out[2];
    const td_op_time a = {.name = "a", .n_calls = 1, .seconds = 0.5, .traffic = {2, 1}};
    const td_op_time b = {.name = "b", .n_calls = 2, .seconds = 1};
    const td_op_time c = {.name = "c", .n_calls = 3, .seconds = 2};
    uint32_t n = td_op_times_add(out, 0, 2, &a);
    n = td_op_times_add(out, n, 2, &b);
    n = td_op_times_add(out, n, 2, &a);
    n = td_op_times_add(out, n, 2, &c); /* no room */
    assert_int_equal(n, 2);
    assert_int_equal(out[0].n_calls, 2);
    assert_true(out[0].seconds == 1 && out[1].seconds == 1);
    assert_true(out[0].traffic.issued == 4 && out[0].traffic.there == 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_are_timed_by_name),
        cmocka_unit_test(test_many_rows_share_a_weight),
        cmocka_unit_test(test_device_without_timestamps_says_so),
        cmocka_unit_test(test_times_of_one_name_add_up),
    };
    return TEST_MAIN(tests);
}
