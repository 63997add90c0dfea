/* Storing cache rows: 8 elements a lane, lo and hi. Four lanes that share a block of 32 tell each other
 * what they know of it in shared memory. The shader declares before: TYPE_K, TYPE_V, cache_k,
 * cache_k4, cache_v, cache_v4, pages, and workgroups of 64. */

const uint LANES = 8u; /* of a unit of 64 elements */

/* What a lane tells: its ends, sums of candidates; when those of a block have been read, in their place
 * its high bits and halves. */
const uint ENDS = 0u, HIGH_BITS = 0u, HALVES = 1u, SUMS = 2u;
#define X_SUM(type) (SUMS + TD_KV_TRIES(type) * TD_KV_SUMS(type)) /* of the elements themselves */
#define SQUARES(type) (X_SUM(type) + (TD_KV_HAS_MINIMUM(type) ? 1u : 0u))
#define TOLD(type)                                                                                 \
    (TD_KV_BLOCK(type) != 32u ? 1u : TD_KV_TRIES(type) == 0u ? SUMS : SQUARES(type) + 1u)
const uint N_TOLD = TOLD(TYPE_K) > TOLD(TYPE_V) ? TOLD(TYPE_K) : TOLD(TYPE_V);

shared uint told[64u * N_TOLD];

bool is_k; /* what this workgroup stores */

vec4 lo, hi; /* the 8 elements of this lane, zeros past the end of a row */

/* The page of a row; n_pages when there is none. */
uint td_kv_page(int position, int sequence, uint n_slots, uint n_pages_max, uint n_pages)
{
    uint i = uint(position) / TD_KV_SLOTS;
    if (uint(sequence) >= n_slots || i >= n_pages_max)
        return n_pages;
    return min(uint(pages[uint(sequence) * n_pages_max + i]), n_pages);
}

void put_chunk(uint cell, uint n_chunks, uint slot, uint c, uvec4 chunk)
{
    if (c >= n_chunks)
        return;
    if (is_k)
        cache_k4[td_kv_k_chunk_at(cell, slot, c)] = chunk;
    else
        cache_v4[td_kv_v_chunk_at(cell, n_chunks, slot, c)] = chunk;
}

/* Word w of the quants of a row. */
void put_word(uint cell, uint n_chunks, uint slot, uint w, uint word)
{
    if (w / 4u >= n_chunks)
        return;
    if (is_k)
        cache_k[td_kv_k_chunk_at(cell, slot, w / 4u) * 4u + w % 4u] = word;
    else
        cache_v[td_kv_v_chunk_at(cell, n_chunks, slot, w / 4u) * 4u + w % 4u] = word;
}

/* Word w of the side of a row. */
void put_side(uint type, uint n, uint cell, uint slot, uint w, uint word)
{
    uint n_chunks = td_kv_chunks(type, n), n_words = td_kv_side_words(type, n);
    if (w >= n_words)
        return;
    if (is_k)
        cache_k[td_kv_k_side_at(cell, n_chunks, slot, w)] = word;
    else
        cache_v[td_kv_v_side_at(cell, n_chunks, n_words, slot, w)] = word;
}

void store_floats(uint n_chunks, uint lane, uint cell, uint slot)
{
    put_chunk(cell, n_chunks, slot, 2u * lane, floatBitsToUint(lo));
    put_chunk(cell, n_chunks, slot, 2u * lane + 1u, floatBitsToUint(hi));
}

void store_halves(uint type, uint n_chunks, uint lane, uint cell, uint slot)
{
    uvec4 a = type == TD_KV_F16 ? td_kv_half(lo) : td_kv_bf16(lo);
    uvec4 b = type == TD_KV_F16 ? td_kv_half(hi) : td_kv_bf16(hi);
    put_chunk(cell, n_chunks, slot, lane, uvec4(a.xz | a.yw << 16, b.xz | b.yw << 16));
}

void tell(uint i, uint bits) { told[64u * i + gl_LocalInvocationID.x] = bits; }
void tell(uint i, float x) { tell(i, floatBitsToUint(x)); }

/* What lane k of this lane's block told. */
uint heard_bits(uint i, uint k) { return told[64u * i + gl_LocalInvocationID.x / 4u * 4u + k]; }
float heard(uint i, uint k) { return uintBitsToFloat(heard_bits(i, k)); }

float heard_sum(uint i)
{
    precise float sum = (heard(i, 0u) + heard(i, 1u)) + (heard(i, 2u) + heard(i, 3u));
    return sum;
}

vec3 heard_sums(uint type, uint i)
{
    uint at = SUMS + i * TD_KV_SUMS(type);
    return vec3(heard_sum(at), heard_sum(at + 1u),
                TD_KV_HAS_MINIMUM(type) ? heard_sum(at + 2u) : 0.0);
}

/* The ends of this lane's block: of all four lanes'. */
vec2 block_ends(uint type)
{
    vec2 ends = td_kv_ends(type, lo, hi);
    tell(ENDS, ends.x);
    if (TD_KV_HAS_MINIMUM(type))
        tell(ENDS + 1u, ends.y);
    barrier();
    [[unroll]] for (uint k = 0u; k < 4u; k++) {
        vec2 other = vec2(heard(ENDS, k), TD_KV_HAS_MINIMUM(type) ? heard(ENDS + 1u, k) : 0.0);
        ends = k == 0u ? other : td_kv_join(type, ends, other);
    }
    return ends;
}

/* Tells of a quarter's values, less the middle: the sums of candidate i. */
void tell_sums(uint type, uint i, vec4 a, vec4 b, vec2 by)
{
    vec3 sum = td_kv_sums(type, a, b, by);
    uint at = SUMS + i * TD_KV_SUMS(type);
    tell(at, sum.x);
    tell(at + 1u, sum.y);
    if (TD_KV_HAS_MINIMUM(type))
        tell(at + 2u, sum.z);
}

