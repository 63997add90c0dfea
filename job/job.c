#include "job/job.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKING_S  120.0 /* a worker seen since then is at it */
#define READ_LINES 256   /* results read at once */
#define SETTLED_S  2.0   /* transactions that note results last less */
#define CHUNK_BYTES (1u << 20) /* of lines that go in together */

static bool run(td_db *db, const char *text, const td_db_value *params, uint32_t n_params,
                uint64_t *n_changed, td_err *err)
{
    return td_db_run(db, &(td_db_statement){text, NULL}, params, n_params, NULL, NULL, n_changed,
                     err);
}

static bool read_rows(td_db *db, const char *text, const char *columns, const td_db_value *params,
                      uint32_t n_params, td_db_row row, void *user, td_err *err)
{
    return td_db_run(db, &(td_db_statement){text, columns}, params, n_params, row, user, NULL, err);
}

/* -- the schema -------------------------------------------------------------------------------- */

static const char *const schema[] = {
    "CREATE TABLE tandem_job (version {big} NOT NULL, config TEXT NOT NULL, created DOUBLE "
    "PRECISION NOT NULL, is_same {big} NOT NULL, is_cancelled {big} NOT NULL, attempts_max {big} "
    "NOT NULL, arithmetic TEXT NOT NULL, identity TEXT NOT NULL)",
    "CREATE TABLE tandem_line (n {big} PRIMARY KEY, id TEXT NOT NULL UNIQUE, number {big} NOT "
    "NULL, input TEXT, problem TEXT, n_bytes {big} NOT NULL, prefix {big} NOT NULL, state {big} NOT "
    "NULL, worker TEXT, epoch {big} NOT NULL, attempts {big} NOT NULL, until DOUBLE PRECISION NOT "
    "NULL, finished DOUBLE PRECISION NOT NULL, result TEXT, config_sha TEXT, answer_sha TEXT, "
    "n_tokens {big} NOT NULL)",
    "CREATE INDEX tandem_line_by_state ON tandem_line (state, n)",
    "CREATE INDEX tandem_line_by_prefix ON tandem_line (state, prefix, n)",
    "CREATE INDEX tandem_line_by_finish ON tandem_line (finished, n)",
    "CREATE TABLE tandem_worker (name TEXT PRIMARY KEY, started DOUBLE PRECISION NOT NULL, seen "
    "DOUBLE PRECISION NOT NULL, has_left {big} NOT NULL, n_ok {big} NOT NULL, n_error {big} NOT "
    "NULL, n_tokens {big} NOT NULL, identity TEXT NOT NULL)",
    "CREATE TABLE tandem_difference (n {big} NOT NULL, noticed DOUBLE PRECISION NOT NULL, config_sha "
    "TEXT NOT NULL, worker_a TEXT NOT NULL, worker_b TEXT NOT NULL, result_a TEXT, result_b TEXT)",
};
static const char *const tables[] = {"tandem_difference", "tandem_worker", "tandem_line",
                                     "tandem_job"};

static bool add_lines(td_db *db, bool is_new, td_job_lines lines, void *user, td_job_added *added,
                      td_err *err);

static bool has_job(td_db *db, bool *has, td_err *err)
{
    return td_db_has_table(db, "tandem_job", has, err);
}

static bool create_within(td_db *db, const td_job_settings *s, td_job_lines lines, void *user,
                          td_job_added *added, td_err *err)
{
    bool has = false;
    if (!has_job(db, &has, err))
        return false;
    if (has)
        return td_err_set(err, TD_E_DATA,
                          "%s: there is a job already; `tandem job add` adds lines to it, `tandem "
                          "job drop` removes it",
                          td_db_name(db));
    for (size_t i = 0; i < TD_COUNT(schema); i++)
        if (!run(db, schema[i], NULL, 0, NULL, err))
            return false;
    td_db_value params[] = {td_db_int(TD_JOB_VERSION), td_db_text(s->config),
                            td_db_int(s->is_same_arithmetic), td_db_int(s->attempts_max)};
    return run(db,
               "INSERT INTO tandem_job (version, config, created, is_same, is_cancelled, "
               "attempts_max, arithmetic, identity) VALUES ($1, $2, {now}, $3, 0, $4, '', '')",
               params, TD_COUNT(params), NULL, err) &&
           add_lines(db, true, lines, user, added, err);
}

