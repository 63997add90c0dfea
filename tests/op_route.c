/* td_op_route against the rule in f64: what is chosen must be best up to rounding, in descending
 * order, and weights must be those of what was chosen. All gatings, with bias, normalized and
 * scaled, groups; exact ties go to the lower index, NaN to the end; a row does not depend on its
 * batch. */
#include "op_common.h"

#define N_ROWS      9u
#define EXPERTS_MAX 512u
#define EPSILON     1e-6

typedef struct {
    uint32_t n_experts, n_used;
    td_route_params params;
    bool has_bias;
} route_case;

typedef struct {
    bench b;
    td_tensor *logits, *experts, *weights;
} route_bench;

static route_bench begin_case(td_device *dev, const route_case *c, const float *bias)
{
    route_bench m = {.b = bench_begin(dev, TD_MODE_VERIFY, N_ROWS, 0)};
    m.logits = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, c->n_experts + 3);
    m.experts = bench_tensor(&m.b, TD_ELEM_I32, TD_ROWS_BATCH, N_ROWS, c->n_used);
    m.weights = bench_tensor(&m.b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, c->n_used);
    td_op_route(m.b.p, td_columns(m.logits, 3, c->n_experts),
                c->has_bias ? bench_vector(&m.b, bias, c->n_experts) : NULL, &c->params, m.experts,
                m.weights);
    bench_end(&m.b);
    return m;
}

static void set_row(route_bench *m, const route_case *c, uint32_t row, const float *logits)
{
    memcpy(view_row(td_all(m->logits), row) + 3, logits, c->n_experts * sizeof(float));
}

typedef struct {
    double prob[EXPERTS_MAX], score[EXPERTS_MAX];
    double group[EXPERTS_MAX]; /* its two best scores */
} scored;

static void score_all(const route_case *c, const float *logits, const float *bias, scored *s)
{
    double top = -INFINITY, sum = 0;
    for (uint32_t e = 0; e < c->n_experts; e++)
        top = fmax(top, (double)logits[e]);
    for (uint32_t e = 0; e < c->n_experts; e++)
        sum += exp((double)logits[e] - top);
    for (uint32_t e = 0; e < c->n_experts; e++) {
        double x = (double)logits[e];
        s->prob[e] = c->params.gating == TD_GATING_SOFTMAX   ? exp(x - top) / sum
                     : c->params.gating == TD_GATING_SIGMOID ? 1 / (1 + exp(-x))
                                                             : x;
        s->score[e] = s->prob[e] + (c->has_bias ? (double)bias[e] : 0);
    }
    uint32_t n = c->n_experts / td_max_u32(c->params.n_groups, 1);
    for (uint32_t g = 0; g < c->n_experts / n; g++) {
        double first = -INFINITY, second = -INFINITY;
        for (uint32_t e = g * n; e < g * n + n; e++) {
            second = fmax(second, fmin(first, s->score[e]));
            first = fmax(first, s->score[e]);
        }
        s->group[g] = n > 1 ? first + second : first;
    }
}

/* No group outside is better than one that an expert was taken from, beyond rounding; where the
 * best groups hold their experts by a margin, those outside are not used at all. */
static void check_groups(const td_device *dev, const route_case *c, const scored *s,
                         const int32_t *experts)
{
    uint32_t n_groups = c->params.n_groups, n = c->n_experts / n_groups;
    for (uint32_t i = 0; i < c->n_used; i++) {
        uint32_t n_better = 0, mine = (uint32_t)experts[i] / n;
        for (uint32_t g = 0; g < n_groups; g++)
            n_better += s->group[g] > s->group[mine] + EPSILON;
        if (n_better >= c->params.n_groups_used)
            fail_msg("%s: expert %d is of group %u, before which come %u of %u groups",
                     device_spec(dev), experts[i], mine, n_better, n_groups);
    }
}

/* Whether an expert may be chosen: its group is among the best, ties counted for it. */
static bool is_eligible(const route_case *c, const scored *s, uint32_t e, double slack)
{
    uint32_t n_groups = td_max_u32(c->params.n_groups, 1), n = c->n_experts / n_groups,
             n_before = 0;
    if (n_groups == 1)
        return true;
    for (uint32_t g = 0; g < n_groups; g++)
        n_before += g != e / n && s->group[g] > s->group[e / n] - slack;
    return n_before < c->params.n_groups_used;
}

