#include "job/db_backend.h"

#include "base/check.h"

#include <limits.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

#define BUSY_MS 20000 /* others write for milliseconds; one that is stopped may hold its lock */

static bool fail(sqlite3 *db, int code, td_err *err)
{
    td_err_code kind = TD_E_DATA;
    switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        kind = TD_E_AGAIN;
        break;
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_PROTOCOL:
        kind = TD_E_UNAVAILABLE;
        break;
    case SQLITE_NOMEM:
        kind = TD_E_NOMEM;
        break;
    case SQLITE_READONLY:
    case SQLITE_PERM:
        kind = TD_E_IO;
        break;
    }
    return td_err_set(err, kind, "%s", db ? sqlite3_errmsg(db) : sqlite3_errstr(code));
}

static void disconnect(void *connection) { sqlite3_close_v2(connection); }

static void *connect_file(const char *url, bool is_new, char *name, td_err *err)
{
    const char *path = url + strlen("sqlite:");
    sqlite3 *db = NULL;
    int flags = SQLITE_OPEN_READWRITE | (is_new ? SQLITE_OPEN_CREATE : 0) | SQLITE_OPEN_NOMUTEX;
    snprintf(name, TD_DB_URL_MAX, "%s", path);
    int code = strlen(path) >= PATH_MAX ? SQLITE_CANTOPEN
                                        : sqlite3_open_v2(path, &db, flags, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_busy_timeout(db, BUSY_MS);
    /* Readers and one writer at a time do not wait for each other. A power failure may take the
     * last commits back, all of each: their lines are taken, or run, again. */
    if (code == SQLITE_OK)
        code = sqlite3_exec(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;", NULL, NULL,
                            NULL);
    if (code == SQLITE_OK)
        return db;
    fail(db, code, err);
    td_err_prepend(err, "%s", name);
    disconnect(db);
    return NULL;
}

static bool is_connected(void *connection)
{
    (void)connection;
    return true;
}

static int bind_one(sqlite3_stmt *s, int at, const td_db_value *v)
{
    switch (v->kind) {
    case TD_DB_NULL:
        return sqlite3_bind_null(s, at);
    case TD_DB_INT:
        return sqlite3_bind_int64(s, at, v->i);
    case TD_DB_REAL:
        return sqlite3_bind_double(s, at, v->d);
    case TD_DB_TEXT:
        break;
    }
    return sqlite3_bind_text64(s, at, v->text, v->n_bytes, SQLITE_STATIC, SQLITE_UTF8);
}

/* "$3" is a name here, so numbers may be left out or come twice. */
static int bind_all(sqlite3_stmt *s, const td_db_value *params, uint32_t n_params)
{
    int code = SQLITE_OK;
    for (uint32_t i = 0; i < n_params && code == SQLITE_OK; i++) {
        char name[16];
        snprintf(name, sizeof name, "$%u", i + 1);
        int at = sqlite3_bind_parameter_index(s, name);
        if (at > 0)
            code = bind_one(s, at, &params[i]);
    }
    return code;
}

static bool read_row(sqlite3_stmt *s, const char *columns, td_db_value *out, td_err *err)
{
    for (int i = 0; columns[i]; i++) {
        int type = sqlite3_column_type(s, i);
        out[i] = (td_db_value){.kind = TD_DB_NULL};
        if (type == SQLITE_NULL)
            continue;
        bool is_number = type == SQLITE_INTEGER || type == SQLITE_FLOAT;
        if (columns[i] == 'i' && type == SQLITE_INTEGER)
            out[i] = td_db_int(sqlite3_column_int64(s, i));
        else if (columns[i] == 'r' && is_number)
            out[i] = td_db_real(sqlite3_column_double(s, i));
        else if (columns[i] == 't' && type == SQLITE_TEXT)
            out[i] = (td_db_value){.kind = TD_DB_TEXT,
                                   .text = (const char *)sqlite3_column_text(s, i),
                                   .n_bytes = (size_t)sqlite3_column_bytes(s, i)};
        else
            return td_err_set(err, TD_E_DATA, "column \"%s\" holds a value of another type",
                              sqlite3_column_name(s, i));
    }
    return true;
}

static bool run(void *connection, const char *text, const char *columns, const td_db_value *params,
                uint32_t n_params, td_db_row row, void *user, uint64_t *n_rows, td_err *err)
{
    sqlite3 *db = connection;
    sqlite3_stmt *s = NULL;
    *n_rows = 0;
    int code = sqlite3_prepare_v2(db, text, -1, &s, NULL);
    if (code == SQLITE_OK)
        code = bind_all(s, params, n_params);
    bool is_ok = code == SQLITE_OK || fail(db, code, err);
    TD_ASSERT(!columns || strlen(columns) <= TD_DB_COLUMNS_MAX);
    while (is_ok && (code = sqlite3_step(s)) == SQLITE_ROW) {
        td_db_value values[TD_DB_COLUMNS_MAX];
        ++*n_rows;
        is_ok = !row || (read_row(s, columns, values, err) && row(user, values, err));
    }
    if (is_ok && code != SQLITE_DONE)
        is_ok = fail(db, code, err);
    if (is_ok && !columns)
        *n_rows = (uint64_t)sqlite3_changes64(db);
    sqlite3_finalize(s);
    return is_ok;
}

static bool run_each(void *connection, const char *text, const td_db_value *params,
                     uint32_t n_params, uint32_t n_sets, uint64_t *counts, td_err *err)
{
    sqlite3 *db = connection;
    sqlite3_stmt *s = NULL;
    int code = sqlite3_prepare_v2(db, text, -1, &s, NULL);
    for (uint32_t i = 0; i < n_sets && code == SQLITE_OK; i++) {
        code = bind_all(s, params + (size_t)i * n_params, n_params);
        counts[i] = 0;
        while (code == SQLITE_OK && (code = sqlite3_step(s)) == SQLITE_ROW) {
            counts[i]++;
            code = SQLITE_OK;
        }
        if (code != SQLITE_DONE)
            break;
        if (!sqlite3_stmt_readonly(s))
            counts[i] = (uint64_t)sqlite3_changes64(db);
        code = sqlite3_reset(s);
    }
    bool is_ok = code == SQLITE_OK || fail(db, code, err);
    sqlite3_finalize(s);
    return is_ok;
}

const td_db_backend td_db_sqlite = {
    .now = "((julianday('now') - 2440587.5) * 86400.0)",
    .skip = "",
    .light = "",
    .big = "INTEGER",
    .begin = "BEGIN IMMEDIATE",
    .find_table = {"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1", "i"},
    .connect = connect_file,
    .disconnect = disconnect,
    .is_connected = is_connected,
    .run = run,
    .run_each = run_each,
};
