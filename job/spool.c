#include "job/spool.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/jsonl.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct td_spool {
    uint64_t hash; /* of the job's URL */
    char path[PATH_MAX];
    td_jsonl_writer *writer; /* NULL: nothing is kept */
    td_json_writer *json;
};

td_spool *td_spool_create(const char *url, td_err *err)
{
    td_spool *s = td_alloc(1, sizeof *s, err);
    if (!s)
        return NULL;
    s->hash = td_hash64(0, url, strlen(url));
    s->json = td_json_writer_create(false, err);
    if (!s->json)
        td_spool_destroy(&s);
    return s;
}

static bool path_of(const td_spool *s, uint32_t i, char *path)
{
    char suffix[16];
    snprintf(suffix, sizeof suffix, "-%u.jsonl", i);
    return td_io_cache_path("spool", s->hash, suffix, path, PATH_MAX);
}

static const td_json_field fields[] = {
    {.key = "n", .type = TD_JSON_INT, .required = true, .min = 1, .max = INT64_MAX},
    {.key = "epoch", .type = TD_JSON_INT, .required = true, .min = 0, .max = INT64_MAX},
    {.key = "tokens", .type = TD_JSON_INT, .required = true, .min = 0, .max = UINT32_MAX},
    {.key = "ok", .type = TD_JSON_BOOL, .required = true},
    {.key = "worker", .type = TD_JSON_STRING, .required = true, .min = 1, .max = TD_JOB_WORKER_MAX},
    {.key = "config_sha", .type = TD_JSON_STRING, .required = true, .max = TD_JOB_SHA_MAX},
    {.key = "answer_sha", .type = TD_JSON_STRING, .required = true, .max = TD_JOB_SHA_MAX},
    {.key = "result", .type = TD_JSON_STRING, .required = true, .max = TD_JSONL_RESULT_MAX},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), false};

typedef struct {
    td_spool_on_result on_result;
    void *user;
} adoption;

static td_jsonl_verdict scan(void *context, const td_jsonl_line *line, uint64_t offset_bytes,
                             td_err *err)
{
    (void)offset_bytes;
    const adoption *a = context;
    td_json *doc = td_json_parse(line->text, line->n_bytes, "a kept result", NULL);
    td_json_object o;
    if (!doc)
        return TD_JSONL_TORN;
    td_jsonl_verdict verdict = TD_JSONL_STOP;
    if (td_json_read_root(doc, &schema, &o, err) &&
        a->on_result(a->user,
                     &(td_job_result){.n = td_json_get_int(&o, "n", 0),
                                      .epoch = td_json_get_int(&o, "epoch", 0),
                                      .worker = td_json_get_string(&o, "worker", ""),
                                      .result = td_json_get_string(&o, "result", ""),
                                      .config_sha = td_json_get_string(&o, "config_sha", ""),
                                      .answer_sha = td_json_get_string(&o, "answer_sha", ""),
                                      .is_ok = td_json_get_bool(&o, "ok", false),
                                      .n_tokens = (uint64_t)td_json_get_int(&o, "tokens", 0)},
                     err))
        verdict = TD_JSONL_KEEP;
    td_json_destroy(&doc);
    return verdict;
}

bool td_spool_adopt(td_spool *s, td_spool_on_result on_result, void *user, td_err *err)
{
    char path[PATH_MAX];
    adoption a = {on_result, user};
    for (uint32_t i = 0; i < TD_SPOOL_FILES_MAX; i++) {
        if (!path_of(s, i, path) || access(path, F_OK) != 0)
            continue;
        td_err failure = {0};
        td_jsonl_writer *w = td_jsonl_writer_open(
            &(td_jsonl_writer_params){.path = path, .scan = scan, .scan_context = &a}, &failure);
        if (w) {
            unlink(path);
            td_jsonl_writer_close(&w, NULL);
        } else if (failure.code == TD_E_NOMEM) {
            return td_err_set(err, failure.code, "%s", failure.message);
        } else if (failure.code != TD_E_AGAIN) { /* else it is a living worker's */
            td_log_warn("%s; what it keeps is left out, its lines will be run again",
                        failure.message);
        }
    }
    return true;
}

/* The first file that no other worker holds. */
static bool open_file(td_spool *s, td_err *err)
{
    td_err failure = {0};
    for (uint32_t i = 0; i < TD_SPOOL_FILES_MAX && !s->writer; i++) {
        if (!path_of(s, i, s->path))
            return td_err_set(err, TD_E_IO, "there is no folder for results that wait "
                                            "(TANDEM_CACHE_DIR)");
        td_err_clear(&failure);
        s->writer = td_jsonl_writer_open(&(td_jsonl_writer_params){.path = s->path}, &failure);
        if (!s->writer && failure.code != TD_E_AGAIN)
            break;
    }
    return s->writer || td_err_set(err, failure.code, "%s", failure.message);
}

bool td_spool_add(td_spool *s, const td_job_result *r, td_err *err)
{
    if (!s->writer && !open_file(s, err))
        return false;
    td_json_begin_object(s->json);
    td_json_put_u64(s->json, "n", (uint64_t)r->n);
    td_json_put_u64(s->json, "epoch", (uint64_t)r->epoch);
    td_json_put_u64(s->json, "tokens", r->n_tokens);
    td_json_put_bool(s->json, "ok", r->is_ok);
    td_json_put_string(s->json, "worker", r->worker);
    td_json_put_string(s->json, "config_sha", r->config_sha);
    td_json_put_string(s->json, "answer_sha", r->answer_sha);
    td_json_put_string(s->json, "result", r->result);
    td_json_end_object(s->json);
    const char *text;
    size_t n_bytes;
    bool is_ok = td_json_writer_end(s->json, &text, &n_bytes, err) &&
                 td_jsonl_write(s->writer, text, n_bytes, err) &&
                 td_jsonl_writer_sync(s->writer, err);
    if (!is_ok) { /* a writer that has failed stays so; what it wrote is there */
        td_jsonl_writer_close(&s->writer, NULL);
    }
    return is_ok;
}

bool td_spool_is_empty(const td_spool *s) { return !s->writer; }

const char *td_spool_path(const td_spool *s) { return s->path; }

void td_spool_clear(td_spool *s)
{
    if (!s->writer)
        return;
    unlink(s->path);
    td_jsonl_writer_close(&s->writer, NULL);
}

void td_spool_destroy(td_spool **s)
{
    if (!*s)
        return;
    td_jsonl_writer_close(&(*s)->writer, NULL);
    td_json_writer_destroy(&(*s)->json);
    td_free(*s);
    *s = NULL;
}