static bool end(td_db *db, bool is_ok, td_err *err)
{
    if (is_ok && td_db_commit(db, err))
        return true;
    td_db_rollback(db);
    return false;
}

bool td_job_create(td_db *db, const td_job_settings *settings, td_job_lines lines, void *user,
                   td_job_added *added, td_err *err)
{
    *added = (td_job_added){0};
    if (!td_db_begin(db, err))
        return false;
    return end(db, create_within(db, settings, lines, user, added, err), err);
}

static bool read_settings(void *user, const td_db_value *c, td_err *err)
{
    td_job_settings *s = user;
    if (c[0].i != TD_JOB_VERSION)
        return td_err_set(err, TD_E_DATA,
                          "its job is of version %lld, %s than this tandem's (%u): let the tandem "
                          "that made it finish and export it, or `tandem job drop` it and create "
                          "it anew",
                          (long long)c[0].i, c[0].i < TD_JOB_VERSION ? "older" : "newer",
                          TD_JOB_VERSION);
    if (c[1].kind == TD_DB_NULL || c[1].n_bytes > TD_JOB_CONFIG_MAX ||
        c[4].i < 1 || c[4].i > 1000000 || c[5].n_bytes > TD_JOB_SHA_MAX)
        return td_err_set(err, TD_E_DATA, "its settings are damaged");
    if (s->config)
        return td_err_set(err, TD_E_DATA, "it has the settings of two jobs");
    s->is_same_arithmetic = c[2].i != 0;
    s->is_cancelled = c[3].i != 0;
    s->attempts_max = (uint32_t)c[4].i;
    snprintf(s->arithmetic, sizeof s->arithmetic, "%.*s", (int)c[5].n_bytes,
             c[5].text ? c[5].text : "");
    s->config = td_strndup(c[1].text, c[1].n_bytes, err);
    return s->config;
}

bool td_job_open(td_db *db, td_job_settings *s, td_err *err)
{
    *s = (td_job_settings){0};
    bool has = false;
    if (!has_job(db, &has, err))
        return false;
    if (!has)
        return td_err_set(err, TD_E_DATA, "%s: there is no job; `tandem job create` makes one",
                          td_db_name(db));
    bool is_ok = read_rows(db,
                           "SELECT version, config, is_same, is_cancelled, attempts_max, "
                           "arithmetic FROM tandem_job",
                           "itiiit", NULL, 0, read_settings, s, err);
    if (is_ok && !s->config)
        is_ok = td_err_set(err, TD_E_DATA, "%s: its job has no settings", td_db_name(db));
    if (!is_ok)
        td_job_settings_free(s);
    return is_ok;
}

void td_job_settings_free(td_job_settings *s)
{
    td_free(s->config);
    s->config = NULL;
}

/* -- lines in ---------------------------------------------------------------------------------- */

static bool read_count(void *user, const td_db_value *c, td_err *err)
{
    (void)err;
    *(uint64_t *)user = c[0].kind == TD_DB_INT && c[0].i > 0 ? (uint64_t)c[0].i : 0;
    return true;
}

#define INSERT_PARAMS 7u
static const char insert_text[] =
    "INSERT INTO tandem_line (n, id, number, input, problem, n_bytes, prefix, state, epoch, "
    "attempts, until, finished, n_tokens) VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, 0, 0, 0, 0) ON "
    "CONFLICT (id) DO NOTHING";
/* Is the very line there? */
#define SAME_PARAMS 2u
static const char same_text[] = "SELECT 1 FROM tandem_line WHERE id = $1 AND (input = $2 OR (input "
                                "IS NULL AND CAST($2 AS TEXT) IS NULL))";

static void write_insert(const td_job_new_line *l, uint64_t n, td_db_value params[INSERT_PARAMS])
{
    int64_t prefix = 0; /* compared as a number alone: the sign does not matter */
    memcpy(&prefix, &l->prefix, sizeof prefix);
    const td_db_value values[INSERT_PARAMS] = {td_db_int((int64_t)n),
                                               td_db_text(l->id),
                                               td_db_int((int64_t)l->number),
                                               td_db_text(l->input),
                                               td_db_text(l->problem),
                                               td_db_int((int64_t)l->n_bytes),
                                               td_db_int(prefix)};
    memcpy(params, values, sizeof values);
}

