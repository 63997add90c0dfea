#include "run/results.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/line_writer.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/sha256.h"
#include "run/identity.h"
#include "run/run_placement.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define IDENTITIES_MAX 64u /* kept to tell what differs; of more it is only told that */
#define SYNC_LINES     64u
#define SYNC_US        1000000u

typedef struct {
    char *id; /* NULL: an empty place of the table */
    char input_sha[TD_SHA_HEX + 1], config_sha[TD_SHA_HEX + 1];
    const char *identity; /* one of `identities`, or NULL */
    bool is_in_file, is_ok, is_used;
} entry;

/* Known ids: open addressing, grown at half full. */
struct td_results {
    td_line_writer *writer;
    td_worker *job;       /* borrowed; NULL: none */
    td_json_writer *json; /* of the thread that writes results */
    entry *entries;       /* of the one that claims them */
    size_t capacity, n_entries;
    char placement[TD_PLACEMENT_BYTES];
    char date[TD_DATE_BYTES];
    char identity[TD_IDENTITY_BYTES]; /* of this run; "": not said */
    char *identities[IDENTITIES_MAX]; /* [n_identities] of the file, each once */
    uint32_t n_identities;
};

static const char *const statuses[] = {"ok", "error", NULL};
static const td_json_field fields[] = {
    {.key = "id", .type = TD_JSON_STRING, .required = true, .min = 1, .max = TD_PROMPT_ID_MAX},
    {.key = "status", .type = TD_JSON_ENUM, .required = true, .names = statuses},
    {.key = "input_sha", .type = TD_JSON_STRING, .required = true, .min = 1, .max = TD_SHA_HEX},
    {.key = "config_sha", .type = TD_JSON_STRING, .required = true, .min = 1, .max = TD_SHA_HEX},
    {.key = "placement", .type = TD_JSON_STRING, .min = 0, .max = TD_PLACEMENT_BYTES - 1},
    {.key = "date", .type = TD_JSON_STRING, .min = TD_DATE_BYTES - 1, .max = TD_DATE_BYTES - 1},
    {.key = "config", .type = TD_JSON_STRING, .min = 0, .max = TD_IDENTITY_BYTES - 1},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), true};

/* The entry of an id, or the empty place where it belongs. */
static entry *place_of(entry *entries, size_t capacity, const char *id)
{
    size_t i = td_hash64(0, id, strlen(id)) & (capacity - 1);
    while (entries[i].id && strcmp(entries[i].id, id))
        i = (i + 1) & (capacity - 1);
    return &entries[i];
}

static bool grow(td_results *r, td_err *err)
{
    size_t capacity = r->capacity ? 2 * r->capacity : 1024;
    entry *grown = td_alloc(capacity, sizeof *grown, err);
    if (!grown)
        return false;
    for (size_t i = 0; i < r->capacity; i++)
        if (r->entries[i].id)
            *place_of(grown, capacity, r->entries[i].id) = r->entries[i];
    td_free(r->entries);
    r->entries = grown;
    r->capacity = capacity;
    return true;
}

static entry *find_or_add(td_results *r, const char *id, td_err *err)
{
    if (2 * (r->n_entries + 1) > r->capacity && !grow(r, err))
        return NULL;
    entry *e = place_of(r->entries, r->capacity, id);
    if (!e->id) {
        e->id = td_strndup(id, strlen(id), err);
        if (!e->id)
            return NULL;
        r->n_entries++;
    }
    return e;
}

static bool keep_identity(td_results *r, const char *text, entry *e, td_err *err)
{
    e->identity = NULL;
    for (uint32_t i = 0; i < r->n_identities; i++)
        if (!strcmp(r->identities[i], text))
            e->identity = r->identities[i];
    if (e->identity || !*text || r->n_identities == IDENTITIES_MAX)
        return true;
    char *copy = td_strndup(text, strlen(text), err);
    if (copy)
        e->identity = r->identities[r->n_identities++] = copy;
    return copy;
}

