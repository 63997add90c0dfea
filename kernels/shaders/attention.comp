/* y[r][h] = sum_j softmax_j(scale q[r][h] . k[j]) v[j] over the visible positions j of row r's
 * sequence, read from the paged cache.
 *
 * q [n_rows][n_head][head_dim_k], y [n_rows][n_head][head_dim_v], positions [n_rows],
 * pages [n_slots][n_pages_max]; K and V as inc/README; tiles of list_tiles.comp.
 *
 * Keys and values are read once for many pairs of a row and a query head. A workgroup is SLICES
 * slices of 64 lanes; a slice takes PAIRS such pairs: those of a tile (rows of one sequence that
 * stand together) and one key/value head. It walks the pages with a running maximum for each pair
 * (online softmax: Milakov & Gimelshein 2018), all slices of the workgroup in step, so that they
 * find the keys and values of a sequence they share in the cache next to them. In a page
 *     a lane is a position, decodes its key once and keeps the scores of all pairs;
 *     some lanes are a pair and turn scores to weights;
 *     a lane is 8 columns of the value for some of the pairs and adds the page's positions.
 *
 * One row over a long cache would leave a GPU idle, so the pages are dealt out to n_strands
 * workgroups, page i to strand i mod n_strands (a constant of the program). Then a workgroup
 * stores its maximum, its sum of weights and its sum of values as partials, and attention_join.comp
 * joins the strands.
 *
 * Grid: x = SLICES units of a tile and up to p.block_heads heads, TD_VK_ATTENTION_GROUPS of them
 * for each key/value head; z = strand. Specialization: 0 TYPE_K, 1 TYPE_V, 2 HEAD_DIM_K,
 * 3 HEAD_DIM_V, 4 QUADS (PAIRS / 4), 5 64 * SLICES, 6 BROADCAST, 7 IS_LATENT
 * (td_kv_params; v is k then), TD_VK_SPEC_FULL.
 *
 * A GPU reads q as scalars: it is the same for all lanes of a slice. Software drivers load lane by
 * lane; with BROADCAST (4 or 8, not above the size of a subgroup) the lanes of a subgroup load
 * for different pairs and tell each other, and a lane takes more positions and columns, in fewer
 * subgroups. Neither changes who is added to whom.
 *
 * Law 1: a pair's scores add along the head, its weights and values in order of positions within
 * the strand; what takes no part for a pair leaves its sums as they are. Nothing depends on which
 * pairs share a slice. */
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_ballot : require

#include "inc/exp.glsl"
#include "inc/push.glsl"
#include "inc/kv.glsl"

layout(push_constant) uniform push_block { push_attention p; };

layout(constant_id = 0) const uint TYPE_K = 1u;
layout(constant_id = 1) const uint TYPE_V = 1u;
layout(constant_id = 2) const uint HEAD_DIM_K = 64u;
layout(constant_id = 3) const uint HEAD_DIM_V = 64u;
layout(constant_id = 4) const uint QUADS = 4u;
layout(constant_id = 5) const uint GROUP = 64u;
layout(constant_id = 6) const uint BROADCAST = 0u;
layout(constant_id = 7) const bool IS_LATENT = false;
layout(constant_id = TD_VK_SPEC_FULL) const bool IS_FULL = false;
layout(local_size_x_id = 5) in;

layout(set = 0, binding = 0) readonly buffer q_floats { float q[]; };
layout(set = 0, binding = 1) readonly buffer k_words { uint k[]; };
layout(set = 0, binding = 1) readonly buffer k_uvec4s { uvec4 k4[]; };
layout(set = 0, binding = 2) readonly buffer v_words { uint v[]; };
layout(set = 0, binding = 2) readonly buffer v_uvec2s { uvec2 v2[]; };
layout(set = 0, binding = 2) readonly buffer v_uvec4s { uvec4 v4[]; };
layout(set = 0, binding = 3) readonly buffer position_ints { int positions[]; };
layout(set = 0, binding = 4) readonly buffer tile_uints { uint tiles[]; };
layout(set = 0, binding = 5) readonly buffer page_ints { int pages[]; };
layout(set = 0, binding = 6) writeonly buffer y_floats { float y[]; }; /* or partials */
layout(set = 0, binding = 7) readonly buffer sink_floats { float sinks[]; };

