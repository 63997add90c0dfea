/* Measured costs: what is kept on disk and what is done with files that were tampered with; and the
 * plan that is made of them. Times themselves are not asserted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "toy_model.h"

#include "base/io.h"
#include "base/log.h"
#include "base/mem.h"
#include "planning/planner.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

static td_model *model;
static td_device *dev;
static char folder[] = "/tmp/tandem-costs-XXXXXX", file[512];

static td_costs_params params_of(td_measure measure)
{
    return (td_costs_params){.model = model,
                             .dev = dev,
                             .spec = "host:1",
                             .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
                             .measure = measure};
}

static bool find(td_measure measure, td_costs *out)
{
    bool is_known = false;
    td_err err = {0};
    td_costs_params params = params_of(measure);
    if (!td_costs_find(&params, out, &is_known, &err))
        fail_msg("%s", err.message);
    return is_known;
}

/* The one file of costs in the folder; how many there are. */
static uint32_t find_file(void)
{
    DIR *d = opendir(folder);
    uint32_t n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        if (!strncmp(e->d_name, "costs-", 6)) {
            snprintf(file, sizeof file, "%s/%s", folder, e->d_name);
            n++;
        }
    closedir(d);
    return n;
}

static void test_costs_are_measured_once_and_kept(void **state)
{
    (void)state;
    td_costs a, b;
    assert_false(find(TD_MEASURE_NEVER, &a));
    td_costs_free(&a);
    assert_int_equal(find_file(), 0);
    assert_true(find(TD_MEASURE_MISSING, &a));
    assert_int_equal(find_file(), 1);
    assert_true(find(TD_MEASURE_NEVER, &b)); /* from the file: to the nanosecond */
    assert_int_equal(a.n_layers, 4);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t w = 0; w < TD_COST_WIDTHS; w++) {
            assert_true(a.layers[i].verify_us[w] >= 0);
            assert_true(fabs(a.layers[i].verify_us[w] - b.layers[i].verify_us[w]) < 0.002);
        }
    td_cost whole = td_costs_part(&a, 0, 3);
    assert_true(whole.verify_us[0] > 0 && whole.prefill_us > 0);
    assert_true(fabs(a.pass.prefill_us - b.pass.prefill_us) < 0.002);
    td_costs_free(&a);
    td_costs_free(&b);
}

static void write_file(const char *text, size_t n_bytes)
{
    td_err err = {0};
    if (!td_io_replace_file(file, text, n_bytes, &err))
        fail_msg("%s", err.message);
}

/* Every byte of a file changed, and cut anywhere: it is used or passed over, never more. */
static void test_hostile_files_are_passed_over(void **state)
{
    (void)state;
    char *text;
    size_t n;
    td_costs c;
    td_err err = {0};
    assert_int_equal(find_file(), 1);
    assert_true(td_io_read_file(file, 1 << 20, &text, &n, &err));
    td_log_set_level(TD_LOG_ERROR);
    static const char *const bad[] = {"",
                                      "{}",
                                      "[]",
                                      "{\"key\": 1}",
                                      "{\"key\": \"x\", \"times_ns\": []}",
                                      "{\"key\": \"x\", \"times_ns\": [-1]}"};
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        write_file(bad[i], strlen(bad[i]));
        assert_false(find(TD_MEASURE_NEVER, &c));
    }
    for (size_t i = 0; i < n; i += 7) {
        write_file(text, i);
        assert_false(find(TD_MEASURE_NEVER, &c));
    }
    char *times = strstr(text, "times_ns");
    assert_non_null(times);
    static const char *const numbers[] = {"-5", "1e400", "1.5", "99999999999999999999", "null"};
    for (size_t i = 0; i < TD_COUNT(numbers); i++) {
        char changed[8192];
        char *begin = strchr(times, '['), *comma = strchr(begin, ',');
        int length = snprintf(changed, sizeof changed, "%.*s%s%s", (int)(begin + 1 - text), text,
                              numbers[i], comma);
        write_file(changed, (size_t)length);
        assert_false(find(TD_MEASURE_NEVER, &c));
    }
    write_file(text, n);
    assert_true(find(TD_MEASURE_NEVER, &c));
    td_costs_free(&c);
    td_log_set_level(TD_LOG_INFO);
    td_free(text);
}

