/* Heads of a target's last layers under a stage worker: what is asked of one, and what it answers,
 * is refused or within its limits, and one that is asked for nonsense lives on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/rng.h"

#include "stage_peer.h"

static const td_stage_limits limits = {
    .n_slots = 4, .n_ctx = 200, .n_vocab = 300, .n_embd = 32, .has_head = true};

static bool reads(const td_stage_limits *l, const td_stage_msg *m)
{
    static td_stage_batch batch;
    static td_stage_asks asks;
    td_err err = {0};
    td_stage_record r = {.batch = &batch, .asks = &asks};
    td_cursor c = td_cursor_begin("STREAM", m->stream.bytes, m->stream.n, &err);
    return td_stage_read_record(&c, l, &r) && td_cursor_left(&c) == 0;
}

/* Behind a checksum that is right: where there is a head, of each slot once, within all limits. */
static void test_asks_beyond_the_limits_are_refused(void **state)
{
    (void)state;
    static const struct {
        td_stage_asks asks;
        td_record_kind kind;
        bool is_right;
    } cases[] = {
        {{1, {{3, 64, 200, 299, 0, 0, {0}}}}, TD_RECORD_ASK, true},
        {{0, {{0}}}, TD_RECORD_ASK, false},
        {{1, {{4, 1, 1, 0, 0, 0, {0}}}}, TD_RECORD_ASK, false},
        {{1, {{0, 0, 1, 0, 0, 0, {0}}}}, TD_RECORD_ASK, false},
        {{1, {{0, 65, 1, 0, 0, 0, {0}}}}, TD_RECORD_ASK, false},
        {{1, {{0, 1, 0, 0, 0, 0, {0}}}}, TD_RECORD_ASK, false},
        {{1, {{0, 1, 201, 0, 0, 0, {0}}}}, TD_RECORD_ASK, false},
        {{1, {{0, 1, 1, 300, 0, 0, {0}}}}, TD_RECORD_ASK, false},
        {{2, {{1, 1, 1, 0, 0, 0, {0}}, {1, 1, 1, 0, 0, 0, {0}}}}, TD_RECORD_ASK, false},
        {{1, {{0, 0, 0, 0, 1, 9, {299}}}}, TD_RECORD_GUESSES, true},
        {{0, {{0}}}, TD_RECORD_GUESSES, false},
        {{1, {{0, 0, 0, 0, 1, 9, {300}}}}, TD_RECORD_GUESSES, false},
    };
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        td_stage_asks asks = cases[i].asks;
        const td_stage_record record = {.kind = cases[i].kind, .asks = &asks};
        td_stage_limits none = limits;
        td_stage_writer w;
        td_stage_msg m;
        size_t n_bytes;
        td_stage_writer_begin(&w, bytes, NULL);
        assert_true(td_stage_writer_put(&w, &record));
        td_stage_writer_end(&w, 1, 2, &n_bytes);
        assert_true(td_stage_decode(bytes, n_bytes, &m, NULL));
        if (reads(&limits, &m) != cases[i].is_right)
            fail_msg("case %zu", i);
        none.has_head = false;
        assert_false(reads(&none, &m));
    }
}

/* Asks of a slot and another, nearly possible where they are not. */
static void draw_asks(td_stage_asks *a, uint64_t draw, uint32_t slot, const uint32_t *lengths)
{
    uint32_t wild = td_noise_bits(draw, 9, 0) % 6 == 0;
    a->n = (uint8_t)(1 + td_noise_bits(draw, 9, 1) % 2);
    for (uint32_t k = 0; k < a->n; k++) {
        a->of[k].slot = (uint8_t)((slot + k) % 4);
        a->of[k].position = lengths[(slot + k) % 4] + 1 + wild * (td_noise_bits(draw, 9, 2) % 3);
        a->of[k].token = 7 + k;
        a->of[k].k = (uint8_t)(1 + td_noise_bits(draw, 9, 3 + k) % TD_STAGE_GUESSES_MAX);
    }
}

