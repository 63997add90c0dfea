/* mat_mul of the scalar device: arith.h's formulas over parts of 32 elements, as the type's
 * unpacker gives them. No type is mentioned, so that a new one needs nothing here. */
#include "kernels/host/scalar_fold.h"

#include "base/check.h"

td_scalar_quants td_scalar_quantize(const float *x)
{
    td_scalar_quants r = {.d = 0};
    float amax = 0;
    for (uint32_t i = 0; i < TD_ACT_BLOCK; i++) {
        if (!isfinite(x[i])) {
            r.d = NAN;
            return r;
        }
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    }
    if (amax < TD_ACT_AMAX_MIN)
        return r;
    float inverse = 127.0f / amax;
    r.d = amax / 127.0f;
    for (uint32_t i = 0; i < TD_ACT_BLOCK; i++)
        r.q[i] = (int)rintf(x[i] * inverse);
    return r;
}

static float fold_part(const td_type_info *type, float acc, const td_type_part *w,
                       const td_scalar_quants *x)
{
    int sum[2] = {0, 0}, q_sum[2] = {0, 0}; /* of halves */
    for (uint32_t i = 0; i < TD_PART_ELEMENTS; i++) {
        sum[i / 16] += w->q[i] * x->q[i];
        q_sum[i / 16] += x->q[i];
    }
    float total;
    if (type->is_by_16) {
        total = w->scale[0] * (float)sum[0];
        total = fmaf(w->scale[1], (float)sum[1], total);
        if (type->has_minimum) {
            total = fmaf(-w->minimum[0], (float)q_sum[0], total);
            total = fmaf(-w->minimum[1], (float)q_sum[1], total);
        }
    } else {
        total = w->scale[0] * (float)(sum[0] + sum[1]);
        if (type->has_minimum)
            total = fmaf(-w->minimum[0], (float)(q_sum[0] + q_sum[1]), total);
    }
    return fmaf(total, x->d, acc);
}

float td_scalar_fold(const td_type_info *type, float acc, const void *block, const float *x,
                     const td_scalar_quants *quants)
{
    if (!type->has_int8_activations) { /* F32, F16, BF16: one element */
        float w;
        type->dequantize(block, &w, 1);
        return fmaf(w, x[0], acc);
    }
    td_type_part parts[TD_PARTS_MAX];
    type->unpack(block, parts);
    for (uint32_t i = 0; i < type->block_elements / TD_PART_ELEMENTS; i++)
        acc = fold_part(type, acc, &parts[i], &quants[i]);
    return acc;
}
