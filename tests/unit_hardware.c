/* Predictions for machines that are not here: the tables of docs/planning.md are computed again
 * from the files of configs/hardware, the fit holds what it was fitted to, and files that were
 * tampered with are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/io.h"
#include "base/json.h"
#include "base/mem.h"
#include "planning/hardware_mixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FOLDER  "configs/hardware/"
#define CHUNK   512 /* rows of a prefill pass of the programs that were measured */
#define FIT_MAX 0.20
#define MISS    0.25

static const char *const tests_of[] = {"decode", "prefill", NULL};
static const td_json_field row_fields[] = {
    {.key = "hardware", .type = TD_JSON_STRING, .required = true, .min = 1, .max = 64},
    {.key = "model", .type = TD_JSON_STRING, .required = true, .min = 1, .max = 63},
    {.key = "test", .type = TD_JSON_ENUM, .required = true, .names = tests_of},
    {.key = "value", .type = TD_JSON_FLOAT, .required = true, .f_min = 0.01, .f_max = 1e6},
    {.key = "fit", .type = TD_JSON_BOOL, .required = true},
    {.key = "sequences", .type = TD_JSON_INT, .required = true, .min = 1, .max = 64},
    {.key = "prompt", .type = TD_JSON_INT, .min = 1, .max = 1 << 20},
    {.key = "layers", .type = TD_JSON_INT_LIST, .required = true, .max = 512, .n_max = 16},
    {.key = "dealt", .type = TD_JSON_BOOL}, /* experts over all devices */
    {.key = "turns", .type = TD_JSON_INT, .required = true, .max = 100},
    {.key = "payload_kb", .type = TD_JSON_FLOAT, .required = true, .f_max = 1e5},
    {.key = "source", .type = TD_JSON_STRING, .required = true, .min = 1, .max = 256},
};
static const td_json_schema row_schema = {row_fields, TD_COUNT(row_fields), false};
static const td_json_field list_fields[] = {
    {.key = "rows", .type = TD_JSON_OBJECT_LIST, .required = true, .n_max = 200}};
static const td_json_schema list_schema = {list_fields, TD_COUNT(list_fields), false};

static td_hardware *open_hardware(const char *name)
{
    char path[256];
    td_err err = {0};
    snprintf(path, sizeof path, FOLDER "%s.json", name);
    td_hardware *h = td_hardware_open(path, &err);
    if (!h)
        fail_msg("%s", err.message);
    return h;
}

typedef struct {
    const char *hardware, *model;
    double published, predicted;
    bool is_fit;
    char line[512]; /* as docs/planning.md has it */
} result;

static void predict(const td_json_object *o, result *r)
{
    r->hardware = td_json_get_string(o, "hardware", "");
    r->model = td_json_get_string(o, "model", "");
    r->published = td_json_get_double(o, "value", 0);
    r->is_fit = td_json_get_bool(o, "fit", false);
    td_hardware *h = open_hardware(r->hardware);
    const td_hardware_model *m = td_hardware_find(h, r->model);
    assert_non_null(m);
    uint32_t layers[TD_SPEED_DEVICES_MAX] = {m->n_layers}, sum = 0, n_parts = 0;
    char split[64] = "";
    for (size_t i = 0; i < td_json_count(o, "layers"); i++)
        layers[i] = (uint32_t)td_json_get_int_at(o, "layers", i);
    for (uint32_t i = 0; i < TD_SPEED_DEVICES_MAX; i++) {
        assert_true(!layers[i] || i < h->n_devices);
        sum += layers[i];
        size_t n = strlen(split);
        if (layers[i])
            snprintf(split + n, sizeof split - n, "%s%u", n_parts++ ? "+" : "", layers[i]);
    }
    assert_int_equal(sum, m->n_layers);
    bool is_prefill = td_json_get_enum(o, "test", 0) == 1;
    uint32_t n_sequences = (uint32_t)td_json_get_int(o, "sequences", 1);
    double n_rows = is_prefill ? CHUNK : n_sequences;
    r->predicted = 1e6 * n_rows /
                   td_hardware_turns_us(h, m, layers, n_rows, !is_prefill,
                                        (uint32_t)td_json_get_int(o, "turns", 0),
                                        1e3 * td_json_get_double(o, "payload_kb", 0));
    if (td_json_get_bool(o, "dealt", false)) {
        td_hardware_outlook outlook;
        td_hardware_way ways[TD_MIXTURE_WAYS];
        td_err err = {0};
        assert_true(td_hardware_look(h, m, &outlook, &err));
        td_hardware_compare(h, m, &outlook, ways);
        r->predicted = ways[TD_MIXTURE_DEALT].decode_per_s[TD_FOR_STREAM];
        snprintf(split, sizeof split, "dealt");
        n_parts = 2;
    }
    char what[32];
    snprintf(what, sizeof what, is_prefill ? "prefill" : "decode of %u", n_sequences);
    snprintf(r->line, sizeof r->line, "| %s | %s | %s | %s | %.2f | %.2f | %+.0f %% |", r->hardware,
             r->model, n_parts > 1 ? split : "-", what, r->published, r->predicted,
             100 * (r->predicted / r->published - 1));
    td_hardware_close(&h);
}

