/* Every call waits for the server; the thread that calls has nothing else to do (worker.c). One
 * that is gone without a word is noticed after CONNECT_S or SILENT_MS. A statement with parameters
 * is read by the server once per connection. */
#include "job/db_backend.h"

#ifdef TD_POSTGRES

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_S "5"
#define SILENT_MS "15000"
/* Types of parameters, as the server's catalogue numbers them (pg_type.dat). */
#define OID_INT8   20u
#define OID_TEXT   25u
#define OID_FLOAT8 701u
#define PREPARED_MAX 64u /* statements of a connection; job.c has fewer */

typedef struct {
    PGconn *c;
    uint64_t prepared[PREPARED_MAX]; /* hashes of their texts, by which they are named */
    uint32_t n_prepared;
    bool is_broken; /* it is not known what the server will say next */
} server;

/* The first line of what libpq says; it does not repeat passwords. */
static bool fail(const char *message, td_err_code code, td_err *err)
{
    return td_err_set(err, code, "%.*s", (int)strcspn(message, "\n"), message);
}

static void disconnect(void *connection)
{
    server *s = connection;
    PQfinish(s->c);
    td_free(s);
}

static void write_name(const PGconn *c, char *name)
{
    snprintf(name, TD_DB_URL_MAX, "postgresql://%.200s@%.400s/%.200s", PQuser(c), PQhost(c),
             PQdb(c));
}

static void no_notices(void *user, const char *message)
{
    (void)user;
    (void)message;
}

/* Few rows are wanted of many, in the order of an index. While nothing is known of a new table, the
 * planner thinks that few are there, and would read them all to sort them. */
static bool set_plans(PGconn *c, td_err *err)
{
    PGresult *r = PQexec(c, "SET enable_bitmapscan = off");
    bool is_ok = PQresultStatus(r) == PGRES_COMMAND_OK ||
                 fail(PQerrorMessage(c), TD_E_UNAVAILABLE, err);
    PQclear(r);
    return is_ok;
}

static void *connect_server(const char *url, bool is_new, char *name, td_err *err)
{
    (void)is_new;
    static const char *const keys[] = {"dbname",           "connect_timeout", "tcp_user_timeout",
                                       "application_name", "client_encoding", NULL};
    const char *values[] = {url, CONNECT_S, SILENT_MS, "tandem", "UTF8", NULL};
    snprintf(name, TD_DB_URL_MAX, "the job's database");
    server *s = td_alloc(1, sizeof *s, err);
    if (!s)
        return NULL;
    s->c = PQconnectdbParams(keys, values, 1);
    bool is_ok = s->c || td_err_set(err, TD_E_NOMEM, "%s: no memory for a connection", name);
    is_ok = is_ok && (PQstatus(s->c) == CONNECTION_OK ||
                      fail(PQerrorMessage(s->c), TD_E_UNAVAILABLE, err));
    if (!is_ok || !set_plans(s->c, err)) {
        disconnect(s);
        return NULL;
    }
    write_name(s->c, name);
    PQsetNoticeProcessor(s->c, no_notices, NULL);
    return s;
}

static bool is_connected(void *connection)
{
    const server *s = connection;
    return !s->is_broken && PQstatus(s->c) == CONNECTION_OK;
}

/* By the class of the SQLSTATE: https://www.postgresql.org/docs/15/errcodes-appendix.html */
static td_err_code code_of(const PGconn *c, const PGresult *r)
{
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    if (PQstatus(c) != CONNECTION_OK || !state)
        return TD_E_UNAVAILABLE;
    static const struct {
        const char *start;
        td_err_code code;
    } rows[] = {{"08", TD_E_UNAVAILABLE},    /* connection */
                {"53", TD_E_UNAVAILABLE},    /* no room: disk, memory, connections */
                {"57", TD_E_UNAVAILABLE},    /* shut down, or cancelled by its operator */
                {"58", TD_E_UNAVAILABLE},    /* its system failed */
                {"25006", TD_E_UNAVAILABLE}, /* read only: a standby, for now */
                {"40", TD_E_AGAIN},          /* deadlock, serialization */
                {"55", TD_E_AGAIN},          /* locked */
                {"28", TD_E_IO},             /* who we are is not accepted */
                {"42501", TD_E_IO}};         /* not permitted */
    for (size_t i = 0; i < TD_COUNT(rows); i++)
        if (!strncmp(state, rows[i].start, strlen(rows[i].start)))
            return rows[i].code;
    return TD_E_DATA;
}

static bool read_row(const PGresult *r, int at, const char *columns, td_db_value *out, td_err *err)
{
    for (int i = 0; columns[i]; i++) {
        const char *text = PQgetvalue(r, at, i);
        char *end = "";
        out[i] = (td_db_value){.kind = TD_DB_NULL};
        if (PQgetisnull(r, at, i))
            continue;
        if (columns[i] == 'i')
            out[i] = td_db_int(strtoll(text, &end, 10));
        else if (columns[i] == 'r')
            out[i] = td_db_real(strtod(text, &end));
        else
            out[i] = (td_db_value){
                .kind = TD_DB_TEXT, .text = text, .n_bytes = (size_t)PQgetlength(r, at, i)};
        if (*end)
            return td_err_set(err, TD_E_DATA, "column \"%s\" holds \"%.40s\", no number",
                              PQfname(r, i), text);
    }
    return true;
}

