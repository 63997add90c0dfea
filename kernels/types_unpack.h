/* Private to the types: one unpacker per quantized type (td_type_info.unpack), in types_blocks.c
 * and types_iq.c, and the codebooks of the IQ types. Immutable; any thread. */
#ifndef TD_KERNELS_TYPES_UNPACK_H
#define TD_KERNELS_TYPES_UNPACK_H

#include "kernels/types.h"

/* A block is read byte by byte at fixed offsets, never through a struct: blocks in a file have no
 * alignment, and the layout stays in sight. */
static inline uint32_t td_load_u16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static inline uint32_t td_load_u32(const uint8_t *p)
{
    return td_load_u16(p) | td_load_u16(p + 2) << 16;
}
static inline float td_load_f16(const uint8_t *p)
{
    return td_f16_to_f32((uint16_t)td_load_u16(p));
}

/* The same scale and minimum for both halves. */
static inline void td_part_set(td_type_part *p, float scale, float minimum)
{
    p->scale[0] = p->scale[1] = scale;
    p->minimum[0] = p->minimum[1] = minimum;
}

void td_unpack_q4_0(const void *block, td_type_part *parts);
void td_unpack_q4_1(const void *block, td_type_part *parts);
void td_unpack_q5_0(const void *block, td_type_part *parts);
void td_unpack_q5_1(const void *block, td_type_part *parts);
void td_unpack_q6_0(const void *block, td_type_part *parts);
void td_unpack_q8_0(const void *block, td_type_part *parts);
void td_unpack_q2_k(const void *block, td_type_part *parts);
void td_unpack_q3_k(const void *block, td_type_part *parts);
void td_unpack_q4_k(const void *block, td_type_part *parts);
void td_unpack_q5_k(const void *block, td_type_part *parts);
void td_unpack_q6_k(const void *block, td_type_part *parts);
void td_unpack_q1_0(const void *block, td_type_part *parts);
void td_unpack_q2_0(const void *block, td_type_part *parts);
void td_unpack_tq1_0(const void *block, td_type_part *parts);
void td_unpack_tq2_0(const void *block, td_type_part *parts);
void td_unpack_mxfp4(const void *block, td_type_part *parts);
void td_unpack_nvfp4(const void *block, td_type_part *parts);
void td_unpack_iq4_nl(const void *block, td_type_part *parts);
void td_unpack_iq4_xs(const void *block, td_type_part *parts);
void td_unpack_iq1_s(const void *block, td_type_part *parts);
void td_unpack_iq1_m(const void *block, td_type_part *parts);
void td_unpack_iq2_xxs(const void *block, td_type_part *parts);
void td_unpack_iq2_xs(const void *block, td_type_part *parts);
void td_unpack_iq2_s(const void *block, td_type_part *parts);
void td_unpack_iq3_xxs(const void *block, td_type_part *parts);
void td_unpack_iq3_s(const void *block, td_type_part *parts);

/* Encoders (td_type_info.quantize), in types_encode.c. */
void td_quantize_q4_0(const float *in, void *blocks, size_t n_elements);
void td_quantize_q4_1(const float *in, void *blocks, size_t n_elements);
void td_quantize_q5_0(const float *in, void *blocks, size_t n_elements);
void td_quantize_q5_1(const float *in, void *blocks, size_t n_elements);
void td_quantize_q6_0(const float *in, void *blocks, size_t n_elements);
void td_quantize_iq4_nl(const float *in, void *blocks, size_t n_elements);

/* Codebooks (types_grids.c): level numbers of 2 bits (IQ1, IQ2: 8 values) or 3 (IQ3: 4 values). */
extern const uint16_t td_grid_iq1[2048];    /* levels -1 0 1 */
extern const uint16_t td_grid_iq2_xxs[256]; /* levels 8 25 43, as in IQ2_XS and IQ2_S */
extern const uint16_t td_grid_iq2_xs[512];
extern const uint16_t td_grid_iq2_s[1024];
extern const uint16_t td_grid_iq3_xxs[256]; /* levels 4 12 20 28 36 44 52 62 */
extern const uint16_t td_grid_iq3_s[512];   /* levels 1 3 5 7 9 11 13 15 */

#endif
