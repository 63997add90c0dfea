/* One valid message of every type, for the tests of wire and link. */
#ifndef TD_TESTS_WIRE_SAMPLES_H
#define TD_TESTS_WIRE_SAMPLES_H

#include "transport/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define SAMPLES_MAX 16

/* Valid for n_vocab >= 1000 and n_ctx >= 20000; `ids` is filled with ids below 1000. */
static inline int samples_make(td_wire_msg m[SAMPLES_MAX], uint32_t ids[TD_WIRE_IDS_MAX])
{
    int n = 0;
    for (uint32_t i = 0; i < TD_WIRE_IDS_MAX; i++)
        ids[i] = i * 37 % 1000;
    td_wire_hello hello = {.protocol = TD_WIRE_PROTOCOL,
                           .role = TD_WIRE_ROLE_COORDINATOR,
                           .node = 0xfedcba9876543210u,
                           .n_vocab = 32000,
                           .n_hashed = 31999,
                           .vocab_hash = 0x0123456789abcdefu,
                           .n_ctx = 4096,
                           .max_draft = 16,
                           .ping_us = 1000000,
                           .build = "tandem 0.1.0"};
    m[n++] = (td_wire_msg){.type = TD_WIRE_HELLO, .hello = hello};
    hello.role = TD_WIRE_ROLE_DRAFT;
    hello.build[0] = 0;
    m[n++] = (td_wire_msg){.type = TD_WIRE_HELLO_OK, .hello = hello};
    m[n++] = (td_wire_msg){.type = TD_WIRE_REFUSE,
                           .refuse = {.code = TD_WIRE_REFUSE_BUSY, .reason = "busy (1 of 1)"}};
    m[n++] = (td_wire_msg){.type = TD_WIRE_HASH_QUERY, .hash = {.a = 5, .b = 9}};
    m[n++] = (td_wire_msg){.type = TD_WIRE_HASH_REPLY, .hash = {.a = 5, .b = 9, .hash = 1u << 31}};
    m[n++] = (td_wire_msg){.type = TD_WIRE_OPEN,
                           .open = {.sequence = 7,
                                    .stream = UINT64_MAX,
                                    .temperature = 0.8f,
                                    .top_k = 40,
                                    .top_p = 0.95f,
                                    .min_p = 0.05f,
                                    .repeat_penalty = 1.1f,
                                    .repeat_last_n = 64}};
    m[n++] =
        (td_wire_msg){.type = TD_WIRE_FEED,
                      .feed = {.sequence = 7, .epoch = 2, .position = 11, .n = 13, .ids = ids}};
    m[n++] = (td_wire_msg){
        .type = TD_WIRE_PROPOSE,
        .propose = {.sequence = 7, .epoch = UINT32_MAX, .position = 24, .k = 4, .goes_on = true}};
    m[n++] = (td_wire_msg){.type = TD_WIRE_DRAFT,
                           .draft = {.sequence = 7,
                                     .epoch = 3,
                                     .position = 24,
                                     .n = 4,
                                     .busy_us = 0xfedcba98u,
                                     .ids = ids + 100}};
    m[n++] = (td_wire_msg){.type = TD_WIRE_CLOSE, .close = {.sequence = UINT32_MAX}};
    m[n++] = (td_wire_msg){.type = TD_WIRE_PING, .ping = {.progress = 1, .n_pending = 2}};
    m[n++] = (td_wire_msg){.type = TD_WIRE_PONG, .ping = {.progress = UINT64_MAX}};
    m[n++] = (td_wire_msg){.type = TD_WIRE_BYE};
    for (int i = 0; i < n; i++) {
        m[i].session = 0x8000000000000001u;
        m[i].seq = td_wire_is_hello_family(m[i].type) ? 0 : 3;
    }
    return n;
}