static void test_other_threads_types_and_models_are_other_costs(void **state)
{
    (void)state;
    td_costs c;
    bool is_known = true;
    td_costs_params p = params_of(TD_MEASURE_NEVER);
    p.kv.k = td_type_find(TD_TYPE_Q8_0);
    assert_true(td_costs_find(&p, &c, &is_known, NULL));
    assert_false(is_known);
    p = params_of(TD_MEASURE_NEVER);
    p.spec = "host:1:0";
    is_known = true;
    assert_true(td_costs_find(&p, &c, &is_known, NULL));
    assert_false(is_known);
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_find(&t, "blk.1.ffn_up.weight")->type = TD_TYPE_Q4_0;
    p = params_of(TD_MEASURE_NEVER);
    td_model *other = toy_open(&t, NULL);
    p.model = other;
    is_known = true;
    assert_true(td_costs_find(&p, &c, &is_known, NULL));
    assert_false(is_known);
    td_model_close(&other);
}

static td_plan_params plan_params(const char *const *specs, uint32_t n_specs, td_measure measure)
{
    return (td_plan_params){
        .layout = {.model = model,
                   .specs = specs,
                   .n_specs = n_specs,
                   .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
                   .n_slots = 4,
                   .is_choosing = true},
        .measure = measure};
}

static void test_plan_gives_specs_that_load(void **state)
{
    (void)state;
    static const char *const specs[] = {"host:1", "host:1"};
    td_plan plan;
    td_err err = {0};
    td_plan_params params = plan_params(specs, 2, TD_MEASURE_MISSING);
    params.use = TD_FOR_BATCH;
    params.draft = model; /* its own draft */
    if (!td_plan_choose(&params, &plan, &err))
        fail_msg("%s", err.message);
    assert_true(plan.is_measured && plan.n_rows >= 3 && plan.n_specs >= 1);
    assert_true(plan.rows[0].tokens_per_s >= plan.rows[plan.n_rows - 1].tokens_per_s);
    assert_string_equal(plan.draft_spec, "host:1");
    const char *chosen[TD_STAGES_MAX];
    for (uint32_t i = 0; i < plan.n_specs; i++)
        chosen[i] = plan.specs[i];
    params.layout.specs = chosen;
    params.layout.n_specs = plan.n_specs;
    params.layout.n_ctx = plan.n_ctx;
    td_layout *layout = td_layout_create(&params.layout, &err);
    assert_non_null(layout);
    assert_int_equal(layout->parts[layout->n_parts - 1].last, 3);
    td_layout_destroy(&layout);
}

static void test_pinned_layers_stay_and_unmeasured_ones_go_by_bytes(void **state)
{
    (void)state;
    static const char *const pinned[] = {"host:1@0-0", "host:1@1-3"};
    static const char *const unknown[] = {"host:1", "scalar"};
    td_plan plan;
    td_err err = {0};
    td_plan_params params = plan_params(pinned, 2, TD_MEASURE_MISSING);
    assert_true(td_plan_choose(&params, &plan, &err));
    assert_int_equal(plan.n_specs, 2);
    assert_string_equal(plan.specs[0], "host:1@0-0");
    assert_string_equal(plan.specs[1], "host:1@1-3");
    assert_int_equal(plan.n_rows, 1);
    params = plan_params(unknown, 2, TD_MEASURE_NEVER);
    assert_true(td_plan_choose(&params, &plan, &err));
    assert_false(plan.is_measured);
    assert_int_equal(plan.n_rows, 0);
    assert_int_equal(plan.n_specs, 2); /* each with a share */
}

static void test_units_are_devices_that_take_turns(void **state)
{
    (void)state;
    td_device_info host = {.kind = TD_DEVICE_HOST, .n_threads = 1, .spec = "host:1"};
    td_device_info many = {.kind = TD_DEVICE_HOST, .n_threads = 4096, .spec = "host:4096"};
    td_device_info gpu = {.kind = TD_DEVICE_DISCRETE, .spec = "vulkan:0"};
    td_device_info other = {.kind = TD_DEVICE_DISCRETE, .spec = "vulkan:1"};
    td_device_info soft = {.kind = TD_DEVICE_SOFTWARE, .spec = "vulkan:2"};
    assert_false(td_plan_is_one_unit("host:1:0", &host, "host:1:1", &host));
    assert_true(td_plan_is_one_unit("host:1:0-2", &host, "host:1:1", &host));
    assert_true(td_plan_is_one_unit("host:1:0", &host, "host:4096", &many));
    assert_true(td_plan_is_one_unit("vulkan:0", &gpu, "vulkan:NAME", &gpu));
    assert_false(td_plan_is_one_unit("vulkan:0", &gpu, "vulkan:1", &other));
    assert_false(td_plan_is_one_unit("vulkan:0", &gpu, "host:1", &host));
    assert_true(td_plan_is_one_unit("vulkan:2", &soft, "host:1", &host));
}

