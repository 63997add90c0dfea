/* Blocks of 16 rows, stored as words (host.h), taken apart into integers and scales: what
 * td_type_info.unpack does, a vector of rows at a time. A word is four bytes of one plane of the
 * format, and planes keep the order of the elements (types_blocks.c), so that four elements of a
 * row come out of a word with a shift and a mask. */
#ifndef TD_KERNELS_HOST_BODY_UNPACK_H
#define TD_KERNELS_HOST_BODY_UNPACK_H

#include "kernels/host/body_math.h"

/* One block (of our own layouts: one chunk) into the parts of `out` from `part` on. */
typedef void (*unpack_block)(const uint8_t *block, td_host_parts *out, uint32_t part);

/* How parts are multiplied. Their bytes are values plus `offset` where that makes them small and
 * never negative, else plus 128. n_narrow: so many groups of four products fit into 16 bits. */
typedef struct {
    bool is_by_16, has_minimum, is_small;
    uint8_t offset, n_narrow;
} part_kind;

typedef enum {
    KIND_PLAIN,
    KIND_PLAIN_BY_16,
    KIND_NIBBLES,
    KIND_NIBBLES_MINIMUM,
    KIND_FIVES,
    KIND_FIVES_MINIMUM,
    KIND_TWOS_BY_16_MINIMUM,
    KIND_THREES_BY_16,
    KIND_SIXES_BY_16,
} part_kind_id;

static const part_kind part_kinds[] = {
    [KIND_PLAIN] = {false, false, false, 0, 1},
    [KIND_PLAIN_BY_16] = {true, false, false, 0, 1},
    [KIND_NIBBLES] = {false, false, true, 8, 8},
    [KIND_NIBBLES_MINIMUM] = {false, true, true, 0, 8},
    [KIND_FIVES] = {false, false, true, 16, 4},
    [KIND_FIVES_MINIMUM] = {false, true, true, 0, 4},
    [KIND_TWOS_BY_16_MINIMUM] = {true, true, true, 0, 4},
    [KIND_THREES_BY_16] = {true, false, true, 4, 4},
    [KIND_SIXES_BY_16] = {true, false, true, 32, 2},
};

typedef struct {
    unpack_block unpack;
    part_kind_id kind;
    uint32_t n_parts; /* of a chunk of our own layouts; 0: those of the type's block */
} part_source;

/* How low bits of part s, group g (4 elements) lie in words. */
typedef enum {
    PLANE_PAIRS,       /* 4 words a part; groups 4.. in the high nibbles */
    PLANE_NIBBLES,     /* 8 words for two parts, the second in the high nibbles */
    PLANE_SHORT_PAIRS, /* 4 words a part; each two hold 16 elements, 8.. in the high nibbles */
    PLANE_TWOS,        /* 8 words for four parts, at bits 2 (s % 4) */
} plane_kind;

/* One more bit, above the low ones. */
typedef enum {
    TOP_NONE,
    TOP_BY_PART,    /* 8 words: bit s of an element's byte is part s's */
    TOP_BY_ELEMENT, /* 1 word: bit e is element e's */
} top_kind;

typedef struct {
    plane_kind kind;
    uint32_t word; /* of the low bits */
    top_kind top;
    uint32_t top_word;
    uint32_t add;          /* to an element, so that it is as its kind wants it */
    const uint8_t *levels; /* or NULL: [16], value plus 128 */
} planes;

/* Rows lane0.. of word i. */
INLINE const uint8_t *word_at(const uint8_t *block, uint32_t i, uint32_t lane0)
{
    return block + i * 64 + lane0 * 4;
}

INLINE vb vb_of(const uint8_t *block, uint32_t i, uint32_t lane0)
{
    return vb_load(word_at(block, i, lane0));
}

INLINE vi vi_of(const uint8_t *block, uint32_t i, uint32_t lane0)
{
    return vi_load(word_at(block, i, lane0));
}

