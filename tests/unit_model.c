/* An opened model: its parameters, its rotation angles against formulas of their own, what its
 * parts weigh, and every allocation failing once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "target/chain.h"

#include "toy_model.h"

static td_model *open_toy(const toy *t)
{
    td_err err = {0};
    td_model *m = toy_open(t, &err);
    if (!m)
        fail_msg("%s", err.message);
    return m;
}

static void test_model_reads_its_parameters(void **state)
{
    (void)state;
    toy t = toy_begin("qwen3", (toy_shape){48, 6, 3, 16, 3, 80, 1000, true, false});
    td_model *m = open_toy(&t);
    const td_hparams *h = td_model_hparams(m);
    assert_string_equal(td_model_arch(m)->name, "qwen3");
    assert_int_equal(h->n_vocab, TOY_VOCAB);
    assert_int_equal(h->n_embd, 48);
    assert_int_equal(h->n_layer, 3);
    assert_int_equal(h->n_ff, 80);
    assert_int_equal(h->n_head, 6);
    assert_int_equal(h->n_head_kv, 3);
    assert_int_equal(h->head_dim_k, 16);
    assert_int_equal(h->head_dim_v, 16);
    assert_int_equal(h->n_rot, 16);
    assert_int_equal(h->n_ctx_train, 1000);
    assert_int_equal(h->rope_orig_ctx, 1000);
    assert_false(h->is_tied);
    assert_string_not_equal(td_model_name(m), "Toy"); /* the file's name, for want of another */
    td_model_close(&m);
    assert_null(m);
    td_model_close(&m);
    toy_str(&t, "general.name", "Toy");
    m = open_toy(&t);
    assert_string_equal(td_model_name(m), "Toy");
    td_model_close(&m);
}

static void test_model_derives_what_is_left_out(void **state)
{
    (void)state;
    toy_shape s = TOY_SHAPE;
    s.n_head_kv = s.n_head;
    s.is_untied = false;
    toy t = toy_begin("llama", s);
    toy_drop_key(&t, "attention.head_count_kv");
    toy_drop_key(&t, "rope.freq_base");
    td_model *m = open_toy(&t);
    const td_hparams *h = td_model_hparams(m);
    assert_int_equal(h->n_head_kv, 4);
    assert_int_equal(h->head_dim_k, 16);
    assert_true(h->rope_base == 10000.0f);
    assert_true(!h->is_yarn && h->rope_factor == 1.0f);
    assert_true(h->is_tied);
    td_model_close(&m);
    /* Keys and values of unlike sizes, and a partial rotation. */
    s = (toy_shape){64, 4, 2, 16, 2, 96, 256, true, false};
    t = toy_begin("llama", s);
    toy_u32(&t, "attention.key_length", 16);
    toy_u32(&t, "attention.value_length", 24);
    toy_u32(&t, "rope.dimension_count", 6);
    for (uint32_t i = 0; i < 2; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.attn_v.weight", i);
        toy_find(&t, name)->ne[1] = 48;
        snprintf(name, sizeof name, "blk.%u.attn_output.weight", i);
        toy_find(&t, name)->ne[0] = 96;
    }
    m = open_toy(&t);
    assert_int_equal(td_model_hparams(m)->head_dim_v, 24);
    assert_int_equal(td_model_hparams(m)->n_rot, 6);
    td_model_close(&m);
}

/* -- rotation ------------------------------------------------------------------------------- */

#define N_ROT 64u

static toy rope_toy(float base)
{
    toy t = toy_begin("llama", (toy_shape){128, 2, 2, 64, 1, 32, 131072, true, false});
    toy_f32(&t, "rope.freq_base", base);
    return t;
}

