/* vec_generic.h's names in AVX2, FMA and F16C: 8 lanes. Where VEC_DPBUSD is defined, it is the
 * dot product of AVX-VNNI: acc + four unsigned bytes times four signed ones, in each int32. */
#define VL                   8
#define VF_VECTORS_INT       2
#define VF_ROWS_PARTS        4
#define VF_AHEAD_ONE         4096
#define VF_AHEAD_SIX(n_rows) ((n_rows) == 1 ? 512 : 4096)
#define VF_ROWS_FLOAT        6
#define VF_FLOATS            2
#ifdef VEC_DPBUSD
#define VF_HAS_NARROW 0
#else
#define VF_HAS_NARROW 1
#endif

INLINE td_host_rows vf_rows(const td_type type)
{
#ifdef VEC_DPBUSD
    const bool is_apart = type == TD_TYPE_Q4_K || type == TD_TYPE_Q6_K;
    return (td_host_rows){4, 4, is_apart ? 4 : UINT32_MAX};
#else
    switch (type) {
    case TD_TYPE_Q4_K: /* one vector alone reads each line twice: slower where memory counts */
        return (td_host_rows){5, 5, 10};
    case TD_TYPE_Q6_K:
        return (td_host_rows){5, 5, 5};
    case TD_TYPE_Q4_0: /* taken apart again for each tile: cheaper than to store and load parts */
        return (td_host_rows){5, 5, UINT32_MAX};
    default:
        return (td_host_rows){6, 6, UINT32_MAX};
    }
#endif
}

typedef __m256 vf;
typedef __m256i vi;
typedef __m256i vb;

INLINE __m256i lanes_below(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)n),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vf vf_set1(float a) { return _mm256_set1_ps(a); }
INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf vf_load_n(const float *p, uint32_t n) { return _mm256_maskload_ps(p, lanes_below(n)); }
INLINE void vf_store_n(float *p, vf a, uint32_t n)
{
    if (n == VL) /* a masked store takes some CPUs dozens of cycles */
        _mm256_storeu_ps(p, a);
    else
        _mm256_maskstore_ps(p, lanes_below(n), a);
}
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_if_below(vf a, vf b, vf where, vf other)
{
    return _mm256_blendv_ps(other, where, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE void vf_store_f16(uint16_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
INLINE float f32_of_f16(uint16_t h) { return _cvtsh_ss(h); }
INLINE vf vf_of_vi(vi a) { return _mm256_cvtepi32_ps(a); }
INLINE vi vi_bits(vf a) { return _mm256_castps_si256(a); }
INLINE vf vf_bits(vi a) { return _mm256_castsi256_ps(a); }
INLINE vi vi_of_vf(vf a) { return _mm256_cvtps_epi32(a); }

INLINE vi vi_set1(int32_t a) { return _mm256_set1_epi32(a); }
INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
INLINE vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
INLINE vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
#define vi_shl(a, n) _mm256_slli_epi32(a, (int)(n))
#define vi_sra(a, n) _mm256_srai_epi32(a, (int)(n))
#define vi_srl(a, n) _mm256_srli_epi32(a, (int)(n))
INLINE vi vi_load_i8(const void *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(p)); }
INLINE vi vi_load_u8(const void *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(p)); }
INLINE vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
INLINE vi vi_mul(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
INLINE vi vi_gather(const uint16_t *table, vi a)
{
    const int *words = (const int *)(const void *)table;
    __m256i pairs = _mm256_i32gather_epi32(words, _mm256_srli_epi32(a, 1), 4);
    __m256i shift = _mm256_slli_epi32(_mm256_and_si256(a, _mm256_set1_epi32(1)), 4);
    return _mm256_and_si256(_mm256_srlv_epi32(pairs, shift), _mm256_set1_epi32(0xffff));
}
INLINE vf vf_of_f16(vi a)
{
    __m256i low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
    return _mm256_cvtph_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}

INLINE __m256 middle_swapped(__m256 a) /* quarters 0 2 1 3 */
{
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8));
}
INLINE void vf_unzip(vf a, vf b, vf *even, vf *odd)
{
    *even = middle_swapped(_mm256_shuffle_ps(a, b, 0x88));
    *odd = middle_swapped(_mm256_shuffle_ps(a, b, 0xdd));
}
INLINE void vf_zip(vf even, vf odd, vf *a, vf *b)
{
    __m256 e = middle_swapped(even), o = middle_swapped(odd);
    *a = _mm256_unpacklo_ps(e, o);
    *b = _mm256_unpackhi_ps(e, o);
}
INLINE float v16_sum(const vf *a)
{
    __m256 r8 = _mm256_add_ps(a[0], a[1]);
    __m128 r4 = _mm_add_ps(_mm256_castps256_ps128(r8), _mm256_extractf128_ps(r8, 1));
    __m128 r2 = _mm_add_ps(r4, _mm_movehl_ps(r4, r4));
    return _mm_cvtss_f32(_mm_add_ss(r2, _mm_movehdup_ps(r2)));
}
INLINE float v16_max(const vf *a)
{
    __m256 r8 = _mm256_max_ps(a[0], a[1]);
    __m128 r4 = _mm_max_ps(_mm256_castps256_ps128(r8), _mm256_extractf128_ps(r8, 1));
    __m128 r2 = _mm_max_ps(r4, _mm_movehl_ps(r4, r4));
    return _mm_cvtss_f32(_mm_max_ss(r2, _mm_movehdup_ps(r2)));
}
INLINE void v32_sums(const vi *a, int32_t *low, int32_t *high)
{
    __m256i pairs = _mm256_hadd_epi32(_mm256_add_epi32(a[0], a[1]), _mm256_add_epi32(a[2], a[3]));
    __m128i r4 = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    __m128i r2 = _mm_hadd_epi32(r4, r4);
    *low = _mm_cvtsi128_si32(r2);
    *high = _mm_extract_epi32(r2, 1);
}
INLINE int32_t v16_max_i(const vi *a)
{
    __m256i r8 = _mm256_max_epi32(a[0], a[1]);
    __m128i r4 = _mm_max_epi32(_mm256_castsi256_si128(r8), _mm256_extracti128_si256(r8, 1));
    __m128i r2 = _mm_max_epi32(r4, _mm_shuffle_epi32(r4, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(r2, _mm_shuffle_epi32(r2, 0xb1)));
}
INLINE void v32_store_i8(int8_t *p, const vi *a)
{
    /* The packs work per 128 bits and leave the groups of four as 0 2 4 6 1 3 5 7. */
    __m256i low = _mm256_packs_epi32(a[0], a[1]), high = _mm256_packs_epi32(a[2], a[3]);
    __m256i mixed = _mm256_packs_epi16(low, high);
    __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)p, _mm256_permutevar8x32_epi32(mixed, order));
}

