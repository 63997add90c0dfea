/* What a kind of database brings: private to job/db*.c. */
#ifndef TD_JOB_DB_BACKEND_H
#define TD_JOB_DB_BACKEND_H

#include "job/db.h"

typedef struct {
    const char *now, *skip, *light, *big; /* td_db_statement's {now} and so on */
    const char *begin;
    td_db_statement find_table; /* $1; a row if it is there */
    /* The connection, or NULL with err set; `name` of TD_DB_URL_MAX bytes for messages. */
    void *(*connect)(const char *url, bool is_new, char *name, td_err *err);
    void (*disconnect)(void *connection);
    bool (*is_connected)(void *connection);
    /* `text` is what is sent. Columns come as `columns` says. */
    bool (*run)(void *connection, const char *text, const char *columns, const td_db_value *params,
                uint32_t n_params, td_db_row row, void *user, uint64_t *n_rows, td_err *err);
    bool (*run_each)(void *connection, const char *text, const td_db_value *params,
                     uint32_t n_params, uint32_t n_sets, uint64_t *counts, td_err *err);
} td_db_backend;

extern const td_db_backend td_db_sqlite;
#ifdef TD_POSTGRES
extern const td_db_backend td_db_postgres;
#endif

#endif