static bool insert(td_db *db, const td_job_new_line *l, uint64_t n, uint64_t *n_changed, td_err *err)
{
    td_db_value params[INSERT_PARAMS];
    write_insert(l, n, params);
    return run(db, insert_text, params, INSERT_PARAMS, n_changed, err);
}

/* An id that is taken: the line is an error under its own name, as in a run of the file. */
static bool insert_twice(td_db *db, td_job_new_line *l, uint64_t n, uint64_t *n_changed, td_err *err)
{
    char problem[TD_JOB_ID_MAX + 80];
    snprintf(problem, sizeof problem, "line %llu: the id %s is used by an earlier line",
             (unsigned long long)l->number, l->id);
    l->id = l->line_id;
    l->problem = problem;
    return insert(db, l, n, n_changed, err);
}

/* Lines on their way in, [n]: so many go with one wait for the server. */
typedef struct {
    td_arena *texts;
    td_job_new_line lines[TD_DB_SETS_MAX];
    uint32_t n;
} chunk;

static const char *keep(chunk *c, const char *text, size_t *n_bytes, td_err *err)
{
    size_t n = text ? strlen(text) : 0;
    *n_bytes += n;
    return text ? td_arena_strndup(c->texts, text, n, err) : NULL;
}

/* The next lines; none at the end. */
static bool fill(chunk *c, td_job_lines lines, void *user, td_err *err)
{
    td_err failure = {0};
    size_t n_bytes = 0;
    c->n = 0;
    td_arena_destroy(&c->texts);
    c->texts = td_arena_create(&failure);
    while (c->n < TD_DB_SETS_MAX && n_bytes < CHUNK_BYTES && failure.code == TD_OK) {
        td_job_new_line l;
        if (!lines(user, &l, &failure))
            break;
        l.id = keep(c, l.id, &n_bytes, &failure);
        l.line_id = keep(c, l.line_id, &n_bytes, &failure);
        l.input = keep(c, l.input, &n_bytes, &failure);
        l.problem = keep(c, l.problem, &n_bytes, &failure);
        c->lines[c->n++] = l;
    }
    return failure.code == TD_OK || td_err_set(err, failure.code, "%s", failure.message);
}

/* Takes out those that are in the job already. */
static bool leave_out(td_db *db, chunk *c, td_job_added *added, td_err *err)
{
    td_db_value params[TD_DB_SETS_MAX * SAME_PARAMS];
    uint64_t counts[TD_DB_SETS_MAX];
    uint32_t n_left = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        params[i * SAME_PARAMS] = td_db_text(c->lines[i].id);
        params[i * SAME_PARAMS + 1] = td_db_text(c->lines[i].input);
    }
    if (!td_db_run_each(db, same_text, params, SAME_PARAMS, c->n, counts, err))
        return false;
    for (uint32_t i = 0; i < c->n; i++)
        if (!counts[i])
            c->lines[n_left++] = c->lines[i];
    added->n_there += c->n - n_left;
    c->n = n_left;
    return true;
}

/* *has: false where an id was taken, and then what was done is to be undone. */
static bool insert_all(td_db *db, const chunk *c, uint64_t n, bool *has, td_err *err)
{
    td_db_value params[TD_DB_SETS_MAX * INSERT_PARAMS];
    uint64_t counts[TD_DB_SETS_MAX];
    for (uint32_t i = 0; i < c->n; i++)
        write_insert(&c->lines[i], n + i + 1, &params[i * INSERT_PARAMS]);
    if (!td_db_run_each(db, insert_text, params, INSERT_PARAMS, c->n, counts, err))
        return false;
    *has = true;
    for (uint32_t i = 0; i < c->n; i++)
        *has = *has && counts[i];
    return true;
}

static bool insert_one(td_db *db, bool is_new, td_job_new_line *l, uint64_t *n, td_job_added *added,
                       td_err *err)
{
    td_db_value same[SAME_PARAMS] = {td_db_text(l->id), td_db_text(l->input)};
    uint64_t n_changed = 0, n_there = 0;
    if (!insert(db, l, *n + 1, &n_changed, err) ||
        (!n_changed && !is_new &&
         !td_db_run_each(db, same_text, same, SAME_PARAMS, 1, &n_there, err)) ||
        (!n_changed && !n_there && !insert_twice(db, l, *n + 1, &n_changed, err)))
        return false;
    *n += n_changed;
    added->n_added += n_changed;
    added->n_there += !n_changed;
    return true;
}