static td_jsonl_verdict scan(void *context, const td_jsonl_line *line, uint64_t offset_bytes,
                             td_err *err)
{
    td_results *r = context;
    char name[64];
    snprintf(name, sizeof name, "result line %llu at byte %llu", (unsigned long long)line->number,
             (unsigned long long)offset_bytes);
    td_err bad = {0};
    td_json *doc = td_json_parse(line->text, line->n_bytes, name, &bad);
    td_json_object o;
    if (!doc && bad.code == TD_E_DATA)
        return TD_JSONL_TORN;
    td_jsonl_verdict verdict = TD_JSONL_STOP;
    if (doc && td_json_read_root(doc, &schema, &o, err)) {
        entry *e = find_or_add(r, td_json_get_string(&o, "id", ""), err);
        if (e) {
            e->is_in_file = true;
            e->is_ok = td_json_get_enum(&o, "status", 1) == 0;
            snprintf(e->input_sha, sizeof e->input_sha, "%s",
                     td_json_get_string(&o, "input_sha", ""));
            snprintf(e->config_sha, sizeof e->config_sha, "%s",
                     td_json_get_string(&o, "config_sha", ""));
            snprintf(r->placement, sizeof r->placement, "%s",
                     td_json_get_string(&o, "placement", ""));
            if (!r->date[0])
                snprintf(r->date, sizeof r->date, "%s", td_json_get_string(&o, "date", ""));
            if (keep_identity(r, td_json_get_string(&o, "config", ""), e, err))
                verdict = TD_JSONL_KEEP;
        }
    } else if (!doc) {
        td_err_set(err, bad.code, "%s", bad.message);
    }
    td_json_destroy(&doc);
    return verdict;
}

td_results *td_results_open(const td_run_params *params, td_worker *job, td_err *err)
{
    td_results *r = td_alloc(1, sizeof *r, err);
    if (!r)
        return NULL;
    const char *path = job                ? NULL
                       : params->out_path ? params->out_path
                       : params->in_path  ? "-"
                                          : NULL;
    r->job = job;
    bool is_ok = path || job || params->on_finish || td_io_check_standard(STDOUT_FILENO, err);
    r->json = is_ok ? td_json_writer_create(false, err) : NULL;
    if (r->json && path)
        r->writer = td_line_writer_open(&(td_jsonl_writer_params){.path = path,
                                                                  .sync_lines = SYNC_LINES,
                                                                  .sync_us = SYNC_US,
                                                                  .scan = scan,
                                                                  .scan_context = r},
                                        err);
    if (!r->json || (path && !r->writer)) {
        td_results_close(&r, NULL);
        return NULL;
    }
    return r;
}

const char *td_results_placement(const td_results *r)
{
    return r->placement[0] ? r->placement : NULL;
}

const char *td_results_date(const td_results *r) { return r->date[0] ? r->date : NULL; }

void td_results_set_date(td_results *r, const char *date)
{
    snprintf(r->date, sizeof r->date, "%s", date);
}

void td_results_set_identity(td_results *r, const char *text)
{
    snprintf(r->identity, sizeof r->identity, "%s", text ? text : "");
}

bool td_results_close(td_results **r, td_err *err)
{
    if (!*r)
        return true;
    bool is_ok = !(*r)->writer || td_line_writer_close(&(*r)->writer, err);
    td_json_writer_destroy(&(*r)->json);
    for (size_t i = 0; i < (*r)->capacity; i++)
        td_free((*r)->entries[i].id);
    td_free((*r)->entries);
    for (uint32_t i = 0; i < (*r)->n_identities; i++)
        td_free((*r)->identities[i]);
    td_free(*r);
    *r = NULL;
    return is_ok;
}

td_result_state td_results_claim(td_results *r, const char *id, const char *input_sha,
                                 const char *config_sha, char *why, size_t why_bytes, td_err *err)
{
    entry *e = r->job ? NULL : find_or_add(r, id, err);
    if (!e)
        return TD_RESULT_NONE;
    if (e->is_used)
        return TD_RESULT_TWICE;
    e->is_used = true;
    if (!e->is_in_file)
        return TD_RESULT_NONE;
    bool is_other_input = strcmp(e->input_sha, input_sha) != 0;
    if (is_other_input || strcmp(e->config_sha, config_sha) != 0) {
        char what[600] = "";
        if (!is_other_input && e->identity)
            td_identity_compare(e->identity, r->identity, what, sizeof what);
        if (!*what)
            snprintf(what, sizeof what, "%s there, %s now",
                     is_other_input ? e->input_sha : e->config_sha,
                     is_other_input ? input_sha : config_sha);
        snprintf(why, why_bytes, "%s: the result there is of another %s (%s); --force keeps it", id,
                 is_other_input ? "input" : "configuration", what);
        return TD_RESULT_OTHER;
    }
    return e->is_ok ? TD_RESULT_DONE : TD_RESULT_ERROR;
}