static void test_the_manual_has_what_the_files_predict(void **state)
{
    (void)state;
    td_err err = {0};
    td_json *doc = td_json_read_file(FOLDER "published.json", &err);
    td_json_object root, o;
    char *page = NULL;
    size_t n_bytes;
    uint32_t n_missing = 0, n_fit = 0, n_unseen = 0;
    if (!doc || !td_json_read_root(doc, &list_schema, &root, &err) ||
        !td_io_read_file("docs/planning.md", 1 << 20, &page, &n_bytes, &err))
        fail_msg("%s", err.message);
    for (size_t i = 0; i < td_json_count(&root, "rows"); i++) {
        result r;
        if (!td_json_read_element(&root, "rows", i, &row_schema, &o, &err))
            fail_msg("%s", err.message);
        predict(&o, &r);
        if (!strstr(page, r.line)) {
            print_message("docs/planning.md lacks: %s\n", r.line);
            n_missing++;
        }
        if (r.is_fit && !(fabs(r.predicted / r.published - 1) < FIT_MAX))
            fail_msg("the fit does not hold: %s", r.line);
        n_fit += r.is_fit;
        n_unseen += !r.is_fit;
    }
    assert_true(n_fit >= 10 && n_unseen >= 10);
    assert_int_equal(n_missing, 0);
    td_free(page);
    td_json_destroy(&doc);
}

static void test_a_pass_is_bytes_arithmetic_and_layers(void **state)
{
    (void)state;
    td_hardware_device d = {.bytes_per_s = 100e9,
                            .flops_per_s = 10e12,
                            .bandwidth_share = 0.5,
                            .compute_share = 0.1,
                            .layer_us = {10, 20, 30, 40}};
    td_hardware_model m = {.kind = TD_HARDWARE_DENSE,
                           .n_layers = 10,
                           .other_bytes = 1e9,
                           .output_bytes = 0.1e9,
                           .n_active = 1e9};
    assert_float_equal(td_hardware_pass_us(&d, &m, 10, 1, true), 20000 + 2000 + 100, 1e-6);
    assert_float_equal(td_hardware_pass_us(&d, &m, 5, 1, false), 10000 + 50, 1e-6);
    assert_float_equal(td_hardware_pass_us(&d, &m, 10, 3, false), 20000 + 4000 + 100, 1e-6);
    m.kind = TD_HARDWARE_EXPERTS;
    m.experts_bytes = 8e9;
    m.n_experts = 4;
    m.n_used = 1;
    assert_float_equal(td_hardware_pass_us(&d, &m, 10, 1, false), 20000 + 40000 + 200, 1e-6);
    assert_float_equal(td_hardware_pass_us(&d, &m, 10, 2, false),
                       20000 + 160000 * 0.4375 + 2000 + 200, 1e-6);
}

static void test_overlap_is_no_slower_than_turns(void **state)
{
    (void)state;
    td_hardware *h = open_hardware("strix-halo-x4");
    const td_hardware_model *m = td_hardware_find(h, "Kimi K2.5 UD-Q2_K_XL");
    uint32_t layers[TD_SPEED_DEVICES_MAX] = {15, 15, 15, 16};
    td_hardware_outlook o;
    td_err err = {0};
    assert_non_null(m);
    assert_true(td_hardware_look(h, m, &o, &err));
    assert_true(o.fits && o.stream.n_stages == 4);
    double turns = 1e6 / td_hardware_turns_us(h, m, layers, 1, true, 3, 0);
    assert_true(o.stream.decode_per_s >= turns);
    assert_true(o.drafted.decode_per_s >= o.stream.decode_per_s);
    assert_true(o.batch.decode_per_s > 3 * o.stream.decode_per_s); /* four stages at work */
    td_hardware_close(&h);
    h = open_hardware("strix-halo");
    m = td_hardware_find(h, "Kimi K2.5 UD-Q2_K_XL");
    assert_true(td_hardware_look(h, m, &o, &err));
    assert_false(o.fits); /* one machine is too small */
    assert_null(td_hardware_find(h, "no such model"));
    td_hardware_close(&h);
}

