/* A database that a job lies in: `sqlite:FILE`, or `postgresql://...` as libpq reads it. One set of
 * statements serves both (job.c); what the two spell differently is put in here:
 *
 *     {now}    seconds since 1970 by the database's own clock
 *     {skip}   rows that another transaction holds are passed over, not waited for
 *     {light}  behind what RETURNING names: what the statement has done need not be on the disk
 *              when it ends (in SQLite nothing does, see db_sqlite.c)
 *     {big}    a column type for 64 bits
 *
 * A handle belongs to one thread at a time. Errors: TD_E_UNAVAILABLE, it cannot be reached now or
 * has no room (the same call may go through later; whether it took effect is not known);
 * TD_E_AGAIN, another holds what is needed; TD_E_DATA, it holds something else than is asked for;
 * TD_E_USAGE for a URL; TD_E_NOMEM. No password gets into a message: a URL with one is refused. */
#ifndef TD_JOB_DB_H
#define TD_JOB_DB_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_DB_COLUMNS_MAX   16u
#define TD_DB_STATEMENT_MAX 4096u /* bytes of a statement, as it is sent */
#define TD_DB_URL_MAX       1024u
#define TD_DB_SETS_MAX      256u /* of parameters, for one statement */

typedef enum { TD_DB_NULL, TD_DB_INT, TD_DB_REAL, TD_DB_TEXT } td_db_kind;

/* A parameter or a column. Text is borrowed, a column's until its row has been looked at; it holds
 * no 0 byte and is UTF-8. */
typedef struct {
    td_db_kind kind;
    int64_t i;
    double d;
    const char *text;
    size_t n_bytes;
} td_db_value;

td_db_value td_db_int(int64_t i);
td_db_value td_db_real(double d);
td_db_value td_db_text(const char *text); /* NULL: no value */

typedef struct td_db td_db;

/* Called for each row; false with err set ends the statement. */
typedef bool (*td_db_row)(void *user, const td_db_value *columns, td_err *err);

/* A statement that is asked for rows says what their columns are read as, "iit" for two integers
 * and a text, "r" for a number; each may have no value, another kind is TD_E_DATA. */
typedef struct {
    const char *text;
    const char *columns; /* NULL: no rows */
} td_db_statement;

/* is_new: a database file that is not there is made. */
td_db *td_db_open(const char *url, bool is_new, td_err *err);
void td_db_close(td_db **db);
/* Whether a text is meant as a job's URL, by its scheme. */
bool td_db_is_url(const char *text);
/* The file of a sqlite: URL; NULL where a server has it. Points into the URL. */
const char *td_db_file(const char *url);
/* The URL's form is looked at, nothing is opened. */
bool td_db_check_url(const char *url, td_err *err);
/* For messages. */
const char *td_db_name(const td_db *db);
bool td_db_is_connected(const td_db *db);
/* Closes what is left of a connection and makes another. */
bool td_db_reconnect(td_db *db, td_err *err);

/* $1 to $N are params[0..N). n_rows: those handed to `row`, else those changed; may be NULL. */
bool td_db_run(td_db *db, const td_db_statement *s, const td_db_value *params, uint32_t n_params,
               td_db_row row, void *user, uint64_t *n_rows, td_err *err);
/* The same statement with each of n_sets in 1..TD_DB_SETS_MAX sets of parameters,
 * [n_sets][n_params], n_params > 0, in order and between td_db_begin and td_db_commit: one wait
 * for all of them where there is a server. counts[i]: rows that the i-th has found or changed. */
bool td_db_run_each(td_db *db, const char *text, const td_db_value *params, uint32_t n_params,
                    uint32_t n_sets, uint64_t *counts, td_err *err);
/* Everything between takes effect at commit or not at all. After a failure roll back. */
bool td_db_begin(td_db *db, td_err *err);
bool td_db_commit(td_db *db, td_err *err);
void td_db_rollback(td_db *db);
/* Is there a table of this name where this database looks first? */
bool td_db_has_table(td_db *db, const char *name, bool *has, td_err *err);

#endif
