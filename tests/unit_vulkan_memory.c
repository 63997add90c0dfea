/* What fits by plan loads and runs, and what does not is refused before anything is loaded: on a
 * GPU whose limits are lowered step by step (TD_VK_LIMIT). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "target/chain.h"
#include "toy_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SPEC   "vulkan:0"
#define SHAPE  ((toy_shape){256, 8, 4, 64, 3, 512, 4096, true, false})
#define SEARCH 8

static td_model *model;

static td_layout_params params_of(const char *const *specs, uint32_t n_slots, uint32_t n_ctx)
{
    return (td_layout_params){
        .model = model,
        .specs = specs,
        .n_specs = 1,
        .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
        .n_slots = n_slots,
        .n_ctx = n_ctx};
}

static const char *const specs[] = {SPEC};

static void run_both_ways(td_chain *chain)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    td_err err = {0};
    for (uint32_t i = 0; i < TD_PREFILL_ROWS_MAX; i++)
        rows[i] = (td_forward_row){.position = i, .token = i % TOY_VOCAB, .is_output = i == 255};
    if (!td_chain_run(chain, TD_MODE_PREFILL, rows, 256, &err))
        fail_msg("%s", err.message);
    rows[0] = (td_forward_row){.position = 256, .token = 3, .is_output = true};
    if (!td_chain_run(chain, TD_MODE_VERIFY, rows, 1, &err))
        fail_msg("%s", err.message);
}

/* True: it was planned, loaded and run. False: the plan said no. */
static bool try_limit(const char *limit, uint32_t n_slots, uint32_t n_ctx, td_err *err)
{
    td_layout_params params = params_of(specs, n_slots, n_ctx);
    setenv("TD_VK_LIMIT", limit, 1);
    td_layout *layout = td_layout_create(&params, err);
    bool is_planned = layout != NULL;
    if (is_planned) {
        td_err why = {0};
        params.made = &layout;
        td_chain *chain = td_chain_create(&params, &why);
        if (!chain)
            fail_msg("%s: planned, but: %s", limit, why.message);
        uint64_t used, budget, planned = chain->layout->parts[0].n_bytes;
        td_device_memory(chain->layout->parts[0].dev, &used, &budget);
        if (used > planned + planned / 50 || planned > used * 2)
            fail_msg("%s: %llu bytes planned, %llu used", limit, (unsigned long long)planned,
                     (unsigned long long)used);
        run_both_ways(chain);
        td_chain_destroy(&chain);
    } else {
        assert_int_equal(err->code, TD_E_NOMEM);
    }
    td_layout_destroy(&layout);
    unsetenv("TD_VK_LIMIT");
    return is_planned;
}

static void test_the_smallest_budget_that_is_planned_with_is_enough(void **state)
{
    (void)state;
    uint64_t low = 1 << 20, high = 256 << 20; /* refused, planned */
    for (int i = 0; i < SEARCH; i++) {
        uint64_t budget = low + (high - low) / 2;
        char limit[64];
        td_err err = {0};
        snprintf(limit, sizeof limit, "heapBudget=%llu", (unsigned long long)budget);
        if (try_limit(limit, 1, 512, &err)) {
            high = budget;
        } else {
            assert_non_null(strstr(err.message, "MiB"));
            assert_non_null(strstr(err.message, "as much as the driver offers"));
            low = budget;
        }
    }
    assert_true(low > 1 << 20 && high < 256 << 20);
}

static void test_a_cache_above_the_largest_buffer_is_refused_or_gets_fewer_pages(void **state)
{
    (void)state;
    /* 4 heads of 64 in F16: 512 bytes a position, so 2,048 positions. */
    const char *limit = "maxStorageBufferRange=1048576";
    td_err err = {0};
    assert_false(try_limit(limit, 1, 2049, &err));
    if (!strstr(err.message, "--ctx times --parallel is 2048 at most"))
        fail_msg("%s", err.message);
    assert_true(try_limit(limit, 1, 2048, &err));
    td_layout_params params = params_of(specs, 4, 2048);
    setenv("TD_VK_LIMIT", limit, 1);
    td_layout *layout = td_layout_create(&params, &err); /* sequences share fewer pages */
    assert_non_null(layout);
    assert_int_equal(layout->n_pages, 2048 / TD_PAGE_POSITIONS);
    td_layout_destroy(&layout);
    params = params_of(specs, 1, 0); /* an open context is the largest that fits */
    layout = td_layout_create(&params, &err);
    assert_non_null(layout);
    assert_in_range(layout->n_ctx, 1024, 2048);
    td_layout_destroy(&layout);
    unsetenv("TD_VK_LIMIT");
}

static void test_a_tensor_above_the_largest_buffer_is_named(void **state)
{
    (void)state;
    td_err err = {0};
    assert_false(try_limit("maxStorageBufferRange=262144", 1, 256, &err));
    if (!strstr(err.message, "above the largest buffer of " SPEC))
        fail_msg("%s", err.message);
}

static void test_a_draft_is_counted_once(void **state)
{
    (void)state;
    td_err err = {0};
    setenv("TD_VK_LIMIT", "heapBudget=268435456", 1);
    td_layout_params params = params_of(specs, 1, 512);
    td_layout *alone = td_layout_create(&params, &err);
    params.draft = model;
    params.draft_spec = SPEC;
    td_layout *both = td_layout_create(&params, &err);
    params.draft_spec = "host:1"; /* the same memory, by another device */
    td_layout *on_host = td_layout_create(&params, &err);
    if (!alone || !both || !on_host)
        fail_msg("%s", err.message);
    assert_true(both->draft_bytes > 1 << 20);
    uint64_t left = both->parts[0].budget_bytes + both->draft_bytes;
    uint64_t there = alone->parts[0].budget_bytes;
    assert_true(left >= there - 16 && left <= there + 16);
    assert_true(on_host->system_bytes > 0 && on_host->draft_bytes > 1 << 20);
    td_layout_destroy(&alone);
    td_layout_destroy(&both);
    td_layout_destroy(&on_host);
    setenv("TD_VK_LIMIT", "heapBudget=8388608", 1); /* the draft alone is too much */
    params.draft_spec = SPEC;
    assert_null(td_layout_create(&params, &err));
    assert_int_equal(err.code, TD_E_NOMEM);
    if (!strstr(err.message, "the draft: "))
        fail_msg("%s", err.message);
    unsetenv("TD_VK_LIMIT");
}

int main(void)
{
    td_device_info infos[2];
    td_err err = {0};
    if (td_device_list(infos, 2) < 2 || !infos[1].is_usable) {
        printf("no Vulkan device that can be used: skipped\n");
        return 77;
    }
    toy t = toy_begin("llama", SHAPE);
    model = toy_open(&t, &err);
    if (!model) {
        printf("%s\n", err.message);
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_smallest_budget_that_is_planned_with_is_enough),
        cmocka_unit_test(test_a_cache_above_the_largest_buffer_is_refused_or_gets_fewer_pages),
        cmocka_unit_test(test_a_tensor_above_the_largest_buffer_is_named),
        cmocka_unit_test(test_a_draft_is_counted_once),
    };
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    td_model_close(&model);
    return n_failed;
}