/* Four bits of each lane, i.., one to a byte. */
INLINE vi spread_bits(vi word, const uint32_t i)
{
    vi four = vi_and(vi_srl(word, i), vi_set1(15));
    return vi_and(vi_mul(four, vi_set1(0x00204081)), vi_set1(0x01010101));
}

/* Four times two bits, from bit i. */
INLINE vi spread_twos(vi word, const uint32_t i)
{
    vi byte = vi_and(vi_srl(word, i), vi_set1(255));
    vi pairs = vi_and(vi_or(byte, vi_shl(byte, 12)), vi_set1(0x000f000f));
    return vi_and(vi_or(pairs, vi_shl(pairs, 6)), vi_set1(0x03030303));
}

/* Four times three bits, from bit 0; bits 12.. are 0. */
INLINE vi spread_threes(vi word)
{
    vi pairs = vi_and(vi_or(word, vi_shl(word, 10)), vi_set1(0x003f003f));
    return vi_and(vi_or(pairs, vi_shl(pairs, 5)), vi_set1(0x07070707));
}

INLINE vb low_bits(const planes *p, const uint8_t *block, const uint32_t s, const uint32_t g,
                   uint32_t lane0)
{
    switch (p->kind) {
    case PLANE_PAIRS: {
        vb w = vb_of(block, p->word + 4 * s + g % 4, lane0);
        return vb_and(g < 4 ? w : vb_shr(w, 4), 15);
    }
    case PLANE_NIBBLES: {
        vb w = vb_of(block, p->word + s / 2 * 8 + g, lane0);
        return vb_and(s % 2 ? vb_shr(w, 4) : w, 15);
    }
    case PLANE_SHORT_PAIRS: {
        vb w = vb_of(block, p->word + 4 * s + g / 4 * 2 + g % 2, lane0);
        return vb_and(g % 4 < 2 ? w : vb_shr(w, 4), 15);
    }
    default: {
        vb w = vb_of(block, p->word + s / 4 * 8 + g, lane0);
        return vb_and(s % 4 == 0 ? w : vb_shr(w, s % 4 * 2), 3);
    }
    }
}

/* The top bit where it belongs: bit 4 above nibbles, bit 2 above two bits. */
INLINE vb top_bit(const planes *p, const uint8_t *block, const uint32_t s, const uint32_t g,
                  uint32_t lane0)
{
    if (p->top == TOP_BY_ELEMENT)
        return vb_of_vi(vi_shl(spread_bits(vi_of(block, p->top_word, lane0), 4 * g), 4));
    const uint32_t at = p->kind == PLANE_TWOS ? 2 : 4;
    vb w = vb_of(block, p->top_word + g, lane0);
    return vb_and(s < at ? vb_shl(w, at - s) : s > at ? vb_shr(w, s - at) : w, (uint8_t)(1u << at));
}

/* The integers of n_parts parts of one block. */
INLINE void unpack_planes(const planes *p, const uint8_t *block, const uint32_t n_parts,
                          uint8_t (*q)[8][TD_PANEL_ROWS][4])
{
    UNROLL for (uint32_t s = 0; s < n_parts; s++) UNROLL for (uint32_t g = 0; g < 8; g++)
        UNROLL for (uint32_t lane0 = 0; lane0 < TD_PANEL_ROWS; lane0 += VL)
    {
        vb u = low_bits(p, block, s, g, lane0);
        if (p->top != TOP_NONE)
            u = vb_or(u, top_bit(p, block, s, g, lane0));
        if (p->levels)
            u = vb_look_up(p->levels, u);
        else if (p->add)
            u = vb_add(u, (uint8_t)p->add);
        vb_store(&q[s][g][lane0][0], u);
    }
}

#define EACH_LANE0 UNROLL for (uint32_t lane0 = 0; lane0 < TD_PANEL_ROWS; lane0 += VL)

