/* The rotation of a head of keys, values or queries (arith.h), in vectors. */
#ifndef TD_KERNELS_HOST_BODY_ROTATE_H
#define TD_KERNELS_HOST_BODY_ROTATE_H

#include "kernels/host/body_math.h"

#define ROTATE_UNIT (2u * VL)

/* All stages within two vectors. Elements whose numbers differ in the lowest bit are taken apart;
 * their sums, then their differences have that bit on top: once for each bit, and all are back in
 * place. */
INLINE void rotate_unit(float *x)
{
    vf a = vf_load(x), b = vf_load(x + VL);
    UNROLL for (uint32_t bit = 1; bit < ROTATE_UNIT; bit *= 2)
    {
        vf even, odd;
        vf_unzip(a, b, &even, &odd);
        a = vf_add(even, odd);
        b = vf_sub(even, odd);
    }
    vf_store(x, a);
    vf_store(x + VL, b);
}

/* n: a power of two, ROTATE_UNIT at least. */
static void rotate_group(float *x, uint32_t n)
{
    vf scale = vf_set1(td_arith_rotation_scale(n));
    for (uint32_t i = 0; i < n; i += ROTATE_UNIT)
        rotate_unit(x + i);
    for (uint32_t h = ROTATE_UNIT; h < n; h *= 2)
        for (uint32_t i = 0; i < n; i += 2 * h)
            for (uint32_t j = i; j < i + h; j += VL) {
                vf a = vf_load(x + j), b = vf_load(x + j + h);
                vf_store(x + j, vf_add(a, b));
                vf_store(x + j + h, vf_sub(a, b));
            }
    for (uint32_t i = 0; i < n; i += VL)
        vf_store(x + i, vf_mul(vf_load(x + i), scale));
}

/* y may be x. */
static void rotate_row(const float *x, uint32_t n, float *y)
{
    memmove(y, x, n * sizeof *y);
    for (uint32_t size; n; y += size, n -= size) {
        size = td_arith_rotation_size(n);
        if (size >= ROTATE_UNIT)
            rotate_group(y, size);
        else
            td_arith_rotate_group(y, size);
    }
}

#endif
