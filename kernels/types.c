/* The weight and cache types: a table with one row per type, the scalar decoders and encoders the
 * rows point to, and half-precision conversion.
 *
 * A block is read byte by byte at fixed offsets, never through a struct: blocks in a file have no
 * alignment, and the layout stays in sight. Every product is evaluated in the order the format's
 * reference uses, so decoded values are bit-equal to golden/quants.
 *
 * The encoders (cache types) must be defined for any float, since keys and values of a broken
 * model may be infinite or NaN: such a block gets a NaN scale, which decodes to NaN, so that the
 * check for finite logits sees it instead of a plausible number. */
#include "kernels/types.h"

#include "base/check.h"

#include <math.h>
#include <string.h>
#include <strings.h>

#define F16_NAN 0x7e00u

static uint32_t bits_of_f32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float f32_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Integer arithmetic throughout, so that a thread that flushes subnormals to zero gets the same. */
float td_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1f) /* Inf, NaN (made quiet, as hardware does) */
        return f32_of_bits(sign | 0x7f800000u | (mantissa ? 0x400000u | mantissa << 13 : 0));
    if (exponent != 0)
        return f32_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    if (mantissa == 0)
        return f32_of_bits(sign);
    /* Subnormal: mantissa * 2^-24, moved up until its leading one is the implicit bit. */
    uint32_t shift = (uint32_t)__builtin_clz(mantissa) - 21;
    return f32_of_bits(sign | (113 - shift) << 23 | (mantissa << shift & 0x3ffu) << 13);
}

uint16_t td_f32_to_f16(float f)
{
    uint32_t bits = bits_of_f32(f);
    uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint16_t)(sign | F16_NAN | (bits >> 13 & 0x1ffu));
    if (bits >= 0x477ff000u) /* 65520 is halfway to 2^16: it and all above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (bits >= 0x38800000u) /* 2^-14: normal; adding just under half an ulp, plus the odd bit */
        return (uint16_t)(sign | (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13);
    uint32_t exponent = bits >> 23;
    if (exponent < 102) /* below 2^-25: less than half the smallest subnormal */
        return (uint16_t)sign;
    uint32_t shift = 126 - exponent; /* 14..24: the result counts units of 2^-24 */
    uint32_t mantissa = (bits & 0x7fffffu) | 0x800000u;
    uint32_t half = mantissa >> shift;
    uint32_t rest = mantissa & ((1u << shift) - 1);
    uint32_t tie = 1u << (shift - 1);
    half += rest > tie || (rest == tie && (half & 1));
    return (uint16_t)(sign | half);
}

static uint16_t load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static float load_f16(const uint8_t *p) { return td_f16_to_f32(load_u16(p)); }

static void store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v & 0xff);
    p[1] = (uint8_t)(v >> 8);
}

static void dequantize_f32(const void *blocks, float *out, size_t n_elements)
{
    memcpy(out, blocks, n_elements * sizeof(float));
}

static void quantize_f32(const float *in, void *blocks, size_t n_elements)
{
    memcpy(blocks, in, n_elements * sizeof(float));
}

static void dequantize_f16(const void *blocks, float *out, size_t n_elements)
{
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i++)
        out[i] = load_f16(b + 2 * i);
}

static void quantize_f16(const float *in, void *blocks, size_t n_elements)
{
    uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i++)
        store_u16(b + 2 * i, td_f32_to_f16(in[i]));
}

/* The upper half of a float. */
static void dequantize_bf16(const void *blocks, float *out, size_t n_elements)
{
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i++) {
        uint32_t bits = (uint32_t)b[2 * i] << 16 | (uint32_t)b[2 * i + 1] << 24;
        memcpy(&out[i], &bits, sizeof bits);
    }
}

/* Q4_0: {f16 d; u8 q[16]}: element i in the low nibble of q[i], i + 16 in the high one;
 * value = (nibble - 8) * d. */
static void dequantize_q4_0(const void *blocks, float *out, size_t n_elements)
{
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i += 32, b += 18, out += 32) {
        float d = load_f16(b);
        for (int j = 0; j < 16; j++) {
            out[j] = (float)((b[2 + j] & 0xf) - 8) * d;
            out[j + 16] = (float)((b[2 + j] >> 4) - 8) * d;
        }
    }
}

