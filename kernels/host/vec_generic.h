/* The vectors the kernels are written in, for any machine: 16 lanes in plain C. vec_avx2.h and
 * vec_avx512.h give the same names with intrinsics; each isa_*.c includes one of them.
 *
 * vf: VL floats. vi: VL int32. vb: 4 VL bytes, lane l being bytes 4l..4l+3. v16_*: functions over
 * 16 lanes in 16 / VL vectors, v32_*: over 32. *_n: the first n lanes (0 <= n <= VL), the others
 * zero or left alone. */
#define VL                   16
#define VF_VECTORS_INT       1 /* vectors of outputs of a quantized tile */
#define VF_ROWS_PARTS        2 /* rows of a tile of body_parts.h */
#define VF_AHEAD_ONE         0 /* bytes to fetch ahead in the weights of one row */
#define VF_AHEAD_SIX(n_rows) 0 /* and in those of Q6_K */
#define VF_ROWS_FLOAT        2
#define VF_FLOATS            4 /* vectors of outputs of a float tile */
#define VF_HAS_NARROW        0 /* dots of small weights are first summed in 16 bits */

INLINE td_host_rows vf_rows(const td_type type)
{
    const bool is_apart = type == TD_TYPE_Q4_K || type == TD_TYPE_Q6_K;
    return (td_host_rows){2, 2, is_apart ? 2 : UINT32_MAX};
}

typedef struct {
    float v[16];
} vf;
typedef struct {
    int32_t v[16];
} vi;
typedef struct {
    uint8_t v[64];
} vb;

#define EACH(i, n) for (int i = 0; i < (n); i++)

