/* The cases of `tandem check`: every kind of op has some, each that is needed by another comes
 * before it, and the scalar device agrees with itself in all of them. Verdicts: kept, asked for,
 * overridden by a whole check, no matter of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "check/cases.h"
#include "check/trial.h"
#include "check/verdict.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void test_every_kind_of_op_has_a_case(void **state)
{
    (void)state;
    const char *gap = td_cases_find_gap();
    if (gap)
        fail_msg("%s has no case in check/cases.c", gap);
}

typedef struct {
    char ops[1024];
    td_device *scalar;
    uint32_t n;
} seen;

static bool visit(const td_case *c, void *user)
{
    seen *s = user;
    td_trial trial;
    if (c->needs && !strstr(s->ops, c->needs))
        fail_msg("%s %s needs %s, of which there is no case before", c->op, c->shape, c->needs);
    size_t n = strlen(s->ops);
    if (!strstr(s->ops, c->op))
        snprintf(s->ops + n, sizeof s->ops - n, " %s", c->op);
    td_trial_run(s->scalar, s->scalar, c, 2, &trial);
    if (!trial.is_ok)
        fail_msg("%s %s: %s", c->op, c->shape, trial.reason);
    assert_true(trial.worst == 0);
    s->n++;
    return true;
}

static void test_the_scalar_device_agrees_with_itself(void **state)
{
    (void)state;
    td_err err = {0};
    seen s = {.scalar = td_device_create("scalar", &err)};
    assert_non_null(s.scalar);
    td_cases_visit(true, visit, &s);
    assert_true(s.n > 100);
    td_device_destroy(&s.scalar);
}

static void test_verdicts_are_kept_until_the_device_passes(void **state)
{
    (void)state;
    char folder[] = "/tmp/unit_check_XXXXXX";
    td_err err = {0};
    assert_non_null(mkdtemp(folder));
    setenv("TANDEM_CACHE_DIR", folder, 1);
    static td_check_report report;
    assert_true(td_device_find("host:1", &report.info, &err));
    assert_true(td_verdict_ask(&report.info, &err));
    report.ops[report.n_ops++] =
        (td_check_item){.name = "rope", .state = TD_CHECK_FAILED, .reason = "row 3: a \"bit\""};
    td_verdict_keep(&report, false);
    assert_false(td_verdict_ask(&report.info, &err));
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    assert_non_null(strstr(err.message, "rope: row 3: a \"bit\""));
    assert_non_null(strstr(err.message, "--trust"));
    td_err_clear(&err);
    assert_false(td_verdict_ask_spec("host:2@0-3", &err)); /* threads and layers do not matter */
    td_err_clear(&err);
    assert_true(td_verdict_ask_spec("box/host", &err)); /* not here */
    td_device_info newer = report.info;
    snprintf(newer.driver, sizeof newer.driver, "another");
    assert_true(td_verdict_ask(&newer, &err));
    report.ops[0].state = TD_CHECK_PASSED;
    td_verdict_keep(&report, false); /* only some of it passed */
    assert_false(td_verdict_ask(&report.info, NULL));
    td_verdict_keep(&report, true);
    assert_true(td_verdict_ask(&report.info, &err));
    unsetenv("TANDEM_CACHE_DIR");
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_of_op_has_a_case),
        cmocka_unit_test(test_the_scalar_device_agrees_with_itself),
        cmocka_unit_test(test_verdicts_are_kept_until_the_device_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
