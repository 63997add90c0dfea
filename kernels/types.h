/* Weight and cache types: one row per GGUF tensor type tandem reads. A type that is not in the
 * table is refused by name or number. Block layouts are those of the GGUF files in the field;
 * golden/quants holds bytes and values of each. Immutable; any thread. */
#ifndef TD_KERNELS_TYPES_H
#define TD_KERNELS_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The ids of the GGUF format. */
typedef enum {
    TD_TYPE_F32 = 0,
    TD_TYPE_F16 = 1,
    TD_TYPE_Q4_0 = 2,
    TD_TYPE_Q4_1 = 3,
    TD_TYPE_Q5_0 = 6,
    TD_TYPE_Q5_1 = 7,
    TD_TYPE_Q8_0 = 8,
    TD_TYPE_Q2_K = 10,
    TD_TYPE_Q3_K = 11,
    TD_TYPE_Q4_K = 12,
    TD_TYPE_Q5_K = 13,
    TD_TYPE_Q6_K = 14,
    TD_TYPE_IQ2_XXS = 16,
    TD_TYPE_IQ2_XS = 17,
    TD_TYPE_IQ3_XXS = 18,
    TD_TYPE_IQ1_S = 19,
    TD_TYPE_IQ4_NL = 20,
    TD_TYPE_IQ3_S = 21,
    TD_TYPE_IQ2_S = 22,
    TD_TYPE_IQ4_XS = 23,
    TD_TYPE_IQ1_M = 29,
    TD_TYPE_BF16 = 30,
    TD_TYPE_TQ1_0 = 34,
    TD_TYPE_TQ2_0 = 35,
    TD_TYPE_MXFP4 = 39,
    TD_TYPE_NVFP4 = 40,
    TD_TYPE_Q1_0 = 41,
    TD_TYPE_Q2_0 = 42,
    TD_TYPE_Q6_0 = 133, /* of caches alone: no id of the format */
} td_type;

#define TD_PART_ELEMENTS   32u
#define TD_PARTS_MAX       8u   /* of a block */
#define TD_BLOCK_BYTES_MAX 256u /* no type's block is larger */

/* 32 elements of a quantized row taken apart: value = scale * q - minimum, with a scale and a
 * minimum for each half of 16. scale * q and scale * q - minimum are what the format's reference
 * computes, rounding included; |q| <= 127 but for Q8_0, which may hold -128. */
typedef struct {
    int8_t q[TD_PART_ELEMENTS];
    float scale[2], minimum[2];
} td_type_part;

typedef struct {
    uint32_t id;
    const char *name;        /* "Q4_K" */
    uint32_t block_elements; /* elements along a row that share one block */
    uint32_t block_bytes;
    bool is_cache_type;        /* may hold keys or values */
    bool has_int8_activations; /* host mat_mul quantizes the activations (see ops.h) */
    bool is_by_16;             /* the halves of a part differ in scale; else they are alike */
    bool has_minimum;          /* else it is 0 */
    /* Whole blocks; `blocks` may be unaligned. */
    void (*dequantize)(const void *blocks, float *out, size_t n_elements);
    /* Quantized types, else NULL: a block into block_elements / 32 parts. */
    void (*unpack)(const void *block, td_type_part *parts);
    /* Cache types only, else NULL. Defined for every float: a block that holds Inf or NaN decodes
     * to NaN (F32 and F16 keep it as it is). */
    void (*quantize)(const float *in, void *blocks, size_t n_elements);
} td_type_info;

/* The row of a type id; NULL when the id is not supported. */
const td_type_info *td_type_find(uint32_t id);
/* By name, case-insensitive; NULL when unknown. */
const td_type_info *td_type_find_name(const char *name);
/* "F32, F16, Q4_0, ..." for messages; static storage. */
const char *td_type_names(void);

typedef struct { /* what the format itself says of a type, supported by tandem or not */
    const char *name;
    uint32_t block_elements;
    uint32_t block_bytes;
} td_type_format;

/* The format's row of a type id; NULL when the format has no such id. */
const td_type_format *td_type_find_format(uint32_t id);
/* Name of any type id of the format, supported or not, or "unknown". */
const char *td_type_format_name(uint32_t id);

/* What a nibble of IQ4_NL and IQ4_XS stands for. */
extern const int8_t td_levels_iq4[16];

/* IEEE half <-> single; to half rounds to nearest even. Subnormals are exact in both directions,
 * Inf stays Inf, NaN stays NaN (quiet). */
float td_f16_to_f32(uint16_t h);
uint16_t td_f32_to_f16(float f);
/* To the upper half of a single, as F16: nearest even, Inf stays Inf, NaN stays NaN (quiet). */
uint16_t td_f32_to_bf16(float f);

/* Bytes of a row of n_elements, a multiple of the block. Callers have bounded n_elements. */
static inline size_t td_row_bytes(const td_type_info *t, size_t n_elements)
{
    return n_elements / t->block_elements * t->block_bytes;
}

#endif