const uint LANES = TD_KV_SLOTS;
const uint SLICES = GROUP / LANES;
const uint PAIRS = 4u * QUADS;
const bool IS_SOFTWARE = BROADCAST != 0u;
#define NOTHING uintBitsToFloat(0xff800000u) /* -inf: no position seen yet */
const float HIDDEN = -1.0; /* the weight of a position that a pair does not see */

const uint CHUNK_K = TD_KV_CHUNK(TYPE_K);
const uint CHUNKS_K = TD_KV_CHUNKS(TYPE_K, HEAD_DIM_K);
const uint PART_K = CHUNK_K < 8u || IS_SOFTWARE ? 4u : 8u; /* elements decoded at once */
const uint TELLERS = IS_SOFTWARE ? BROADCAST : 1u;
const uint HELD = IS_SOFTWARE ? (PAIRS + TELLERS - 1u) / TELLERS : 1u; /* pairs a lane tells of */
const uint OWN_K = IS_SOFTWARE ? 4u : 1u; /* positions of a lane */
const uint HIGH_K = TD_KV_HIGH(TYPE_K), HIGH_WORDS_K = HIGH_K == 0u ? 1u : HIGH_K;
const uint AHEAD = IS_SOFTWARE ? 1u : CHUNK_K > 8u ? 2u : 4u; /* chunks loaded at once */

const uint UNIT_V = 8u; /* columns */
const uint UNITS_V = (HEAD_DIM_V + UNIT_V - 1u) / UNIT_V;
const uint ROW_V = IS_LATENT ? HEAD_DIM_K : HEAD_DIM_V; /* elements */
const uint CHUNKS_V = TD_KV_CHUNKS(TYPE_V, ROW_V);
/* A slice's lanes are PARTS x UNITS_V, pair i being part i % PARTS's; or each has several units. */
const uint FIT = UNITS_V < LANES ? LANES / UNITS_V : 1u;
const uint PARTS = IS_SOFTWARE ? 1u : FIT < PAIRS ? FIT : PAIRS;
const uint OWN_V = (PAIRS + PARTS - 1u) / PARTS; /* pairs of a lane */
const uint TURNS = (UNITS_V + LANES - 1u) / LANES;

/* Lanes of a pair between scores and weights, and the vec4s of positions each of them has. */
const uint PAIR_LANES = LANES / PAIRS;
const uint OWN_W = QUADS;

/* Rows of 16 vec4s, a score or weight for each position of a page, and one to spare, which also
 * keeps neighbouring rows out of each other's banks. */
const uint ROW = LANES / 4u + 1u;
shared vec4 weights[SLICES * PAIRS * ROW];
shared vec4 maxima[SLICES * LANES / 4u];

/* What a slice is at. The same for all its lanes. */
uint n_pairs, n_heads, row0, head0;
uint n_visible_min, n_visible_max; /* of its rows */
uint slice_at, slice;
uint q_at[PAIRS];

vec4 sums[OWN_V * TURNS * 2u];

uint first_visible(uint n_visible)
{
    uint first = p.window != 0u && n_visible > p.window ? n_visible - p.window : 0u;
    if (p.chunk != 0u && n_visible != 0u)
        first = max(first, (n_visible - 1u) / p.chunk * p.chunk);
    return first;
}

/* The page of the cache behind page i of the sequence; 0xffffffff where the table holds none. */
uint find_page(uint slot, uint i)
{
    if (slot >= p.n_slots || i >= p.n_pages_max)
        return 0xffffffffu;
    uint page = uint(pages[slot * p.n_pages_max + i]);
    return page < p.n_pages ? page : 0xffffffffu;
}

/* -- scores --------------------------------------------------------------------------------- */

