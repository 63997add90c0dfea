/* The weight and cache types: a table with one row per type, the encoders of the cache types, and
 * half-precision conversion.
 *
 * A quantized type is its unpacker (types_blocks.c, types_iq.c): integers and their scales, from
 * which values are decoded here in one way for all. Every product is evaluated in the order the
 * format's reference uses, so decoded values are bit-equal to golden/quants.
 *
 * The encoders (cache types) must be defined for any float, since keys and values of a broken
 * model may be infinite or NaN: such a block gets a NaN scale, which decodes to NaN, so that the
 * check for finite logits sees it instead of a plausible number. */
#include "kernels/types_unpack.h"

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

uint16_t td_f32_to_bf16(float f)
{
    uint32_t bits = bits_of_f32(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

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
        out[i] = td_load_f16(b + 2 * i);
}

static void quantize_bf16(const float *in, void *blocks, size_t n_elements)
{
    uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i++)
        store_u16(b + 2 * i, td_f32_to_bf16(in[i]));
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

/* A quantized type's values: its parts, multiplied out. */
static void dequantize_parts(void (*unpack)(const void *, td_type_part *), uint32_t block_elements,
                             uint32_t block_bytes, const void *blocks, float *out,
                             size_t n_elements)
{
    const uint8_t *b = blocks;
    for (size_t i = 0; i < n_elements; i += block_elements, b += block_bytes) {
        td_type_part parts[TD_PARTS_MAX];
        unpack(b, parts);
        for (uint32_t j = 0; j < block_elements; j++) {
            const td_type_part *p = &parts[j / TD_PART_ELEMENTS];
            uint32_t h = j / 16 % 2;
            *out++ = p->scale[h] * (float)p->q[j % TD_PART_ELEMENTS] - p->minimum[h];
        }
    }
}

/* clang-format off */
/* The quantized types: name, the same for functions, elements and bytes of a block; is_by_16,
 * has_minimum; is_cache_type and its encoder. */
#define EACH_QUANTIZED(X)                                                                          \
    X(Q4_0,    q4_0,     32,  18, false, false, true,  td_quantize_q4_0)                           \
    X(Q4_1,    q4_1,     32,  20, false, true,  true,  td_quantize_q4_1)                           \
    X(Q5_0,    q5_0,     32,  22, false, false, true,  td_quantize_q5_0)                           \
    X(Q5_1,    q5_1,     32,  24, false, true,  true,  td_quantize_q5_1)                           \
    X(Q8_0,    q8_0,     32,  34, false, false, true,  quantize_q8_0)                              \
    X(Q2_K,    q2_k,    256,  84, true,  true,  false, NULL)                                       \
    X(Q3_K,    q3_k,    256, 110, true,  false, false, NULL)                                       \
    X(Q4_K,    q4_k,    256, 144, false, true,  false, NULL)                                       \
    X(Q5_K,    q5_k,    256, 176, false, true,  false, NULL)                                       \
    X(Q6_K,    q6_k,    256, 210, true,  false, false, NULL)                                       \
    X(IQ2_XXS, iq2_xxs, 256,  66, false, false, false, NULL)                                       \
    X(IQ2_XS,  iq2_xs,  256,  74, true,  false, false, NULL)                                       \
    X(IQ3_XXS, iq3_xxs, 256,  98, false, false, false, NULL)                                       \
    X(IQ1_S,   iq1_s,   256,  50, false, false, false, NULL)                                       \
    X(IQ4_NL,  iq4_nl,   32,  18, false, false, true,  td_quantize_iq4_nl)                         \
    X(IQ3_S,   iq3_s,   256, 110, false, false, false, NULL)                                       \
    X(IQ2_S,   iq2_s,   256,  82, true,  false, false, NULL)                                       \
    X(IQ4_XS,  iq4_xs,  256, 136, false, false, false, NULL)                                       \
    X(IQ1_M,   iq1_m,   256,  56, true,  false, false, NULL)                                       \
    X(TQ1_0,   tq1_0,   256,  54, false, false, false, NULL)                                       \
    X(TQ2_0,   tq2_0,   256,  66, false, false, false, NULL)                                       \
    X(MXFP4,   mxfp4,    32,  17, false, false, false, NULL)                                       \
    X(NVFP4,   nvfp4,    64,  36, true,  false, false, NULL)                                       \
    X(Q1_0,    q1_0,    128,  18, false, false, false, NULL)                                       \
    X(Q2_0,    q2_0,     64,  18, false, false, false, NULL)

/* Of no file. */
#define OF_CACHES(X) X(Q6_0, q6_0, 32, 26, false, false, true, td_quantize_q6_0)

#define DECODER(id, type, n, n_bytes, is_by_16, has_minimum, is_cache, encoder)                    \
    static void dequantize_##type(const void *blocks, float *out, size_t n_elements)               \
    {                                                                                              \
        dequantize_parts(td_unpack_##type, n, n_bytes, blocks, out, n_elements);                   \
    }
EACH_QUANTIZED(DECODER)
OF_CACHES(DECODER)

#define ROW(id, type, n, n_bytes, is_by_16, has_minimum, is_cache, encoder)                        \
    {TD_TYPE_##id, #id, n, n_bytes, is_cache, true, is_by_16, has_minimum, dequantize_##type,      \
     td_unpack_##type, encoder},

static const td_type_info types[] = {
    {TD_TYPE_F32, "F32", 1, 4, true, false, false, false, dequantize_f32, NULL, quantize_f32},
    {TD_TYPE_F16, "F16", 1, 2, true, false, false, false, dequantize_f16, NULL, quantize_f16},
    {TD_TYPE_BF16, "BF16", 1, 2, true, false, false, false, dequantize_bf16, NULL, quantize_bf16},
    EACH_QUANTIZED(ROW)
    OF_CACHES(ROW)
};

#define NAME(id, type, n, n_bytes, is_by_16, has_minimum, is_cache, encoder) ", " #id
static const char names[] = "F32, F16, BF16" EACH_QUANTIZED(NAME);
/* clang-format on */

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

const char *td_type_names(void) { return names; }

const td_type_format *td_type_find_format(uint32_t id)
{
    return id < TD_COUNT(formats) && formats[id].block_elements ? &formats[id] : NULL;
}

const char *td_type_format_name(uint32_t id)
{
    const td_type_format *format = td_type_find_format(id);
    return format ? format->name : "unknown";
}