/* The manual's table of what tandem should reach: every model of it on every machine of it. */
static void test_the_manual_has_the_outlook(void **state)
{
    (void)state;
    static const char *const machines[] = {"strix-halo", "strix-halo-3090", "strix-halo-4090",
                                           "strix-halo-x4"};
    static const char *const models[] = {"gpt-oss-120b",       "Qwen3.5-122B-A10B Q4_K",
                                         "Qwen3-Coder-Next",   "Qwen3.5-27B UD-Q4_K_XL",
                                         "Gemma 4 31B Q4_K_M", "MiniMax-M2.5 Q4_K",
                                         "DeepSeek-R1 Q2_K",   "Kimi K2.5 UD-Q2_K_XL"};
    td_err err = {0};
    char *page, line[256];
    size_t n_bytes;
    uint32_t n_missing = 0;
    if (!td_io_read_file("docs/planning.md", 1 << 20, &page, &n_bytes, &err))
        fail_msg("%s", err.message);
    for (size_t i = 0; i < TD_COUNT(machines) * TD_COUNT(models); i++) {
        const char *machine = machines[i % TD_COUNT(machines)];
        td_hardware *h = open_hardware(machine);
        const td_hardware_model *m = td_hardware_find(h, models[i / TD_COUNT(machines)]);
        td_hardware_outlook o;
        assert_non_null(m);
        assert_true(td_hardware_look(h, m, &o, &err));
        if (o.fits)
            snprintf(line, sizeof line, "| %s | %s | %.1f | %.1f (k = %u) | %.0f | %.0f |", m->name,
                     machine, o.stream.decode_per_s, o.drafted.decode_per_s, o.drafted.k,
                     o.batch.decode_per_s, o.batch.prefill_per_s);
        if (o.fits && !strstr(page, line)) {
            print_message("docs/planning.md lacks: %s\n", line);
            n_missing++;
        }
        td_hardware_close(&h);
    }
    td_free(page);
    assert_int_equal(n_missing, 0);
}

/* Bytes that a row reads at least, over what all devices read in a second. */
static double bound_us(const td_hardware *h, const td_hardware_model *m, uint32_t first,
                       double n_rows)
{
    double rates = 0, touched = 1 - pow(1 - m->n_used / (double)m->n_experts, n_rows);
    for (uint32_t i = 0; i < h->n_devices; i++)
        rates += h->devices[i].bytes_per_s * h->devices[i].bandwidth_share;
    const td_hardware_device *d = &h->devices[first];
    return 1e6 * (m->experts_bytes * touched / rates +
                  (m->other_bytes + m->output_bytes) / (d->bytes_per_s * d->bandwidth_share));
}

/* All experts on the first device are a pass of it; dealt ones are never faster than what all
 * devices read together, those of a text never as fast as if each had its share of every row. */
static void test_dealt_experts_are_bounded_by_bandwidth(void **state)
{
    (void)state;
    static const char *const machines[] = {"strix-halo-3090", "strix-halo-4090",
                                           "strix-halo-5070ti"};
    uint32_t n_dealt = 0;
    for (size_t k = 0; k < TD_COUNT(machines); k++) {
        td_hardware *h = open_hardware(machines[k]);
        for (uint32_t i = 0; i < h->n_models; i++) {
            const td_hardware_model *m = &h->models[i];
            td_hardware_outlook o;
            td_hardware_way ways[TD_MIXTURE_WAYS];
            td_err err = {0};
            if (!td_hardware_has_ways(h, m))
                continue;
            for (uint32_t first = 0; first < h->n_devices; first++)
                for (double n = 1; n <= 8; n += 7) {
                    uint32_t counts[TD_SPEED_DEVICES_MAX] = {0};
                    counts[first] = m->n_experts;
                    double us = td_hardware_pass_us(&h->devices[first], m, m->n_layers, n, true);
                    double alone = td_hardware_dealt_us(h, m, first, counts, n);
                    if (!(fabs(alone / us - 1) < 1e-6))
                        fail_msg("%s: %.1f us, a pass %.1f", m->name, alone, us);
                }
            assert_true(td_hardware_look(h, m, &o, &err));
            td_hardware_compare(h, m, &o, ways);
            const td_hardware_way *dealt = &ways[TD_MIXTURE_DEALT];
            if (!dealt->fits[TD_FOR_STREAM])
                continue;
            n_dealt++;
            uint32_t sum = 0;
            for (uint32_t e = 0; e < h->n_devices; e++) {
                assert_true(dealt->counts[e] > 0);
                assert_true(dealt->counts[e] * m->experts_bytes / m->n_experts <=
                            h->devices[e].memory_bytes);
                sum += dealt->counts[e];
            }
            assert_int_equal(sum, m->n_experts);
            assert_true(1e6 / dealt->decode_per_s[TD_FOR_STREAM] >
                        1.05 * bound_us(h, m, dealt->first, 1));
            for (uint32_t way = TD_MIXTURE_DEALT; way < TD_MIXTURE_WAYS; way++)
                if (ways[way].fits[TD_FOR_STREAM])
                    assert_true(1e6 / ways[way].decode_per_s[TD_FOR_STREAM] >
                                bound_us(h, m, ways[way].first, 1));
            if (dealt->fits[TD_FOR_BATCH])
                assert_true(8e6 / dealt->decode_per_s[TD_FOR_BATCH] >
                            fmin(bound_us(h, m, 0, 8), bound_us(h, m, 1, 8)));
        }
        td_hardware_close(&h);
    }
    assert_true(n_dealt >= 9);
    td_hardware *h = open_hardware("strix-halo");
    assert_false(td_hardware_has_ways(h, td_hardware_find(h, "gpt-oss-120b")));
    td_hardware_close(&h);
    h = open_hardware("strix-halo-x4"); /* other machines */
    assert_false(td_hardware_has_ways(h, td_hardware_find(h, "gpt-oss-120b")));
    td_hardware_close(&h);
}

