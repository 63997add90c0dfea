#include "run/prompts.h"

#include "base/check.h"
#include "base/json.h"
#include "base/jsonl.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/sha256.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct td_prompts {
    const td_run_params *params;
    td_jsonl_reader *reader; /* NULL: a job, or the one prompt */
    td_worker *job;          /* borrowed; NULL: none */
    int stop_fd;
    td_jsonl_line line;                    /* the last one read */
    const char *chat_identity, *chat_date; /* borrowed; "": the file's own, no day */
    bool is_done;
};

static const td_json_field fields[] = {
    {.key = "id", .type = TD_JSON_STRING, .min = 1, .max = TD_PROMPT_ID_MAX},
    {.key = "prompt", .type = TD_JSON_STRING, .min = 0, .max = TD_JSONL_LINE_MAX},
    {.key = "special", .type = TD_JSON_BOOL},
    TD_CHAT_INPUT_FIELDS,
    {.key = "n", .type = TD_JSON_INT, .min = 1, .max = 1 << 24},
    {.key = "temp", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 100},
    {.key = "top_k", .type = TD_JSON_INT, .min = 0, .max = 1 << 20},
    {.key = "top_p", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 1},
    {.key = "min_p", .type = TD_JSON_FLOAT, .f_min = 0, .f_max = 1},
    {.key = "repeat_penalty", .type = TD_JSON_FLOAT, .f_min = 0.01, .f_max = 100},
    {.key = "seed", .type = TD_JSON_INT, .min = 0, .max = INT64_MAX},
    {.key = "stop",
     .type = TD_JSON_STRING_OR_LIST,
     .min = 1,
     .max = TD_STOP_BYTES_MAX,
     .n_max = TD_STOPS_MAX},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), false};
/* The id alone, so that a line that is bad elsewhere is reported under its own name. */
static const td_json_schema id_schema = {fields, 1, true};

/* Lines of a regular file; 0 when it cannot be told. */
static uint64_t count_lines(const char *path)
{
    struct stat st;
    FILE *f =
        !strcmp(path, "-") || stat(path, &st) || !S_ISREG(st.st_mode) ? NULL : fopen(path, "re");
    if (!f)
        return 0;
    char buffer[1 << 16];
    uint64_t n = 0;
    bool is_line_begun = false;
    for (size_t n_read; (n_read = fread(buffer, 1, sizeof buffer, f)) > 0;)
        for (size_t i = 0; i < n_read; i++) {
            bool is_blank = buffer[i] == ' ' || buffer[i] == '\t' || buffer[i] == '\r';
            if (buffer[i] == '\n') {
                n += is_line_begun;
                is_line_begun = false;
            } else {
                is_line_begun |= !is_blank;
            }
        }
    fclose(f);
    return n + is_line_begun;
}

td_prompts *td_prompts_open(const td_run_params *params, td_worker *job, td_err *err)
{
    td_prompts *p = td_alloc(1, sizeof *p, err);
    if (!p)
        return NULL;
    p->params = params;
    p->job = job;
    p->stop_fd = -1;
    p->chat_identity = p->chat_date = "";
    if (params->in_path && !job) {
        p->reader = td_jsonl_reader_open(params->in_path, TD_JSONL_LINE_MAX, err);
        if (!p->reader)
            td_prompts_close(&p);
    }
    return p;
}

void td_prompts_close(td_prompts **p)
{
    if (!*p)
        return;
    td_jsonl_reader_close(&(*p)->reader);
    td_free(*p);
    *p = NULL;
}

void td_prompts_stop_at(td_prompts *p, int fd)
{
    p->stop_fd = fd;
    if (p->reader)
        td_jsonl_reader_stop_at(p->reader, fd);
}

void td_prompts_set_chat(td_prompts *p, const char *identity, const char *date)
{
    p->chat_identity = identity;
    p->chat_date = date;
}

uint64_t td_prompts_count(const td_prompts *p)
{
    return p->job ? 0 : p->params->in_path ? count_lines(p->params->in_path) : 1;
}

void td_prompt_destroy(td_prompt **prompt)
{
    if (!*prompt)
        return;
    for (uint32_t i = 0; i < (*prompt)->n_stops; i++)
        td_free((*prompt)->stops[i]);
    td_chat_input_free(&(*prompt)->chat);
    td_free((*prompt)->ids);
    td_free((*prompt)->text);
    td_free(*prompt);
    *prompt = NULL;
}

