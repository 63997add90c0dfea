/* A job's tables in SQLite, statement by statement: lines go to one worker at a time, results are
 * taken once, and what a database holds is checked like any other file. What programs do over it is
 * e2e_job's. */
#include "base/check.h"
#include "base/mem.h"
#include "job/worker.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define N_LINES    10u
#define N_MANY     700u
#define MANY_TWICE 301u
#define CONFIG     "{\"n\":3}"

typedef struct {
    char dir[64], url[128];
    td_db *db;
} place;

static void place_make(place *p)
{
    snprintf(p->dir, sizeof p->dir, P_tmpdir "/tandem-job-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->url, sizeof p->url, "sqlite:%s/j.db", p->dir);
    td_err err = {0};
    p->db = td_db_open(p->url, true, &err);
    if (!p->db)
        fail_msg("%s", err.message);
}

static void place_remove(place *p)
{
    static const char *const names[] = {"j.db", "j.db-wal", "j.db-shm"};
    td_db_close(&p->db);
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        char path[160];
        snprintf(path, sizeof path, "%s/%s", p->dir, names[i]);
        unlink(path);
    }
    rmdir(p->dir);
}

typedef struct {
    uint32_t i, n, n_bytes;
    char id[32], text[32];
} source;

static bool next_line(void *user, td_job_new_line *line, td_err *err)
{
    (void)err;
    source *s = user;
    if (s->i == s->n)
        return false;
    snprintf(s->id, sizeof s->id, "l%u", s->i);
    snprintf(s->text, sizeof s->text, "text %u", s->i);
    *line = (td_job_new_line){.id = s->id,
                              .line_id = "line-0",
                              .input = s->text,
                              .number = s->i + 1,
                              .n_bytes = s->n_bytes ? s->n_bytes : strlen(s->text),
                              .prefix = s->i % 2 ? UINT64_MAX - 1 : 0};
    s->i++;
    return true;
}

static void make_job(place *p, uint32_t n, uint32_t n_bytes)
{
    char config[] = CONFIG;
    td_job_settings settings = {.config = config, .attempts_max = 2};
    source s = {.n = n, .n_bytes = n_bytes};
    td_job_added added;
    td_err err = {0};
    place_make(p);
    if (!td_job_create(p->db, &settings, next_line, &s, &added, &err))
        fail_msg("%s", err.message);
    assert_int_equal(added.n_added, n);
}

static uint32_t claim(place *p, const char *worker, double lease_s, uint64_t prefix,
                      td_job_line *lines, uint32_t max)
{
    uint32_t n = 0;
    td_err err = {0};
    if (!td_job_claim(p->db, worker, lease_s, prefix, lines, max, &n, &err))
        fail_msg("%s", err.message);
    return n;
}

static td_job_taken put(place *p, const char *worker, const td_job_line *line, const char *answer)
{
    td_job_taken taken;
    td_err err = {0};
    td_job_result r = {.n = line->n,
                       .epoch = line->epoch,
                       .worker = worker,
                       .result = "{}",
                       .config_sha = "c",
                       .answer_sha = answer,
                       .is_ok = true,
                       .n_tokens = 5};
    const td_job_result *one = &r;
    if (!td_job_put(p->db, &one, 1, &taken, &err))
        fail_msg("%s", err.message);
    return taken;
}

static void free_lines(td_job_line *lines, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        td_job_line_free(&lines[i]);
}

static void test_a_line_is_one_workers_at_a_time(void **state)
{
    (void)state;
    place p;
    td_job_line a[N_LINES], b[N_LINES];
    make_job(&p, N_LINES, 0);
    assert_int_equal(claim(&p, "a", 1000, 0, a, 4), 4);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(a[i].n, i + 1);
        assert_int_equal(a[i].epoch, 1);
        assert_null(a[i].problem);
    }
    assert_int_equal(claim(&p, "b", 1000, UINT64_MAX - 1, b, 4), 4);
    static const int64_t with_prefix_first[] = {6, 8, 10, 5};
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(b[i].n, with_prefix_first[i]);
    assert_int_equal(put(&p, "b", &a[0], "x"), TD_RESULT_LATE); /* not its own */
    assert_int_equal(put(&p, "a", &a[0], "x"), TD_RESULT_TAKEN);
    assert_int_equal(put(&p, "a", &a[0], "x"), TD_RESULT_LATE); /* once */
    td_job_line late = a[1];
    late.epoch--;
    assert_int_equal(put(&p, "a", &late, "x"), TD_RESULT_LATE);
    uint64_t n = 0;
    td_err err = {0};
    assert_true(td_job_leave(p.db, "a", &n, &err));
    assert_int_equal(n, 3);
    td_job_status s;
    assert_true(td_job_get_status(p.db, &s, &err));
    assert_int_equal(s.n_lines[TD_LINE_OK], 1);
    assert_int_equal(s.n_lines[TD_LINE_TAKEN], 4);
    assert_int_equal(s.n_lines[TD_LINE_WAITING], N_LINES - 5);
    assert_int_equal(s.n_tokens, 5);
    free_lines(a, 4);
    free_lines(b, 4);
    place_remove(&p);
}