/* Another machine, as it is told: so fast for each layer, with so much memory of its own. */
typedef struct {
    double layer_us, way_us;
    uint64_t budget_bytes, position_bytes; /* of a layer's cache */
    uint32_t n_looks, n_ctx;               /* the context last asked for */
    bool is_known;
} elsewhere;

static bool look(void *user, const char *spec, const td_model *m, uint32_t n_ctx,
                 td_measure measure, td_far_device *out, td_err *err)
{
    elsewhere *e = user;
    const uint32_t n = td_model_hparams(m)->n_layer;
    (void)measure;
    e->n_looks++;
    e->n_ctx = n_ctx;
    if (strcmp(spec, "far/host:1"))
        return td_err_set(err, TD_E_USAGE, "%s: it has far/host:1", spec);
    *out = (td_far_device){.info = {.kind = TD_DEVICE_HOST, .n_threads = 1},
                           .n_cpus = 1,
                           .is_known = e->is_known,
                           .costs = {.n_layers = n},
                           .place = {.budget_bytes = e->budget_bytes,
                                     .shared_bytes = e->budget_bytes,
                                     .fixed_bytes = 1000}};
    snprintf(out->info.spec, sizeof out->info.spec, "host:1");
    out->costs.layers = td_alloc(n, sizeof *out->costs.layers, err);
    out->place.layer_bytes = out->layer_bytes = td_alloc(n, sizeof *out->layer_bytes, err);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < TD_COST_WIDTHS; k++)
            out->costs.layers[i].verify_us[k] = e->layer_us;
        out->costs.layers[i].chunk_us = out->costs.layers[i].prefill_us = e->layer_us;
        out->layer_bytes[i] = n_ctx * e->position_bytes;
    }
    return true;
}

static bool link_there(void *user, const char *host, td_far_link *out, td_err *err)
{
    const elsewhere *e = user;
    (void)err;
    *out = (td_far_link){.idle_us = 2 * e->way_us,
                         .loaded_us = 3 * e->way_us,
                         .there_bytes_per_s = 1e12,
                         .back_bytes_per_s = 1e12};
    snprintf(out->host, sizeof out->host, "%s", host);
    return true;
}

static td_plan plan_with(elsewhere *e, const char *const *specs, uint32_t n_specs, uint32_t n_ctx)
{
    const td_far far = {.look = look, .link = link_there, .user = e};
    td_plan plan;
    td_err err = {0};
    td_plan_params params = plan_params(specs, n_specs, TD_MEASURE_MISSING);
    params.layout.n_ctx = n_ctx;
    params.far = &far;
    if (!td_plan_choose(&params, &plan, &err))
        fail_msg("%s", err.message);
    return plan;
}

static void test_layers_go_where_the_link_lets_them(void **state)
{
    (void)state;
    static const char *const specs[] = {"host:1", "far/host:1"}, *const unknown[] = {"far/host:2"};
    elsewhere e = {.layer_us = 1e-3, .budget_bytes = 1ull << 40, .is_known = true};
    td_plan p = plan_with(&e, specs, 2, 0); /* no layer costs anything there */
    assert_true(p.is_measured);
    assert_int_equal(p.n_links, 1);
    assert_string_equal(p.links[0].host, "far");
    assert_int_equal(p.n_specs, 1);
    assert_string_equal(p.specs[0], "far/host:1@0-3");
    assert_int_equal(p.n_parts, 1);
    assert_string_equal(p.parts[0].spec, "far/host:1");
    assert_int_equal(p.parts[0].last, 3);
    assert_int_equal(p.n_ctx, td_model_hparams(model)->n_ctx_train);
    e.way_us = 1e6; /* but it is far away */
    p = plan_with(&e, specs, 2, 0);
    assert_int_equal(p.n_specs, 1);
    assert_string_equal(p.specs[0], "host:1@0-3");
    /* Unmeasured ones go by bytes. */
    e = (elsewhere){.budget_bytes = 1ull << 40};
    p = plan_with(&e, specs, 2, 256);
    assert_false(p.is_measured);
    assert_int_equal(p.n_specs, 2);
    assert_int_equal(p.n_parts, 2);
    const td_far far = {.look = look, .link = link_there, .user = &e};
    td_plan_params params = plan_params(unknown, 1, TD_MEASURE_MISSING);
    td_err err = {0};
    params.far = &far;
    assert_false(td_plan_choose(&params, &p, &err));
    assert_int_equal(err.code, TD_E_USAGE);
}