/* The manual's table of the three ways. */
static void test_the_manual_has_the_ways(void **state)
{
    (void)state;
    static const char *const machines[] = {"strix-halo-3090", "strix-halo-5070ti"};
    static const char *const models[] = {"gpt-oss-120b", "Qwen3.5-122B-A10B Q4_K",
                                         "GLM-4.5-Air Q4_K", "DeepSeek V4 Flash 2-bit",
                                         "DeepSeek V4 Flash 2-bit top 4"};
    td_err err = {0};
    char *page;
    size_t n_bytes;
    uint32_t n_missing = 0;
    if (!td_io_read_file("docs/planning.md", 1 << 20, &page, &n_bytes, &err))
        fail_msg("%s", err.message);
    for (size_t i = 0; i < TD_COUNT(machines) * TD_COUNT(models); i++) {
        td_hardware *h = open_hardware(machines[i % TD_COUNT(machines)]);
        const td_hardware_model *m = td_hardware_find(h, models[i / TD_COUNT(machines)]);
        td_hardware_outlook o;
        td_hardware_way ways[TD_MIXTURE_WAYS];
        char line[256];
        assert_non_null(m);
        assert_true(td_hardware_look(h, m, &o, &err));
        td_hardware_compare(h, m, &o, ways);
        int n = snprintf(line, sizeof line, "| %s | %s |", m->name, machines[i % 2]);
        for (uint32_t k = 0; k < TD_MIXTURE_WAYS; k++)
            for (td_use use = TD_FOR_STREAM; use <= TD_FOR_BATCH; use++)
                n += snprintf(line + n, sizeof line - (size_t)n,
                              ways[k].fits[use] ? " %.1f |" : " - |", ways[k].decode_per_s[use]);
        snprintf(line + n, sizeof line - (size_t)n, " %u + %u |", ways[TD_MIXTURE_DEALT].counts[0],
                 ways[TD_MIXTURE_DEALT].counts[1]);
        if (!strstr(page, line)) {
            print_message("docs/planning.md lacks: %s\n", line);
            n_missing++;
        }
        td_hardware_close(&h);
    }
    td_free(page);
    assert_int_equal(n_missing, 0);
}

/* -- hostile files ----------------------------------------------------------------------------- */

static char changed_path[] = "/tmp/tandem-hardware-XXXXXX";

static void refuses(const char *text, size_t n_bytes, const char *what)
{
    td_err err = {0};
    assert_true(td_io_replace_file(changed_path, text, n_bytes, &err));
    td_hardware *h = td_hardware_open(changed_path, &err);
    if (h)
        fail_msg("taken: %s", what);
    assert_int_equal(err.code, TD_E_DATA);
}

/* The text with [from, to) replaced. */
static void refuses_with(const char *text, size_t from, size_t to, const char *other)
{
    static char changed[1 << 16];
    int n = snprintf(changed, sizeof changed, "%.*s%s%s", (int)from, text, other, text + to);
    refuses(changed, (size_t)n, changed);
}