INLINE void v16_store_i16(int16_t *p, const vi *a)
{
    __m256i mixed = _mm256_packs_epi32(a[0], a[1]);
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(mixed, 0xd8));
}
INLINE __m128i bytes_zipped(const void *a, const void *b)
{
    return _mm_unpacklo_epi8(_mm_loadl_epi64(a), _mm_loadl_epi64(b));
}
INLINE vi vi_pairs_i8(const int8_t *a, const int8_t *b)
{
    return _mm256_cvtepi8_epi16(bytes_zipped(a, b));
}
INLINE vi vi_pairs_i4(const uint8_t *a, const uint8_t *b, bool is_high)
{
    __m128i both = bytes_zipped(a, b);
    both = _mm_and_si128(is_high ? _mm_srli_epi16(both, 4) : both, _mm_set1_epi8(15));
    return _mm256_cvtepi8_epi16(_mm_sub_epi8(both, _mm_set1_epi8(8)));
}
INLINE vi vi_dot2(vi acc, vi a, vi b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }

typedef __m256i q4;
INLINE q4 q4_load(const int8_t *q)
{
    int32_t r;
    memcpy(&r, q, sizeof r);
    return _mm256_set1_epi32(r);
}

INLINE vb vb_load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vb vb_and(vb a, uint8_t mask) { return _mm256_and_si256(a, _mm256_set1_epi8((char)mask)); }
INLINE vb vb_or(vb a, vb b) { return _mm256_or_si256(a, b); }
#define vb_shl(a, n) _mm256_slli_epi16(a, (int)(n))
#define vb_shr(a, n) _mm256_srli_epi16(a, (int)(n))
INLINE void vb_store(uint8_t *p, vb a) { _mm256_storeu_si256((__m256i *)p, a); }
INLINE vb vb_of_vi(vi a) { return a; }
INLINE vb vb_add(vb a, uint8_t b) { return _mm256_add_epi8(a, _mm256_set1_epi8((char)b)); }
INLINE vb vb_look_up(const uint8_t *table, vb a)
{
    __m128i levels = _mm_loadu_si128((const __m128i *)(const void *)table);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(levels), a);
}

#ifdef VEC_DPBUSD

INLINE vi vi_dot4(vi acc, vb u, q4 q) { return VEC_DPBUSD(acc, u, q); }
INLINE vi vi_dot4_narrow(vi acc, vb u, q4 q) { return vi_dot4(acc, u, q); }
INLINE vi vi_widen(vi acc) { return acc; }

typedef vb w8;
INLINE w8 w8_load(const uint8_t *p) { return vb_load(p); }
INLINE vi w8_start(const td_act_block *x) { return vi_set1(x->by_128); }
INLINE vi w8_start_half(const td_act_block *x, int h) { return vi_set1(x->half_by_128[h]); }
INLINE vi w8_dot4(vi acc, w8 w, q4 q) { return vi_dot4(acc, w, q); }

#else

/* Pairs are summed in int16, which saturates: 2 * 63 * 127 fits. */
INLINE vi vi_dot4(vi acc, vb u, q4 q)
{
    __m256i pairs = _mm256_maddubs_epi16(u, q);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
/* The order of exact sums is free: 8 * 2 * 15 * 127 still fits. */
INLINE vi vi_dot4_narrow(vi acc, vb u, q4 q)
{
    return _mm256_add_epi16(acc, _mm256_maddubs_epi16(u, q));
}
INLINE vi vi_widen(vi acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }

/* Unsigned weights would saturate (2 * 255 * 127), so they are made signed again, and the sign
 * goes to q, which is never -128: 2 * 128 * 127 fits. */
typedef struct {
    __m256i sign, magnitude;
} w8;
INLINE w8 w8_load(const uint8_t *p)
{
    __m256i w = _mm256_xor_si256(vb_load(p), _mm256_set1_epi8((char)0x80));
    return (w8){w, _mm256_abs_epi8(w)};
}
INLINE vi w8_start(const td_act_block *x)
{
    (void)x;
    return _mm256_setzero_si256();
}
INLINE vi w8_start_half(const td_act_block *x, int h)
{
    (void)h;
    return w8_start(x);
}
INLINE vi w8_dot4(vi acc, w8 w, q4 q)
{
    __m256i pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(q, w.sign));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#endif