/* Elements d..d+3 of a pair's q. Behind the head, where keys are padded, is 0: what lies there may
 * be another's Inf, and 0 times that NaN. */
vec4 load_q(uint pair_at, uint d)
{
    const bool IS_WHOLE = HEAD_DIM_K % PART_K == 0u;
    vec4 a;
    [[unroll]] for (uint e = 0u; e < 4u; e++) {
        a[e] = q[pair_at + (IS_WHOLE ? d + e : min(d + e, HEAD_DIM_K - 1u))];
        a[e] = IS_WHOLE || d + e < HEAD_DIM_K ? a[e] : 0.0;
    }
    return a;
}

float add_products(float sum0, vec4 a, vec4 b)
{
    precise float sum = sum0;
    sum = fma(a.x, b.x, sum);
    sum = fma(a.y, b.y, sum);
    sum = fma(a.z, b.z, sum);
    sum = fma(a.w, b.w, sum);
    return sum;
}

float scores[OWN_K * PAIRS];
vec4 keys[PART_K / 4u * OWN_K], held[PART_K / 4u * HELD]; /* of a lane's positions; of q, for others */
uint held_at[HELD];

/* Adds what `keys` and `held` have at j of element d of the head, for the pairs of a quad. */
void add_part(uint quad, uint j, uint d)
{
    [[unroll]] for (uint n = 0u; n < 4u; n++) {
        uint i = 4u * quad + n;
        vec4 a;
        if (IS_SOFTWARE)
            a = subgroupBroadcast(held[j * HELD + i / TELLERS], i % TELLERS);
        else
            a = load_q(q_at[i], d);
        [[unroll]] for (uint o = 0u; o < OWN_K; o++)
            scores[o * PAIRS + i] = add_products(scores[o * PAIRS + i], a, keys[j * OWN_K + o]);
    }
}

uvec4 quants[AHEAD * OWN_K];
uint scale_words[AHEAD * OWN_K];
uint high[AHEAD * OWN_K * HIGH_WORDS_K];

/* The high bits of unit u of chunk a of the lane's o-th position. */
uint high_bits(uint a, uint o, uint u)
{
    if (HIGH_K == 0u)
        return 0u;
    return high[(a * OWN_K + o) * HIGH_WORDS_K + td_kv_high_word(TYPE_K, u)] >>
           td_kv_high_at(TYPE_K, u);
}

/* Adds PART_K elements of chunk c, the a-th of those loaded, from its vec4 j0 on. In its quants
 * they are from `at` on. */
void add_elements(uint a, uint c, uint j0, uint at)
{
    if (HEAD_DIM_K % CHUNK_K != 0u && c * CHUNK_K + 4u * j0 >= HEAD_DIM_K)
        return; /* padding */
    [[unroll]] for (uint j = 0u; j < PART_K / 4u; j++) {
        [[unroll]] for (uint o = 0u; o < OWN_K; o++) {
            vec2 scale = vec2(0.0);
            if (td_kv_has_scales(TYPE_K))
                scale = td_kv_scale(TYPE_K, scale_words[a * OWN_K + o], c);
            keys[j * OWN_K + o] = td_kv_decode(TYPE_K, quants[a * OWN_K + o],
                                               high_bits(a, o, j0 / 2u), scale, at + j);
        }
        if (IS_SOFTWARE) {
            [[unroll]] for (uint i = 0u; i < HELD; i++)
                held[j * HELD + i] = load_q(held_at[i], c * CHUNK_K + 4u * (j0 + j));
        }
    }
    [[unroll]] for (uint quad = 0u; quad < QUADS; quad++) {
        if (quad != 0u && 4u * quad >= n_pairs)
            continue;
        [[unroll]] for (uint j = 0u; j < PART_K / 4u; j++)
            add_part(quad, j, c * CHUNK_K + 4u * (j0 + j));
    }
}

