/* Every message of coordinator and draft: decoding any bytes gives an error or a message within the
 * limits, which encodes to the same bytes again. The first byte of an input says how it is taken:
 * bit 0 sealed or as it is, bits 1..2 which limits hold. */
#include "base/check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/wire_samples.h"

static const td_wire_limits all_limits[] = {
    {.n_vocab = 1000, .n_ctx = 20000},
    {.n_vocab = 1, .n_ctx = 1},
    {.n_vocab = 32000, .n_ctx = TD_WIRE_POSITION_MAX},
    {.n_vocab = TD_WIRE_VOCAB_MAX, .n_ctx = 4096},
};

static void check_ids(const uint32_t *ids, uint32_t n, uint32_t n_max, uint32_t position,
                      const td_wire_limits *limits)
{
    TD_ASSERT(n <= n_max && (uint64_t)position + n <= limits->n_ctx);
    for (uint32_t i = 0; i < n; i++)
        TD_ASSERT(ids[i] < limits->n_vocab);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    static uint32_t ids[TD_WIRE_IDS_MAX];
    static uint8_t message[TD_WIRE_MESSAGE_MAX + 64], again[TD_WIRE_MESSAGE_MAX];
    if (n_bytes < 1 || n_bytes - 1 > sizeof message)
        return 0;
    const td_wire_limits *limits = &all_limits[bytes[0] >> 1 & 3];
    size_t n = n_bytes - 1, n_again;
    memcpy(message, bytes + 1, n);
    if ((bytes[0] & 1) && n >= TD_WIRE_HEADER_BYTES)
        fuzz_seal(message, n);
    td_wire_msg m;
    td_err err = {0};
    if (!td_wire_decode(message, n, limits, ids, &m, &err)) {
        TD_ASSERT(err.code == TD_E_DATA && err.message[0]);
        return 0;
    }
    TD_ASSERT(n <= td_wire_type_max_bytes(m.type));
    if (m.type == TD_WIRE_FEED)
        check_ids(m.feed.ids, m.feed.n, TD_WIRE_IDS_MAX, m.feed.position, limits);
    else if (m.type == TD_WIRE_DRAFT)
        check_ids(m.draft.ids, m.draft.n, TD_WIRE_DRAFT_MAX, m.draft.position, limits);
    else if (m.type == TD_WIRE_PROPOSE)
        TD_ASSERT(m.propose.k >= 1 && m.propose.k <= TD_WIRE_DRAFT_MAX);
    else if (m.type == TD_WIRE_REFUSE)
        TD_ASSERT(strlen(m.refuse.reason) <= TD_WIRE_REASON_MAX);
    bool is_hello = m.type == TD_WIRE_HELLO || m.type == TD_WIRE_HELLO_OK;
    if (is_hello && m.hello.protocol != TD_WIRE_PROTOCOL)
        return 0; /* of which the rest is not read */
    TD_ASSERT(td_wire_encode(&m, limits, again, sizeof again, &n_again, &err));
    TD_ASSERT(n == n_again && !memcmp(message, again, n));
    return 0;
}

size_t td_fuzz_seed(uint32_t i, uint8_t *out)
{
    static uint32_t ids[TD_WIRE_IDS_MAX];
    static const td_wire_limits limits = {.n_vocab = 1000, .n_ctx = 20000};
    td_wire_msg m[SAMPLES_MAX];
    size_t n = 0;
    if (i >= (uint32_t)samples_make(m, ids))
        return 0;
    out[0] = 1;
    TD_ASSERT(td_wire_encode(&m[i], &limits, out + 1, TD_FUZZ_SEED_MAX - 1, &n, NULL));
    return n + 1;
}