/* A context that was asked for is not. */
static void test_a_context_without_room_elsewhere_is_made_smaller(void **state)
{
    (void)state;
    static const char *const specs[] = {"far/host:1"};
    toy_shape shape = TOY_SHAPE;
    shape.n_ctx = 4096;
    toy t = toy_begin("llama", shape);
    elsewhere e = {.layer_us = 1,
                   .position_bytes = 1000,
                   .budget_bytes = 1000 + 4 * 1000ull * 2048,
                   .is_known = true};
    const td_far far = {.look = look, .link = link_there, .user = &e};
    td_plan_params params = plan_params(specs, 1, TD_MEASURE_MISSING);
    td_plan p;
    td_err err = {0};
    td_model *large = toy_open(&t, &err);
    assert_non_null(large);
    params.layout.model = large;
    params.far = &far;
    if (!td_plan_choose(&params, &p, &err))
        fail_msg("%s", err.message);
    assert_true(p.is_measured);
    assert_in_range(p.n_ctx, 1024, 2048);
    assert_int_equal(e.n_ctx, p.n_ctx);
    assert_true(p.parts[0].n_bytes <= p.parts[0].budget_bytes);
    params.layout.n_ctx = 4096;
    assert_false(td_plan_choose(&params, &p, &err));
    assert_int_equal(err.code, TD_E_NOMEM);
    td_model_close(&large);
}

static td_layout *plan_layout(uint32_t n_slots, uint32_t n_ctx, td_err *err)
{
    static const char *const specs[] = {"host:1"};
    td_layout_params p = plan_params(specs, 1, TD_MEASURE_NEVER).layout;
    p.n_slots = n_slots;
    p.n_ctx = n_ctx;
    return td_layout_create(&p, err);
}

static void test_a_context_that_fits_once_is_kept_with_fewer_pages(void **state)
{
    (void)state;
    td_err err = {0};
    td_layout *small = plan_layout(1, 1024, &err), *large = plan_layout(1, 2048, &err);
    assert_true(small && large);
    assert_int_equal(small->n_pages, 0);
    uint64_t position_bytes = (large->parts[0].n_bytes - small->parts[0].n_bytes) / 1024;
    uint64_t budget = small->parts[0].budget_bytes;
    td_layout_destroy(&small);
    td_layout_destroy(&large);
    uint64_t n_ctx = budget / position_bytes / 4;
    if (n_ctx > TD_CTX_MAX) {
        print_message("more memory than %u positions take: skipped\n", TD_CTX_MAX);
        skip();
    }
    td_layout *c = plan_layout(16, (uint32_t)n_ctx, &err);
    assert_non_null(c);
    assert_int_equal(c->n_ctx, n_ctx);
    assert_true(c->n_pages >= n_ctx / TD_PAGE_POSITIONS);      /* one sequence */
    assert_true(c->n_pages < 6 * n_ctx / TD_PAGE_POSITIONS);   /* not what does not fit */
    assert_true(c->n_pages > 2 * (n_ctx / TD_PAGE_POSITIONS)); /* but most of what does */
    assert_true(c->parts[0].n_bytes <= c->parts[0].budget_bytes);
    td_layout_destroy(&c);
    if (6 * n_ctx < TD_CTX_MAX) /* not even one */
        assert_null(plan_layout(2, (uint32_t)(6 * n_ctx), &err));
}

static int set_up(void **state)
{
    (void)state;
    toy t = toy_begin("llama", TOY_SHAPE);
    td_err err = {0};
    if (!mkdtemp(folder) || setenv("TANDEM_CACHE_DIR", folder, 1) != 0)
        return -1;
    model = toy_open(&t, &err);
    dev = td_device_create("host:1", &err);
    return model && dev ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    td_model_close(&model);
    td_device_destroy(&dev);
    while (find_file())
        unlink(file);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_costs_are_measured_once_and_kept),
        cmocka_unit_test(test_hostile_files_are_passed_over),
        cmocka_unit_test(test_other_threads_types_and_models_are_other_costs),
        cmocka_unit_test(test_plan_gives_specs_that_load),
        cmocka_unit_test(test_pinned_layers_stay_and_unmeasured_ones_go_by_bytes),
        cmocka_unit_test(test_units_are_devices_that_take_turns),
        cmocka_unit_test(test_layers_go_where_the_link_lets_them),
        cmocka_unit_test(test_a_context_without_room_elsewhere_is_made_smaller),
        cmocka_unit_test(test_a_context_that_fits_once_is_kept_with_fewer_pages),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
