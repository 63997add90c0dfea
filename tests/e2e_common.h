/* What the golden_* and e2e_* programs share: where models lie, devices to try, a scratch folder,
 * a run in this process and its result lines.
 *
 *     scratch_open(&s);
 *     json_t *lines = run_lines(&s, &params);   // {id: line}
 *     assert_same_texts("k = 4", wanted, lines);
 *
 * TD_GOLDEN names the golden folder, TD_TALES the bundled pair's (default configs/tales), TANDEM
 * the program for tests that start it, TD_TEST_DEVICES the devices (comma-separated, stages of a
 * split joined by +; default host:1, host:2 and vulkan: the first usable Vulkan device, a software
 * driver included), TD_TEST_MODELS the golden models (default: all). TD_TEST_BRIEF asks for the
 * fewest cases. */
#ifndef TD_TESTS_E2E_COMMON_H
#define TD_TESTS_E2E_COMMON_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/check.h"
#include "base/log.h"
#include "kernels/device.h"
#include "kernels/types.h"
#include "run/run.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SKIPPED         77 /* exit code of a program that could test nothing */
#define PLACEMENTS_MAX  8
#define PLACEMENT_SPECS 4

/* See link_common.h: libzmq's own hand-overs are not seen by the thread sanitizer. */
const char *__tsan_default_suppressions(void);
__attribute__((weak)) const char *__tsan_default_suppressions(void)
{
    return "called_from_lib:libzmq.so\nrace:libzmq.so\nrace:^recv_one$\n";
}

/* -- data -------------------------------------------------------------------------------------- */

static inline const char *env_or(const char *name, const char *fallback)
{
    const char *value = getenv(name);
    return value && *value ? value : fallback;
}

static inline const char *golden_dir(void) { return env_or("TD_GOLDEN", "../shared/golden"); }

/* The files of the bundled pair; static storage. */
static inline const char *tales_target(void)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/tales-target.q8_0.gguf", env_or("TD_TALES", "configs/tales"));
    return path;
}

static inline const char *tales_draft(void)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/tales-draft.q8_0.gguf", env_or("TD_TALES", "configs/tales"));
    return path;
}

static inline bool is_readable(const char *path)
{
    if (access(path, R_OK) == 0)
        return true;
    printf("skipped: %s is not there\n", path);
    return false;
}

/* Whether TD_TEST_MODELS, a comma-separated list, is not set or has the name. */
static inline bool is_chosen_model(const char *name)
{
    const char *wanted = getenv("TD_TEST_MODELS");
    for (const char *at = wanted; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == strlen(name) && !strncmp(at, name, strlen(name)))
            return true;
    return !wanted;
}

static inline bool wants_brief(void) { return getenv("TD_TEST_BRIEF") != NULL; }

/* -- placements: one device, or several that share a model ------------------------------------- */

typedef struct {
    const char *name; /* as printed */
    const char *specs[PLACEMENT_SPECS];
    uint32_t n_specs;
    bool is_host; /* all of it */
    char storage[128];
} placement;

static placement placements[PLACEMENTS_MAX];
static size_t n_placements;

/* "host:1+host:1": stages joined by '+'; borrowed. */
static inline void add_placement(const char *text)
{
    assert_true(n_placements < PLACEMENTS_MAX);
    placement *p = &placements[n_placements];
    *p = (placement){.name = text, .is_host = true};
    snprintf(p->storage, sizeof p->storage, "%s", text);
    char *rest = p->storage;
    for (char *spec; (spec = strtok_r(rest, "+", &rest)) != NULL;) {
        assert_true(p->n_specs < PLACEMENT_SPECS);
        p->specs[p->n_specs++] = spec;
        p->is_host &= !strncmp(spec, "host", 4);
        char device[64];
        snprintf(device, sizeof device, "%.*s", (int)strcspn(spec, "@"), spec);
        td_err err = {0};
        td_device *dev = td_device_create(device, &err);
        if (!dev) {
            printf("skipped: device %s: %s\n", device, err.message);
            return;
        }
        td_device_destroy(&dev);
    }
    n_placements++;
}

/* Fills placements[]: what TD_TEST_DEVICES or the default says, then `splits` (NULL-ended). */
static inline void find_placements(const char *const *splits)
{
    static char list[1024];
    static td_device_info infos[TD_DEVICES_MAX];
    const char *wanted = getenv("TD_TEST_DEVICES");
    n_placements = 0;
    snprintf(list, sizeof list, "%s", wanted ? wanted : "host:1,host:2,vulkan");
    char *rest = list;
    for (char *spec; (spec = strtok_r(rest, ",", &rest)) != NULL;) {
        uint32_t n = strcmp(spec, "vulkan") ? 0 : td_device_list(infos, TD_DEVICES_MAX);
        for (uint32_t i = 0; i < n; i++)
            if (infos[i].kind != TD_DEVICE_HOST && infos[i].is_usable) {
                spec = infos[i].spec;
                break;
            }
        add_placement(spec);
    }
    for (; splits && *splits; splits++)
        add_placement(*splits);
}

/* -- scratch folder ---------------------------------------------------------------------------- */

