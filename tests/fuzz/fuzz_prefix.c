/* The head of a file of kept prompts: any bytes give an error or a head within the limits, which is
 * encoded to the same bytes again. The first byte of an input says whether it is sealed (bit 0) or
 * taken as it is; what it has too little is zeros. */
#include "base/check.h"
#include "model/prefix_file.h"
#include "tests/fuzz/fuzz.h"

#define CRC_AT (TD_PREFIX_HEAD_BYTES - 4u)

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes)
{
    static uint8_t head[TD_PREFIX_HEAD_BYTES], again[TD_PREFIX_HEAD_BYTES];
    td_prefix_head h;
    td_err err = {0};
    if (n_bytes < 1)
        return 0;
    size_t n = n_bytes - 1 < sizeof head ? n_bytes - 1 : sizeof head;
    memset(head, 0, sizeof head);
    memcpy(head, bytes + 1, n);
    if (bytes[0] & 1)
        fuzz_put(head + CRC_AT, td_crc32c(0, head, CRC_AT), 4);
    else
        TD_ASSERT(n == sizeof head || !td_prefix_head_decode(bytes + 1, n, &h, NULL));
    if (!td_prefix_head_decode(head, sizeof head, &h, &err)) {
        TD_ASSERT(err.code == TD_E_DATA && err.message[0]);
        return 0;
    }
    TD_ASSERT(h.n_tokens >= 1 && h.n_tokens <= TD_PREFIX_TOKENS_MAX);
    TD_ASSERT(h.n_bytes >= 1 && h.n_bytes <= TD_PREFIX_CHUNK_MAX);
    TD_ASSERT(strlen(h.model) < sizeof h.model && strlen(h.what) < sizeof h.what);
    td_prefix_head_encode(&h, again);
    TD_ASSERT(!memcmp(head, again, sizeof head));
    return 0;
}

size_t td_fuzz_seed(uint32_t i, uint8_t *out)
{
    static const uint32_t n_tokens[] = {1, 64, TD_PREFIX_TOKENS_MAX};
    if (i >= 2 * TD_COUNT(n_tokens))
        return 0;
    td_prefix_head h = {.n_bytes = 4096, .n_tokens = n_tokens[i / 2], .model = "m", .what = "f16"};
    h.first = 3 * h.n_tokens;
    for (uint32_t k = 0; k < h.n_tokens; k++)
        h.tokens[k] = k * k;
    td_prefix_head_name(&h);
    out[0] = i % 2;
    td_prefix_head_encode(&h, out + 1);
    return 1 + TD_PREFIX_HEAD_BYTES;
}
