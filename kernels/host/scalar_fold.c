/* Products of the scalar device: arith.h's formulas over parts of 32 elements, as the type's
 * unpacker gives them. No type is mentioned, so that a new one needs nothing here. */
#include "kernels/host/scalar_fold.h"

#include "base/check.h"

/* To integers up to `most`. */
static td_scalar_quants quantize(const float *x, float amax_min, float most)
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
    if (amax < amax_min)
        return r;
    float inverse = most / amax;
    r.d = amax / most;
    for (uint32_t i = 0; i < TD_ACT_BLOCK; i++)
        r.q[i] = (int)rintf(x[i] * inverse);
    return r;
}

td_scalar_quants td_scalar_quantize(const float *x) { return quantize(x, TD_ACT_AMAX_MIN, 127.0f); }

td_scalar_quants td_scalar_quantize_wide(const float *x)
{
    return quantize(x, TD_WIDE_AMAX_MIN, TD_WIDE_MAX);
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

/* The minimums' part of a value, the same for all elements of a block. */
static float fold_minimums(const td_scalar_page *page, const td_type_part *parts)
{
    float lane[16] = {0};
    for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++)
        lane[j % 16] = fmaf(page->p[j], page->rows[j] ? -parts[j].minimum[0] : 0.0f, lane[j % 16]);
    for (int half = 8; half; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

/* One block: y[0..n), n <= 32. */
static void fold_value_block(const td_scalar_page *page, const td_type_part *parts, uint32_t n,
                             float *y)
{
    float largest = 0, inverse = page->p_max < TD_WIDE_AMAX_MIN ? 0.0f : 1.0f / page->p_max;
    bool is_finite = true;
    for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++)
        if (page->rows[j]) {
            is_finite = is_finite && isfinite(parts[j].scale[0]);
            largest = fmaxf(largest, fabsf(parts[j].scale[0]));
        }
    bool is_zero = !is_finite || largest < TD_WIDE_AMAX_MIN;
    float raise = is_zero ? 0.0f : TD_WIDE_MAX / largest;
    int sums[TD_PART_ELEMENTS] = {0};
    for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++) {
        float w = page->rows[j] ? page->p[j] * inverse * (parts[j].scale[0] * raise) : 0.0f;
        for (uint32_t d = 0; d < TD_PART_ELEMENTS && isfinite(w); d++) /* else the sum is NaN too */
            sums[d] += (int)rintf(w) * (page->rows[j] ? parts[j].q[d] : 0);
    }
    float scale = page->p_max * (!is_finite ? NAN : is_zero ? 0.0f : largest / TD_WIDE_MAX);
    for (uint32_t d = 0; d < n; d++)
        y[d] = fmaf((float)sums[d], scale, y[d]);
}

void td_scalar_fold_values(const td_type_info *type, const td_scalar_page *page, uint32_t n,
                           float *y)
{
    for (uint32_t d = 0; d < n; d += TD_PART_ELEMENTS) {
        td_type_part parts[TD_PAGE_POSITIONS];
        for (uint32_t j = 0; j < TD_PAGE_POSITIONS; j++)
            if (page->rows[j])
                type->unpack(page->rows[j] + d / TD_PART_ELEMENTS * type->block_bytes, &parts[j]);
        float minimums = type->has_minimum ? fold_minimums(page, parts) : 0;
        for (uint32_t i = d; type->has_minimum && i < n && i < d + TD_PART_ELEMENTS; i++)
            y[i] += minimums;
        fold_value_block(page, parts, n - d < TD_PART_ELEMENTS ? n - d : TD_PART_ELEMENTS, y + d);
    }
}