/* All at once, or, where ids are taken, one after the other: what an id that is taken makes of a
 * line may take the id of one behind it. */
static bool insert_chunk(td_db *db, bool is_new, chunk *c, uint64_t *n, td_job_added *added,
                         td_err *err)
{
    bool has = false;
    if (!is_new && !leave_out(db, c, added, err))
        return false;
    if (!c->n)
        return true;
    if (!run(db, "SAVEPOINT tandem_chunk", NULL, 0, NULL, err) ||
        !insert_all(db, c, *n, &has, err) ||
        (!has && !run(db, "ROLLBACK TO SAVEPOINT tandem_chunk", NULL, 0, NULL, err)) ||
        !run(db, "RELEASE SAVEPOINT tandem_chunk", NULL, 0, NULL, err))
        return false;
    for (uint32_t i = 0; !has && i < c->n; i++)
        if (!insert_one(db, is_new, &c->lines[i], n, added, err))
            return false;
    *n += has ? c->n : 0;
    added->n_added += has ? c->n : 0;
    return true;
}

static bool add_lines(td_db *db, bool is_new, td_job_lines lines, void *user, td_job_added *added,
                      td_err *err)
{
    uint64_t n = 0;
    if (!read_rows(db, "SELECT MAX(n) FROM tandem_line", "i", NULL, 0, read_count, &n, err))
        return false;
    chunk *c = td_alloc(1, sizeof *c, err);
    bool is_ok = c;
    while (is_ok && (is_ok = fill(c, lines, user, err)) && c->n)
        is_ok = insert_chunk(db, is_new, c, &n, added, err);
    if (c)
        td_arena_destroy(&c->texts);
    td_free(c);
    return is_ok;
}

bool td_job_add(td_db *db, td_job_lines lines, void *user, td_job_added *added, td_err *err)
{
    *added = (td_job_added){0};
    td_job_settings s;
    if (!td_db_begin(db, err))
        return false;
    /* The row is held, so that two who add do not number alike. */
    bool is_ok = run(db, "UPDATE tandem_job SET version = version", NULL, 0, NULL, err) &&
                 td_job_open(db, &s, err);
    if (is_ok) {
        is_ok = !s.is_cancelled || td_err_set(err, TD_E_DATA, "%s: the job is cancelled",
                                              td_db_name(db));
        td_job_settings_free(&s);
    }
    return end(db, is_ok && add_lines(db, false, lines, user, added, err), err);
}

/* -- what people do to it ---------------------------------------------------------------------- */

bool td_job_retry(td_db *db, uint64_t *n, td_err *err)
{
    return run(db,
               "UPDATE tandem_line SET state = 0, worker = NULL, epoch = epoch + 1, attempts = 0, "
               "finished = 0, result = NULL, config_sha = NULL, answer_sha = NULL, n_tokens = 0 WHERE state = 3",
               NULL, 0, n, err);
}

bool td_job_requeue(td_db *db, const char *worker, uint64_t *n, td_err *err)
{
    td_db_value param = td_db_text(worker);
    return run(db,
               "UPDATE tandem_line SET state = 0, worker = NULL, epoch = epoch + 1 WHERE state = 1 "
               "AND worker = $1",
               &param, 1, n, err);
}

bool td_job_cancel(td_db *db, uint64_t *n, td_err *err)
{
    if (!td_db_begin(db, err))
        return false;
    return end(db,
               run(db, "UPDATE tandem_job SET is_cancelled = 1", NULL, 0, NULL, err) &&
                   run(db,
                       "UPDATE tandem_line SET state = 4, worker = NULL, epoch = epoch + 1 WHERE "
                       "state IN (0, 1)",
                       NULL, 0, n, err),
               err);
}

bool td_job_drop(td_db *db, td_err *err)
{
    bool has = false, is_ok = has_job(db, &has, err);
    if (!is_ok || !has)
        return is_ok && td_err_set(err, TD_E_DATA, "%s: there is no job", td_db_name(db));
    if (!td_db_begin(db, err))
        return false;
    for (size_t i = 0; is_ok && i < TD_COUNT(tables); i++) {
        char text[80];
        snprintf(text, sizeof text, "DROP TABLE IF EXISTS %s", tables[i]);
        is_ok = run(db, text, NULL, 0, NULL, err);
    }
    return end(db, is_ok, err);
}

