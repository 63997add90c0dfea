/* Private to the scalar device: products with weights, keys and values (scalar_fold.c). */
#ifndef TD_KERNELS_HOST_SCALAR_FOLD_H
#define TD_KERNELS_HOST_SCALAR_FOLD_H

#include "kernels/host/arith.h"
#include "kernels/ops.h"
#include "kernels/types.h"

typedef struct { /* a block of activations */
    int q[TD_ACT_BLOCK];
    float d;
} td_scalar_quants;

/* 32 floats, quantized as arith.h says. */
td_scalar_quants td_scalar_quantize(const float *x);
/* To 15 bits, as queries are. */
td_scalar_quants td_scalar_quantize_wide(const float *x);

/* acc and the products of one block of a weight row with the activations it meets: those of a
 * quantized type are in `quants`, one per 32 elements, those of a plain type in x. */
float td_scalar_fold(const td_type_info *type, float acc, const void *block, const float *x,
                     const td_scalar_quants *quants);

typedef struct {                            /* of one page, for a query */
    const uint8_t *rows[TD_PAGE_POSITIONS]; /* values; NULL where not visible */
    float p[TD_PAGE_POSITIONS];
    float p_max;
} td_scalar_page;

/* y[0..n) and the weighted values of a page, which have a quantized type. */
void td_scalar_fold_values(const td_type_info *type, const td_scalar_page *page, uint32_t n,
                           float *y);

#endif
