/* What `tandem eval` makes of logits, against numbers computed in another language (Python, sums by
 * math.fsum) by the formulas of cli/eval.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "cli/eval.h"

#include <math.h>
#include <string.h>

#define N_VOCAB 5u
#define N_ROWS  5u

/* Rows 1 and 2 have more than one largest. */
static const float base_logits[N_ROWS][N_VOCAB] = {{1.5f, -2, 0.25f, 3, 0.5f},
                                                   {0, 0, 0, 0, 0},
                                                   {-7, 2.5f, 2.5f, 1, -30},
                                                   {10, 4, -3, 0.125f, 9.5f},
                                                   {-1, -2, -3, -4, 60}};
static const float other_logits[N_ROWS][N_VOCAB] = {{1.25f, -2.5f, 0.5f, 2.75f, 0.75f},
                                                    {0.5f, -0.5f, 0.25f, 0, 0},
                                                    {-6, 2.25f, 2.5f, 1.5f, -28},
                                                    {9, 4.5f, -2, 0.25f, 9.25f},
                                                    {-1, -2, -3, -4.5f, 58}};
static const uint32_t tokens[N_ROWS] = {3, 1, 2, 4, 4};

static eval_figures judge(const float (*logits)[N_VOCAB], bool is_base)
{
    float klds[N_ROWS];
    eval_score score = {.klds = klds};
    for (uint32_t i = 0; i < N_ROWS; i++) {
        eval_row base, row;
        assert_true(td_eval_read_row(base_logits[i], N_VOCAB, &base));
        assert_true(td_eval_read_row(logits[i], N_VOCAB, &row));
        td_eval_add(&score, &base, is_base ? &base : &row, tokens[i]);
    }
    assert_int_equal(score.n_right, logits == base_logits ? 2 : 4);
    return td_eval_judge(&score);
}

static void near(double value, double wanted)
{
    if (fabs(value - wanted) > 1e-6 * fabs(wanted))
        fail_msg("%.12g; wanted: %.12g", value, wanted);
}

static void test_eval_figures_are_those_computed_elsewhere(void **state)
{
    (void)state;
    eval_figures f = judge(other_logits, false);
    near(f.ppl, 2.199613090347151);
    near(f.ppl_err, 0.8309904111358676);
    near(f.kld_mean, 0.0327222277925965);
    near(f.kld_median, 0.0273019986358033);
    near(f.kld_99, 0.06944705586330384);
    near(f.kld_99_9, 0.07008534031861324);
    near(f.kld_max, 0.07015626081364762);
    near(f.same_top, 0.6);
    near(f.rms_dp, 0.09366744446156944);
}

/* Taken for the base itself, or for another cache that gave the same. */
static void test_eval_equal_logits_diverge_by_nothing(void **state)
{
    (void)state;
    for (int is_base = 0; is_base < 2; is_base++) {
        eval_figures f = judge(base_logits, is_base);
        near(f.ppl, 2.097249696539571);
        near(f.ppl_err, 0.5819044030985396);
        assert_true(f.kld_mean == 0 && f.kld_max == 0 && f.rms_dp == 0 && f.same_top == 1);
    }
}

static void test_eval_top_is_the_first_of_the_largest(void **state)
{
    (void)state;
    eval_row row;
    assert_true(td_eval_read_row(base_logits[1], N_VOCAB, &row));
    assert_int_equal(row.top, 0);
    assert_true(td_eval_read_row(base_logits[2], N_VOCAB, &row));
    assert_int_equal(row.top, 1);
}

static void test_eval_refuses_logits_that_are_not_finite(void **state)
{
    (void)state;
    eval_row row;
    for (uint32_t i = 0; i < 3; i++) {
        float logits[3] = {1, 2, 3};
        logits[i] = NAN;
        assert_false(td_eval_read_row(logits, 3, &row));
        logits[i] = INFINITY;
        assert_false(td_eval_read_row(logits, 3, &row));
    }
    /* A token that cannot come is none of these, here nor in what is held against it. */
    const float masked[3] = {1, -INFINITY, 2}, other[3] = {1.5f, -INFINITY, 2};
    float kld;
    eval_score score = {.klds = &kld};
    eval_row base;
    assert_true(td_eval_read_row(masked, 3, &base) && td_eval_read_row(other, 3, &row));
    td_eval_add(&score, &base, &row, 0);
    near((double)kld, 0.026344585976886742);
}

/* At the end of a window stands what stands at its depth, and no other token has moved. */
static void test_eval_tasks_repeat_what_is_at_their_depth(void **state)
{
    (void)state;
    enum { WINDOW = 200, N_WINDOWS = 10 };
    static const char *const tasks[] = {"copy", "needle"};
    td_err err = {0};
    td_model *model = td_model_open("configs/tales/tales-draft.q8_0.gguf", &err);
    if (!model)
        fail_msg("%s", err.message);
    for (uint32_t t = 0; t < TD_COUNT(tasks); t++) {
        uint32_t ids[WINDOW * N_WINDOWS], n_scored, n = WINDOW / 4, n_other = 0, first[WINDOW];
        for (uint32_t i = 0; i < WINDOW * N_WINDOWS; i++)
            ids[i] = 1000 + i;
        assert_true(td_eval_make_task(td_model_tokenizer(model), tasks[t], ids, WINDOW, N_WINDOWS,
                                      &n_scored, &err));
        while (memcmp(ids + 1, ids + WINDOW - n, n * sizeof *ids) != 0)
            n--; /* tokens of the passage, which begins the first window */
        assert_true(n_scored >= 6 && n_scored < n && n <= WINDOW / 4);
        for (uint32_t w = 0; w < N_WINDOWS; w++) {
            const uint32_t *window = ids + w * WINDOW, *end = window + WINDOW - n;
            uint32_t at = 1 + (WINDOW - 2 * n - 1) * (w % 5) / 4, own = 1000 + w * WINDOW;
            assert_memory_equal(window + at, end, n * sizeof *end);
            for (uint32_t i = 0; i < WINDOW - n; i++)
                if (t == 0 || i < at)
                    assert_int_equal(window[i], own + i);
                else if (i >= at + n)
                    assert_int_equal(window[i], own + i - n);
            n_other += w > 0 && memcmp(first, end, n * sizeof *end) != 0;
            assert_true(t == 0 || !memcmp(ids + WINDOW - n, end, (n - n_scored) * sizeof *end));
            memcpy(first, end, n * sizeof *end);
        }
        assert_int_equal(n_other, N_WINDOWS - 1);
        assert_false(td_eval_make_task(td_model_tokenizer(model), tasks[t], ids, 4 * n - 1, 1,
                                       &n_scored, &err));
        assert_int_equal(err.code, TD_E_USAGE);
        err = (td_err){0};
    }
    td_model_close(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eval_figures_are_those_computed_elsewhere),
        cmocka_unit_test(test_eval_equal_logits_diverge_by_nothing),
        cmocka_unit_test(test_eval_top_is_the_first_of_the_largest),
        cmocka_unit_test(test_eval_refuses_logits_that_are_not_finite),
        cmocka_unit_test(test_eval_tasks_repeat_what_is_at_their_depth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