static void test_what_a_lost_worker_held_goes_on(void **state)
{
    (void)state;
    place p;
    td_job_line a, b, c, d;
    make_job(&p, 1, 0);
    assert_int_equal(claim(&p, "a", -1, 0, &a, 1), 1);   /* a lease that has ended */
    assert_int_equal(claim(&p, "a", 1000, 0, &c, 1), 0); /* it has it still */
    assert_int_equal(claim(&p, "b", -1, 0, &b, 1), 1);
    assert_int_equal(b.epoch, a.epoch + 1);
    assert_int_equal(put(&p, "a", &a, "x"), TD_RESULT_LATE);
    assert_null(b.problem);
    assert_int_equal(claim(&p, "c", -1, 0, &c, 1), 1); /* the third: two were lost with it */
    assert_non_null(c.problem);
    assert_non_null(strstr(c.problem, "2 workers"));
    assert_int_equal(put(&p, "c", &c, "x"), TD_RESULT_TAKEN);
    assert_int_equal(put(&p, "b", &b, "x"), TD_RESULT_LATE);
    assert_int_equal(put(&p, "b", &b, "y"), TD_RESULT_DIFFERENT);
    assert_int_equal(claim(&p, "d", 1000, 0, &d, 1), 0);
    td_job_status s;
    assert_true(td_job_get_status(p.db, &s, NULL));
    assert_int_equal(s.n_differences, 1);
    td_job_line_free(&a);
    td_job_line_free(&b);
    td_job_line_free(&c);
    place_remove(&p);
}

/* Long lines are spread: none but the first of a claim goes beyond its bytes. */
static void test_long_lines_are_spread(void **state)
{
    (void)state;
    place p;
    td_job_line lines[N_LINES];
    make_job(&p, N_LINES, TD_JOB_CLAIM_BYTES / 2);
    assert_int_equal(claim(&p, "a", 1000, 0, lines, N_LINES), 2);
    free_lines(lines, 2);
    place_remove(&p);
    make_job(&p, N_LINES, 4 * TD_JOB_CLAIM_BYTES);
    assert_int_equal(claim(&p, "a", 1000, 0, lines, N_LINES), 1);
    free_lines(lines, 1);
    place_remove(&p);
}

static void run_sql(place *p, const char *text)
{
    td_err err = {0};
    if (!td_db_run(p->db, &(td_db_statement){text, NULL}, NULL, 0, NULL, NULL, NULL, &err))
        fail_msg("%s: %s", text, err.message);
}

/* A database is a file: what it holds is read as what it should be, or refused. */
/* Many go in together; an id that is used twice makes of its line, and of one whose id that line's
 * own name is, what it does where they go in one by one. */
static bool next_of_many(void *user, td_job_new_line *line, td_err *err)
{
    source *s = user;
    if (!next_line(user, line, err))
        return false;
    if (s->i == MANY_TWICE) {
        line->id = "l7";
        line->line_id = "l400";
    } else if (s->i == 401) {
        line->line_id = "own";
    }
    return true;
}

static bool read_line(void *user, const td_db_value *c, td_err *err)
{
    (void)err;
    uint32_t *n = user;
    assert_int_equal(c[0].i, ++*n);
    char id[32];
    snprintf(id, sizeof id, "l%u", *n - 1);
    assert_string_equal(c[1].text, *n == MANY_TWICE ? "l400" : *n == 401 ? "own" : id);
    assert_int_equal(c[2].kind == TD_DB_TEXT, *n == MANY_TWICE || *n == 401);
    return true;
}

static void test_many_lines_go_in_as_one_by_one(void **state)
{
    (void)state;
    place p;
    td_err err = {0};
    td_job_added added;
    make_job(&p, 0, 0);
    for (uint32_t turn = 0; turn < 2; turn++) {
        uint32_t n = 0;
        if (!td_job_add(p.db, next_of_many, &(source){.n = N_MANY}, &added, &err))
            fail_msg("%s", err.message);
        assert_int_equal(added.n_added, turn ? 0 : N_MANY);
        assert_int_equal(added.n_there, turn ? N_MANY : 0);
        assert_true(td_db_run(
            p.db, &(td_db_statement){"SELECT n, id, problem FROM tandem_line ORDER BY n", "itt"},
            NULL, 0, read_line, &n, NULL, &err));
        assert_int_equal(n, N_MANY);
    }
    place_remove(&p);
}