INLINE vf vf_set1(float a)
{
    vf r;
    EACH(i, 16) r.v[i] = a;
    return r;
}
INLINE vf vf_zero(void) { return vf_set1(0); }
INLINE vf vf_load(const float *p)
{
    vf r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE void vf_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf vf_load_n(const float *p, uint32_t n)
{
    vf r = vf_zero();
    memcpy(&r, p, n * sizeof *p);
    return r;
}
INLINE void vf_store_n(float *p, vf a, uint32_t n) { memcpy(p, &a, n * sizeof *p); }
INLINE vf vf_add(vf a, vf b)
{
    EACH(i, 16) a.v[i] += b.v[i];
    return a;
}
INLINE vf vf_sub(vf a, vf b)
{
    EACH(i, 16) a.v[i] -= b.v[i];
    return a;
}
INLINE vf vf_mul(vf a, vf b)
{
    EACH(i, 16) a.v[i] *= b.v[i];
    return a;
}
INLINE vf vf_div(vf a, vf b)
{
    EACH(i, 16) a.v[i] /= b.v[i];
    return a;
}
/* a b + c and c - a b, rounded once */
INLINE vf vf_fma(vf a, vf b, vf c)
{
    EACH(i, 16) c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
INLINE vf vf_fnma(vf a, vf b, vf c)
{
    EACH(i, 16) c.v[i] = fmaf(-a.v[i], b.v[i], c.v[i]);
    return c;
}
/* The second operand where one of them is NaN. */
INLINE vf vf_min(vf a, vf b)
{
    EACH(i, 16) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
INLINE vf vf_max(vf a, vf b)
{
    EACH(i, 16) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
/* Where a < b, else the other; a NaN is not below. */
INLINE vf vf_if_below(vf a, vf b, vf where, vf other)
{
    EACH(i, 16) a.v[i] = a.v[i] < b.v[i] ? where.v[i] : other.v[i];
    return a;
}
INLINE vf vf_load_f16(const uint16_t *p)
{
    vf r;
    EACH(i, 16) r.v[i] = td_f16_to_f32(p[i]);
    return r;
}
INLINE vf vf_load_bf16(const uint16_t *p)
{
    vf r;
    EACH(i, 16) r.v[i] = td_arith_from_bits((uint32_t)p[i] << 16);
    return r;
}
INLINE void vf_store_f16(uint16_t *p, vf a) { EACH(i, 16) p[i] = td_f32_to_f16(a.v[i]); }
INLINE float f32_of_f16(uint16_t h) { return td_f16_to_f32(h); }
INLINE vf vf_of_vi(vi a)
{
    vf r;
    EACH(i, 16) r.v[i] = (float)a.v[i];
    return r;
}
INLINE vi vi_bits(vf a)
{
    vi r;
    memcpy(&r, &a, sizeof r);
    return r;
}
INLINE vf vf_bits(vi a)
{
    vf r;
    memcpy(&r, &a, sizeof r);
    return r;
}
/* Rounds half to even; |a| < 2^31. */
INLINE vi vi_of_vf(vf a)
{
    vi r;
    EACH(i, 16) r.v[i] = (int32_t)rintf(a.v[i]);
    return r;
}

INLINE vi vi_set1(int32_t a)
{
    vi r;
    EACH(i, 16) r.v[i] = a;
    return r;
}
INLINE vi vi_add(vi a, vi b)
{
    EACH(i, 16) a.v[i] = (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i]);
    return a;
}
INLINE vi vi_sub(vi a, vi b)
{
    EACH(i, 16) a.v[i] = (int32_t)((uint32_t)a.v[i] - (uint32_t)b.v[i]);
    return a;
}
INLINE vi vi_and(vi a, vi b)
{
    EACH(i, 16) a.v[i] &= b.v[i];
    return a;
}
INLINE vi vi_xor(vi a, vi b)
{
    EACH(i, 16) a.v[i] ^= b.v[i];
    return a;
}
INLINE vi vi_or(vi a, vi b)
{
    EACH(i, 16) a.v[i] |= b.v[i];
    return a;
}
INLINE vi vi_max(vi a, vi b)
{
    EACH(i, 16) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
#define vi_shl(a, n) vi_shl_by(a, (int)(n))
INLINE vi vi_shl_by(vi a, int n)
{
    EACH(i, 16) a.v[i] = (int32_t)((uint32_t)a.v[i] << n);
    return a;
}
#define vi_sra(a, n) vi_sra_by(a, (int)(n))
INLINE vi vi_sra_by(vi a, int n)
{
    EACH(i, 16) a.v[i] >>= n;
    return a;
}
#define vi_srl(a, n) vi_srl_by(a, (int)(n))
INLINE vi vi_srl_by(vi a, int n)
{
    EACH(i, 16) a.v[i] = (int32_t)((uint32_t)a.v[i] >> n);
    return a;
}
INLINE vi vi_load_i8(const void *p)
{
    const int8_t *b = p;
    vi r;
    EACH(i, 16) r.v[i] = b[i];
    return r;
}
INLINE vi vi_load_u8(const void *p)
{
    const uint8_t *b = p;
    vi r;
    EACH(i, 16) r.v[i] = b[i];
    return r;
}

INLINE vi vi_load(const void *p)
{
    vi r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE vi vi_mul(vi a, vi b)
{
    EACH(i, 16) a.v[i] = (int32_t)((uint32_t)a.v[i] * (uint32_t)b.v[i]);
    return a;
}
/* table[a] of each lane; the table has an even number of entries. */
INLINE vi vi_gather(const uint16_t *table, vi a)
{
    EACH(i, 16) a.v[i] = table[a.v[i]];
    return a;
}
/* The low 16 bits of each lane, a half. */
INLINE vf vf_of_f16(vi a)
{
    vf r;
    EACH(i, 16) r.v[i] = td_f16_to_f32((uint16_t)(a.v[i] & 0xffff));
    return r;
}

/* a, b: 2 VL floats in a row <-> those of even and those of odd places. */
INLINE void vf_unzip(vf a, vf b, vf *even, vf *odd)
{
    vf e, o;
    EACH(i, 8) e.v[i] = a.v[2 * i];
    EACH(i, 8) e.v[i + 8] = b.v[2 * i];
    EACH(i, 8) o.v[i] = a.v[2 * i + 1];
    EACH(i, 8) o.v[i + 8] = b.v[2 * i + 1];
    *even = e;
    *odd = o;
}
INLINE void vf_zip(vf even, vf odd, vf *a, vf *b)
{
    EACH(i, 16) a->v[i] = i % 2 ? odd.v[i / 2] : even.v[i / 2];
    EACH(i, 16) b->v[i] = i % 2 ? odd.v[i / 2 + 8] : even.v[i / 2 + 8];
}
INLINE float v16_sum(const vf *a)
{
    vf r = a[0];
    for (int half = 8; half; half /= 2)
        EACH(i, half) r.v[i] += r.v[i + half];
    return r.v[0];
}
INLINE float v16_max(const vf *a)
{
    float m = a->v[0];
    EACH(i, 16) m = a->v[i] > m ? a->v[i] : m;
    return m;
}
/* Sums of a[0..15] and a[16..31]. */
INLINE void v32_sums(const vi *a, int32_t *low, int32_t *high)
{
    *low = *high = 0;
    EACH(i, 16) *low += a[0].v[i];
    EACH(i, 16) *high += a[1].v[i];
}
INLINE int32_t v16_max_i(const vi *a)
{
    int32_t m = a->v[0];
    EACH(i, 16) m = a->v[i] > m ? a->v[i] : m;
    return m;
}
INLINE void v32_store_i8(int8_t *p, const vi *a) { EACH(i, 32) p[i] = (int8_t)a[i / 16].v[i % 16]; }

INLINE void v16_store_i16(int16_t *p, const vi *a) { EACH(i, 16) p[i] = (int16_t)a->v[i]; }
/* Pairs of int16, the low one from a, the high one from b: of the bytes there, signed; or of their
 * low or high halves, less 8. */
INLINE vi vi_pairs_i8(const int8_t *a, const int8_t *b)
{
    vi r;
    EACH(i, 16) r.v[i] = (int32_t)((uint32_t)b[i] << 16 | (uint16_t)a[i]);
    return r;
}
INLINE vi vi_pairs_i4(const uint8_t *a, const uint8_t *b, bool is_high)
{
    int8_t low[16], high[16];
    EACH(i, 16)
    {
        low[i] = (int8_t)((is_high ? a[i] >> 4 : a[i] & 15) - 8);
        high[i] = (int8_t)((is_high ? b[i] >> 4 : b[i] & 15) - 8);
    }
    return vi_pairs_i8(low, high);
}
/* acc and the products of both int16 halves of each lane */
INLINE vi vi_dot2(vi acc, vi a, vi b)
{
    EACH(i, 16)
    acc.v[i] += (int16_t)a.v[i] * (int16_t)b.v[i] + (a.v[i] >> 16) * (b.v[i] >> 16);
    return acc;
}

INLINE vb vb_load(const uint8_t *p)
{
    vb r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE vb vb_and(vb a, uint8_t mask)
{
    EACH(i, 64) a.v[i] &= mask;
    return a;
}
INLINE vb vb_or(vb a, vb b)
{
    EACH(i, 64) a.v[i] |= b.v[i];
    return a;
}
/* Shifts of bytes; in vec_avx*.h bits of a neighbour may come in, so a vb_and must follow. */
#define vb_shl(a, n) vb_shl_by(a, (int)(n))
INLINE vb vb_shl_by(vb a, int n)
{
    EACH(i, 64) a.v[i] = (uint8_t)(a.v[i] << n);
    return a;
}
#define vb_shr(a, n) vb_shr_by(a, (int)(n))
INLINE vb vb_shr_by(vb a, int n)
{
    EACH(i, 64) a.v[i] = (uint8_t)(a.v[i] >> n);
    return a;
}
INLINE void vb_store(uint8_t *p, vb a) { memcpy(p, &a, sizeof a); }
INLINE vb vb_of_vi(vi a)
{
    vb r;
    memcpy(&r, &a, sizeof r);
    return r;
}
INLINE vb vb_add(vb a, uint8_t b)
{
    EACH(i, 64) a.v[i] = (uint8_t)(a.v[i] + b);
    return a;
}
/* table[a] of each byte, 0..15 */
INLINE vb vb_look_up(const uint8_t *table, vb a)
{
    EACH(i, 64) a.v[i] = table[a.v[i]];
    return a;
}
/* Four activations, in every lane. */
typedef const int8_t *q4;
INLINE q4 q4_load(const int8_t *q) { return q; }
/* acc + the dot product of each lane's four unsigned bytes (at most 63) with q[0..3]. */
INLINE vi vi_dot4(vi acc, vb u, q4 q)
{
    EACH(i, 64) acc.v[i / 4] += u.v[i] * q[i % 4];
    return acc;
}

/* The same in lanes of any kind that vi_widen makes lanes of vi. Where VF_HAS_NARROW, they are
 * pairs of int16: with weights of at most 15 they hold the sum of 8 dots, with 31 of 4, with 63 of
 * 2. */
INLINE vi vi_dot4_narrow(vi acc, vb u, q4 q) { return vi_dot4(acc, u, q); }
INLINE vi vi_widen(vi acc) { return acc; }

/* Q8_0 weights are stored with 128 added. w8_start is what the sum of dots starts from so that it
 * ends as the sum over signed weights. */
typedef vb w8;
INLINE w8 w8_load(const uint8_t *p) { return vb_load(p); }
INLINE vi w8_start(const td_act_block *x) { return vi_set1(x->by_128); }
/* The same for half h of a block. */
INLINE vi w8_start_half(const td_act_block *x, int h) { return vi_set1(x->half_by_128[h]); }
INLINE vi w8_dot4(vi acc, w8 w, q4 q) { return vi_dot4(acc, w, q); }
