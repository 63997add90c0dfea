/* types_encode.c's search in lanes, a block in each, with the same operations in the same order. */
#ifndef TD_KERNELS_HOST_BODY_ENCODE_H
#define TD_KERNELS_HOST_BODY_ENCODE_H

#include "kernels/host/body_math.h"
#include "kernels/types_encode.h"

#define N TD_PART_ELEMENTS

typedef struct {
    vf d, m, error, stored_d, stored_m;
} lane_fit;

typedef struct {
    vf xq, q, qq;
} lane_sums;

typedef struct { /* of the blocks, values of element j at x[j * TD_ENCODE_LANES] */
    const td_grid *g;
    const float *x;
    vf middle, x_sum; /* what is taken from values, and the sum of what is left of them */
} lane_blocks;

#define EACH_ELEMENT for (uint32_t j = 0; j < N; j++)

INLINE vf vf_abs(vf a) { return vf_bits(vi_and(vi_bits(a), vi_set1(INT32_MAX))); }

INLINE vf lane_mul_add(vf a, vf b, vf c) { return vf_add(vf_mul(a, b), c); }

INLINE vf lane_rounded(vf a)
{
    uint16_t halves[VL];
    vf_store_f16(halves, a);
    return vf_load_f16(halves);
}

INLINE vf lane_inverse(vf d)
{
    vf inverse = vf_div(vf_set1(1), d);
    return vf_if_below(vf_abs(inverse), vf_set1(INFINITY), inverse, vf_zero());
}

INLINE vf lane_value(const lane_blocks *b, uint32_t j)
{
    vf x = vf_load(b->x + j * TD_ENCODE_LANES);
    return b->g->has_minimum ? vf_sub(x, b->middle) : x;
}

/* The level nearest to v, or its number. */
INLINE vf lane_level(vf v, const bool is_number)
{
    vf r = vf_set1(is_number ? 0 : td_levels_iq4[0]);
    for (int i = 0; i < 15; i++) {
        vf border = vf_set1(0.5f * (float)(td_levels_iq4[i] + td_levels_iq4[i + 1]));
        r = vf_if_below(border, v, vf_set1(is_number ? (float)(i + 1) : td_levels_iq4[i + 1]), r);
    }
    return r;
}

INLINE vf lane_round(const td_grid *g, vf v)
{
    if (g->is_levels)
        return lane_level(v, false);
    v = vf_min(vf_max(v, vf_set1(g->low)), vf_set1(g->high));
    return vf_of_vi(vi_of_vf(v));
}

INLINE vf add_quarters(const vf *a) { return vf_add(vf_add(a[0], a[1]), vf_add(a[2], a[3])); }

INLINE lane_sums lane_sum_up(const lane_blocks *b, vf from, vf inverse)
{
    vf xq[4], sum_q[4], qq[4];
    for (uint32_t k = 0; k < 4; k++) {
        xq[k] = sum_q[k] = qq[k] = vf_zero();
        for (uint32_t j = 8 * k; j < 8 * k + 8; j++) {
            vf x = lane_value(b, j);
            vf q = lane_round(b->g, vf_mul(vf_sub(x, from), inverse));
            xq[k] = lane_mul_add(x, q, xq[k]);
            sum_q[k] = vf_add(sum_q[k], q);
            qq[k] = lane_mul_add(q, q, qq[k]);
        }
    }
    return (lane_sums){add_quarters(xq), add_quarters(sum_q), add_quarters(qq)};
}

INLINE void lane_keep_better(const lane_fit *f, lane_fit *best)
{
    best->d = vf_if_below(f->error, best->error, f->d, best->d);
    best->m = vf_if_below(f->error, best->error, f->m, best->m);
    best->error = vf_if_below(f->error, best->error, f->error, best->error);
}

INLINE vf lane_negative(vf a) { return vf_bits(vi_xor(vi_bits(a), vi_set1(INT32_MIN))); }

INLINE vf lane_scale_error(const lane_sums *s, vf d)
{
    return vf_mul(d, lane_mul_add(d, s->qq, vf_mul(vf_set1(-2), s->xq)));
}

INLINE vf lane_line_error(const lane_blocks *b, const lane_sums *s, vf d, vf m)
{
    vf e = lane_mul_add(vf_mul(vf_set1(N), m), m, lane_scale_error(s, d));
    return lane_mul_add(vf_mul(vf_set1(2), m), lane_mul_add(d, s->q, lane_negative(b->x_sum)), e);
}

INLINE void lane_try(const lane_blocks *b, const lane_sums *s, lane_fit *best)
{
    lane_fit f = {.m = vf_zero()};
    if (!b->g->has_minimum) {
        f.d = lane_rounded(vf_mul(s->xq, lane_inverse(s->qq)));
        f.error = lane_scale_error(s, f.d);
    } else {
        vf n = vf_set1(N);
        vf by = lane_inverse(lane_mul_add(n, s->qq, lane_negative(vf_mul(s->q, s->q))));
        vf over = lane_mul_add(n, s->xq, lane_negative(vf_mul(b->x_sum, s->q)));
        f.d = lane_rounded(vf_mul(over, by));
        vf left = vf_sub(b->x_sum, vf_mul(f.d, s->q));
        f.m = lane_rounded(lane_mul_add(left, vf_set1(1.0f / N), b->middle));
        f.error = lane_line_error(b, s, f.d, vf_sub(f.m, b->middle));
    }
    lane_keep_better(&f, best);
}