static void test_damaged_tables_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *sql, *words;
    } rows[] = {
        {"UPDATE tandem_job SET version = 7", "version 7"},
        {"UPDATE tandem_job SET version = 'x'", "another type"},
        {"UPDATE tandem_job SET attempts_max = 0", "damaged"},
        {"UPDATE tandem_job SET arithmetic = '0123456789abcdef0'", "damaged"},
        {"DELETE FROM tandem_job", "no settings"},
        {"INSERT INTO tandem_job SELECT * FROM tandem_job", "two jobs"},
        {"DROP TABLE tandem_job", "no job"},
        {"ALTER TABLE tandem_job DROP COLUMN is_same", "no such column"},
        {"UPDATE tandem_line SET state = 9", "state 9"},
        {"UPDATE tandem_line SET state = -1", "state -1"},
        {"UPDATE tandem_line SET id = X'00ff' WHERE n = 1", "another type"},
        {"UPDATE tandem_line SET id = printf('%.300c', 'x') WHERE n = 1", "300 bytes"},
        {"UPDATE tandem_line SET prefix = 1.5 WHERE n = 1", "another type"},
        {"DROP TABLE tandem_line", "no such table"},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        place p;
        td_err err = {0};
        td_job_status s;
        td_job_line lines[N_LINES];
        uint32_t n = 0;
        memset(lines, 0, sizeof lines);
        make_job(&p, N_LINES, 0);
        run_sql(&p, rows[i].sql);
        bool is_ok = td_job_get_status(p.db, &s, &err) &&
                     td_job_claim(p.db, "a", 1000, 0, lines, N_LINES, &n, &err);
        assert_false(is_ok);
        assert_int_equal(err.code, TD_E_DATA);
        if (!strstr(err.message, rows[i].words))
            fail_msg("%s: \"%s\" does not say \"%s\"", rows[i].sql, err.message, rows[i].words);
        free_lines(lines, N_LINES);
        place_remove(&p);
    }
}

static void test_urls(void **state)
{
    (void)state;
    static const char *const bad[] = {"",         "sqlite:",       "job.db",
                                      "postgres", "postgresql:/x", "http://x"};
    static const char *const secret[] = {"postgresql://me:hushhush@host/db",
                                         "postgres://host/db?password=hushhush",
                                         "postgresql:///db?host=x&password=hushhush"};
    char text[TD_DB_URL_MAX + 10] = "sqlite:";
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        td_err err = {0};
        assert_false(td_db_check_url(bad[i], &err));
        assert_int_equal(err.code, TD_E_USAGE);
    }
    for (size_t i = 0; i < TD_COUNT(secret); i++) {
        td_err err = {0};
        assert_false(td_db_check_url(secret[i], &err));
        assert_null(strstr(err.message, "hush"));
    }
    memset(text + 7, 'x', TD_DB_URL_MAX);
    assert_false(td_db_check_url(text, NULL));
    assert_true(td_db_check_url("sqlite:x", NULL));
}

/* A worker from its start to its end, and what it says of lines that it does not hold. */
static void test_a_worker_works_it_off(void **state)
{
    (void)state;
    place p;
    td_err err = {0};
    char demanded[8];
    make_job(&p, N_LINES, 0);
    td_worker *w = td_worker_open(&(td_worker_params){p.url, 4, 60}, &err);
    if (!w)
        fail_msg("%s", err.message);
    assert_string_equal(td_worker_settings(w)->config, CONFIG);
    assert_true(td_worker_begin(w, "c", "text", demanded, sizeof demanded, &err));
    uint32_t n = 0;
    const td_job_result r = {.result = "{}", .config_sha = "c", .answer_sha = "x", .is_ok = true};
    for (td_job_line line; td_worker_next(w, &line, -1, &err); n++) {
        assert_true(td_worker_put(w, line.id, &r, &err));
        td_job_line_free(&line);
    }
    assert_int_equal(err.code, TD_OK);
    assert_int_equal(n, N_LINES);
    assert_false(td_worker_put(w, "l1", &r, &err));
    assert_int_equal(err.code, TD_E_BUG);
    td_err_clear(&err);
    assert_true(td_worker_close(&w, 60, &err));
    uint64_t n_open;
    assert_true(td_job_count_open(p.db, &n_open, NULL));
    assert_int_equal(n_open, 0);
    place_remove(&p);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    place p;
    make_job(&p, N_LINES, 0);
    for (uint64_t fail_at = 1; fail_at < 40; fail_at++) {
        td_err err = {0};
        td_job_line lines[2];
        uint32_t n = 0;
        memset(lines, 0, sizeof lines);
        td_alloc_fail_at(fail_at);
        td_worker *w = td_worker_open(&(td_worker_params){p.url, 4, 60}, &err);
        bool is_ok = w && td_job_claim(p.db, "a", -1, 0, lines, 2, &n, &err);
        td_alloc_fail_at(0);
        if (!is_ok)
            assert_int_equal(err.code, TD_E_NOMEM);
        free_lines(lines, 2);
        assert_true(td_worker_close(&w, 0, NULL));
        run_sql(&p, "UPDATE tandem_line SET state = 0, attempts = 0");
    }
    place_remove(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_line_is_one_workers_at_a_time),
        cmocka_unit_test(test_what_a_lost_worker_held_goes_on),
        cmocka_unit_test(test_long_lines_are_spread),
        cmocka_unit_test(test_many_lines_go_in_as_one_by_one),
        cmocka_unit_test(test_damaged_tables_are_refused),
        cmocka_unit_test(test_urls),
        cmocka_unit_test(test_a_worker_works_it_off),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