/* Parameters as libpq takes them. */
typedef struct {
    Oid types[TD_DB_COLUMNS_MAX];
    const char *values[TD_DB_COLUMNS_MAX];
    char numbers[TD_DB_COLUMNS_MAX][40];
} sending;

static void write_params(const td_db_value *params, uint32_t n_params, sending *out)
{
    TD_ASSERT(n_params <= TD_DB_COLUMNS_MAX);
    for (uint32_t i = 0; i < n_params; i++) {
        char *number = out->numbers[i];
        out->types[i] = params[i].kind == TD_DB_INT    ? OID_INT8
                        : params[i].kind == TD_DB_REAL ? OID_FLOAT8
                                                       : OID_TEXT;
        out->values[i] = params[i].kind == TD_DB_TEXT   ? params[i].text
                         : params[i].kind == TD_DB_NULL ? NULL
                                                        : number;
        if (params[i].kind == TD_DB_INT)
            snprintf(number, sizeof out->numbers[i], "%lld", (long long)params[i].i);
        else if (params[i].kind == TD_DB_REAL)
            snprintf(number, sizeof out->numbers[i], "%.17g", params[i].d);
    }
}

/* Of what came back; r may be NULL. */
static bool check(const server *s, const PGresult *r, td_err *err)
{
    ExecStatusType status = PQresultStatus(r);
    return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK ||
           fail(r ? PQresultErrorMessage(r) : PQerrorMessage(s->c), code_of(s->c, r), err);
}

/* The name of a statement, which the server reads here if it has not yet, its types those of p. */
static bool prepare(server *s, const char *text, uint32_t n_params, const sending *p, char name[20],
                    td_err *err)
{
    uint64_t hash = td_hash64(0, text, strlen(text));
    snprintf(name, 20, "t%016llx", (unsigned long long)hash);
    for (uint32_t i = 0; i < s->n_prepared; i++)
        if (s->prepared[i] == hash)
            return true;
    TD_ASSERT(s->n_prepared < PREPARED_MAX);
    PGresult *r = PQprepare(s->c, name, text, (int)n_params, p->types);
    bool is_ok = check(s, r, err);
    if (is_ok)
        s->prepared[s->n_prepared++] = hash;
    PQclear(r);
    return is_ok;
}

static bool run(void *connection, const char *text, const char *columns, const td_db_value *params,
                uint32_t n_params, td_db_row row, void *user, uint64_t *n_rows, td_err *err)
{
    server *s = connection;
    sending p;
    char name[20];
    write_params(params, n_params, &p);
    *n_rows = 0;
    if (n_params && !prepare(s, text, n_params, &p, name, err))
        return false;
    PGresult *r = n_params ? PQexecPrepared(s->c, name, (int)n_params, p.values, NULL, NULL, 0)
                           : PQexec(s->c, text);
    bool is_ok = check(s, r, err);
    int n = is_ok ? PQntuples(r) : 0;
    for (int i = 0; is_ok && row && i < n; i++) {
        td_db_value out[TD_DB_COLUMNS_MAX];
        is_ok = read_row(r, i, columns, out, err) && row(user, out, err);
    }
    if (is_ok)
        *n_rows = columns ? (uint64_t)n : (uint64_t)strtoull(PQcmdTuples(r), NULL, 10);
    PQclear(r);
    return is_ok;
}

/* All are sent before the first answer is waited for. An answer is a few bytes, so that those of
 * TD_DB_SETS_MAX fit in what lies between the two. The first failure ends the others. */
static bool run_each(void *connection, const char *text, const td_db_value *params,
                     uint32_t n_params, uint32_t n_sets, uint64_t *counts, td_err *err)
{
    server *s = connection;
    sending p;
    char name[20];
    write_params(params, n_params, &p);
    if (!prepare(s, text, n_params, &p, name, err))
        return false;
    bool is_ok = PQenterPipelineMode(s->c) == 1;
    for (uint32_t i = 0; is_ok && i < n_sets; i++) {
        write_params(params + (size_t)i * n_params, n_params, &p);
        is_ok = PQsendQueryPrepared(s->c, name, (int)n_params, p.values, NULL, NULL, 0) == 1;
    }
    s->is_broken = !is_ok || PQpipelineSync(s->c) != 1;
    if (s->is_broken)
        return fail(PQerrorMessage(s->c), TD_E_UNAVAILABLE, err);
    for (uint32_t i = 0; i < n_sets; i++) {
        PGresult *r = PQgetResult(s->c);
        is_ok = is_ok && check(s, r, err);
        if (is_ok)
            counts[i] = (uint64_t)strtoull(PQcmdTuples(r), NULL, 10);
        bool is_end = !r;
        PQclear(r);
        if (!is_end)
            PQclear(PQgetResult(s->c)); /* NULL, between two statements */
    }
    PQclear(PQgetResult(s->c)); /* that of the sync */
    s->is_broken = PQexitPipelineMode(s->c) != 1;
    return is_ok && (!s->is_broken || fail(PQerrorMessage(s->c), TD_E_UNAVAILABLE, err));
}

const td_db_backend td_db_postgres = {
    .now = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
    .skip = " FOR UPDATE SKIP LOCKED",
    .light = ", set_config('synchronous_commit', 'off', true)",
    .big = "BIGINT",
    .begin = "BEGIN",
    .find_table = {"SELECT 1 FROM pg_catalog.pg_class WHERE oid = to_regclass($1)", "i"},
    .connect = connect_server,
    .disconnect = disconnect,
    .is_connected = is_connected,
    .run = run,
    .run_each = run_each,
};

#endif