/* Jobs drawn so that many are possible, and the others nearly so. */
static void say_anything(peer *p, uint64_t draw, uint32_t *lengths)
{
    static uint8_t bytes[TD_WIRE_MESSAGE_MAX];
    static td_stage_batch b;
    static td_stage_asks asks;
    td_stage_writer w;
    size_t n;
    td_stage_writer_begin(&w, bytes, NULL);
    uint32_t n_records = 1 + td_noise_bits(draw, 0, 0) % 6;
    for (uint32_t i = 1; i <= n_records; i++) {
        uint32_t slot = (uint32_t)td_noise_bits(draw, i, 0) % 4;
        uint32_t wild = td_noise_bits(draw, i, 1) % 12 == 0;
        uint32_t kind = 1 + (uint32_t)td_noise_bits(draw, i, 2) % 7;
        td_stage_record r = {.kind = (td_record_kind)(kind > 5 ? TD_RECORD_ASK : kind),
                             .slot = (uint8_t)slot,
                             .from_slot = (uint8_t)(td_noise_bits(draw, i, 3) % 4),
                             .length = wild ? td_noise_bits(draw, i, 4) % 201 : lengths[slot],
                             .open = {.top_p = 1, .repeat_penalty = 1},
                             .batch = &b,
                             .asks = &asks};
        if (r.kind == TD_RECORD_ASK)
            draw_asks(&asks, draw * 8 + i, slot, lengths);
        if (r.kind == TD_RECORD_OPEN) {
            r.length = wild ? 64 : 0;
            lengths[slot] = 0;
        }
        if (r.kind == TD_RECORD_BATCH) {
            b = (td_stage_batch){.id = draw * 8 + i,
                                 .is_prefill = td_noise_bits(draw, i, 5) % 2,
                                 .n_rows = (uint16_t)(1 + td_noise_bits(draw, i, 6) % 9),
                                 .n_out = 1};
            for (uint32_t k = 0; k < b.n_rows; k++)
                b.rows[k] = (td_stage_row){.slot = (uint8_t)slot,
                                           .position = lengths[slot]++ + wild * (k % 3),
                                           .token = k,
                                           .is_output = k + 1u == b.n_rows};
        }
        td_stage_writer_put(&w, &r);
        lengths[slot] = lengths[slot] > 180 ? 180 : lengths[slot];
    }
    td_stage_writer_end(&w, p->session, ++p->n_sent, &n);
    td_link_send(p->link, 0, bytes, n, NULL);
    if (td_noise_bits(draw, 0, 1) % 4 == 0)
        say(p, (td_stage_msg){.type = TD_STAGE_CANCEL, .cancel = draw * 8 + 1});
}

static void test_a_head_lives_through_nonsense(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 60; round++) {
        peer p;
        uint32_t lengths[4] = {0};
        join(&p, 1000 + round, 1 + round % 2);
        for (uint32_t slot = 0; slot < 4 && round % 3;
             slot++) { /* else: rows of none that is open */
            uint8_t bytes[TD_WIRE_MESSAGE_MAX];
            size_t n;
            td_stage_writer w;
            td_stage_writer_begin(&w, bytes, NULL);
            td_stage_writer_put(&w, &(td_stage_record){.kind = TD_RECORD_OPEN,
                                                       .slot = (uint8_t)slot,
                                                       .open = {.top_p = 1, .repeat_penalty = 1}});
            td_stage_writer_end(&w, p.session, ++p.n_sent, &n);
            td_link_send(p.link, 0, bytes, n, NULL);
        }
        p.last = TD_STAGE_HELLO;
        for (uint32_t i = 0; i < 30 && p.last != TD_STAGE_FAIL; i++) {
            say_anything(&p, round * 64ull + i, lengths);
            hear(&p, TD_STAGE_FAIL, 5);
        }
        say(&p, (td_stage_msg){.type = TD_STAGE_BYE});
        td_link_close(&p.link, true);
    }
}

static int begin_headed(void **state)
{
    model_path = realpath("tests/data/golden/mtp/glm4moe-own/model.gguf", NULL);
    return model_path ? begin(state) : -1;
}

static int begin_hybrid(void **state)
{
    model_path = realpath("tests/data/golden/mtp/qwen35-informed/model.gguf", NULL);
    return model_path ? begin(state) : -1;
}

static int end_headed(void **state)
{
    free((void *)(uintptr_t)model_path);
    model_path = NULL;
    return end(state);
}

/* Where the model has none, no plan says that it has, and no record of one is taken. */
static void test_a_head_is_where_the_model_has_one(void **state)
{
    (void)state;
    for (uint32_t way = 0; way < 2; way++) {
        uint8_t bytes[TD_WIRE_MESSAGE_MAX];
        td_stage_asks asks = {1, {{0, 1, 1, 7, 0, 0, {0}}}};
        td_stage_writer w;
        size_t n;
        peer p;
        if (way) {
            join(&p, 8900, 1);
            td_stage_writer_begin(&w, bytes, NULL);
            td_stage_writer_put(&w, &(td_stage_record){.kind = TD_RECORD_ASK, .asks = &asks});
            td_stage_writer_end(&w, p.session, ++p.n_sent, &n);
            td_link_send(p.link, 0, bytes, n, NULL);
        } else {
            td_stage_plan plan = greet(&p, 8800, 1);
            plan.head = 1;
            say(&p, (td_stage_msg){.type = TD_STAGE_PLAN, .plan = plan});
        }
        hear(&p, TD_STAGE_FAIL, 5000);
        assert_int_equal(p.last, TD_STAGE_FAIL);
        assert_non_null(strstr(p.reason, way ? "where there is none" : "no head"));
        td_link_close(&p.link, true);
    }
}

int main(void)
{
    const struct CMUnitTest plain[] = {
        cmocka_unit_test(test_asks_beyond_the_limits_are_refused),
        cmocka_unit_test(test_a_head_is_where_the_model_has_one),
    };
    const struct CMUnitTest headed[] = {cmocka_unit_test(test_a_head_lives_through_nonsense)};
    return cmocka_run_group_tests(plain, begin, end) ||
           cmocka_run_group_tests(headed, begin_headed, end_headed) ||
           cmocka_run_group_tests(headed, begin_hybrid, end_headed);
}