/* Byte i of each lane as a number. */
INLINE vf vf_of_byte(vi word, const uint32_t i)
{
    return vf_of_vi(vi_and(vi_srl(word, 8 * i), vi_set1(255)));
}

/* The half of each row that fills no word, behind the words. */
INLINE vf odd_half(const uint8_t *block, const uint32_t n_words, uint32_t lane0)
{
    return vf_load_f16((const uint16_t *)(const void *)(block + n_words * 64) + lane0);
}

/* -- our own layouts (host.h) ----------------------------------------------------------------- */

/* Nibbles of 32 elements. */
INLINE void unpack_nibbles(const uint8_t *quants, uint8_t (*q)[TD_PANEL_ROWS][4])
{
    UNROLL for (uint32_t i = 0; i < 4; i++) EACH_LANE0
    {
        vb pair = vb_load(word_at(quants, i, lane0));
        vb_store(&q[i][lane0][0], vb_and(pair, 15));
        vb_store(&q[i + 4][lane0][0], vb_and(vb_shr(pair, 4), 15));
    }
}

/* The scales of a chunk of two blocks. */
INLINE void unpack_small_scales(const uint8_t *chunk, td_host_parts *out, uint32_t part)
{
    const uint16_t *d = (const uint16_t *)(const void *)chunk;
    UNROLL for (uint32_t b = 0; b < 2; b++) EACH_LANE0 vf_store(
        out->scale[part + b][0] + lane0, vf_load_f16(d + b * TD_PANEL_ROWS + lane0));
}

static void unpack_q4_0(const uint8_t *chunk, td_host_parts *out, uint32_t part)
{
    unpack_small_scales(chunk, out, part);
    UNROLL for (uint32_t b = 0; b < 2; b++)
        unpack_nibbles(chunk + TD_SMALL_SCALES + b * TD_Q4_QUANTS, out->q[part + b]);
}

static void unpack_q4_k(const uint8_t *chunk, td_host_parts *out, uint32_t part)
{
    const uint16_t *halves = (const uint16_t *)(const void *)chunk;
    for (uint32_t s = 0; s < 8; s++) {
        const uint8_t *steps = chunk + 64 + s * TD_PANEL_ROWS;
        unpack_nibbles(chunk + TD_K_SCALES + s * TD_Q4_QUANTS, out->q[part + s]);
        EACH_LANE0
        {
            vf d = vf_load_f16(halves + lane0), d_min = vf_load_f16(halves + TD_PANEL_ROWS + lane0);
            vi scale = vi_load_u8(steps + lane0), minimum = vi_load_u8(steps + 128 + lane0);
            vf_store(out->scale[part + s][0] + lane0, vf_mul(d, vf_of_vi(scale)));
            vf_store(out->minimum[part + s][0] + lane0, vf_mul(d_min, vf_of_vi(minimum)));
        }
    }
}

/* Group g of half a block of Q6_K: its low four bits from `pair`, the high two from `tops`. */
INLINE vb sixes(vb pair, vb tops, const uint32_t i_half, const uint32_t g)
{
    vb low = vb_and(i_half ? vb_shr(pair, 4) : pair, 0x0f);
    vb high = g == 0 ? vb_shl(tops, 4) : g == 1 ? vb_shl(tops, 2) : g == 2 ? tops : vb_shr(tops, 2);
    return vb_or(low, vb_and(high, 0x30));
}

static void unpack_q6_k(const uint8_t *chunk, td_host_parts *out, uint32_t part)
{
    const uint16_t *halves = (const uint16_t *)(const void *)chunk;
    for (uint32_t s = 0; s < 8; s++) {
        const uint8_t *quants = chunk + TD_K_SCALES + s * TD_Q6_K_QUANTS;
        UNROLL for (uint32_t h = 0; h < 2; h++) EACH_LANE0
        {
            vb tops = vb_load(word_at(quants + TD_Q4_QUANTS, h, lane0));
            UNROLL for (uint32_t g = 0; g < 4; g++)
                vb_store(&out->q[part + s][4 * h + g][lane0][0],
                         sixes(vb_load(word_at(quants, g, lane0)), tops, h, g));
            vi scale = vi_load_i8(chunk + 32 + s * 32 + h * TD_PANEL_ROWS + lane0);
            vf_store(out->scale[part + s][h] + lane0,
                     vf_mul(vf_load_f16(halves + lane0), vf_of_vi(scale)));
        }
    }
}

