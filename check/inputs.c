/* Weights at random (inputs.h). The bits of a block may be anything but its scales: those are set
 * so that values are about 1, as a layer's inputs are. */
#include "check/inputs.h"

#include "base/check.h"
#include "base/rng.h"

#include <string.h>

#define PIECE 256u /* elements encoded at once, a multiple of every block */

const char *const td_input_weight_types[] = {
    "F32",    "F16",    "BF16",  "Q4_0",  "Q4_1",  "Q5_0",    "Q5_1",   "Q8_0",  "Q2_K",    "Q3_K",
    "Q4_K",   "Q5_K",   "Q6_K",  "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "Q1_0",  "Q2_0",    "TQ1_0",  "TQ2_0"};
const char *const td_input_cache_types[] = {"F32",  "F16",  "Q8_0", "Q4_0", "BF16",
                                            "Q6_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL"};

float td_input_random(uint64_t seed, size_t i)
{
    return (float)td_noise_bits(seed, i, 0) * 0x1p-31f - 1.0f;
}

static void set_half(unsigned char *p, float f)
{
    uint16_t h = td_f32_to_f16(f);
    p[0] = (unsigned char)(h & 0xff);
    p[1] = (unsigned char)(h >> 8);
}

/* Where the scales of a type that is not encoded lie in its block, and what makes its values about
 * 1: a half d and a second one for the minimum (0: there is none). */
static const struct {
    uint32_t type;
    uint32_t d_at, minimum_at;
    float d, minimum;
} block_scales[] = {
    {TD_TYPE_Q4_0, 0, 0, 0.12f, 0},    {TD_TYPE_Q4_1, 0, 2, 0.1f, 0.8f},     {TD_TYPE_Q5_0, 0, 0, 0.06f, 0},
    {TD_TYPE_Q5_1, 0, 2, 0.06f, 0.8f},    {TD_TYPE_Q2_K, 80, 82, 0.02f, 0.06f},
    {TD_TYPE_Q3_K, 108, 0, 0.01f, 0},     {TD_TYPE_Q4_K, 0, 2, 0.002f, 0.014f},
    {TD_TYPE_Q5_K, 0, 2, 0.001f, 0.014f}, {TD_TYPE_Q6_K, 208, 0, 0.0005f, 0},
    {TD_TYPE_IQ2_XXS, 0, 0, 0.008f, 0},   {TD_TYPE_IQ2_XS, 0, 0, 0.008f, 0},
    {TD_TYPE_IQ2_S, 0, 0, 0.008f, 0},     {TD_TYPE_IQ3_XXS, 0, 0, 0.003f, 0},
    {TD_TYPE_IQ3_S, 0, 0, 0.003f, 0},     {TD_TYPE_IQ1_S, 0, 0, 0.08f, 0},
    {TD_TYPE_IQ4_NL, 0, 0, 0.01f, 0},     {TD_TYPE_IQ4_XS, 0, 0, 0.0003f, 0},
    {TD_TYPE_TQ1_0, 52, 0, 1.0f, 0},      {TD_TYPE_TQ2_0, 64, 0, 1.0f, 0},
    {TD_TYPE_Q1_0, 0, 0, 1.0f, 0},        {TD_TYPE_Q2_0, 0, 0, 0.7f, 0},
};

/* Scales that make the values of a block of random bits about 1; noise in [-1, 1). */
static void set_block_scales(const td_type_info *type, float noise, unsigned char *block)
{
    for (size_t i = 0; i < TD_COUNT(block_scales); i++)
        if (block_scales[i].type == type->id) {
            set_half(block + block_scales[i].d_at, noise * block_scales[i].d);
            if (block_scales[i].minimum != 0)
                set_half(block + block_scales[i].minimum_at, noise * block_scales[i].minimum);
            return;
        }
    if (type->id == TD_TYPE_BF16) {
        memcpy(block, (const unsigned char *)&noise + 2, 2);
    } else if (type->id == TD_TYPE_MXFP4) { /* exponents */
        block[0] = (unsigned char)(122 + block[0] % 6);
    } else if (type->id == TD_TYPE_NVFP4) {
        for (int i = 0; i < 4; i++)
            block[i] = (unsigned char)(0x20 | (block[i] & 0x1f));
    } else {
        TD_ASSERT(type->id == TD_TYPE_IQ1_M); /* d in the top nibbles of four words */
        unsigned char half[2];
        set_half(half, noise * 0.08f);
        for (int i = 0; i < 4; i++)
            block[49 + 2 * i] =
                (unsigned char)((block[49 + 2 * i] & 15) | (half[i / 2] >> i % 2 * 4 & 15) << 4);
    }
}

/* Those of 4 to 6 bits take long to be encoded well. */
static bool is_encoded(const td_type_info *type)
{
    for (size_t i = 0; i < TD_COUNT(block_scales); i++)
        if (block_scales[i].type == type->id)
            return false;
    return type->quantize && type->id != TD_TYPE_BF16;
}

void td_input_rows(const td_type_info *type, size_t n_rows, size_t n_cols, uint64_t seed,
                   unsigned char *rows)
{
    size_t row_bytes = td_row_bytes(type, n_cols), n_bytes = n_rows * row_bytes;
    float values[PIECE];
    for (size_t r = 0; is_encoded(type) && r < n_rows; r++)
        for (size_t c = 0; c < n_cols; c += PIECE) {
            size_t n = n_cols - c < PIECE ? n_cols - c : PIECE;
            for (size_t i = 0; i < n; i++)
                values[i] = td_input_random(seed, r * n_cols + c + i);
            type->quantize(values, rows + r * row_bytes + td_row_bytes(type, c), n);
        }
    if (is_encoded(type))
        return;
    for (size_t i = 0; i < n_bytes; i++)
        rows[i] = (unsigned char)td_noise_bits(seed, i, 0);
    for (size_t i = 0; i < n_bytes; i += type->block_bytes)
        set_block_scales(type, td_input_random(seed + 1, i), rows + i);
}