void add_chunk(uint a, uint c)
{
    if (IS_SOFTWARE) {
        [[dont_unroll]] for (uint j = 0u; j < CHUNK_K / 4u; j++)
            add_elements(a, c, j, j);
    } else if (CHUNK_K > 16u) { /* a word each turn: four times unrolled it is too much code */
        [[dont_unroll]] for (uint j = 0u; j < CHUNK_K / 4u; j += PART_K / 4u) {
            add_elements(a, c, j, 0u);
            quants[a] = quants[a].yzwx;
        }
    } else {
        [[unroll]] for (uint j = 0u; j < CHUNK_K / 4u; j += PART_K / 4u)
            add_elements(a, c, j, j);
    }
}

/* Keys of a latent cache lie as values do. */
uint k_chunk_at(uint cell, uint slot, uint c)
{
    return IS_LATENT ? td_kv_v_chunk_at(cell, CHUNKS_K, slot, c) : td_kv_k_chunk_at(cell, slot, c);
}

uint k_side_at(uint cell, uint slot, uint i)
{
    return IS_LATENT ? td_kv_v_side_at(cell, CHUNKS_K, td_kv_side_words(TYPE_K, HEAD_DIM_K), slot, i)
                     : td_kv_k_side_at(cell, CHUNKS_K, slot, i);
}

/* Scores of the positions lane, lane + LANES / OWN_K, ... of a cell, into rows of weights. */
void make_scores(uint cell, uint lane)
{
    [[unroll]] for (uint i = 0u; i < OWN_K * PAIRS; i++)
        scores[i] = 0.0;
    if (IS_SOFTWARE) {
        [[unroll]] for (uint i = 0u; i < HELD; i++) {
            uint pair = min(gl_SubgroupInvocationID % TELLERS + i * TELLERS, n_pairs - 1u);
            held_at[i] = (row0 + pair / n_heads) * p.q_stride + p.q_col0 +
                         (head0 + pair % n_heads) * HEAD_DIM_K;
        }
    }
    [[dont_unroll]] for (uint c = 0u; c < CHUNKS_K; c += AHEAD) {
        [[unroll]] for (uint a = 0u; a < AHEAD; a++)
            [[unroll]] for (uint o = 0u; o < OWN_K; o++) {
                uint i = min(c + a, CHUNKS_K - 1u), slot = lane + o * (LANES / OWN_K);
                quants[a * OWN_K + o] = k4[k_chunk_at(cell, slot, i)];
                if (td_kv_has_scales(TYPE_K))
                    scale_words[a * OWN_K + o] =
                        k[k_side_at(cell, slot, td_kv_scale_word(TYPE_K, HEAD_DIM_K, i))];
                [[unroll]] for (uint h = 0u; h < HIGH_K; h++)
                    high[(a * OWN_K + o) * HIGH_WORDS_K + h] =
                        k[k_side_at(cell, slot, i * HIGH_K + h)];
            }
        [[unroll]] for (uint a = 0u; a < AHEAD; a++)
            if (c + a < CHUNKS_K)
                add_chunk(a, c + a);
    }
    [[unroll]] for (uint i = 0u; i < PAIRS; i++)
        [[unroll]] for (uint o = 0u; o < OWN_K; o++) {
            uint slot = lane + o * (LANES / OWN_K);
            precise float sum = scores[o * PAIRS + i] * p.scale;
            if (p.softcap != 0.0) /* cap tanh(s / cap), in a form that cannot overflow */
                sum = p.softcap * (1.0 - 2.0 / (td_exp(2.0 * (sum / p.softcap)) + 1.0));
            weights[slice_at + i * ROW + slot / 4u][slot % 4u] = sum;
        }
}

/* -- values --------------------------------------------------------------------------------- */

uint v_side_at(uint cell, uint slot, uint i)
{
    return td_kv_v_side_at(cell, CHUNKS_V, td_kv_side_words(TYPE_V, ROW_V), slot, i);
}