/* -- blocks of 32 ------------------------------------------------------------------------------ */

/* {half d; integers}: d is what fills no word. */
INLINE void unpack_small(const planes *p, const uint8_t *block, const uint32_t n_words,
                         td_host_parts *out, uint32_t part)
{
    unpack_planes(p, block, 1, &out->q[part]);
    EACH_LANE0 vf_store(out->scale[part][0] + lane0, odd_half(block, n_words, lane0));
}

/* {half d, m; integers}: word 0 is d and m, value = d q + m. */
INLINE void unpack_small_minimum(const planes *p, const uint8_t *block, td_host_parts *out,
                                 uint32_t part)
{
    unpack_planes(p, block, 1, &out->q[part]);
    EACH_LANE0
    {
        vi word = vi_of(block, 0, lane0);
        vi m = vi_bits(vf_of_f16(vi_srl(word, 16)));
        vf_store(out->scale[part][0] + lane0, vf_of_f16(word));
        vf_store(out->minimum[part][0] + lane0, vf_bits(vi_xor(m, vi_set1(INT32_MIN))));
    }
}

/* The levels of types_blocks.c. */
static const uint8_t e2m1_plus_128[16] = {128, 129, 130, 131, 132, 134, 136, 140,
                                          128, 127, 126, 125, 124, 122, 120, 116};
static const uint8_t iq4_plus_128[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                         129, 141, 153, 166, 181, 197, 217, 241};

static void unpack_q4_1(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_PAIRS, .word = 1};
    unpack_small_minimum(&p, block, out, part);
}

static void unpack_q5_0(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_PAIRS, .word = 1, .top = TOP_BY_ELEMENT};
    unpack_small(&p, block, 5, out, part);
}

static void unpack_q5_1(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_PAIRS, .word = 2, .top = TOP_BY_ELEMENT, .top_word = 1};
    unpack_small_minimum(&p, block, out, part);
}

static void unpack_iq4_nl(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_PAIRS, .levels = iq4_plus_128};
    unpack_small(&p, block, 4, out, part);
}

/* The scale is 2^(e - 128), e being the byte that fills no word: its bits are (e - 1) << 23, but
 * 0x200000 << e where that is subnormal. */
static void unpack_mxfp4(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_PAIRS, .levels = e2m1_plus_128};
    unpack_planes(&p, block, 1, &out->q[part]);
    EACH_LANE0
    {
        vi e = vi_load_u8(block + 4 * 64 + lane0);
        vi normal = vi_shl(vi_sub(e, vi_set1(1)), 23);
        vi subnormal = vi_shl(vi_add(e, vi_set1(1)), 21); /* the larger of both is right */
        vf_store(out->scale[part][0] + lane0, vf_bits(vi_max(normal, subnormal)));
    }
}

/* -- blocks of 256 ----------------------------------------------------------------------------- */