typedef struct {
    char dir[64];
    char in[96], out[96], stats[96];
    char endpoint[104]; /* ipc://DIR/s; the folder's mode is 0700 */
} scratch;

static inline void scratch_open(scratch *s)
{
    snprintf(s->dir, sizeof s->dir, P_tmpdir "/tandem-e2e-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    snprintf(s->in, sizeof s->in, "%s/in.jsonl", s->dir);
    snprintf(s->out, sizeof s->out, "%s/out.jsonl", s->dir);
    snprintf(s->stats, sizeof s->stats, "%s/stats.json", s->dir);
    snprintf(s->endpoint, sizeof s->endpoint, "ipc://%s/s", s->dir);
}

/* Only plain files are made there. */
static inline void scratch_close(scratch *s)
{
    DIR *d = opendir(s->dir);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char path[64 + 256 + 2];
        snprintf(path, sizeof path, "%s/%s", s->dir, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(s->dir);
}

static inline void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static inline void append_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "ae");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

/* -- runs and their lines ---------------------------------------------------------------------- */

/* The result lines of a file, {id: line}. Every line must be whole and every id there once. */
static inline json_t *read_lines(const char *path)
{
    json_t *lines = json_object();
    FILE *f = fopen(path, "re");
    if (!f)
        fail_msg("%s is not there", path);
    char *text = NULL;
    size_t capacity = 0;
    while (getline(&text, &capacity, f) > 0) {
        json_error_t error;
        json_t *line = json_loads(text, JSON_REJECT_DUPLICATES, &error);
        if (!line)
            fail_msg("%s: %s in: %.200s", path, error.text, text);
        const char *id = json_string_value(json_object_get(line, "id"));
        assert_non_null(id);
        if (json_object_get(lines, id))
            fail_msg("%s: id %s twice", path, id);
        json_object_set_new(lines, id, line);
    }
    free(text);
    fclose(f);
    return lines;
}

/* Greedy, f16 cache, one sequence at a time, on host:1, without a draft; files of the scratch. */
static inline td_run_params base_params(const scratch *s, const char *target)
{
    return (td_run_params){.target_path = target,
                           .draft_max = 8,
                           .specs = {"host:1"},
                           .n_specs = 1,
                           .in_path = s->in,
                           .out_path = s->out,
                           .n_predict = 48,
                           .sampling = {.temperature = 0,
                                        .top_p = 1,
                                        .repeat_penalty = 1,
                                        .repeat_last_n = TD_REPEAT_LAST_N},
                           .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
                           .n_parallel = 1,
                           /* Nothing here depends on how fast the machine is. */
                           .draft_deadline_us = 60000000};
}

static inline void set_placement(td_run_params *params, const placement *p)
{
    params->n_specs = p->n_specs;
    memcpy(params->specs, p->specs, sizeof p->specs);
}

/* td_run. The program gives jansson an allocator that serves only while it parses; what the tests
 * build themselves comes from malloc. */
static inline bool run_tandem(const td_run_params *params, td_run_totals *totals, td_err *err)
{
    static json_malloc_t its_malloc;
    static json_free_t its_free;
    int signal = 0;
    if (its_malloc)
        json_set_alloc_funcs(its_malloc, its_free);
    bool is_ok = td_run(params, totals, &signal, err);
    json_get_alloc_funcs(&its_malloc, &its_free);
    json_set_alloc_funcs(malloc, free);
    return is_ok;
}

/* Runs the prompts of s->in and gives the lines. */
static inline json_t *run_lines(const scratch *s, const td_run_params *params,
                                td_run_totals *totals)
{
    td_run_totals unused;
    td_err err = {0};
    unlink(s->out);
    if (!run_tandem(params, totals ? totals : &unused, &err))
        fail_msg("the run failed: %s", err.message);
    return read_lines(s->out);
}

static inline json_int_t line_count(const json_t *line, const char *key)
{
    return json_integer_value(json_object_get(line, key));
}

/* Law 1: every line says the same; what was drafted may differ. */
static inline void assert_same_texts(const char *what, const json_t *wanted, const json_t *got)
{
    static const char *const keys[] = {"status",    "model_sha", "config_sha",
                                       "input_sha", "tokens",    "text",
                                       "reason",    "error",     "prompt_tokens"};
    const char *id;
    json_t *line;
    if (json_object_size(wanted) != json_object_size(got))
        fail_msg("%s: %zu lines instead of %zu", what, json_object_size(got),
                 json_object_size(wanted));
    json_object_foreach((json_t *)(uintptr_t)wanted, id, line)
    {
        const json_t *other = json_object_get(got, id);
        for (size_t i = 0; i < TD_COUNT(keys); i++) {
            json_t *a = json_object_get(line, keys[i]), *b = json_object_get(other, keys[i]);
            if (!json_equal(a, b)) {
                char *text_a = json_dumps(a, JSON_ENCODE_ANY | JSON_COMPACT);
                char *text_b = json_dumps(b, JSON_ENCODE_ANY | JSON_COMPACT);
                fail_msg("%s: line %s: %s is %s, without a draft %s", what, id, keys[i],
                         text_b ? text_b : "absent", text_a ? text_a : "absent");
            }
        }
    }
}

#endif