static bool own_text(td_prompt *q, const char *text, td_err *err)
{
    q->n_text = strlen(text);
    q->text = td_strndup(text, q->n_text, err);
    return q->text;
}

static bool own_stop(td_prompt *q, const char *text, td_err *err)
{
    q->stops[q->n_stops] = td_strndup(text, strlen(text), err);
    return q->stops[q->n_stops] && ++q->n_stops;
}

/* What the run says, before the line overrides it. */
static bool apply_defaults(td_prompt *q, const td_run_params *params, td_err *err)
{
    q->n_predict = params->n_predict;
    q->sampling = params->sampling;
    for (uint32_t i = 0; i < params->n_stops; i++)
        if (!own_stop(q, params->stops[i], err))
            return false;
    return true;
}

/* What is to be said: a text, or messages. */
static bool read_input(td_prompt *q, const td_json_object *o, td_err *err)
{
    bool has_messages = td_json_has(o, "messages");
    if (has_messages == td_json_has(o, "prompt"))
        return td_json_fail(o, NULL, err, "%s; give exactly one of \"prompt\" and \"messages\"",
                            has_messages ? "it has both \"prompt\" and \"messages\""
                                         : "it has neither \"prompt\" nor \"messages\"");
    if (has_messages && td_json_has(o, "special"))
        return td_json_fail(o, "special", err, "with \"messages\"; allowed: with \"prompt\"");
    q->is_special = td_json_get_bool(o, "special", false);
    return own_text(q, td_json_get_string(o, "prompt", ""), err) &&
           td_chat_input_read(&q->chat, o, err);
}

static bool parse_line(td_prompt *q, const td_jsonl_line *line, const char *name,
                       const td_run_params *params, td_err *err)
{
    td_json *doc = td_json_parse(line->text, line->n_bytes, name, err);
    td_json_object o;
    if (doc && td_json_read_root(doc, &id_schema, &o, NULL) && td_json_has(&o, "id"))
        snprintf(q->id, sizeof q->id, "%s", td_json_get_string(&o, "id", ""));
    bool is_ok = doc && td_json_read_root(doc, &schema, &o, err) && read_input(q, &o, err);
    if (is_ok && td_json_has(&o, "stop")) {
        while (q->n_stops)
            td_free(q->stops[--q->n_stops]);
        for (size_t i = 0; is_ok && i < td_json_count(&o, "stop"); i++)
            is_ok = own_stop(q, td_json_get_string_at(&o, "stop", i), err);
    }
    if (is_ok) {
        td_sampling_params *s = &q->sampling;
        q->n_predict = (uint32_t)td_json_get_int(&o, "n", q->n_predict);
        s->temperature = (float)td_json_get_double(&o, "temp", (double)s->temperature);
        s->top_k = (uint32_t)td_json_get_int(&o, "top_k", s->top_k);
        s->top_p = (float)td_json_get_double(&o, "top_p", (double)s->top_p);
        s->min_p = (float)td_json_get_double(&o, "min_p", (double)s->min_p);
        s->repeat_penalty =
            (float)td_json_get_double(&o, "repeat_penalty", (double)s->repeat_penalty);
        if (td_json_has(&o, "seed"))
            q->stream = (uint64_t)td_json_get_int(&o, "seed", 0);
        else
            q->stream = td_hash64(params->seed, q->id, strlen(q->id));
        /* The ends that a table cannot exclude: top_p 0, min_p 1, and what a
         * float rounds to them. */
        td_err why = {0};
        if (!td_sampling_check(s, &why))
            is_ok = td_err_set(err, TD_E_DATA, "%s: %s", name, why.message);
    }
    td_json_destroy(&doc);
    return is_ok;
}