INLINE void lane_grow(const lane_blocks *b, lane_fit *f)
{
    vf squares[4], n = vf_set1(1.0f / N), most = vf_set1(TD_GRID_GROWTH_MAX), one = vf_set1(1);
    for (uint32_t k = 0; k < 4; k++) {
        squares[k] = vf_zero();
        for (uint32_t j = 8 * k; j < 8 * k + 8; j++) {
            vf x = lane_value(b, j);
            squares[k] = lane_mul_add(x, x, squares[k]);
        }
    }
    vf apart = vf_mul(vf_mul(b->x_sum, b->x_sum), n), mean = lane_mul_add(b->x_sum, n, b->middle);
    vf growth = lane_inverse(vf_sub(lane_negative(f->error), apart));
    growth = vf_mul(vf_sub(add_quarters(squares), apart), growth);
    growth = vf_if_below(one, growth, growth, one);
    growth = vf_if_below(growth, most, growth, most);
    f->stored_d = vf_mul(f->d, growth);
    f->stored_m = lane_mul_add(growth, vf_sub(f->m, mean), mean);
}

INLINE lane_fit lane_fit_scale(lane_blocks *b)
{
    const td_grid *g = b->g;
    vf extreme = vf_zero(), unit = vf_set1(g->is_levels ? 8 : 1);
    EACH_ELEMENT
    {
        vf x = lane_value(b, j);
        extreme = vf_if_below(vf_abs(extreme), vf_abs(x), x, extreme);
    }
    vf inverse = lane_inverse(extreme);
    lane_fit best = {.m = vf_zero()};
    for (uint32_t i = 0; i < TD_GRID_STEPS; i++) {
        vf end = vf_set1(i < TD_GRID_STEPS / 2 ? g->low : g->high);
        vf by = vf_mul(lane_mul_add(vf_set1(td_grid_steps[i]), unit, end), inverse);
        lane_sums s = lane_sum_up(b, vf_zero(), by);
        if (i == 0) {
            best.d = lane_rounded(vf_mul(extreme, vf_set1(1 / g->low)));
            best.error = lane_scale_error(&s, best.d);
        }
        lane_try(b, &s, &best);
    }
    lane_sums s = lane_sum_up(b, vf_zero(), lane_inverse(best.d));
    lane_try(b, &s, &best);
    lane_grow(b, &best);
    return best;
}

INLINE lane_fit lane_fit_line(lane_blocks *b)
{
    const td_grid *g = b->g;
    vf low = vf_load(b->x), high = low, sums[4];
    for (uint32_t j = 1; j < N; j++) {
        vf x = vf_load(b->x + j * TD_ENCODE_LANES);
        low = vf_if_below(x, low, x, low);
        high = vf_if_below(high, x, x, high);
    }
    vf half = vf_set1(0.5f), unit = vf_mul(vf_sub(high, low), vf_set1(1 / g->high));
    b->middle = lane_mul_add(half, low, vf_mul(half, high));
    for (uint32_t k = 0; k < 4; k++) {
        sums[k] = vf_zero();
        for (uint32_t j = 8 * k; j < 8 * k + 8; j++)
            sums[k] = vf_add(sums[k], lane_value(b, j));
    }
    b->x_sum = add_quarters(sums);
    vf begin = vf_sub(low, b->middle), end = vf_sub(high, b->middle);
    lane_fit best;
    for (uint32_t i = 0; i < TD_GRID_ENDS; i++) {
        vf from = lane_mul_add(vf_set1(td_grid_ends[i][0]), unit, begin);
        vf to = lane_mul_add(vf_set1(-td_grid_ends[i][1]), unit, end);
        lane_sums s =
            lane_sum_up(b, from, vf_mul(vf_set1(g->high), lane_inverse(vf_sub(to, from))));
        if (i == 0) {
            best.d = lane_rounded(unit);
            best.m = lane_rounded(low);
            best.error = lane_line_error(b, &s, best.d, vf_sub(best.m, b->middle));
        }
        lane_try(b, &s, &best);
    }
    lane_sums s = lane_sum_up(b, vf_sub(best.m, b->middle), lane_inverse(best.d));
    lane_try(b, &s, &best);
    lane_grow(b, &best);
    return best;
}

INLINE void encode_lanes(lane_blocks *b, const bool has_minimum, float *d, float *m, int32_t *n)
{
    lane_fit f = has_minimum ? lane_fit_line(b) : lane_fit_scale(b);
    vf inverse = lane_inverse(f.d), poison = vf_zero();
    EACH_ELEMENT
    {
        vf x = vf_load(b->x + j * TD_ENCODE_LANES);
        vf v = vf_mul(vf_sub(x, f.m), inverse);
        v = b->g->is_levels ? lane_level(v, true) : vf_sub(lane_round(b->g, v), vf_set1(b->g->low));
        vf_store((float *)(void *)(n + j * TD_ENCODE_LANES), vf_bits(vi_of_vf(v)));
        poison = lane_mul_add(vf_zero(), x, poison);
    }
    vf_store(d, vf_add(f.stored_d, poison));
    vf_store(m, f.stored_m);
}

static void encode_blocks(const td_grid *g, const float *x, float *d, float *m, int32_t *n)
{
    for (uint32_t lane = 0; lane < TD_ENCODE_LANES; lane += VL) {
        td_grid grid = *g; /* a copy for each kind, so that the rest of the code knows it */
        lane_blocks b = {.g = &grid, .x = x + lane};
        b.middle = b.x_sum = vf_zero();
        grid.is_levels = grid.has_minimum = false;
        if (g->has_minimum) {
            grid.has_minimum = true;
            encode_lanes(&b, true, d + lane, m + lane, n + lane);
        } else if (g->is_levels) {
            grid.is_levels = true;
            encode_lanes(&b, false, d + lane, m + lane, n + lane);
        } else {
            encode_lanes(&b, false, d + lane, m + lane, n + lane);
        }
    }
}

#undef N
#endif