/* -- what people see --------------------------------------------------------------------------- */

static bool read_state(void *user, const td_db_value *c, td_err *err)
{
    td_job_status *s = user;
    if (c[0].kind != TD_DB_INT || c[0].i < 0 || c[0].i >= TD_LINE_STATES)
        return td_err_set(err, TD_E_DATA, "a line has the state %lld; allowed: 0..%d",
                          (long long)c[0].i, TD_LINE_STATES - 1);
    s->n_lines[c[0].i] = (uint64_t)c[1].i;
    s->n_tokens += (uint64_t)c[2].i;
    return true;
}

typedef struct {
    double tokens_per_s, lines_per_s;
} speeds;

static bool read_speed(void *user, const td_db_value *c, td_err *err)
{
    (void)err;
    speeds *s = user;
    double seconds = c[0].d > 1e-3 ? c[0].d : 1e-3;
    s->tokens_per_s += (double)c[1].i / seconds;
    s->lines_per_s += (double)c[2].i / seconds;
    return true;
}

bool td_job_get_status(td_db *db, td_job_status *out, td_err *err)
{
    *out = (td_job_status){.seconds_left = -1};
    td_job_settings settings;
    speeds sum = {0};
    if (!td_job_open(db, &settings, err))
        return false;
    out->is_cancelled = settings.is_cancelled;
    td_job_settings_free(&settings);
    td_db_value working = td_db_real(WORKING_S);
    bool is_ok =
        read_rows(db,
                  "SELECT state, COUNT(*), CAST(SUM(n_tokens) AS {big}) FROM tandem_line GROUP BY "
                  "state",
                  "iii", NULL, 0, read_state, out, err) &&
        read_rows(db, "SELECT COUNT(*) FROM tandem_difference", "i", NULL, 0, read_count,
                  &out->n_differences, err) &&
        read_rows(db,
                  "SELECT seen - started, n_tokens, n_ok + n_error FROM tandem_worker WHERE "
                  "has_left = 0 AND seen > {now} - $1",
                  "rii", &working, 1, read_speed, &sum, err);
    out->tokens_per_s = sum.tokens_per_s;
    uint64_t n_left = out->n_lines[TD_LINE_WAITING] + out->n_lines[TD_LINE_TAKEN];
    if (!n_left)
        out->seconds_left = 0;
    else if (sum.lines_per_s > 0)
        out->seconds_left = (double)n_left / sum.lines_per_s;
    return is_ok;
}

typedef struct {
    td_job_on_worker on_worker;
    void *user;
} listing;

static bool read_worker(void *user, const td_db_value *c, td_err *err)
{
    const listing *l = user;
    return l->on_worker(l->user,
                        &(td_job_worker_status){.name = c[0].text ? c[0].text : "",
                                                .seconds = c[1].d,
                                                .seen_s = c[2].d,
                                                .has_left = c[3].i != 0,
                                                .n_ok = (uint64_t)c[4].i,
                                                .n_error = (uint64_t)c[5].i,
                                                .n_tokens = (uint64_t)c[6].i,
                                                .arithmetic = c[7].text ? c[7].text : "",
                                                .n_held = (uint64_t)c[8].i},
                        err);
}

bool td_job_list_workers(td_db *db, td_job_on_worker on_worker, void *user, td_err *err)
{
    return read_rows(db,
                     "SELECT name, seen - started, {now} - seen, has_left, n_ok, n_error, n_tokens, "
                     "identity, (SELECT COUNT(*) FROM tandem_line WHERE state = 1 AND "
                     "tandem_line.worker = tandem_worker.name) FROM tandem_worker ORDER BY "
                     "started, name",
                     "trriiiiti", NULL, 0, read_worker, &(listing){on_worker, user}, err);
}

typedef struct {
    td_job_reading *at;
    td_job_on_result on_result;
    void *user;
    bool is_ended;
} reading;

static bool read_result(void *user, const td_db_value *c, td_err *err)
{
    reading *r = user;
    bool is_open = c[1].i == TD_LINE_WAITING || c[1].i == TD_LINE_TAKEN;
    bool is_result = c[2].kind == TD_DB_TEXT && !is_open;
    r->is_ended |= r->at->is_gapless && !r->at->is_finish_order && is_open;
    if (r->is_ended)
        return true;
    r->at->n = c[0].i;
    r->at->finished = c[3].d;
    r->at->worker = c[4].kind == TD_DB_TEXT ? c[4].text : NULL;
    r->at->n_read++;
    return !is_result || r->on_result(r->user, c[2].text, c[2].n_bytes, err);
}