static void check_choice(const td_device *dev, const route_case *c, const scored *s,
                         const int32_t *experts)
{
    bool is_chosen[EXPERTS_MAX] = {false};
    double last = INFINITY;
    for (uint32_t i = 0; i < c->n_used; i++) {
        assert_in_range(experts[i], 0, c->n_experts - 1);
        assert_false(is_chosen[experts[i]]);
        is_chosen[experts[i]] = true;
        assert_true(s->score[experts[i]] <= last + EPSILON);
        last = s->score[experts[i]];
    }
    for (uint32_t e = 0; e < c->n_experts; e++)
        if (!is_chosen[e] && is_eligible(c, s, e, EPSILON) && s->score[e] > last + EPSILON)
            fail_msg("%s: expert %u of score %g is left out, the last chosen has %g",
                     device_spec(dev), e, s->score[e], last);
    if (c->params.n_groups > 1)
        check_groups(dev, c, s, experts);
}

static void check_weights(const td_device *dev, const route_case *c, const scored *s,
                          const int32_t *experts, const float *weights)
{
    double want[EXPERTS_MAX], top = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < c->n_used; i++)
        top = fmax(top, s->prob[experts[i]]);
    for (uint32_t i = 0; i < c->n_used; i++) {
        want[i] = s->prob[experts[i]];
        if (c->params.gating == TD_GATING_SELECTED)
            want[i] = exp(want[i] - top);
        sum += want[i];
    }
    for (uint32_t i = 0; i < c->n_used; i++) {
        if (c->params.gating == TD_GATING_SELECTED || c->params.is_normalized)
            want[i] /= fmax(sum, c->params.gating == TD_GATING_SELECTED ? 0 : 0x1p-14);
        want[i] *= (double)c->params.scale;
        check_close(weights[i], want[i], 4e-6 * fabs(want[i]) + 1e-30, i, "weight", dev);
    }
}

static void check_case(const route_case *c)
{
    float *logits = new_random((size_t)N_ROWS * c->n_experts, c->n_experts + c->n_used);
    float *bias = new_random(c->n_experts, 6);
    int32_t *first = NULL;
    scored s;
    for (uint32_t i = 0; i < N_ROWS * c->n_experts; i++)
        logits[i] *= i / c->n_experts % 2 ? 1.0f : 12.0f; /* rows with and without clear winners */
    for (size_t d = 0; d < n_test_devices; d++) {
        route_bench m = begin_case(test_devices[d], c, bias);
        for (uint32_t r = 0; r < N_ROWS; r++)
            set_row(&m, c, r, logits + (size_t)r * c->n_experts);
        bench_run(&m.b, N_ROWS, 0);
        for (uint32_t r = 0; r < N_ROWS; r++) {
            const int32_t *experts = i32_data(m.experts) + r * c->n_used;
            score_all(c, logits + (size_t)r * c->n_experts, bias, &s);
            check_choice(test_devices[d], c, &s, experts);
            check_weights(test_devices[d], c, &s, experts, view_row(td_all(m.weights), r));
        }
        if (d == 0) {
            first = test_alloc(N_ROWS * c->n_used, sizeof *first);
            memcpy(first, i32_data(m.experts), N_ROWS * c->n_used * sizeof *first);
        } else if (is_bit_equal_to_scalar(test_devices[d])) {
            assert_memory_equal(first, i32_data(m.experts), N_ROWS * c->n_used * sizeof *first);
        }
        bench_destroy(&m.b);
    }
    free(first);
    free(bias);
    free(logits);
}

static void test_route_chooses_the_best(void **state)
{
    (void)state;
    static const uint32_t sizes[][2] = {{1, 1}, {8, 2}, {60, 4}, {128, 8}, {257, 64}, {512, 10}};
    for (int gating = 0; gating < 3; gating++)
        for (size_t i = 0; i < TD_COUNT(sizes); i++)
            for (int variant = 0; variant < 4; variant++)
                check_case(&(route_case){sizes[i][0],
                                         sizes[i][1],
                                         {.gating = (td_gating)gating,
                                          .is_normalized = variant & 1,
                                          .scale = variant & 1 ? 2.5f : 1.0f},
                                         variant >= 2});
}