/* Unit u of a slot's value. */
void load_value(uint cell, uint slot, uint u, out vec4 a, out vec4 b)
{
    if (TYPE_V == TD_KV_F32) {
        uint at = td_kv_v_chunk_at(cell, CHUNKS_V, slot, 2u * u);
        a = uintBitsToFloat(v4[at]);
        b = uintBitsToFloat(v4[2u * u + 1u < CHUNKS_V ? at + 1u : at]);
        return;
    }
    uint at = td_kv_v_chunk_at(cell, CHUNKS_V, slot, u * UNIT_V / TD_KV_CHUNK(TYPE_V));
    uvec4 quants = uvec4(0u);
    uint high = 0u;
    vec2 scale = vec2(0.0);
    if (TD_KV_IS_HALF(TYPE_V))
        quants = v4[at];
    else if (TYPE_V == TD_KV_Q8_0)
        quants.xy = v2[2u * at + u % 2u];
    else
        quants.x = v[4u * at + u % 4u];
    if (td_kv_has_scales(TYPE_V)) {
        uint c = u * UNIT_V / TD_KV_CHUNK(TYPE_V);
        scale = td_kv_scale(TYPE_V, v[v_side_at(cell, slot, td_kv_scale_word(TYPE_V, ROW_V, c))], c);
    }
    if (TD_KV_HIGH(TYPE_V) != 0u) {
        uint i = u / 4u * TD_KV_HIGH(TYPE_V) + td_kv_high_word(TYPE_V, u);
        high = v[v_side_at(cell, slot, i)] >> td_kv_high_at(TYPE_V, u);
    }
    a = td_kv_decode(TYPE_V, quants, high, scale, 0u);
    b = td_kv_decode(TYPE_V, quants, high, scale, 1u);
}

void add_weighted(uint i, float weight, vec4 a, vec4 b, bool is_masked)
{
    precise vec4 sum_a = fma(vec4(weight), a, sums[i]);
    precise vec4 sum_b = fma(vec4(weight), b, sums[i + 1u]);
    bool is_hidden = is_masked && weight < 0.0;
    sums[i] = is_hidden ? sums[i] : sum_a;
    sums[i + 1u] = is_hidden ? sums[i + 1u] : sum_b;
}

const uint AT_ONCE = IS_SOFTWARE ? 1u : 4u; /* positions */
vec4 values[TURNS * AT_ONCE * 2u];
float held_weights[HELD];

/* Adds the slots first..end-1; masked: without those a pair does not see. */
void add_values(uint cell, uint lane, uint first, uint end, bool is_masked)
{
    uint part = PARTS > 1u ? lane / UNITS_V : 0u, u0 = PARTS > 1u ? lane % UNITS_V : lane;
    [[dont_unroll]] for (uint slot = first / AT_ONCE * AT_ONCE; slot < end; slot += AT_ONCE) {
        [[unroll]] for (uint turn = 0u; turn < TURNS; turn++)
            [[unroll]] for (uint e = 0u; e < AT_ONCE; e++) {
                uint i = 2u * (turn * AT_ONCE + e);
                load_value(cell, slot + e, min(u0 + turn * LANES, UNITS_V - 1u), values[i],
                           values[i + 1u]);
            }
        if (IS_SOFTWARE) {
            [[unroll]] for (uint i = 0u; i < HELD; i++) {
                uint pair = min(gl_SubgroupInvocationID % TELLERS + i * TELLERS, PAIRS - 1u);
                held_weights[i] = weights[slice_at + pair * ROW + slot / 4u][slot % 4u];
            }
        }
        [[unroll]] for (uint i = 0u; i < OWN_V; i++) {
            if (i != 0u && i * PARTS >= n_pairs)
                continue;
            vec4 own = vec4(0.0);
            if (IS_SOFTWARE)
                own.x = subgroupBroadcast(held_weights[i / TELLERS], i % TELLERS);
            else
                own = weights[slice_at + min(part + i * PARTS, PAIRS - 1u) * ROW + slot / 4u];
            [[unroll]] for (uint e = 0u; e < AT_ONCE; e++)
                [[unroll]] for (uint turn = 0u; turn < TURNS; turn++) {
                    uint from = 2u * (turn * AT_ONCE + e);
                    add_weighted(2u * (i * TURNS + turn), own[e], values[from], values[from + 1u],
                                 is_masked);
                }
        }
    }
}

