/* A job: lines of prompts in a database, and what became of them. Any number of workers takes lines
 * from it, each by one statement, for as long as a lease by the database's clock; a result is taken
 * only from the worker that holds the line, so each line has exactly one, however often it was run.
 *
 * The tables, in SQLite and PostgreSQL alike (`tandem_` before each; job.c has the statements):
 *
 *     job         one row: version, settings, is it cancelled, the arithmetic demanded
 *     line        n (the order of the input), id, input, state, who holds it until when, result
 *     worker      who has worked, when it was last seen, what it has done
 *     difference  results of one line and one arithmetic that were not the same: a broken device
 *
 * One thread at a time for a td_db. Errors: those of job/db.h; TD_E_DATA also for a job that is not
 * there, is there already, or is of another version. */
#ifndef TD_JOB_JOB_H
#define TD_JOB_JOB_H

#include "job/db.h"

#define TD_JOB_VERSION       1u
#define TD_JOB_ID_MAX        256u
#define TD_JOB_WORKER_MAX    120u   /* bytes of a worker's name */
#define TD_JOB_CONFIG_MAX    65536u /* bytes */
#define TD_JOB_SHA_MAX       16u
#define TD_JOB_IDENTITY_MAX  16384u
#define TD_JOB_ATTEMPTS      3u /* after so many workers were lost with it, a line is an error */
#define TD_JOB_CLAIM_BYTES   (256u << 10) /* of lines taken at once, so that long ones are spread */
#define TD_JOB_PUT_MAX       64u          /* results handed in at once */
#define TD_JOB_PREFIX_BYTES  256u         /* what lines have in common, so that they go together */

typedef enum {
    TD_LINE_WAITING,
    TD_LINE_TAKEN,
    TD_LINE_OK,
    TD_LINE_ERROR,
    TD_LINE_CANCELLED,
    TD_LINE_STATES
} td_line_state;

typedef struct {
    char *config; /* JSON, what decides texts beside the lines; owned */
    bool is_same_arithmetic;
    bool is_cancelled;
    uint32_t attempts_max;
    char arithmetic[TD_JOB_SHA_MAX + 1]; /* that is demanded; "": the first worker's will be */
} td_job_settings;

/* A line on its way in. */
typedef struct {
    const char *id;
    const char *line_id; /* for an id that another line has: this one will be an error */
    const char *input;   /* the line; NULL where it cannot be stored, with a problem */
    const char *problem; /* why it will be an error, or NULL */
    uint64_t number;     /* in its file */
    uint64_t n_bytes;
    uint64_t prefix; /* a hash of its first TD_JOB_PREFIX_BYTES; 0: shorter */
} td_job_new_line;
/* The next line, valid until the next call; false at the end, or with err set on failure. */
typedef bool (*td_job_lines)(void *user, td_job_new_line *line, td_err *err);

typedef struct {
    uint64_t n_added, n_there; /* there: the same line was in the job already */
} td_job_added;

bool td_job_create(td_db *db, const td_job_settings *settings, td_job_lines lines, void *user,
                   td_job_added *added, td_err *err);
/* A line that is there already, with the same id and the same text, is passed over. */
bool td_job_add(td_db *db, td_job_lines lines, void *user, td_job_added *added, td_err *err);
/* Looks whether there is a job of this version. To be freed by td_job_settings_free. */
bool td_job_open(td_db *db, td_job_settings *settings, td_err *err);
void td_job_settings_free(td_job_settings *settings);

/* How many lines it changed. */
bool td_job_retry(td_db *db, uint64_t *n, td_err *err);                      /* errors wait again */
bool td_job_requeue(td_db *db, const char *worker, uint64_t *n, td_err *err); /* what it holds */
bool td_job_cancel(td_db *db, uint64_t *n, td_err *err);
bool td_job_drop(td_db *db, td_err *err);

/* -- for people -- */

typedef struct {
    uint64_t n_lines[TD_LINE_STATES];
    uint64_t n_tokens, n_differences;
    double tokens_per_s; /* of the workers that are at it, together */
    double seconds_left; /* < 0: cannot be told */
    bool is_cancelled;
} td_job_status;

typedef struct {
    const char *name;
    uint64_t n_ok, n_error, n_tokens, n_held;
    double seconds, seen_s; /* from its first sign to its last; since the last */
    bool has_left;
    const char *arithmetic; /* td_identity's text */
} td_job_worker_status;

bool td_job_get_status(td_db *db, td_job_status *out, td_err *err);
/* In the order in which they came; the strings are valid in the call. */
typedef bool (*td_job_on_worker)(void *user, const td_job_worker_status *worker, td_err *err);
bool td_job_list_workers(td_db *db, td_job_on_worker on_worker, void *user, td_err *err);

/* Where a reader of all results is; begins with all zero but for how it reads. */
typedef struct {
    bool is_finish_order; /* as they came, else in the order of the input */
    bool is_gapless;      /* order of the input: not beyond a line that has none yet */
    int64_t n;            /* the last line that was read */
    double finished;
    const char *worker; /* of the result that is handed out, valid in the call; may be NULL */
    uint32_t n_read;    /* by the last call */
} td_job_reading;
typedef bool (*td_job_on_result)(void *user, const char *result, size_t n_bytes, td_err *err);
/* The next ones, each once. */
bool td_job_read_results(td_db *db, td_job_reading *reading, td_job_on_result on_result, void *user,
                         td_err *err);
/* Lines that have neither a result nor were cancelled. */
bool td_job_count_open(td_db *db, uint64_t *n, td_err *err);

/* -- for workers -- */

typedef struct {
    int64_t n, epoch;
    uint64_t number;
    char id[TD_JOB_ID_MAX + 1];
    char *input;   /* owned; NULL with a problem */
    char *problem; /* owned, or NULL */
    size_t n_bytes;
    uint64_t prefix;
} td_job_line;
void td_job_line_free(td_job_line *line);

/* Tells that it is there, and with which arithmetic: TD_E_DATA where the job demands another. */
bool td_job_enter(td_db *db, const char *worker, const char *sha, const char *identity,
                  char *demanded, size_t n_bytes, td_err *err);
/* Up to `max` lines, those of `prefix` first (0: of none); waiting ones, and those whose lease has
 * ended. */
bool td_job_claim(td_db *db, const char *worker, double lease_s, uint64_t prefix, td_job_line *lines,
                  uint32_t max, uint32_t *n, td_err *err);
/* Its lines are held on. */
bool td_job_renew(td_db *db, const char *worker, double lease_s, td_err *err);

typedef struct {
    int64_t n, epoch;
    const char *worker;
    const char *result; /* a line of JSON */
    const char *config_sha, *answer_sha;
    bool is_ok;
    uint64_t n_tokens;
} td_job_result;
typedef enum {
    TD_RESULT_TAKEN,
    TD_RESULT_LATE,      /* the line was another's by then, or is cancelled */
    TD_RESULT_DIFFERENT, /* and what that one found, by the same arithmetic, is not the same */
} td_job_taken;
/* Between td_db_begin and td_db_commit: results[n], of each what became of it. */
bool td_job_put(td_db *db, const td_job_result *const *results, uint32_t n, td_job_taken *taken,
                td_err *err);
/* Gives back what it holds; as if it had not been taken. */
bool td_job_leave(td_db *db, const char *worker, uint64_t *n, td_err *err);

#endif