/* The element of largest magnitude (the first of equals), with its sign; NaN when an element is
 * not finite. */
static float extreme_of_32(const float *in)
{
    float largest = 0, extreme = 0;
    for (int j = 0; j < 32; j++) {
        if (!isfinite(in[j]))
            return NAN;
        if (fabsf(in[j]) > largest) {
            largest = fabsf(in[j]);
            extreme = in[j];
        }
    }
    return extreme;
}

/* 1 / d, or 0 where that overflows: then d is zero as a half and the quants do not matter. */
static float inverse_scale(float d)
{
    float inverse = d != 0 ? 1.0f / d : 0.0f;
    return isfinite(inverse) ? inverse : 0.0f;
}

static void quantize_q4_0(const float *in, void *blocks, size_t n_elements)
{
    uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i += 32, b += 18, in += 32) {
        float extreme = extreme_of_32(in);
        if (isnan(extreme)) {
            store_u16(b, F16_NAN);
            memset(b + 2, 0x88, 16);
            continue;
        }
        float d = extreme / -8.0f; /* the extreme becomes -8, which has no positive twin */
        float inverse = inverse_scale(d);
        store_u16(b, td_f32_to_f16(d));
        for (int j = 0; j < 16; j++) {
            int low = (int)(in[j] * inverse + 8.5f);
            int high = (int)(in[j + 16] * inverse + 8.5f);
            low = low > 15 ? 15 : low;
            high = high > 15 ? 15 : high;
            b[2 + j] = (uint8_t)(low | high << 4);
        }
    }
}

/* Q8_0: {f16 d; i8 q[32]}: value = q * d. */
static void dequantize_q8_0(const void *blocks, float *out, size_t n_elements)
{
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i += 32, b += 34, out += 32) {
        float d = load_f16(b);
        for (int j = 0; j < 32; j++)
            out[j] = (float)(int8_t)b[2 + j] * d;
    }
}

static void quantize_q8_0(const float *in, void *blocks, size_t n_elements)
{
    uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i += 32, b += 34, in += 32) {
        float extreme = extreme_of_32(in);
        if (isnan(extreme)) {
            store_u16(b, F16_NAN);
            memset(b + 2, 0, 32);
            continue;
        }
        float d = fabsf(extreme) / 127.0f;
        float inverse = inverse_scale(d);
        store_u16(b, td_f32_to_f16(d));
        for (int j = 0; j < 32; j++)
            b[2 + j] = (uint8_t)(int8_t)roundf(in[j] * inverse);
    }
}

/* Q4_K: {f16 d, d_min; u8 scales[12]; u8 q[128]}: 8 sub-blocks of 32, each with a 6-bit scale and
 * a 6-bit minimum; value = d * scale * nibble - d_min * minimum. The first four pairs lie in the
 * low 6 bits of scales[0..3] and [4..7]; the last four have their low nibbles in [8..11] and their
 * high two bits above the first ones. Each run of 32 bytes of q holds two sub-blocks: low nibbles,
 * then high ones. */
static void dequantize_q4_k(const void *blocks, float *out, size_t n_elements)
{
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i += 256, b += 144) {
        float d = load_f16(b), d_min = load_f16(b + 2);
        const uint8_t *scales = b + 4, *q = b + 16;
        for (int s = 0; s < 8; s++, out += 32) {
            int scale, minimum;
            if (s < 4) {
                scale = scales[s] & 63;
                minimum = scales[s + 4] & 63;
            } else {
                scale = (scales[s + 4] & 0xf) | (scales[s - 4] >> 6) << 4;
                minimum = scales[s + 4] >> 4 | (scales[s] >> 6) << 4;
            }
            float step = d * (float)scale, offset = d_min * (float)minimum;
            const uint8_t *run = q + 32 * (s / 2);
            for (int j = 0; j < 32; j++)
                out[j] = step * (float)(s & 1 ? run[j] >> 4 : run[j] & 0xf) - offset;
        }
    }
}

/* Q6_K: {u8 low[128]; u8 high[64]; i8 scales[16]; f16 d}: 16 sub-blocks of 16;
 * value = d * scale * (6 bits - 32). Per half of 128 elements, group g of 32 (g = 0..3) takes its
 * low 4 bits from low[32 * (g & 1) + j], nibble g / 2, and its high 2 bits from bits 2g of
 * high[j]. */