/* -- a unit --------------------------------------------------------------------------------- */

/* The softmax of a pair, as a lane that works for it has it. */
float top;
float totals[OWN_W]; /* of weights, for each vec4 of positions */
vec4 own[OWN_W];
uint pair_first, pair_end;

/* Scores to weights, with the pair's new maximum; in the spare vec4 the factor of what was before.
 * is_active: the page is there, and of the slice's pairs some see it. */
void make_weights(bool is_active, uint lane, uint page)
{
    uint pair = lane / PAIR_LANES, g0 = lane % PAIR_LANES * OWN_W;
    uint at = slice_at + pair * ROW, page_at = page * LANES;
    float largest = NOTHING;
    is_active = is_active && pair_first < page_at + LANES && pair_end > page_at;
    if (is_active) {
        [[unroll]] for (uint i = 0u; i < OWN_W; i++) {
            own[i] = weights[at + g0 + i];
            uint position = page_at + 4u * (g0 + i);
            [[unroll]] for (uint e = 0u; e < 4u; e++) {
                own[i][e] = position + e >= pair_first && position + e < pair_end ? own[i][e]
                                                                                  : NOTHING;
                largest = max(largest, own[i][e]);
            }
        }
    }
    maxima[slice * (LANES / 4u) + lane / 4u][lane % 4u] = largest;
    barrier();
    float factor = 1.0;
    if (is_active) {
        float before = top;
        [[unroll]] for (uint i = 0u; i < PAIR_LANES / 4u; i++) {
            vec4 four = maxima[slice * (LANES / 4u) + pair * (PAIR_LANES / 4u) + i];
            top = max(top, max(max(four.x, four.y), max(four.z, four.w)));
        }
        factor = before == NOTHING ? 0.0 : exp(before - top);
    }
    [[unroll]] for (uint i = 0u; i < OWN_W; i++) {
        precise vec4 made = vec4(0.0);
        vec4 kept = vec4(HIDDEN);
        if (is_active) {
            uint position = page_at + 4u * (g0 + i);
            [[unroll]] for (uint e = 0u; e < 4u; e++) {
                bool is_seen = position + e >= pair_first && position + e < pair_end;
                made[e] = is_seen ? td_exp(own[i][e] - top) : 0.0;
                kept[e] = is_seen ? made[e] : HIDDEN;
            }
            precise float sum = fma(totals[i], factor, (made.x + made.y) + (made.z + made.w));
            totals[i] = sum;
        }
        weights[at + g0 + i] = kept;
    }
    if (g0 == 0u)
        weights[at + LANES / 4u].x = factor;
}

void scale_sums(uint part)
{
    [[unroll]] for (uint i = 0u; i < OWN_V; i++) {
        float factor = weights[slice_at + min(part + i * PARTS, PAIRS - 1u) * ROW + LANES / 4u].x;
        [[unroll]] for (uint j = 0u; j < 2u * TURNS; j++) {
            precise vec4 scaled = sums[i * 2u * TURNS + j] * factor;
            sums[i * 2u * TURNS + j] = scaled;
        }
    }
}

/* Stores what this lane has of a pair's values; of a strand of several undivided, and without the
 * head's sink. The totals stand in the pair's row of weights. */