/* As they came: nothing but the order of that index and where to begin is asked for, so that no
 * planner sorts all of them each time. What a transaction that is under way notes as earlier may
 * come later, so the last moments are left for the next time while lines are open. */
bool td_job_read_results(td_db *db, td_job_reading *at, td_job_on_result on_result, void *user,
                         td_err *err)
{
    double from = at->finished > 0 ? at->finished : 1; /* 0: has no result */
    td_db_value params[] = {td_db_int(at->n), td_db_real(from), td_db_int(READ_LINES),
                            td_db_real(SETTLED_S)};
    reading r = {at, on_result, user, false};
    at->n_read = 0;
    return read_rows(db,
                     at->is_finish_order
                         ? "SELECT n, state, result, finished, worker FROM tandem_line WHERE "
                           "(finished, n) > ($2, $1) AND (finished < {now} - $4 OR "
                           "NOT EXISTS (SELECT 1 FROM tandem_line WHERE state IN (0, 1))) ORDER BY "
                           "finished, n LIMIT $3"
                         : "SELECT n, state, result, finished, worker FROM tandem_line WHERE n > $1 "
                           "ORDER BY n LIMIT $3",
                     "iitrt", params, TD_COUNT(params), read_result, &r, err);
}

bool td_job_count_open(td_db *db, uint64_t *n, td_err *err)
{
    *n = 0;
    return read_rows(db, "SELECT COUNT(*) FROM tandem_line WHERE state IN (0, 1)", "i", NULL, 0,
                     read_count, n, err);
}

/* -- workers ----------------------------------------------------------------------------------- */

void td_job_line_free(td_job_line *l)
{
    td_free(l->input);
    td_free(l->problem);
    *l = (td_job_line){0};
}

typedef struct {
    char *arithmetic, *identity;
    size_t n_arithmetic, n_identity;
} demand;

static bool read_demand(void *user, const td_db_value *c, td_err *err)
{
    (void)err;
    demand *d = user;
    snprintf(d->arithmetic, d->n_arithmetic, "%s", c[0].text ? c[0].text : "");
    snprintf(d->identity, d->n_identity, "%s", c[1].text ? c[1].text : "");
    return true;
}

bool td_job_enter(td_db *db, const char *worker, const char *sha, const char *identity,
                  char *demanded, size_t n_bytes, td_err *err)
{
    char arithmetic[TD_JOB_SHA_MAX + 1] = "";
    td_db_value params[] = {td_db_text(sha), td_db_text(identity)};
    td_db_value self[] = {td_db_text(worker), td_db_text(identity)};
    demanded[0] = 0;
    /* The first one's is demanded from then on. */
    if (!run(db,
             "UPDATE tandem_job SET arithmetic = $1, identity = $2 WHERE is_same = 1 AND "
             "arithmetic = ''",
             params, 2, NULL, err) ||
        !read_rows(db, "SELECT arithmetic, identity FROM tandem_job WHERE is_same = 1", "tt", NULL,
                   0, read_demand, &(demand){arithmetic, demanded, sizeof arithmetic, n_bytes},
                   err))
        return false;
    if (*arithmetic && strcmp(arithmetic, sha) != 0)
        return td_err_set(err, TD_E_DATA,
                          "%s: the job demands one arithmetic for all its lines (%s), and here is "
                          "another (%s)",
                          td_db_name(db), arithmetic, sha);
    demanded[0] = 0;
    return run(db,
               "INSERT INTO tandem_worker (name, started, seen, has_left, n_ok, n_error, n_tokens, "
               "identity) VALUES ($1, {now}, {now}, 0, 0, 0, 0, $2) ON CONFLICT (name) DO UPDATE "
               "SET seen = {now}, has_left = 0",
               self, 2, NULL, err);
}

typedef struct {
    td_job_line *lines;
    uint32_t n, max;
} claims;