/* Field by field what the sender meant; pointers by what they point at. */
static inline void samples_assert_equal(const td_wire_msg *a, const td_wire_msg *b)
{
    assert_int_equal(a->type, b->type);
    assert_true(a->session == b->session && a->seq == b->seq);
    switch (a->type) {
    case TD_WIRE_HELLO:
    case TD_WIRE_HELLO_OK:
        assert_int_equal(a->hello.protocol, b->hello.protocol);
        assert_int_equal(a->hello.role, b->hello.role);
        assert_true(a->hello.node == b->hello.node);
        assert_int_equal(a->hello.n_vocab, b->hello.n_vocab);
        assert_int_equal(a->hello.n_hashed, b->hello.n_hashed);
        assert_true(a->hello.vocab_hash == b->hello.vocab_hash);
        assert_int_equal(a->hello.n_ctx, b->hello.n_ctx);
        assert_int_equal(a->hello.max_draft, b->hello.max_draft);
        assert_int_equal(a->hello.ping_us, b->hello.ping_us);
        assert_string_equal(a->hello.build, b->hello.build);
        break;
    case TD_WIRE_REFUSE:
        assert_int_equal(a->refuse.code, b->refuse.code);
        assert_string_equal(a->refuse.reason, b->refuse.reason);
        break;
    case TD_WIRE_HASH_QUERY:
    case TD_WIRE_HASH_REPLY:
        assert_int_equal(a->hash.a, b->hash.a);
        assert_int_equal(a->hash.b, b->hash.b);
        assert_true(a->type == TD_WIRE_HASH_QUERY || a->hash.hash == b->hash.hash);
        break;
    case TD_WIRE_OPEN:
        assert_int_equal(a->open.sequence, b->open.sequence);
        assert_true(a->open.stream == b->open.stream);
        assert_true(a->open.temperature == b->open.temperature);
        assert_int_equal(a->open.top_k, b->open.top_k);
        assert_true(a->open.top_p == b->open.top_p && a->open.min_p == b->open.min_p);
        assert_true(a->open.repeat_penalty == b->open.repeat_penalty);
        assert_int_equal(a->open.repeat_last_n, b->open.repeat_last_n);
        break;
    case TD_WIRE_FEED:
        assert_int_equal(a->feed.sequence, b->feed.sequence);
        assert_int_equal(a->feed.epoch, b->feed.epoch);
        assert_int_equal(a->feed.position, b->feed.position);
        assert_int_equal(a->feed.n, b->feed.n);
        assert_memory_equal(a->feed.ids, b->feed.ids, a->feed.n * sizeof *a->feed.ids);
        break;
    case TD_WIRE_PROPOSE:
        assert_int_equal(a->propose.sequence, b->propose.sequence);
        assert_int_equal(a->propose.epoch, b->propose.epoch);
        assert_int_equal(a->propose.position, b->propose.position);
        assert_int_equal(a->propose.k, b->propose.k);
        assert_int_equal(a->propose.goes_on, b->propose.goes_on);
        break;
    case TD_WIRE_DRAFT:
        assert_int_equal(a->draft.sequence, b->draft.sequence);
        assert_int_equal(a->draft.epoch, b->draft.epoch);
        assert_int_equal(a->draft.position, b->draft.position);
        assert_int_equal(a->draft.n, b->draft.n);
        assert_int_equal(a->draft.busy_us, b->draft.busy_us);
        if (a->draft.n)
            assert_memory_equal(a->draft.ids, b->draft.ids, a->draft.n * sizeof *a->draft.ids);
        break;
    case TD_WIRE_CLOSE:
        assert_int_equal(a->close.sequence, b->close.sequence);
        break;
    case TD_WIRE_PING:
    case TD_WIRE_PONG:
        assert_true(a->ping.progress == b->ping.progress);
        assert_int_equal(a->ping.n_pending, b->ping.n_pending);
        break;
    case TD_WIRE_BYE:
    case TD_WIRE_TYPE_END:
        break;
    }
}

#endif
