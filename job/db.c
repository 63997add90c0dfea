#include "job/db_backend.h"

#include "base/check.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>

struct td_db {
    const td_db_backend *backend;
    void *connection; /* NULL: none now */
    char url[TD_DB_URL_MAX], name[TD_DB_URL_MAX];
};

td_db_value td_db_int(int64_t i) { return (td_db_value){.kind = TD_DB_INT, .i = i}; }
td_db_value td_db_real(double d) { return (td_db_value){.kind = TD_DB_REAL, .d = d}; }
td_db_value td_db_text(const char *text)
{
    return text ? (td_db_value){.kind = TD_DB_TEXT, .text = text, .n_bytes = strlen(text)}
                : (td_db_value){.kind = TD_DB_NULL};
}

/* Userinfo with a colon in it, or a parameter `password`: the URL itself must not get into a
 * message then. */
static bool has_password(const char *url)
{
    const char *host = strstr(url, "://");
    const char *at = host ? strchr(host + 3, '@') : NULL;
    const char *path = host ? strpbrk(host + 3, "/?") : NULL;
    if (at && (!path || at < path) && memchr(host + 3, ':', (size_t)(at - host - 3)))
        return true;
    return strstr(url, "password=") != NULL;
}

static bool is_postgres_url(const char *url)
{
    return !strncmp(url, "postgresql://", 13) || !strncmp(url, "postgres://", 11);
}

const char *td_db_file(const char *url)
{
    size_t n = strlen("sqlite:");
    return strncmp(url, "sqlite:", n) ? NULL : url + n;
}

bool td_db_is_url(const char *text) { return td_db_file(text) || is_postgres_url(text); }

static const td_db_backend *find_backend(const char *url, td_err *err)
{
    bool is_postgres = url && is_postgres_url(url);
    if (!url || strlen(url) >= TD_DB_URL_MAX) {
        td_err_set(err, TD_E_USAGE, "a job's URL: %zu bytes; allowed: 1..%u",
                   url ? strlen(url) : 0, TD_DB_URL_MAX - 1);
        return NULL;
    }
    if (is_postgres && has_password(url)) {
        td_err_set(err, TD_E_USAGE,
                   "the job's URL holds a password, which others can read in the list of processes; "
                   "put it into ~/.pgpass (PGPASSFILE) or a service file");
        return NULL;
    }
    if (td_db_file(url) && *td_db_file(url))
        return &td_db_sqlite;
#ifdef TD_POSTGRES
    if (is_postgres)
        return &td_db_postgres;
#else
    if (is_postgres) {
        td_err_set(err, TD_E_USAGE, "this tandem was built without libpq; allowed: sqlite:FILE");
        return NULL;
    }
#endif
    td_err_set(err, TD_E_USAGE, "\"%.200s\" is no job; allowed: sqlite:FILE, postgresql://...",
               url);
    return NULL;
}

bool td_db_check_url(const char *url, td_err *err) { return find_backend(url, err) != NULL; }

td_db *td_db_open(const char *url, bool is_new, td_err *err)
{
    const td_db_backend *backend = find_backend(url, err);
    td_db *db = backend ? td_alloc(1, sizeof *db, err) : NULL;
    if (!db)
        return NULL;
    db->backend = backend;
    memcpy(db->url, url, strlen(url));
    db->connection = backend->connect(url, is_new, db->name, err);
    if (!db->connection)
        td_db_close(&db);
    return db;
}

void td_db_close(td_db **db)
{
    if (!*db)
        return;
    if ((*db)->connection)
        (*db)->backend->disconnect((*db)->connection);
    td_free(*db);
    *db = NULL;
}

const char *td_db_name(const td_db *db) { return db->name; }

bool td_db_is_connected(const td_db *db)
{
    return db->connection && db->backend->is_connected(db->connection);
}

bool td_db_reconnect(td_db *db, td_err *err)
{
    if (db->connection)
        db->backend->disconnect(db->connection);
    db->connection = db->backend->connect(db->url, false, db->name, err);
    return db->connection;
}

/* The statement with the words of this kind of database. They are ours, so they fit. */
static bool expand(const td_db_backend *b, const char *text, char *out, td_err *err)
{
    size_t n = 0;
    while (*text && n + 1 < TD_DB_STATEMENT_MAX) {
        const char *word = !strncmp(text, "{now}", 5)    ? b->now
                           : !strncmp(text, "{skip}", 6) ? b->skip
                           : !strncmp(text, "{light}", 7) ? b->light
                           : !strncmp(text, "{big}", 5)  ? b->big
                                                         : NULL;
        if (!word) {
            out[n++] = *text++;
            continue;
        }
        n += (size_t)snprintf(out + n, TD_DB_STATEMENT_MAX - n, "%s", word);
        text = strchr(text, '}') + 1;
    }
    if (n + 1 >= TD_DB_STATEMENT_MAX)
        return td_err_set(err, TD_E_BUG, "a statement is longer than %u bytes",
                          TD_DB_STATEMENT_MAX);
    out[n] = 0;
    return true;
}

static bool prepare(const td_db *db, const char *text, char out[TD_DB_STATEMENT_MAX], td_err *err)
{
    return db->connection ? expand(db->backend, text, out, err)
                          : td_err_set(err, TD_E_UNAVAILABLE, "%s: there is no connection",
                                       db->name);
}

bool td_db_run(td_db *db, const td_db_statement *s, const td_db_value *params, uint32_t n_params,
               td_db_row row, void *user, uint64_t *n_rows, td_err *err)
{
    char text[TD_DB_STATEMENT_MAX];
    uint64_t ignored;
    if (!prepare(db, s->text, text, err))
        return false;
    return db->backend->run(db->connection, text, s->columns, params, n_params, row, user,
                            n_rows ? n_rows : &ignored, err) ||
           td_err_prepend(err, "%s", db->name);
}

bool td_db_run_each(td_db *db, const char *text, const td_db_value *params, uint32_t n_params,
                    uint32_t n_sets, uint64_t *counts, td_err *err)
{
    char expanded[TD_DB_STATEMENT_MAX];
    TD_ASSERT(n_params > 0 && n_sets > 0 && n_sets <= TD_DB_SETS_MAX);
    return prepare(db, text, expanded, err) &&
           (db->backend->run_each(db->connection, expanded, params, n_params, n_sets, counts,
                                  err) ||
            td_err_prepend(err, "%s", db->name));
}

bool td_db_begin(td_db *db, td_err *err)
{
    return td_db_run(db, &(td_db_statement){db->backend->begin, NULL}, NULL, 0, NULL, NULL, NULL,
                     err);
}

bool td_db_commit(td_db *db, td_err *err)
{
    return td_db_run(db, &(td_db_statement){"COMMIT", NULL}, NULL, 0, NULL, NULL, NULL, err);
}

void td_db_rollback(td_db *db)
{
    td_db_run(db, &(td_db_statement){"ROLLBACK", NULL}, NULL, 0, NULL, NULL, NULL, NULL);
}

bool td_db_has_table(td_db *db, const char *name, bool *has, td_err *err)
{
    uint64_t n = 0;
    td_db_value param = td_db_text(name);
    bool is_ok = td_db_run(db, &db->backend->find_table, &param, 1, NULL, NULL, &n, err);
    *has = n > 0;
    return is_ok;
}
