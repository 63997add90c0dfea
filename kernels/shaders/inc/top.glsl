/* What top, pick and feed share: the layouts of td_draw, td_part and td_pick (kernels/ops.h,
 * kernels/backend.h) as words, and the noise of base/rng.h. Scores are only compared within
 * TOP_WINDOW, so they need not be exact; keys, ids and noise bits are. */
#define TOP_CHUNK      4096u
#define TOP_CANDIDATES 4u
#define TOP_WINDOW     (1.0 / 256.0)

#define TOP_LIST       256u
#define TOP_RECENT     64u

/* kind, scale, stream[2], position[2], step, n_list, has_mass, top_k, top_p, min_p, penalty,
 * n_recent, i_next, n_recent_max, recent[TOP_RECENT] */
#define DRAW_WORDS        80u
#define DRAW_SCALE        1u
#define DRAW_STREAM       2u
#define DRAW_POSITION     4u
#define DRAW_STEP         6u
#define DRAW_N_LIST       7u
#define DRAW_HAS_MASS     8u
#define DRAW_TOP_K        9u
#define DRAW_TOP_P        10u
#define DRAW_MIN_P        11u
#define DRAW_PENALTY      12u
#define DRAW_N_RECENT     13u
#define DRAW_I_NEXT       14u
#define DRAW_N_RECENT_MAX 15u
#define DRAW_RECENT       16u
#define KIND_NONE         0
#define KIND_GREEDY       1
#define KIND_RACE         2

/* key_max, id_max, is_finite, n, best, mass, unused[2], {id, score, logit}, maxima[] */
#define PART_WORDS      532u
#define PART_ID         1u
#define PART_FINITE     2u
#define PART_N          3u
#define PART_BEST       4u
#define PART_MASS       5u
#define PART_CANDIDATES 8u
#define PART_MAXIMA     20u
#define PART_GROUPS     512u

/* n, is_finite, id_max, max, token, n_list, mass, unused, {id, logit}, list {id, logit}, recent */
#define PICK_WORDS      592u
#define PICK_CANDIDATES 8u
#define PICK_LIST       16u
#define PICK_RECENT     528u

#define KEY_NONE int(0x80000000)

/* Order of floats as integers: as td_top_key. */
int top_key(float x)
{
    int bits = floatBitsToInt(x);
    bits = bits == KEY_NONE ? 0 : bits;
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

float top_value(int key) { return intBitsToFloat(key ^ ((key >> 31) & 0x7fffffff)); }

bool top_is_nan(float x) { return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u; }
bool top_is_finite(float x) { return (floatBitsToUint(x) & 0x7fffffffu) < 0x7f800000u; }

/* Philox4x32-10, as td_philox. */
uvec4 top_noise(uvec4 c, uvec2 key)
{
    for (int i = 0; i < 10; i++) {
        uint high0, low0, high1, low1;
        umulExtended(0xd2511f53u, c.x, high0, low0);
        umulExtended(0xcd9e8d57u, c.z, high1, low1);
        c = uvec4(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
        key += uvec2(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

/* log2 of E = -log1p(-u), u = (bits + 0.5) / 2^32. Up to u = 1/2 by the series of 2 atanh z,
 * z = u / (2 - u) <= 1/3, whose ninth term is below 2^-27 of the sum; beyond by the logarithm of
 * 1 - u, which is then exact to a rounding. */
float top_log2_noise(uint bits)
{
    if (bits >= 0x80000000u) {
        float rest = (float(~bits) + 0.5) * exp2(-32.0);
        return log2(-0.69314718 * log2(rest));
    }
    float u = (float(bits) + 0.5) * exp2(-32.0);
    float z = u / (2.0 - u), zz = z * z;
    float sum = 1.0 / 17.0;
    for (int i = 15; i > 0; i -= 2)
        sum = sum * zz + 1.0 / float(i);
    return log2(2.0 * z * sum);
}
