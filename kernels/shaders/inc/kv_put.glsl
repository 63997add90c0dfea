/* Storing cache rows: 8 elements a lane, lo and hi. Four lanes that share a block of 32 tell each other
 * their extremes in shared memory. The shader declares before: cache_k, cache_k4, cache_v, cache_v4,
 * pages, and workgroups of 64. */

const uint LANES = 8u; /* of a unit of 64 elements */

shared float extremes[64]; /* by lane */

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

void store_floats(uint n_chunks, uint lane, uint cell, uint slot)
{
    put_chunk(cell, n_chunks, slot, 2u * lane, floatBitsToUint(lo));
    put_chunk(cell, n_chunks, slot, 2u * lane + 1u, floatBitsToUint(hi));
}

void store_halves(uint n_chunks, uint lane, uint cell, uint slot)
{
    uvec4 a = td_kv_half(lo), b = td_kv_half(hi);
    put_chunk(cell, n_chunks, slot, lane,
              uvec4(a.xz | a.yw << 16, b.xz | b.yw << 16));
}

/* Called by all lanes, for the sake of others in a block; is_there: this one has something to store. */
void store_quants(uint type, uint n, uint lane, bool is_there, uint cell, uint slot)
{
    uint t = gl_LocalInvocationID.x, n_chunks = td_kv_chunks(type, n);
    extremes[t] = td_kv_extreme(td_kv_extreme(lo), td_kv_extreme(hi));
    barrier();
    if (!is_there)
        return;
    vec2 extreme; /* of both blocks of the unit */
    [[unroll]] for (uint b = 0u; b < 2u; b++) {
        uint i = t / LANES * LANES + 4u * b;
        extreme[b] = td_kv_extreme(
            vec4(extremes[i], extremes[i + 1u], extremes[i + 2u], extremes[i + 3u]));
    }
    vec2 d = vec2(td_kv_block_scale(type, extreme.x), td_kv_block_scale(type, extreme.y));
    bool is_second = t % LANES >= 4u, is_finite = td_kv_is_finite(is_second ? extreme.y : extreme.x);
    float inverse = td_kv_inverse(is_second ? d.y : d.x);
    uvec4 a = td_kv_quants(type, lo, inverse), b = td_kv_quants(type, hi, inverse);
    if (type == TD_KV_Q8_0) {
        put_word(cell, n_chunks, slot, 2u * lane, is_finite ? td_kv_pack(a) : 0x80808080u);
        put_word(cell, n_chunks, slot, 2u * lane + 1u, is_finite ? td_kv_pack(b) : 0x80808080u);
    } else {
        put_word(cell, n_chunks, slot, lane, is_finite ? td_kv_pack(a | b << 4) : 0x88888888u);
    }
    if (t % LANES != 0u)
        return;
    uint i = lane / LANES;
    uint scales = td_kv_scale_bits(extreme.x, d.x) | td_kv_scale_bits(extreme.y, d.y) << 16;
    if (is_k)
        cache_k[td_kv_k_scale_at(cell, n_chunks, slot, i)] = scales;
    else
        cache_v[td_kv_v_scale_at(cell, n_chunks, td_kv_scale_words(type, n), slot, i)] = scales;
}

/* This lane's elements. */
void store(uint type, uint n, uint lane, bool is_there, uint cell, uint slot)
{
    if (td_kv_has_scales(type))
        store_quants(type, n, lane, is_there, cell, slot);
    else if (is_there && type == TD_KV_F32)
        store_floats(td_kv_chunks(type, n), lane, cell, slot);
    else if (is_there)
        store_halves(td_kv_chunks(type, n), lane, cell, slot);
}
