/* Who gets which experts: by shares, and by counts of a router that prefers a few of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "toy_model.h"

#include "base/io.h"
#include "planning/dealing.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#define N_LAYERS  2u
#define N_EXPERTS 64u

static td_model *model;
static char path[] = "/tmp/tandem-counts-XXXXXX";

/* A layer's experts by heat, the hottest first, as r^-1 has it; each layer's own. */
static uint32_t expert_of(uint32_t layer, uint32_t rank) { return (rank * 27 + 11 * layer) & 63; }

static double heat_of(uint32_t rank) { return floor(1e6 / (rank + 1)); }

static int open_model(void **state)
{
    toy_shape shape = TOY_SHAPE;
    td_err err = {0};
    (void)state;
    shape.n_layer = N_LAYERS;
    toy t = toy_begin("qwen3moe", shape);
    toy_u32(&t, "expert_count", N_EXPERTS);
    toy_u32(&t, "expert_used_count", 8);
    toy_u32(&t, "expert_feed_forward_length", 32);
    for (uint32_t i = 0; i < N_LAYERS; i++) {
        static const char *const names[] = {"ffn_gate", "ffn_up", "ffn_down"};
        toy_add_layer(&t, i, "attn_q_norm.weight", 16, 1);
        toy_add_layer(&t, i, "attn_k_norm.weight", 16, 1);
        toy_add_layer(&t, i, "ffn_gate_inp.weight", 64, N_EXPERTS);
        for (uint32_t k = 0; k < TD_COUNT(names); k++) {
            char name[40];
            snprintf(name, sizeof name, "blk.%u.%s.weight", i, names[k]);
            toy_drop_tensor(&t, name);
            snprintf(name, sizeof name, "%s_exps.weight", names[k]);
            toy_tensor *x = toy_add_layer(&t, i, name, k == 2 ? 32 : 64, k == 2 ? 64 : 32);
            x->n_dims = 3;
            x->ne[2] = N_EXPERTS;
        }
    }
    if (!(model = toy_open(&t, &err)))
        fail_msg("%s", err.message);
    char text[4096] = "{\"stages\": [{\"asked\": [";
    double asked[N_LAYERS * N_EXPERTS];
    for (uint32_t i = 0; i < N_LAYERS * N_EXPERTS; i++)
        asked[i / N_EXPERTS * N_EXPERTS + expert_of(i / N_EXPERTS, i % N_EXPERTS)] =
            heat_of(i % N_EXPERTS);
    size_t n = strlen(text);
    for (uint32_t i = 0; i < N_LAYERS * N_EXPERTS; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%.0f", i ? ", " : "", asked[i]);
    n += (size_t)snprintf(text + n, sizeof text - n, "]}]}");
    close(mkstemp(path));
    assert_true(td_io_replace_file(path, text, n, &err));
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    td_model_close(&model);
    return unlink(path);
}

static td_dealing *deal(const char *place, uint32_t n_seats, const char *stats)
{
    static const char *const specs[TD_SEATS_MAX] = {"a", "b", "c"};
    td_device *devs[TD_SEATS_MAX] = {NULL};
    td_err err = {0};
    char text[TD_PLACE_BYTES];
    td_dealing *d = td_dealing_create(
        model, place,
        &(td_dealing_params){.specs = specs, .devs = devs, .n_seats = n_seats, .stats = stats},
        text, &err);
    if (!d)
        fail_msg("%s", err.message);
    return d;
}

/* Of the rows that ask a layer's experts. */
static double share_of(const td_dealing *d, uint32_t layer, uint32_t seat)
{
    double sum = 0, all = 0;
    for (uint32_t rank = 0; rank < N_EXPERTS; rank++) {
        all += heat_of(rank);
        if (td_dealing_layer(d, layer)[expert_of(layer, rank)] == seat)
            sum += heat_of(rank);
    }
    return sum / all;
}

static void test_without_counts_experts_go_in_their_order(void **state)
{
    (void)state;
    td_dealing *d = deal("experts=3,1", 2, NULL);
    for (uint32_t i = 0; i < N_LAYERS; i++)
        for (uint32_t e = 0; e < N_EXPERTS; e++)
            assert_int_equal(td_dealing_layer(d, i)[e], e >= 48);
    td_dealing_destroy(&d);
}

/* The hottest expert alone is a fifth of all rows. */
static void test_hot_experts_are_dealt_so_that_each_device_has_its_share_of_rows(void **state)
{
    (void)state;
    static const struct {
        const char *place;
        uint32_t n;
        double shares[3];
    } cases[] = {{"experts=1,1", 2, {0.5, 0.5}},
                 {"experts=3,1", 2, {0.75, 0.25}},
                 {"experts=1,4", 2, {0.2, 0.8}},
                 {"experts=9,1", 2, {0.9, 0.1}},
                 {"experts=60,25,15", 3, {0.60, 0.25, 0.15}}};
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        td_dealing *d = deal(cases[i].place, cases[i].n, path);
        for (uint32_t layer = 0; layer < N_LAYERS; layer++)
            for (uint32_t k = 0; k < cases[i].n; k++) {
                double share = share_of(d, layer, k), wanted = cases[i].shares[k];
                uint32_t count = td_dealing_count(d, layer, k);
                if (!(fabs(share - wanted) < 0.001))
                    fail_msg("%s: device %u has %.3f of layer %u", cases[i].place, k, share, layer);
                assert_true(fabs(count - wanted * N_EXPERTS) < 1);
            }
        td_dealing_destroy(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_counts_experts_go_in_their_order),
        cmocka_unit_test(test_hot_experts_are_dealt_so_that_each_device_has_its_share_of_rows),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