static void unpack_q5_k(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_NIBBLES, .word = 12, .top = TOP_BY_PART, .top_word = 4};
    unpack_planes(&p, block, 8, &out->q[part]);
    EACH_LANE0
    {
        vi halves = vi_of(block, 0, lane0);
        vf d = vf_of_f16(halves), d_min = vf_of_f16(vi_srl(halves, 16));
        vi w[3], six = vi_set1(0x3f3f3f3f), four = vi_set1(0x0f0f0f0f), top = vi_set1(0x30303030);
        UNROLL for (uint32_t i = 0; i < 3; i++) w[i] = vi_of(block, 1 + i, lane0);
        const vi scales[2] = {vi_and(w[0], six),
                              vi_or(vi_and(w[2], four), vi_and(vi_srl(w[0], 2), top))};
        const vi minima[2] = {vi_and(w[1], six),
                              vi_or(vi_and(vi_srl(w[2], 4), four), vi_and(vi_srl(w[1], 2), top))};
        UNROLL for (uint32_t s = 0; s < 8; s++)
        {
            vf_store(out->scale[part + s][0] + lane0, vf_mul(d, vf_of_byte(scales[s / 4], s % 4)));
            vf_store(out->minimum[part + s][0] + lane0,
                     vf_mul(d_min, vf_of_byte(minima[s / 4], s % 4)));
        }
    }
}

static void unpack_q2_k(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_TWOS, .word = 4};
    unpack_planes(&p, block, 8, &out->q[part]);
    EACH_LANE0
    {
        vi halves = vi_of(block, 20, lane0);
        vf d = vf_of_f16(halves), d_min = vf_of_f16(vi_srl(halves, 16));
        UNROLL for (uint32_t s = 0; s < 16; s++)
        {
            vi both = vi_srl(vi_of(block, s / 4, lane0), s % 4 * 8), four = vi_set1(15);
            vf_store(out->scale[part + s / 2][s % 2] + lane0,
                     vf_mul(d, vf_of_vi(vi_and(both, four))));
            vf_store(out->minimum[part + s / 2][s % 2] + lane0,
                     vf_mul(d_min, vf_of_vi(vi_and(vi_srl(both, 4), four))));
        }
    }
}

static void unpack_q3_k(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_TWOS, .word = 8, .top = TOP_BY_PART};
    unpack_planes(&p, block, 8, &out->q[part]);
    EACH_LANE0
    {
        vf d = odd_half(block, 27, lane0);
        vi tops = vi_of(block, 26, lane0);
        UNROLL for (uint32_t s = 0; s < 16; s++)
        {
            vi low = vi_srl(vi_of(block, 24 + s % 8 / 4, lane0), s % 4 * 8 + s / 8 * 4);
            vi high = vi_srl(tops, s % 4 * 8 + s / 4 * 2);
            vi scale = vi_or(vi_and(low, vi_set1(15)), vi_shl(vi_and(high, vi_set1(3)), 4));
            vf_store(out->scale[part + s / 2][s % 2] + lane0,
                     vf_mul(d, vf_of_vi(vi_sub(scale, vi_set1(32)))));
        }
    }
}

static void unpack_iq4_xs(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_PAIRS, .word = 2, .levels = iq4_plus_128};
    unpack_planes(&p, block, 8, &out->q[part]);
    EACH_LANE0
    {
        vi first = vi_of(block, 0, lane0), lows = vi_of(block, 1, lane0);
        vf d = vf_of_f16(first);
        UNROLL for (uint32_t s = 0; s < 8; s++)
        {
            vi low = vi_and(vi_srl(lows, 4 * s), vi_set1(15));
            vi high = vi_and(vi_srl(first, 16 + 2 * s), vi_set1(3));
            vi scale = vi_sub(vi_or(low, vi_shl(high, 4)), vi_set1(32));
            vf_store(out->scale[part + s][0] + lane0, vf_mul(d, vf_of_vi(scale)));
        }
    }
}

/* Scales are E4M3 bytes without sign, halved; 0x7f is 0. Their bits moved up make the half of
 * 2^-7 times the scale, subnormal ones too. */