void store_pair(uint pair, uint i, uint u0, uint strand)
{
    uint at = slice_at + pair * ROW;
    uint row = row0 + pair / n_heads, head = head0 + pair % n_heads;
    precise vec4 four = (weights[at] + weights[at + 1u]) + (weights[at + 2u] + weights[at + 3u]);
    precise float total = (four.x + four.y) + (four.z + four.w), factor = 1.0;
    float pair_top = weights[at + LANES / 4u].x;
    uint y0 = row * p.y_stride + p.y_col0 + head * HEAD_DIM_V;
    bool is_strand = p.n_strands > 1u;
    if (is_strand) {
        y0 = ((row * p.n_head + head) * p.n_strands + strand) * (HEAD_DIM_V + 2u) + 2u;
        if (u0 == 0u) {
            y[y0 - 2u] = pair_top;
            y[y0 - 1u] = total;
        }
    } else if (p.has_sinks != 0u) {
        float largest = max(pair_top, sinks[head]);
        factor = total == 0.0 ? 0.0 : exp(pair_top - largest);
        total = fma(total, factor, exp(sinks[head] - largest));
    }
    [[unroll]] for (uint turn = 0u; turn < TURNS; turn++) {
        uint column = (u0 + turn * LANES) * UNIT_V, n = HEAD_DIM_V - min(column, HEAD_DIM_V);
        precise vec4 a = sums[2u * turn], b = sums[2u * turn + 1u];
        [[unroll]] for (uint j = 1u; j < OWN_V; j++) {
            a = i == j ? sums[2u * (j * TURNS + turn)] : a;
            b = i == j ? sums[2u * (j * TURNS + turn) + 1u] : b;
        }
        if (!is_strand) {
            a = a * factor / total;
            b = b * factor / total;
        }
        if (IS_SOFTWARE) {
            [[dont_unroll]] for (uint e = 0u; e < min(UNIT_V, n); e++)
                y[y0 + column + e] = (e < 4u ? a : b)[e % 4u];
        } else {
            [[unroll]] for (uint e = 0u; e < UNIT_V; e++)
                if (e < n)
                    y[y0 + column + e] = (e < 4u ? a : b)[e % 4u];
        }
    }
}

/* Finds the slice's pairs in unit i. */
uint find_pairs(uint i, uint head_kv)
{
    uint at = TD_VK_TILE_HEAD + TD_VK_TILE_WORDS * (i / p.n_blocks), block = i % p.n_blocks;
    uint n_group = p.n_head / p.n_head_kv; /* heads that share this one's keys and values */
    row0 = tiles[at];
    n_heads = min(n_group - block * p.block_heads, p.block_heads);
    head0 = head_kv * n_group + block * p.block_heads;
    n_pairs = tiles[at + 1u] * n_heads;
    n_visible_min = tiles[at + 3u];
    n_visible_max = tiles[at + 4u];
    if (!IS_SOFTWARE) {
        uint row = row0, head = head0;
        [[unroll]] for (uint j = 0u; j < PAIRS; j++) {
            q_at[j] = row * p.q_stride + p.q_col0 + head * HEAD_DIM_K;
            if (j + 1u < n_pairs) {
                head = head + 1u == head0 + n_heads ? head0 : head + 1u;
                row += head == head0 ? 1u : 0u;
            }
        }
    }
    return tiles[at + 2u];
}