static void test_only_the_best_groups_are_used(void **state)
{
    (void)state;
    for (int gating = 0; gating < 2; gating++) {
        const td_route_params some = {(td_gating)gating, 8, 4, true, 2.5f};
        const td_route_params one = {(td_gating)gating, 8, 1, false, 1.0f};
        const td_route_params single = {(td_gating)gating, 16, 3, false, 16.0f};
        check_case(&(route_case){256, 8, some, true});
        check_case(&(route_case){64, 8, one, false});
        check_case(&(route_case){64, 3, one, true});
        check_case(&(route_case){16, 3, single, true}); /* groups of one */
    }
}

static void test_ties_go_to_the_lower_index(void **state)
{
    (void)state;
    enum { N = 40, USED = 5 };
    for (size_t k = 0; k < 3 * n_test_devices; k++) {
        td_device *dev = test_devices[k / 3];
        const route_case c = {N, USED, {.gating = (td_gating)(k % 3), .scale = 1}, false};
        route_bench m = begin_case(dev, &c, NULL);
        float logits[N];
        for (uint32_t i = 0; i < N; i++)
            logits[i] = i == 30 || i == 20 ? 3.0f : i % 2 ? 0.0f : -0.0f;
        set_row(&m, &c, 0, logits);
        for (uint32_t i = 0; i < N; i++)
            logits[i] = i < 10 ? NAN : -1.0f;
        set_row(&m, &c, 1, logits);
        bench_run(&m.b, 2, 0);
        static const int32_t want[USED] = {20, 30, 0, 1, 2};
        assert_memory_equal(i32_data(m.experts), want, sizeof want);
        for (uint32_t i = 0; i < USED; i++) { /* with NaN about: valid and distinct */
            const int32_t *experts = i32_data(m.experts) + USED;
            assert_in_range(experts[i], 0, N - 1);
            for (uint32_t j = 0; j < i; j++)
                assert_true(experts[j] != experts[i]);
        }
        /* A NaN among them is all of a softmax; else those that are none win. */
        assert_int_equal(isnan(f32_data(m.weights)[USED]) != 0,
                         c.params.gating == TD_GATING_SOFTMAX);
        if (c.params.gating != TD_GATING_SOFTMAX)
            assert_in_range(i32_data(m.experts)[USED], 10, N - 1);
        bench_destroy(&m.b);
    }
}

static void test_a_row_does_not_depend_on_its_batch(void **state)
{
    (void)state;
    enum { N = 128, USED = 8 };
    float *logits = new_random((size_t)N_ROWS * N, 7);
    for (size_t d = 0; d < n_test_devices; d++) {
        const route_case c = {N, USED, {TD_GATING_SOFTMAX, 0, 0, true, 1.0f}, false};
        int32_t experts[USED];
        float weights[USED];
        route_bench m = begin_case(test_devices[d], &c, NULL);
        set_row(&m, &c, 0, logits);
        bench_run(&m.b, 1, 0);
        memcpy(experts, i32_data(m.experts), sizeof experts);
        memcpy(weights, f32_data(m.weights), sizeof weights);
        for (uint32_t r = 0; r < N_ROWS; r++)
            set_row(&m, &c, r, logits + (size_t)(N_ROWS - 1 - r) * N);
        bench_run(&m.b, N_ROWS, 0);
        assert_memory_equal(i32_data(m.experts) + (N_ROWS - 1) * USED, experts, sizeof experts);
        check_same_bits(view_row(td_all(m.weights), N_ROWS - 1), weights, USED, "row invariance",
                        test_devices[d]);
        bench_destroy(&m.b);
    }
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_route_chooses_the_best),
        cmocka_unit_test(test_only_the_best_groups_are_used),
        cmocka_unit_test(test_ties_go_to_the_lower_index),
        cmocka_unit_test(test_a_row_does_not_depend_on_its_batch),
    };
    return TEST_MAIN(tests);
}
