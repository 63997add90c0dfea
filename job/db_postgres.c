/* Every call waits for the server; the thread that calls has nothing else to do (worker.c). One
 * that is gone without a word is noticed after CONNECT_S or SILENT_MS. */
#include "job/db_backend.h"

#ifdef TD_POSTGRES

#include "base/check.h"

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

/* The first line of what libpq says; it does not repeat passwords. */
static bool fail(const char *message, td_err_code code, td_err *err)
{
    return td_err_set(err, code, "%.*s", (int)strcspn(message, "\n"), message);
}

static void disconnect(void *connection) { PQfinish(connection); }

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
    PGconn *c = PQconnectdbParams(keys, values, 1);
    if (!c) {
        td_err_set(err, TD_E_NOMEM, "%s: no memory for a connection", name);
        return NULL;
    }
    bool is_ok = PQstatus(c) == CONNECTION_OK || fail(PQerrorMessage(c), TD_E_UNAVAILABLE, err);
    if (!is_ok || !set_plans(c, err)) {
        disconnect(c);
        return NULL;
    }
    write_name(c, name);
    PQsetNoticeProcessor(c, no_notices, NULL);
    return c;
}

static bool is_connected(void *connection) { return PQstatus(connection) == CONNECTION_OK; }

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

static bool run(void *connection, const char *text, const char *columns, const td_db_value *params,
                uint32_t n_params, td_db_row row, void *user, uint64_t *n_rows, td_err *err)
{
    PGconn *c = connection;
    Oid types[TD_DB_COLUMNS_MAX];
    const char *values[TD_DB_COLUMNS_MAX];
    char numbers[TD_DB_COLUMNS_MAX][40];
    TD_ASSERT(n_params <= TD_DB_COLUMNS_MAX);
    for (uint32_t i = 0; i < n_params; i++) {
        types[i] = params[i].kind == TD_DB_INT    ? OID_INT8
                   : params[i].kind == TD_DB_REAL ? OID_FLOAT8
                                                  : OID_TEXT;
        values[i] = params[i].kind == TD_DB_TEXT ? params[i].text : numbers[i];
        if (params[i].kind == TD_DB_NULL)
            values[i] = NULL;
        else if (params[i].kind == TD_DB_INT)
            snprintf(numbers[i], sizeof numbers[i], "%lld", (long long)params[i].i);
        else if (params[i].kind == TD_DB_REAL)
            snprintf(numbers[i], sizeof numbers[i], "%.17g", params[i].d);
    }
    *n_rows = 0;
    PGresult *r = PQexecParams(c, text, (int)n_params, types, values, NULL, NULL, 0);
    ExecStatusType status = PQresultStatus(r);
    bool is_ok = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
    if (!is_ok)
        fail(r ? PQresultErrorMessage(r) : PQerrorMessage(c), code_of(c, r), err);
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

const td_db_backend td_db_postgres = {
    .now = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
    .skip = " FOR UPDATE SKIP LOCKED",
    .big = "BIGINT",
    .begin = "BEGIN",
    .find_table = {"SELECT 1 FROM pg_catalog.pg_class WHERE oid = to_regclass($1)", "i"},
    .connect = connect_server,
    .disconnect = disconnect,
    .is_connected = is_connected,
    .run = run,
};

#endif