static bool read_claim(void *user, const td_db_value *c, td_err *err)
{
    claims *k = user;
    TD_ASSERT(k->n < k->max);
    td_job_line *l = &k->lines[k->n++];
    *l = (td_job_line){.n = c[0].i, .epoch = c[1].i, .number = (uint64_t)c[2].i};
    if (c[3].kind == TD_DB_NULL || c[3].n_bytes > TD_JOB_ID_MAX)
        return td_err_set(err, TD_E_DATA, "line %lld: its id has %zu bytes; allowed: 1..%u",
                          (long long)l->n, c[3].n_bytes, TD_JOB_ID_MAX);
    memcpy(l->id, c[3].text, c[3].n_bytes);
    memcpy(&l->prefix, &c[6].i, sizeof l->prefix);
    if (c[4].kind == TD_DB_TEXT) {
        l->n_bytes = c[4].n_bytes;
        l->input = td_strndup(c[4].text, c[4].n_bytes, err);
    }
    char lost[200];
    const char *problem = c[5].kind == TD_DB_TEXT ? c[5].text : NULL;
    if (c[7].i > c[8].i) {
        snprintf(lost, sizeof lost,
                 "%lld workers were lost while they had this line; `tandem job retry` tries again",
                 (long long)c[7].i - 1);
        problem = lost;
    }
    if (!problem && !l->input)
        problem = "the line has no text";
    if (problem)
        l->problem = td_strndup(problem, strlen(problem), err);
    return (!problem || l->problem) && (c[4].kind != TD_DB_TEXT || l->input);
}

/* Which lines: of those that the condition names the first ones, as many as are wanted, but for the
 * first no more bytes than a claim may have.
 *
 * The conditions are ranges of one value, and the order begins with their column, for only the
 * index that is meant has that order. Of `state = 0 ORDER BY n` PostgreSQL thinks that the primary
 * key serves it as well while most lines wait, and goes on to think so until it counts again,
 * walking past all that has ended. */
#define CLAIM(condition, order)                                                                    \
    "UPDATE tandem_line SET state = 1, worker = $1, epoch = epoch + 1, attempts = attempts + 1, "  \
    "until = {now} + $2 WHERE n IN (SELECT n FROM (SELECT n, SUM(n_bytes) OVER (ORDER BY n) - "    \
    "n_bytes AS before FROM (SELECT n, n_bytes FROM tandem_line WHERE " condition " ORDER BY "    \
    order " LIMIT $3{skip}) AS wanted) AS taken WHERE before < $4) RETURNING n, epoch, number, " \
    "id, input, problem, prefix, attempts, (SELECT attempts_max FROM tandem_job){light}"

bool td_job_claim(td_db *db, const char *worker, double lease_s, uint64_t prefix, td_job_line *lines,
                  uint32_t max, uint32_t *n, td_err *err)
{
    static const char *const statements[] = {
        CLAIM("state = 0 AND prefix BETWEEN $5 AND $5", "prefix, n"),
        CLAIM("state BETWEEN 0 AND 0", "state, n"),
        CLAIM("state BETWEEN 1 AND 1 AND until < {now} AND worker <> $1", "state, n"),
    };
    claims k = {lines, 0, max};
    int64_t signed_prefix = 0;
    memcpy(&signed_prefix, &prefix, sizeof signed_prefix);
    bool is_ok = true;
    for (size_t i = prefix ? 0 : 1; is_ok && i < TD_COUNT(statements) && k.n < max; i++) {
        td_db_value params[] = {td_db_text(worker), td_db_real(lease_s), td_db_int(max - k.n),
                                td_db_int(TD_JOB_CLAIM_BYTES), td_db_int(signed_prefix)};
        is_ok = read_rows(db, statements[i], "iiitttiii", params, TD_COUNT(params), read_claim, &k,
                          err);
    }
    *n = k.n;
    return is_ok;
}

bool td_job_renew(td_db *db, const char *worker, double lease_s, td_err *err)
{
    td_db_value params[] = {td_db_text(worker), td_db_real(lease_s)};
    return run(db,
               "UPDATE tandem_line SET until = {now} + $2 WHERE state = 1 AND worker = $1", params,
               2, NULL, err) &&
           run(db, "UPDATE tandem_worker SET seen = {now} WHERE name = $1", params, 1, NULL, err);
}

typedef struct {
    const td_job_result *ours;
    bool is_different;
} comparison;

static bool compare(void *user, const td_db_value *c, td_err *err)
{
    (void)err;
    comparison *k = user;
    k->is_different = c[0].kind == TD_DB_TEXT && strcmp(c[0].text, k->ours->answer_sha) != 0;
    return true;
}