/* Each number of the file out of every range, each key misspelt. */
static void tamper(const char *text, size_t n_bytes)
{
    static const char *const numbers[] = {"-1", "1e300", "\"7\"", "null", "1e400", "[]"};
    for (size_t i = 0; i < n_bytes; i++) {
        bool is_number = text[i] >= '0' && text[i] <= '9' && (text[i - 1] == ' ');
        bool is_in_text = false;
        for (size_t k = 0; k < i; k++)
            is_in_text ^= text[k] == '"';
        if (is_number && !is_in_text) {
            size_t end = i + strspn(text + i, "0123456789.eE+-");
            for (size_t k = 0; k < TD_COUNT(numbers); k++)
                refuses_with(text, i, end, numbers[k]);
        }
        if (text[i] == '"' && !is_in_text) {
            size_t end = i + 1 + strcspn(text + i + 1, "\"");
            if (text[end + 1] == ':')
                refuses_with(text, i, end, "\"other");
        }
    }
    for (size_t i = 0; i + 2 < n_bytes; i += 11)
        refuses(text, i, "cut");
}

static void test_hostile_files_are_refused(void **state)
{
    (void)state;
    char *text;
    size_t n;
    td_err err = {0};
    int fd = mkstemp(changed_path);
    assert_true(fd >= 0);
    close(fd);
    assert_true(td_io_read_file(FOLDER "strix-halo-3090.json", 1 << 16, &text, &n, &err));
    tamper(text, n);
    td_free(text);
    /* Models: one of them, in a file that a hardware file names. */
    static const char model[] =
        "{\"models\": [{\"name\": \"Qwen3-1.7B Q4_K_M\", \"kind\": \"experts\", \"layers\": 4, "
        "\"embd\": 64, "
        "\"other_gb\": 1, \"experts_gb\": 2, \"experts\": 8, \"experts_used\": 2, \"output_gb\": "
        "1, \"active_gparams\": 1, \"kv_kb\": 4, \"source\": \"s\"}]}";
    static char of[] = "/tmp/tandem-machines-XXXXXX", text_of[4096];
    fd = mkstemp(of);
    assert_true(fd >= 0);
    close(fd);
    assert_true(td_io_read_file(FOLDER "strix-halo.json", 1 << 16, &text, &n, &err));
    char *name = strstr(text, FOLDER "models.json");
    assert_non_null(name);
    int length = snprintf(text_of, sizeof text_of, "%.*s%s%s", (int)(name - text), text,
                          changed_path, name + strlen(FOLDER "models.json"));
    assert_true(td_io_replace_file(of, text_of, (size_t)length, &err));
    assert_true(td_io_replace_file(changed_path, model, sizeof model - 1, &err));
    td_hardware *h = td_hardware_open(of, &err);
    assert_non_null(h);
    td_hardware_close(&h);
    static const char *const bad[][2] = {{"Qwen3-1.7B", "another"},
                                         {"\"experts\": 8", "\"experts\": 0"},
                                         {"\"experts_used\": 2", "\"experts_used\": 9"},
                                         {"\"experts_used\": 2", "\"experts_used\": 0"},
                                         {"\"kind\": \"experts\"", "\"kind\": \"dense\""},
                                         {"\"kind\": \"experts\"", "\"kind\": \"?\""},
                                         {"\"layers\": 4", "\"layers\": 0"},
                                         {"\"layers\": 4", "\"layers\": 513"},
                                         {"\"other_gb\": 1", "\"other_gb\": 0"},
                                         {"\"kv_kb\": 4", "\"kv_kb\": -4"}};
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        char changed[1024];
        const char *at = strstr(model, bad[i][0]);
        assert_non_null(at);
        int n_changed = snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - model), model,
                                 bad[i][1], at + strlen(bad[i][0]));
        assert_true(td_io_replace_file(changed_path, changed, (size_t)n_changed, &err));
        td_err why = {0};
        assert_null(td_hardware_open(of, &why));
        assert_int_equal(why.code, TD_E_DATA);
    }
    unlink(of);
    unlink(changed_path);
    td_free(text);
    td_err missing = {0};
    assert_null(td_hardware_open(changed_path, &missing));
    assert_int_equal(missing.code, TD_E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_pass_is_bytes_arithmetic_and_layers),
        cmocka_unit_test(test_the_manual_has_what_the_files_predict),
        cmocka_unit_test(test_overlap_is_no_slower_than_turns),
        cmocka_unit_test(test_the_manual_has_the_outlook),
        cmocka_unit_test(test_dealt_experts_are_bounded_by_bandwidth),
        cmocka_unit_test(test_the_manual_has_the_ways),
        cmocka_unit_test(test_hostile_files_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