/* SLICES units from unit0 on; those past the last repeat it, unstored. */
void attend(uint unit0, uint n_units, uint head_kv, uint lane, uint strand)
{
    uint page = 0xffffffffu, page_end = 0u; /* that any slice sees: all walk them in step */
    [[unroll]] for (uint s = 0u; s < SLICES; s++) {
        uint at = TD_VK_TILE_HEAD + TD_VK_TILE_WORDS * (min(unit0 + s, n_units - 1u) / p.n_blocks);
        page = min(page, first_visible(tiles[at + 3u]) / LANES);
        page_end = max(page_end, (tiles[at + 4u] + LANES - 1u) / LANES);
    }
    page += (strand + p.n_strands - page % p.n_strands) % p.n_strands;
    uint slot = find_pairs(min(unit0 + slice, n_units - 1u), head_kv);
    bool is_live = unit0 + slice < n_units;

    uint pair = lane / PAIR_LANES; /* while there are scores and weights */
    uint pair_visible = 0u;
    if (pair < n_pairs)
        pair_visible = uint(max(positions[row0 + pair / n_heads] + 1, 0));
    pair_first = first_visible(pair_visible);
    pair_end = pair_visible;
    uint first = first_visible(n_visible_min), first_of_all = first_visible(n_visible_max);
    uint part = PARTS > 1u ? lane / UNITS_V : 0u, u0 = PARTS > 1u ? lane % UNITS_V : lane;
    bool has_values = IS_SOFTWARE ? subgroupBallot(u0 < UNITS_V) != uvec4(0u)
                                  : part < PARTS && u0 < UNITS_V;
    [[unroll]] for (uint i = 0u; i < OWN_V * TURNS * 2u; i++)
        sums[i] = vec4(0.0);
    top = NOTHING;
    [[unroll]] for (uint i = 0u; i < OWN_W; i++)
        totals[i] = 0.0;

    uint next = find_page(slot, page);
    for (; page < page_end; page += p.n_strands) {
        uint page_at = page * LANES, in_cache = next;
        next = find_page(slot, page + p.n_strands);
        uint begin = clamp(first, page_at, page_at + LANES) - page_at;
        uint end = clamp(n_visible_max, page_at, page_at + LANES) - page_at;
        bool is_active = is_live && begin < end && in_cache != 0xffffffffu;
        bool is_whole = first_of_all <= page_at && n_visible_min >= page_at + LANES;
        uint cell_k = td_kv_cell(in_cache, p.n_head_kv, head_kv, p.k_words);
        uint cell_v = td_kv_cell(in_cache, p.n_head_kv, head_kv, p.v_words);
        if (is_active) {
            bool is_own = lane < LANES / OWN_K;
            if (IS_SOFTWARE)
                is_own = subgroupBallot(is_own) != uvec4(0u);
            else
                is_own = lane >= begin && lane < end;
            if (is_own)
                make_scores(cell_k, lane % (LANES / OWN_K));
        }
        barrier();
        make_weights(is_active, lane, page);
        barrier();
        if (is_active && has_values) {
            scale_sums(part);
            if (!IS_SOFTWARE && is_whole)
                add_values(cell_v, lane, 0u, LANES, false);
            else
                add_values(cell_v, lane, begin, end, true);
        }
        barrier();
    }
    if (lane % PAIR_LANES == 0u)
        weights[slice_at + pair * ROW + LANES / 4u].x = top;
    [[unroll]] for (uint i = 0u; i < OWN_W; i++) {
        uint g = lane % PAIR_LANES * OWN_W + i;
        weights[slice_at + pair * ROW + g / 4u][g % 4u] = totals[i];
    }
    barrier();
    if (is_live && part < PARTS && u0 < UNITS_V) {
        if (IS_SOFTWARE) { /* its compiler takes long for what is stored */
            [[dont_unroll]] for (uint i = 0u; i < min(OWN_V, n_pairs); i++)
                store_pair(i, i, u0, strand);
        } else {
            [[unroll]] for (uint i = 0u; i < OWN_V; i++)
                if (part + i * PARTS < n_pairs)
                    store_pair(part + i * PARTS, i, u0, strand);
        }
    }
    barrier(); /* the next units' weights are made */
}

void main()
{
    uint lane = gl_LocalInvocationID.x % LANES;
    slice = SLICES > 1u ? gl_LocalInvocationID.x / LANES : 0u;
    /* The same for all lanes of a subgroup, where those are full and no wider than LANES; the
     * compiler cannot know. */
    if (SLICES > 1u && IS_FULL)
        slice = subgroupBroadcastFirst(slice);
    slice_at = slice * PAIRS * ROW;
    uint n_groups = TD_VK_ATTENTION_GROUPS(p.n_rows, p.tile_rows, p.n_slots, p.n_blocks, SLICES);
    uint n_units = tiles[0] * p.n_blocks;
    for (uint unit = gl_WorkGroupID.x % n_groups * SLICES; unit < n_units;
         unit += n_groups * SLICES)
        attend(unit, n_units, gl_WorkGroupID.x / n_groups, lane, gl_WorkGroupID.z);
}