/* The line was another's. Both have run it: by one arithmetic the answers are the same. */
static bool put_late(td_db *db, const td_job_result *r, td_job_taken *taken, td_err *err)
{
    td_db_value params[] = {td_db_int(r->n), td_db_text(r->config_sha), td_db_text(r->worker),
                            td_db_text(r->result)};
    comparison k = {r, false};
    *taken = TD_RESULT_LATE;
    if (!r->is_ok)
        return true;
    if (!read_rows(db,
                   "SELECT answer_sha FROM tandem_line WHERE n = $1 AND state = 2 AND config_sha = "
                   "$2 AND worker <> $3",
                   "t", params, 3, compare, &k, err))
        return false;
    if (!k.is_different)
        return true;
    *taken = TD_RESULT_DIFFERENT;
    return run(db,
               "INSERT INTO tandem_difference (n, noticed, config_sha, worker_a, worker_b, "
               "result_a, result_b) SELECT n, {now}, config_sha, worker, $3, result, $4 FROM "
               "tandem_line WHERE n = $1 AND config_sha = $2",
               params, 4, NULL, err);
}

#define PUT_PARAMS 8u

static bool count_for_worker(td_db *db, const char *worker, const uint64_t counts[3], td_err *err)
{
    td_db_value params[] = {td_db_text(worker), td_db_int((int64_t)counts[0]),
                            td_db_int((int64_t)counts[1]), td_db_int((int64_t)counts[2])};
    return run(db,
               "UPDATE tandem_worker SET seen = {now}, n_ok = n_ok + $2, n_error = n_error + $3, "
               "n_tokens = n_tokens + $4 WHERE name = $1",
               params, TD_COUNT(params), NULL, err);
}

bool td_job_put(td_db *db, const td_job_result *const *results, uint32_t n, td_job_taken *taken,
                td_err *err)
{
    td_db_value params[TD_JOB_PUT_MAX * PUT_PARAMS];
    uint64_t n_changed[TD_JOB_PUT_MAX], counts[3] = {0}; /* ok, error, tokens */
    TD_ASSERT(n > 0 && n <= TD_JOB_PUT_MAX);
    for (uint32_t i = 0; i < n; i++) {
        const td_job_result *r = results[i];
        const td_db_value values[PUT_PARAMS] = {td_db_int(r->n),
                                                td_db_int(r->epoch),
                                                td_db_text(r->worker),
                                                td_db_text(r->result),
                                                td_db_text(r->config_sha),
                                                td_db_text(r->answer_sha),
                                                td_db_int(r->is_ok ? TD_LINE_OK : TD_LINE_ERROR),
                                                td_db_int((int64_t)r->n_tokens)};
        memcpy(&params[i * PUT_PARAMS], values, sizeof values);
    }
    if (!td_db_run_each(db,
                        "UPDATE tandem_line SET state = $7, result = $4, config_sha = $5, "
                        "answer_sha = $6, n_tokens = $8, finished = {now} WHERE n = $1 AND epoch = "
                        "$2 AND worker = $3 AND state = 1",
                        params, PUT_PARAMS, n, n_changed, err))
        return false;
    for (uint32_t i = 0; i < n; i++) {
        const td_job_result *r = results[i];
        taken[i] = TD_RESULT_TAKEN;
        if (!n_changed[i] && !put_late(db, r, &taken[i], err))
            return false;
        counts[0] += n_changed[i] && r->is_ok;
        counts[1] += n_changed[i] && !r->is_ok;
        counts[2] += n_changed[i] ? r->n_tokens : 0;
        bool is_last = i + 1 == n || strcmp(results[i + 1]->worker, r->worker) != 0;
        if (is_last && counts[0] + counts[1] && !count_for_worker(db, r->worker, counts, err))
            return false;
        if (is_last)
            memset(counts, 0, sizeof counts);
    }
    return true;
}

bool td_job_leave(td_db *db, const char *worker, uint64_t *n, td_err *err)
{
    td_db_value param = td_db_text(worker);
    return run(db,
               "UPDATE tandem_line SET state = 0, worker = NULL, attempts = attempts - 1 WHERE "
               "state = 1 AND worker = $1",
               &param, 1, n, err) &&
           run(db, "UPDATE tandem_worker SET has_left = 1, seen = {now} WHERE name = $1", &param, 1,
               NULL, err);
}