static void unpack_nvfp4(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_SHORT_PAIRS, .word = 1, .levels = e2m1_plus_128};
    unpack_planes(&p, block, 2, &out->q[part]);
    EACH_LANE0
    {
        vi scales = vi_of(block, 0, lane0);
        UNROLL for (uint32_t s = 0; s < 4; s++)
        {
            vi byte = vi_and(vi_srl(scales, 8 * s), vi_set1(255));
            vi rest =
                vi_sub(byte, vi_set1(0x7f)); /* its sign or that of its negative is set, or 0 */
            vi is_number = vi_sra(vi_or(rest, vi_sub(vi_set1(0), rest)), 31);
            vi half = vi_shl(vi_and(vi_and(byte, vi_set1(0x7f)), is_number), 7);
            vf_store(out->scale[part + s / 2][s % 2] + lane0,
                     vf_mul(vf_of_f16(half), vf_set1(128)));
        }
    }
}

/* -- one or two bits and trits ----------------------------------------------------------------- */

/* The same scale, what fills no word, for all n_parts. */
INLINE void spread_scale(const uint8_t *block, const uint32_t n_words, const uint32_t n_parts,
                         td_host_parts *out, uint32_t part)
{
    EACH_LANE0
    {
        vf d = odd_half(block, n_words, lane0);
        UNROLL for (uint32_t s = 0; s < n_parts; s++) vf_store(out->scale[part + s][0] + lane0, d);
    }
}

static void unpack_tq2_0(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    static const planes p = {PLANE_TWOS, .add = 127};
    unpack_planes(&p, block, 8, &out->q[part]);
    spread_scale(block, 16, 8, out, part);
}

/* A byte holds four elements. */
static void unpack_q2_0(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0 UNROLL for (uint32_t g = 0; g < 16; g++)
    {
        vi twos = spread_twos(vi_of(block, g / 4, lane0), g % 4 * 8);
        vb_store(&out->q[part + g / 8][g % 8][lane0][0], vb_add(vb_of_vi(twos), 127));
    }
    spread_scale(block, 4, 2, out, part);
}

static void unpack_q1_0(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0 UNROLL for (uint32_t g = 0; g < 32; g++)
    {
        vi twice = vi_shl(spread_bits(vi_of(block, g / 8, lane0), g % 8 * 4), 1);
        vb_store(&out->q[part + g / 8][g % 8][lane0][0], vb_add(vb_of_vi(twice), 127));
    }
    spread_scale(block, 4, 4, out, part);
}

/* The trits of a word's bytes, one after another: the byte as a fraction times 3, its
 * whole part. Even and odd bytes go apart, for room above them. Trit n is that of group
 * group0 + n_stride * n. */
INLINE void put_trits(vi word, const uint32_t n_trits, const uint32_t group0, const uint32_t stride,
                      td_host_parts *out, uint32_t part, uint32_t lane0)
{
    const vi low = vi_set1(0x00ff00ff), whole = vi_set1(0x00030003);
    vi even = vi_and(word, low), odd = vi_and(vi_srl(word, 8), low);
    UNROLL for (uint32_t n = 0; n < n_trits; n++)
    {
        const uint32_t group = group0 + stride * n;
        even = vi_add(even, vi_add(even, even));
        odd = vi_add(odd, vi_add(odd, odd));
        vi trits = vi_or(vi_and(vi_srl(even, 8), whole), vi_and(odd, vi_shl(whole, 8)));
        vb_store(&out->q[part + group / 8][group % 8][lane0][0], vb_add(vb_of_vi(trits), 127));
        even = vi_and(even, low);
        odd = vi_and(odd, low);
    }
}

static void unpack_tq1_0(const uint8_t *block, td_host_parts *out, uint32_t part)
{
    EACH_LANE0
    {
        for (uint32_t i = 0; i < 8; i++)
            put_trits(vi_of(block, i, lane0), 5, i, 8, out, part, lane0);
        for (uint32_t i = 0; i < 4; i++)
            put_trits(vi_of(block, 8 + i, lane0), 5, 40 + i, 4, out, part, lane0);
        put_trits(vi_of(block, 12, lane0), 4, 60, 1, out, part, lane0);
    }
    spread_scale(block, 13, 8, out, part);
}

#endif