static void dequantize_q6_k(const void *blocks, float *out, size_t n_elements)
{
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i += 256, b += 210) {
        float d = load_f16(b + 208);
        for (int half = 0; half < 2; half++) {
            const uint8_t *low = b + 64 * half, *high = b + 128 + 32 * half;
            const uint8_t *scales = b + 192 + 8 * half;
            for (int g = 0; g < 4; g++, out += 32) {
                for (int j = 0; j < 32; j++) {
                    int nibble = low[32 * (g & 1) + j] >> 4 * (g / 2) & 0xf;
                    int q = (nibble | (high[j] >> 2 * g & 3) << 4) - 32;
                    float scale = (float)(int8_t)scales[2 * g + j / 16];
                    out[j] = d * scale * (float)q;
                }
            }
        }
    }
}

static const td_type_info types[] = {
    {TD_TYPE_F32, "F32", 1, 4, true, false, dequantize_f32, quantize_f32},
    {TD_TYPE_F16, "F16", 1, 2, true, false, dequantize_f16, quantize_f16},
    {TD_TYPE_Q4_0, "Q4_0", 32, 18, true, true, dequantize_q4_0, quantize_q4_0},
    {TD_TYPE_Q8_0, "Q8_0", 32, 34, true, true, dequantize_q8_0, quantize_q8_0},
    {TD_TYPE_Q4_K, "Q4_K", 256, 144, false, true, dequantize_q4_k, NULL},
    {TD_TYPE_Q6_K, "Q6_K", 256, 210, false, true, dequantize_q6_k, NULL},
    {TD_TYPE_BF16, "BF16", 1, 2, false, false, dequantize_bf16, NULL},
};

/* Every id the format has, or a gap (elements 0) where one was never given or was withdrawn. */
static const td_type_format formats[] = {
    [0] = {"F32", 1, 4},         [1] = {"F16", 1, 2},         [2] = {"Q4_0", 32, 18},
    [3] = {"Q4_1", 32, 20},      [6] = {"Q5_0", 32, 22},      [7] = {"Q5_1", 32, 24},
    [8] = {"Q8_0", 32, 34},      [9] = {"Q8_1", 32, 36},      [10] = {"Q2_K", 256, 84},
    [11] = {"Q3_K", 256, 110},   [12] = {"Q4_K", 256, 144},   [13] = {"Q5_K", 256, 176},
    [14] = {"Q6_K", 256, 210},   [15] = {"Q8_K", 256, 292},   [16] = {"IQ2_XXS", 256, 66},
    [17] = {"IQ2_XS", 256, 74},  [18] = {"IQ3_XXS", 256, 98}, [19] = {"IQ1_S", 256, 50},
    [20] = {"IQ4_NL", 32, 18},   [21] = {"IQ3_S", 256, 110},  [22] = {"IQ2_S", 256, 82},
    [23] = {"IQ4_XS", 256, 136}, [24] = {"I8", 1, 1},         [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},        [27] = {"I64", 1, 8},        [28] = {"F64", 1, 8},
    [29] = {"IQ1_M", 256, 56},   [30] = {"BF16", 1, 2},       [34] = {"TQ1_0", 256, 54},
    [35] = {"TQ2_0", 256, 66},   [39] = {"MXFP4", 32, 17},    [40] = {"NVFP4", 64, 36},
    [41] = {"Q1_0", 128, 18},    [42] = {"Q2_0", 64, 18},
};

const td_type_info *td_type_find(uint32_t id)
{
    for (size_t i = 0; i < TD_COUNT(types); i++)
        if (types[i].id == id)
            return &types[i];
    return NULL;
}

const td_type_info *td_type_find_name(const char *name)
{
    for (size_t i = 0; i < TD_COUNT(types); i++)
        if (strcasecmp(types[i].name, name) == 0)
            return &types[i];
    return NULL;
}

const char *td_type_names(void) { return "F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, BF16"; }

const td_type_format *td_type_find_format(uint32_t id)
{
    return id < TD_COUNT(formats) && formats[id].block_elements ? &formats[id] : NULL;
}

const char *td_type_format_name(uint32_t id)
{
    const td_type_format *format = td_type_find_format(id);
    return format ? format->name : "unknown";
}