/* The input's name in the results: all that decides the text and came with the line. */
static void hash_input(td_prompt *q, const td_prompts *p)
{
    td_sha256 s;
    uint8_t digest[32];
    char numbers[256];
    /* Lengths go first, so that no text can look like the numbers after it. */
    int n = snprintf(numbers, sizeof numbers, "%zu %u %u %a %u %a %a %a %u %llu\n", q->n_text,
                     q->n_stops, q->n_predict, (double)q->sampling.temperature, q->sampling.top_k,
                     (double)q->sampling.top_p, (double)q->sampling.min_p,
                     (double)q->sampling.repeat_penalty, q->sampling.repeat_last_n,
                     (unsigned long long)q->stream);
    td_sha256_begin(&s);
    td_sha256_add(&s, numbers, (size_t)n);
    td_sha256_add(&s, q->text ? q->text : "", q->n_text);
    for (uint32_t i = 0; i < q->n_stops; i++)
        td_sha256_add(&s, q->stops[i], strlen(q->stops[i]) + 1);
    if (q->is_special)
        td_sha256_add(&s, "special", 8);
    if (q->chat.messages) { /* a template that the file has is part of the model's hash */
        td_sha256_add(&s, p->chat_identity, strlen(p->chat_identity) + 1);
        td_sha256_add(&s, p->chat_date, strlen(p->chat_date) + 1);
        td_chat_input_hash(&q->chat, &s);
    }
    td_sha256_end(&s, digest);
    td_sha256_hex(digest, q->input_sha, TD_SHA_HEX);
}

/* The name of a line without an id of its own: its number and eight digits of its hash. The hash
 * also stands for the input as long as the line has not been understood. */
static void name_line(td_prompt *q, const td_jsonl_line *line)
{
    td_sha256 s;
    uint8_t digest[32];
    td_sha256_begin(&s);
    td_sha256_add(&s, line->text, line->n_bytes);
    td_sha256_end(&s, digest);
    td_sha256_hex(digest, q->input_sha, TD_SHA_HEX);
    snprintf(q->line_id, sizeof q->line_id, "line-%llu-%.8s", (unsigned long long)line->number,
             q->input_sha);
    memcpy(q->id, q->line_id, sizeof q->line_id);
}

static td_prompt *next_argument(td_prompts *p, td_err *err)
{
    td_prompt *q = td_alloc(1, sizeof *q, err);
    p->is_done = true;
    if (!q)
        return NULL;
    snprintf(q->id, sizeof q->id, "prompt");
    q->stream = p->params->seed;
    q->is_special = p->params->is_special;
    if (!apply_defaults(q, p->params, err) || !own_text(q, p->params->prompt, err))
        td_prompt_destroy(&q);
    else
        hash_input(q, p);
    return q;
}

/* What a line says. bad: why it cannot be used, if that is known already. */
static td_prompt *read_line(td_prompts *p, const td_jsonl_line *line, const td_err *bad,
                            td_err *err)
{
    td_prompt *q = td_alloc(1, sizeof *q, err);
    if (!q)
        return NULL;
    q->line = line->number;
    q->n_bytes = line->n_bytes;
    q->err = *bad;
    name_line(q, line);
    if (!apply_defaults(q, p->params, err)) {
        td_prompt_destroy(&q);
        return NULL;
    }
    char name[300];
    snprintf(name, sizeof name, "%.255s:%llu", p->job ? "the job" : p->params->in_path,
             (unsigned long long)line->number);
    if (q->err.code == TD_OK)
        parse_line(q, line, name, p->params, &q->err);
    if (q->err.code == TD_OK)
        hash_input(q, p);
    return q;
}

/* A line of a job has the name that it got when it was added, whatever it says. */
static td_prompt *next_of_job(td_prompts *p, td_err *err)
{
    td_job_line line;
    td_err bad = {0};
    if (!td_worker_next(p->job, &line, p->stop_fd, err)) {
        p->is_done = true;
        return NULL;
    }
    if (line.problem)
        td_err_set(&bad, TD_E_DATA, "%s", line.problem);
    td_jsonl_line text = {line.input ? line.input : "", line.n_bytes, line.number};
    td_prompt *q = read_line(p, &text, &bad, err);
    if (q)
        snprintf(q->id, sizeof q->id, "%s", line.id);
    td_job_line_free(&line);
    return q;
}

td_jsonl_line td_prompts_line(const td_prompts *p) { return p->line; }

td_prompt *td_prompts_next(td_prompts *p, td_err *err)
{
    if (p->is_done)
        return NULL;
    if (p->job)
        return next_of_job(p, err);
    if (!p->reader)
        return next_argument(p, err);
    td_err bad = {0};
    p->line = (td_jsonl_line){0};
    td_jsonl_status status = td_jsonl_read(p->reader, &p->line, &bad);
    if (status == TD_JSONL_END || status == TD_JSONL_FAILED) {
        p->is_done = true;
        if (status == TD_JSONL_FAILED)
            td_err_set(err, bad.code, "%s", bad.message);
        return NULL;
    }
    return read_line(p, &p->line, &bad, err);
}
