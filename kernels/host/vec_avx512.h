/* vec_generic.h's names in AVX-512 F, BW, VL and VNNI: 16 lanes. */
#define VL                   16
#define VF_VECTORS_INT       2
#define VF_ROWS_PARTS        8
#define VF_AHEAD_ONE         0
#define VF_AHEAD_SIX(n_rows) ((n_rows) == 1 ? 0 : 1024)
#define VF_ROWS_FLOAT        6
#define VF_FLOATS            4
#define VF_HAS_NARROW        0

INLINE td_host_rows vf_rows(const td_type type)
{
    (void)type;
    return (td_host_rows){6, 8, UINT32_MAX};
}

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;

INLINE __mmask16 lanes_below(uint32_t n) { return (__mmask16)((1u << n) - 1); }

INLINE vf vf_set1(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_load_n(const float *p, uint32_t n) { return _mm512_maskz_loadu_ps(lanes_below(n), p); }
INLINE void vf_store_n(float *p, vf a, uint32_t n) { _mm512_mask_storeu_ps(p, lanes_below(n), a); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_if_below(vf a, vf b, vf where, vf other)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), other, where);
}
INLINE vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vf vf_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE void vf_store_f16(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
INLINE float f32_of_f16(uint16_t h) { return _cvtsh_ss(h); }
INLINE vf vf_of_vi(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vi vi_bits(vf a) { return _mm512_castps_si512(a); }
INLINE vf vf_bits(vi a) { return _mm512_castsi512_ps(a); }
INLINE vi vi_of_vf(vf a) { return _mm512_cvtps_epi32(a); }

INLINE vi vi_set1(int32_t a) { return _mm512_set1_epi32(a); }
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
INLINE vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
INLINE vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
#define vi_shl(a, n) _mm512_slli_epi32(a, (unsigned)(n))
#define vi_sra(a, n) _mm512_srai_epi32(a, (unsigned)(n))
#define vi_srl(a, n) _mm512_srli_epi32(a, (unsigned)(n))
INLINE vi vi_load_i8(const void *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(p)); }
INLINE vi vi_load_u8(const void *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(p)); }
INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
INLINE vi vi_gather(const uint16_t *table, vi a)
{
    __m512i pairs = _mm512_i32gather_epi32(_mm512_srli_epi32(a, 1), table, 4);
    __m512i shift = _mm512_slli_epi32(_mm512_and_si512(a, _mm512_set1_epi32(1)), 4);
    return _mm512_and_si512(_mm512_srlv_epi32(pairs, shift), _mm512_set1_epi32(0xffff));
}
INLINE vf vf_of_f16(vi a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }

INLINE void vf_unzip(vf a, vf b, vf *even, vf *odd)
{
    const __m512i step =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *even = _mm512_permutex2var_ps(a, step, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(step, _mm512_set1_epi32(1)), b);
}
INLINE void vf_zip(vf even, vf odd, vf *a, vf *b)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *a = _mm512_permutex2var_ps(even, low, odd);
    *b = _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd);
}
INLINE float v16_sum(const vf *a)
{
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a[0]), 1));
    __m256 r8 = _mm256_add_ps(_mm512_castps512_ps256(a[0]), high);
    __m128 r4 = _mm_add_ps(_mm256_castps256_ps128(r8), _mm256_extractf128_ps(r8, 1));
    __m128 r2 = _mm_add_ps(r4, _mm_movehl_ps(r4, r4));
    return _mm_cvtss_f32(_mm_add_ss(r2, _mm_movehdup_ps(r2)));
}
INLINE float v16_max(const vf *a) { return _mm512_reduce_max_ps(a[0]); }
INLINE __m256i half_sums(vi a)
{
    return _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
}
INLINE void v32_sums(const vi *a, int32_t *low, int32_t *high)
{
    __m256i pairs = _mm256_hadd_epi32(half_sums(a[0]), half_sums(a[1]));
    __m128i r4 = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    __m128i r2 = _mm_hadd_epi32(r4, r4);
    *low = _mm_cvtsi128_si32(r2);
    *high = _mm_extract_epi32(r2, 1);
}
INLINE int32_t v16_max_i(const vi *a) { return _mm512_reduce_max_epi32(a[0]); }
INLINE void v32_store_i8(int8_t *p, const vi *a)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a[0]));
    _mm_storeu_si128((__m128i *)(p + 16), _mm512_cvtepi32_epi8(a[1]));
}

INLINE void v16_store_i16(int16_t *p, const vi *a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(a[0]));
}
INLINE __m256i bytes_zipped(const void *a, const void *b)
{
    __m128i x = _mm_loadu_si128(a), y = _mm_loadu_si128(b);
    return _mm256_set_m128i(_mm_unpackhi_epi8(x, y), _mm_unpacklo_epi8(x, y));
}
INLINE vi vi_pairs_i8(const int8_t *a, const int8_t *b)
{
    return _mm512_cvtepi8_epi16(bytes_zipped(a, b));
}
INLINE vi vi_pairs_i4(const uint8_t *a, const uint8_t *b, bool is_high)
{
    __m256i both = bytes_zipped(a, b);
    both = _mm256_and_si256(is_high ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
    return _mm512_cvtepi8_epi16(_mm256_sub_epi8(both, _mm256_set1_epi8(8)));
}
INLINE vi vi_dot2(vi acc, vi a, vi b) { return _mm512_dpwssd_epi32(acc, a, b); }

typedef int32_t unaligned_i32 __attribute__((may_alias, aligned(1)));

INLINE vb vb_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE vb vb_and(vb a, uint8_t mask) { return _mm512_and_si512(a, _mm512_set1_epi8((char)mask)); }
INLINE vb vb_or(vb a, vb b) { return _mm512_or_si512(a, b); }
#define vb_shl(a, n) _mm512_slli_epi16(a, (int)(n))
#define vb_shr(a, n) _mm512_srli_epi16(a, (int)(n))
INLINE void vb_store(uint8_t *p, vb a) { _mm512_storeu_si512(p, a); }
INLINE vb vb_of_vi(vi a) { return a; }
INLINE vb vb_add(vb a, uint8_t b) { return _mm512_add_epi8(a, _mm512_set1_epi8((char)b)); }
INLINE vb vb_look_up(const uint8_t *table, vb a)
{
    __m128i levels = _mm_loadu_si128((const __m128i *)(const void *)table);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(levels), a);
}
typedef vi q4;
INLINE q4 q4_load(const int8_t *q)
{
    return _mm512_set1_epi32(*(const unaligned_i32 *)(const void *)q);
}
INLINE vi vi_dot4(vi acc, vb u, q4 q) { return _mm512_dpbusd_epi32(acc, u, q); }
INLINE vi vi_dot4_narrow(vi acc, vb u, q4 q) { return vi_dot4(acc, u, q); }
INLINE vi vi_widen(vi acc) { return acc; }

typedef vb w8;
INLINE w8 w8_load(const uint8_t *p) { return vb_load(p); }
INLINE vi w8_start(const td_act_block *x) { return vi_set1(x->by_128); }
INLINE vi w8_start_half(const td_act_block *x, int h) { return vi_set1(x->half_by_128[h]); }
INLINE vi w8_dot4(vi acc, w8 w, q4 q) { return vi_dot4(acc, w, q); }