/* Angles of pair i are position * speed(i); cos and sin times magnitude. */
static void check_angles(const toy *t, const double speeds[N_ROT / 2], double magnitude)
{
    static const uint32_t positions[] = {0, 1, 2, 63, 1000, 131071, 16777215};
    td_model *m = open_toy(t);
    assert_int_equal(td_model_hparams(m)->n_rot, N_ROT);
    float got[N_ROT];
    td_err err = {0};
    td_rope *rope = td_rope_create(m, 1024, &err);
    assert_non_null(rope);
    for (size_t k = 0; k < TD_COUNT(positions); k++) {
        td_rope_row(rope, positions[k], got);
        for (uint32_t i = 0; i < N_ROT / 2; i++) {
            long double angle = (long double)positions[k] * speeds[i];
            double want_cos = magnitude * (double)cosl(angle);
            double want_sin = magnitude * (double)sinl(angle);
            /* 2^-24 of rounding to float, and what 16 million turns make of a speed's last bit */
            double slack = 1e-7 * magnitude + 4e-16 * fabs((double)angle);
            if (fabs((double)got[2 * i] - want_cos) > slack ||
                fabs((double)got[2 * i + 1] - want_sin) > slack)
                fail_msg("position %u pair %u: (%g, %g), expected (%g, %g)", positions[k], i,
                         (double)got[2 * i], (double)got[2 * i + 1], want_cos, want_sin);
        }
    }
    td_rope_destroy(&rope);
    td_model_close(&m);
}

static void plain_speeds(double base, double speeds[N_ROT / 2])
{
    for (uint32_t i = 0; i < N_ROT / 2; i++)
        speeds[i] = exp(-log(base) * (2.0 * i / N_ROT));
}

static void test_rope_turns_by_powers_of_the_base(void **state)
{
    (void)state;
    double speeds[N_ROT / 2];
    static const float bases[] = {10000.0f, 500000.0f, 1000000.0f};
    for (size_t i = 0; i < TD_COUNT(bases); i++) {
        toy t = rope_toy(bases[i]);
        plain_speeds((double)bases[i], speeds);
        check_angles(&t, speeds, 1.0);
    }
}

static void test_rope_linear_divides_the_position(void **state)
{
    (void)state;
    double speeds[N_ROT / 2];
    plain_speeds(10000, speeds);
    for (uint32_t i = 0; i < N_ROT / 2; i++)
        speeds[i] /= 2.5;
    toy t = rope_toy(10000);
    toy_str(&t, "rope.scaling.type", "linear");
    toy_f32(&t, "rope.scaling.factor", 2.5f);
    check_angles(&t, speeds, 1.0);
    t = rope_toy(10000); /* a factor alone */
    toy_f32(&t, "rope.scaling.factor", 2.5f);
    check_angles(&t, speeds, 1.0);
    t = rope_toy(10000); /* the old key */
    toy_f32(&t, "rope.scale_linear", 2.5f);
    check_angles(&t, speeds, 1.0);
    t = rope_toy(10000); /* a factor that is said to be off */
    toy_str(&t, "rope.scaling.type", "none");
    toy_f32(&t, "rope.scaling.factor", 2.5f);
    plain_speeds(10000, speeds);
    check_angles(&t, speeds, 1.0);
}

static void test_rope_factors_slow_single_pairs(void **state)
{
    (void)state;
    double speeds[N_ROT / 2];
    plain_speeds(500000, speeds);
    toy t = rope_toy(500000);
    toy_tensor *x = toy_add(&t, "rope_freqs.weight", N_ROT / 2, 1);
    x->offset = 1;
    x->scale = 0;
    x->poison = 8;
    x->poison_first = 20;
    x->n_poison = 5;
    for (uint32_t i = 20; i < 25; i++)
        speeds[i] /= 8;
    check_angles(&t, speeds, 1.0);
}

/* YaRN, from its paper's words: pairs that turn more than 32 times within the original context are
 * left alone, those that turn less than once are interpolated, and in between, by whole pairs, a
 * ramp mixes both. */
static void yarn_speeds(double base, double factor, double context, double speeds[N_ROT / 2])
{
    double fast[N_ROT / 2];
    plain_speeds(base, fast);
    int low = 0, high = (int)N_ROT - 1;
    for (int i = 0; i < (int)N_ROT; i++) {
        double turns = context * exp(-log(base) * (2.0 * i / N_ROT)) / (2 * M_PI);
        if (turns >= 32)
            low = i;
        if (turns <= 1 && i < high)
            high = i;
    }
    for (int i = 0; i < (int)N_ROT / 2; i++) {
        double part = i <= low ? 0 : i >= high ? 1 : (double)(i - low) / (high - low);
        speeds[i] = fast[i] * (1 - part) + fast[i] / factor * part;
    }
}