static void write_line(td_json_writer *w, const td_result *t, const char *identity)
{
    td_json_begin_object(w);
    td_json_put_string(w, "id", t->id);
    td_json_put_string(w, "status", t->is_ok ? "ok" : "error");
    td_json_write_key(w, "text");
    td_json_write_bytes(w, t->text ? t->text : "", t->text ? t->n_text : 0);
    td_json_write_key(w, "tokens");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < t->n_tokens; i++)
        td_json_write_u64(w, t->tokens[i]);
    td_json_end_array(w);
    td_json_put_string(w, "reason", t->is_ok ? td_reason_name(t->reason) : NULL);
    td_json_put_string(w, "error", t->error);
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {{"drafted", t->n_drafted},
                  {"accepted", t->n_accepted},
                  {"rounds", t->n_rounds},
                  {"prompt_tokens", t->n_prompt_tokens}};
    for (size_t i = 0; i < TD_COUNT(counts); i++)
        td_json_put_u64(w, counts[i].key, counts[i].value);
    td_json_put_double(w, "ttft_ms", t->ttft_ms);
    td_json_put_double(w, "ms", t->ms);
    td_json_put_double(w, "finished_s", floor(t->finished_s * 1e3) / 1e3);
    const struct {
        const char *key, *value;
    } hashes[] = {{"input_sha", t->input_sha},
                  {"config_sha", t->config_sha},
                  {"model_sha", t->model_sha},
                  {"placement", t->placement},
                  {"config", identity}};
    for (size_t i = 0; i < TD_COUNT(hashes); i++)
        td_json_put_string(w, hashes[i].key, hashes[i].value ? hashes[i].value : "");
    if (t->date && t->date[0])
        td_json_put_string(w, "date", t->date);
    td_json_end_object(w);
}

/* What two who ran a line by one arithmetic must agree in. */
static void hash_answer(const td_result *t, char hex[TD_SHA_HEX + 1])
{
    td_sha256 s;
    uint8_t digest[32];
    td_sha256_begin(&s);
    td_sha256_add(&s, t->input_sha, strlen(t->input_sha) + 1);
    td_sha256_add(&s, t->tokens, t->n_tokens * sizeof *t->tokens);
    td_sha256_end(&s, digest);
    td_sha256_hex(digest, hex, TD_SHA_HEX);
}

static bool put_into_job(td_results *r, const td_result *t, const char *line, td_err *err)
{
    char answer[TD_SHA_HEX + 1];
    hash_answer(t, answer);
    return td_worker_put(r->job, t->id,
                         &(td_job_result){.result = line,
                                          .config_sha = t->config_sha,
                                          .answer_sha = answer,
                                          .is_ok = t->is_ok,
                                          .n_tokens = t->n_tokens},
                         err);
}

bool td_results_write(td_results *r, const td_result *result, td_err *err)
{
    if (!r->writer && !r->job)
        return true; /* text goes to stdout, no JSON is wanted */
    write_line(r->json, result, r->identity);
    const char *line;
    size_t n_bytes;
    return td_json_writer_end(r->json, &line, &n_bytes, err) &&
           (r->job ? put_into_job(r, result, line, err)
                   : td_line_writer_put(r->writer, line, n_bytes, err));
}

bool td_results_poll(td_results *r, td_err *err)
{
    return r->job ? td_worker_poll(r->job, err) : !r->writer || td_line_writer_poll(r->writer, err);
}

int td_results_fd(const td_results *r)
{
    return r->job ? td_worker_fd(r->job) : r->writer ? td_line_writer_fd(r->writer) : -1;
}

bool td_results_has_room(const td_results *r)
{
    return r->job ? td_worker_has_room(r->job) : !r->writer || td_line_writer_has_room(r->writer);
}