/* Scale and minimum of this lane's block, whose ends these are: of all candidates the best, refined
 * once; and what is stored of them. */
vec4 fit_block(uint type, vec2 ends)
{
    const uint N = TD_KV_TRIES(type);
    bool has_minimum = TD_KV_HAS_MINIMUM(type);
    precise float middle = 0.0, x_sum = 0.0;
    precise vec4 a = lo, b = hi;
    if (has_minimum) {
        middle = 0.5 * ends.x + 0.5 * ends.y;
        a = lo - middle;
        b = hi - middle;
        [[unroll]] for (uint i = 0u; i < 8u; i++)
            x_sum += (i < 4u ? a : b)[i % 4u];
        tell(X_SUM(type), x_sum);
    }
    precise float squares = 0.0;
    [[unroll]] for (uint i = 0u; i < 8u; i++)
        squares = td_kv_mad((i < 4u ? a : b)[i % 4u], (i < 4u ? a : b)[i % 4u], squares);
    tell(SQUARES(type), squares);
    [[dont_unroll]] for (uint i = 0u; i < N; i++)
        tell_sums(type, i, a, b, td_kv_try(type, ends, middle, i));
    barrier();
    if (has_minimum)
        x_sum = heard_sum(X_SUM(type));
    squares = heard_sum(SQUARES(type));
    vec3 best = td_kv_plain(type, ends, heard_sums(type, 0u), x_sum, middle);
    [[dont_unroll]] for (uint i = 0u; i <= N; i++) {
        if (i == N) { /* what the best itself rounds to */
            barrier(); /* all have been heard */
            precise float from = has_minimum ? best.y - middle : 0.0;
            tell_sums(type, 0u, a, b, vec2(from, td_kv_inverse(best.x)));
            barrier();
        }
        vec3 fit = td_kv_fit(type, heard_sums(type, i % N), x_sum, middle);
        best = fit.z < best.z ? fit : best;
    }
    return vec4(best.xy, td_kv_grown(best, squares, x_sum, middle));
}

/* The side of a row: high bits, and the scales of this lane's block. */
void store_side(uint type, uint n, uint lane, uint cell, uint slot)
{
    uint unit = lane % 4u, block = lane / 4u, n_high = TD_KV_HIGH(type);
    uint first = td_kv_high_words(type, n);
    if (unit < n_high && block * n_high < first) {
        uint word = heard_bits(HIGH_BITS, unit) |
                    heard_bits(HIGH_BITS, unit + 2u);
        if (n_high == 1u)
            word |= heard_bits(HIGH_BITS, 1u) | heard_bits(HIGH_BITS, 3u);
        put_side(type, n, cell, slot, block * n_high + unit, word);
    }
    uint halves = heard_bits(HALVES, 0u);
    if (TD_KV_HAS_MINIMUM(type) && unit == 0u)
        put_side(type, n, cell, slot, first + block, halves);
    if (!TD_KV_HAS_MINIMUM(type) && lane % LANES == 0u)
        put_side(type, n, cell, slot, first + lane / LANES,
                 halves | heard_bits(HALVES, 4u) << 16);
}

/* Called by all lanes, for the sake of others in a block; is_there: this one has something to store. */
void store_quants(uint type, uint n, uint lane, bool is_there, uint cell, uint slot)
{
    uint n_chunks = td_kv_chunks(type, n), n_high = TD_KV_HIGH(type);
    vec2 ends = block_ends(type);
    vec4 fit;
    bool is_finite = td_kv_is_finite(ends.x);
    if (!is_finite) { /* its scale tells */
        ends = vec2(0.0);
        lo = hi = vec4(0.0);
    }
    uvec4 a, b;
    if (type == TD_KV_Q8_0) {
        fit = vec4(td_kv_div_127(abs(ends.x)), 0.0, 0.0, 0.0);
        fit.z = fit.x;
        float inverse = td_kv_inverse(fit.x);
        a = td_kv_bytes_of(lo, inverse);
        b = td_kv_bytes_of(hi, inverse);
    } else {
        fit = fit_block(type, ends);
        a = td_kv_quants(type, lo, fit.x, fit.y);
        b = td_kv_quants(type, hi, fit.x, fit.y);
    }
    uvec4 halves = is_finite ? td_kv_half(fit.zwzw) : uvec4(0x7e00u);
    tell(HALVES, TD_KV_HAS_MINIMUM(type) ? halves.x | halves.y << 16 : halves.x);
    if (n_high != 0u)
        tell(HIGH_BITS, (td_kv_pack(a >> 4) | td_kv_pack(b >> 4) << n_high)
                            << td_kv_high_at(type, lane % 4u));
    barrier();
    if (!is_there)
        return;
    if (type == TD_KV_Q8_0) {
        put_word(cell, n_chunks, slot, 2u * lane, td_kv_pack(a));
        put_word(cell, n_chunks, slot, 2u * lane + 1u, td_kv_pack(b));
    } else {
        put_word(cell, n_chunks, slot, lane, td_kv_pack(a & 15u | (b & 15u) << 4));
    }
    store_side(type, n, lane, cell, slot);
}

/* This lane's elements. */
void store(uint type, uint n, uint lane, bool is_there, uint cell, uint slot)
{
    if (td_kv_has_scales(type))
        store_quants(type, n, lane, is_there, cell, slot);
    else if (is_there && type == TD_KV_F32)
        store_floats(td_kv_chunks(type, n), lane, cell, slot);
    else if (is_there)
        store_halves(type, td_kv_chunks(type, n), lane, cell, slot);
}