static void test_rope_yarn_mixes_fast_and_slow_pairs(void **state)
{
    (void)state;
    static const struct {
        float base, factor;
        uint32_t context;
    } cases[] = {{10000, 4, 4096},
                 {1000000, 4, 32768},
                 {500000, 16, 8192},
                 {10000, 32, 2048},
                 {10000, 2, 131072}};
    for (size_t c = 0; c < TD_COUNT(cases); c++) {
        double speeds[N_ROT / 2];
        toy t = rope_toy(cases[c].base);
        toy_str(&t, "rope.scaling.type", "yarn");
        toy_f32(&t, "rope.scaling.factor", cases[c].factor);
        toy_u32(&t, "rope.scaling.original_context_length", cases[c].context);
        yarn_speeds((double)cases[c].base, (double)cases[c].factor, cases[c].context, speeds);
        check_angles(&t, speeds, 1 + 0.1 * log((double)cases[c].factor));
    }
}

/* -- weights -------------------------------------------------------------------------------- */

static td_device *open_host(void)
{
    td_err err = {0};
    td_device *dev = td_device_create("host:1", &err);
    if (!dev)
        fail_msg("%s", err.message);
    return dev;
}

static uint64_t used_bytes(const td_device *dev)
{
    uint64_t used, budget;
    td_device_memory(dev, &used, &budget);
    return used;
}

static void test_tied_embeddings_stand_at_both_ends(void **state)
{
    (void)state;
    toy_shape s = TOY_SHAPE;
    td_device *dev = open_host();
    for (int is_untied = 0; is_untied < 2; is_untied++) {
        s.is_untied = is_untied;
        toy t = toy_begin("llama", s);
        td_model *m = open_toy(&t);
        assert_int_equal(td_model_hparams(m)->is_tied, !is_untied);
        uint64_t middle = td_weights_end_bytes(m, NULL, dev, 1, 2),
                 first = td_weights_end_bytes(m, NULL, dev, 0, 0);
        uint64_t last = td_weights_end_bytes(m, NULL, dev, 3, 3),
                 all = td_weights_end_bytes(m, NULL, dev, 0, 3);
        assert_int_equal(middle, 0);
        assert_true(first >= 4ull * 64 * TOY_VOCAB);
        assert_true(last > first);                              /* the norm too */
        assert_int_equal(all, is_untied ? first + last : last); /* tied: loaded once */
        td_weights *w = td_weights_load(
            &(td_weights_params){.model = m, .dev = dev, .first = 3, .last = 3}, NULL);
        assert_non_null(w);
        assert_int_equal(w->ends[TD_W_OUT] != NULL, is_untied);
        assert_int_equal(w->ends[TD_W_EMBD] != NULL, !is_untied);
        assert_non_null(w->ends[TD_W_OUT_NORM]);
        assert_int_equal(used_bytes(dev), last + td_weights_layer_bytes(m, dev, 3, TD_SHARE_ALL));
        td_weights_destroy(&w);
        assert_int_equal(used_bytes(dev), 0);
        td_model_close(&m);
    }
    td_device_destroy(&dev);
}

typedef struct {
    uint64_t done, total, n_calls, n_calls_max; /* 0: any number */
} progress;

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    progress *p = user;
    assert_true(done > p->done && done <= total);
    p->done = done;
    p->total = total;
    p->n_calls++;
    return p->n_calls != p->n_calls_max;
}

static void test_loading_tells_its_progress(void **state)
{
    (void)state;
    toy t = toy_begin("qwen2", (toy_shape){64, 4, 2, 16, 4, 96, 256, true, true});
    td_model *m = open_toy(&t);
    td_device *dev = open_host();
    progress p = {0};
    const td_weights_params params = {
        .model = m, .dev = dev, .last = 3, .progress = on_progress, .user = &p};
    td_weights *w = td_weights_load(&params, NULL);
    assert_non_null(w);
    assert_int_equal(p.done, p.total);
    assert_int_equal(p.n_calls, t.n_tensors);
    assert_non_null(w->layers[2][TD_W_BQ]);
    assert_null(w->layers[2][TD_W_BO]);
    assert_null(w->layers[2][TD_W_Q_NORM]);
    td_weights_destroy(&w);
    td_err err = {0};
    p = (progress){.n_calls_max = 5};
    assert_null(td_weights_load(&params, &err)); /* told to stop */
    assert_int_equal(err.code, TD_E_AGAIN);
    assert_int_equal(p.n_calls, 5);
    assert_int_equal(used_bytes(dev), 0);
    td_device_destroy(&dev);
    td_model_close(&m);
}

static void test_a_file_that_shrinks_is_an_error(void **state)
{
    (void)state;
    char path[] = "/tmp/unit_model_XXXXXX";
    toy t = toy_begin("llama", TOY_SHAPE);
    toy_save(&t, path);
    td_err err = {0};
    td_model *m = td_model_open(path, &err);
    assert_non_null(m);
    assert_int_equal(truncate(path, 30000), 0);
    td_device *dev = open_host();
    td_weights *w = td_weights_load(&(td_weights_params){.model = m, .dev = dev, .last = 3}, &err);
    assert_null(w);
    assert_true(err.code == TD_E_IO || err.code == TD_E_DATA);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(used_bytes(dev), 0);
    td_device_destroy(&dev);
    td_model_close(&m);
    unlink(path);
}

/* -- failing allocations -------------------------------------------------------------------- */

static void test_open_survives_every_failing_allocation(void **state)
{
    (void)state;
    char path[] = "/tmp/unit_model_XXXXXX";
    toy t = toy_begin("qwen3", (toy_shape){32, 2, 1, 16, 1, 32, 64, true, false});
    toy_save(&t, path);
    uint64_t n = 0;
    for (bool is_ok = false; !is_ok;) {
        td_err err = {0};
        td_alloc_fail_at(++n);
        td_model *m = td_model_open(path, &err);
        td_alloc_fail_at(0);
        is_ok = m != NULL;
        if (!is_ok && err.code != TD_E_NOMEM)
            fail_msg("allocation %u: %s", (unsigned)n, err.message);
        td_model_close(&m);
    }
    assert_true(n > 10);
    unlink(path);
}

static void test_chain_survives_every_failing_allocation(void **state)
{
    (void)state;
    toy t = toy_begin("llama", (toy_shape){32, 2, 1, 16, 2, 32, 64, false, false});
    td_model *m = open_toy(&t);
    const char *const specs[] = {"host:1", "host:1"};
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    uint64_t n = 0;
    for (bool is_ok = false; !is_ok;) {
        td_err err = {0};
        td_alloc_fail_at(++n);
        td_chain *chain = td_chain_create(
            &(td_layout_params){
                .model = m, .specs = specs, .n_specs = 2, .kv = {.k = f16, .v = f16}, .n_slots = 1},
            &err);
        td_alloc_fail_at(0);
        is_ok = chain != NULL;
        if (!is_ok && err.code != TD_E_NOMEM)
            fail_msg("allocation %u: %s", (unsigned)n, err.message);
        td_chain_destroy(&chain);
    }
    assert_true(n > 50);
    td_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_reads_its_parameters),
        cmocka_unit_test(test_model_derives_what_is_left_out),
        cmocka_unit_test(test_rope_turns_by_powers_of_the_base),
        cmocka_unit_test(test_rope_linear_divides_the_position),
        cmocka_unit_test(test_rope_factors_slow_single_pairs),
        cmocka_unit_test(test_rope_yarn_mixes_fast_and_slow_pairs),
        cmocka_unit_test(test_tied_embeddings_stand_at_both_ends),
        cmocka_unit_test(test_loading_tells_its_progress),
        cmocka_unit_test(test_a_file_that_shrinks_is_an_error),
        cmocka_unit_test(test_open_survives_every_failing_allocation),
        cmocka_unit_test(test_chain_survives_every_failing_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
