/* The parts of a row of logits to what its caller is told, and to the device's own choice
 * (kernels/ops.h, td_op_pick). Grid: 1, rows.
 *
 * The largest logits: each invocation keeps the maxima of 8 sets of groups. The n-th largest of
 * these 2048 maxima, found by halving, is reached by at least n logits, and mostly by few more.
 * Those are fetched, group by group, and the rank of each is the number of those before it, so that
 * what is written does not depend on the order in which they came. The same loop adds up the mass
 * before each, which is all that top-p asks. As it takes every pair, few are tried first where
 * top-p or min-p may end before them.
 *
 * An entry is a logit of the list or, behind them, of a recent token, with its penalty. */
#version 460
#extension GL_GOOGLE_include_directive : require
#include "inc/push.glsl"
#include "inc/top.glsl"

layout(local_size_x = 256) in;
layout(push_constant) uniform push_block { push_pick p; };
layout(set = 0, binding = 0) readonly buffer part_ints { int parts[]; };
layout(set = 0, binding = 1) readonly buffer draw_ints { int draws[]; };
layout(set = 0, binding = 2) readonly buffer x_floats { float x[]; };
layout(set = 0, binding = 3) buffer pick_ints { int picks[]; };

#define LANES    256u
#define SETS     8u
#define FEW      64u                  /* of the list, tried first */
#define FOUND    1024u                /* entries of the list at first */
#define ENTRIES  (FOUND + TOP_RECENT) /* and recent ones */
#define OWN      5u                   /* ENTRIES / LANES, rounded up */
#define FAR_DOWN -1e30

/* Of `best`. */
#define FIRST_LOGIT 0u
#define FIRST_SCORE 1u
#define FIRST_TOKEN 2u
#define FIRST_KEPT  3u

#define NO_ID    0xffffffffu
#define ONE      1048576.0 /* weight of the first entry; a sum of all is below 2^31 */
#define SLACK    0.001     /* above what masses and weights err by */

shared int keys[ENTRIES];
shared uint ids[ENTRIES];
shared uint weights[ENTRIES]; /* whole numbers: sums of no order; at first the groups to fetch */
shared uint counts[3];
shared uint n_odd, n_found, n_groups, n_entries, n_dropped;
shared uint listed, recent; /* weights */
shared uint least_weight;
shared int least, first_key;
shared struct {
    int key;
    uint id;
} best[4];

uint t, i_draw, i_parts;

float draw_float(uint i) { return intBitsToFloat(draws[i_draw + i]); }

int part(uint i, uint word) { return parts[i_parts + i * PART_WORDS + word]; }

/* The first of all lanes by key, then by lower id; i: which of `best`. */
void find_first(uint i, int key, uint id)
{
    atomicMax(best[i].key, key);
    barrier();
    if (best[i].key == key)
        atomicMin(best[i].id, id);
    barrier();
}

float add_up(float sum)
{
    keys[t] = floatBitsToInt(sum);
    barrier();
    for (uint n = LANES / 2u; n > 0u; n >>= 1) {
        if (t < n)
            keys[t] = floatBitsToInt(intBitsToFloat(keys[t]) + intBitsToFloat(keys[t + n]));
        barrier();
    }
    sum = intBitsToFloat(keys[0]);
    barrier();
    return sum;
}

float race_score(uint id, float score)
{
    uvec2 stream = uvec2(draws[i_draw + DRAW_STREAM], draws[i_draw + DRAW_STREAM + 1u]);
    uvec2 position = uvec2(draws[i_draw + DRAW_POSITION], draws[i_draw + DRAW_POSITION + 1u]);
    uvec4 bits = top_noise(uvec4(id / 4u, position, 0u), stream);
    return score - top_log2_noise(bits[id % 4u]);
}

/* The candidates of all parts that come near the best; its score and token. */
void race(float largest, float scale, out float score, out uint token)
{
    uint i_to = gl_WorkGroupID.y * PICK_WORDS + PICK_CANDIDATES;
    score = FAR_DOWN;
    token = NO_ID;
    for (uint i = t; i < p.n_parts; i += LANES)
        if (part(i, 0u) != KEY_NONE)
            score = max(score, intBitsToFloat(part(i, PART_BEST)) +
                                   (top_value(part(i, 0u)) - largest) * scale);
    find_first(FIRST_SCORE, top_key(score), t);
    float bound = top_value(best[FIRST_SCORE].key) - TOP_WINDOW;
    score = FAR_DOWN;
    for (uint i = t; i < p.n_parts; i += LANES) {
        uint n = uint(part(i, PART_N));
        float offset = (top_value(part(i, 0u)) - largest) * scale;
        if (part(i, 0u) == KEY_NONE || intBitsToFloat(part(i, PART_BEST)) + offset < bound)
            continue;
        if (n > TOP_CANDIDATES)
            atomicAdd(n_found, TOP_CANDIDATES + 1u);
        for (uint k = 0u; k < n && n <= TOP_CANDIDATES; k++) {
            uint from = PART_CANDIDATES + 3u * k, id = uint(part(i, from));
            float here = intBitsToFloat(part(i, from + 1u)) + offset;
            if (here < bound)
                continue;
            if (here > score || (here == score && id < token)) {
                score = here;
                token = id;
            }
            uint slot = atomicAdd(n_found, 1u);
            if (slot < TOP_CANDIDATES) {
                picks[i_to + 2u * slot] = int(id);
                picks[i_to + 2u * slot + 1u] = part(i, from + 2u);
            }
        }
    }
    find_first(FIRST_TOKEN, top_key(score), token);
    score = top_value(best[FIRST_TOKEN].key);
    token = best[FIRST_TOKEN].id;
}

bool is_recent(uint id)
{
    uint n = uint(draws[i_draw + DRAW_N_RECENT]);
    for (uint i = 0u; i < n; i++)
        if (uint(draws[i_draw + DRAW_RECENT + i]) == id)
            return true;
    return false;
}

/* The largest key that at least n_list of the sets' maxima reach, or one a little below. */
int find_bound(uint n_list, int key_max)
{
    int maxima[SETS];
    for (uint k = 0u; k < SETS; k++)
        maxima[k] = KEY_NONE;
    for (uint c = 0u; c < p.n_parts; c += SETS / 2u)
        for (uint k = 0u; k < SETS; k++)
            if (c + k / 2u < p.n_parts)
                maxima[k] = max(maxima[k], part(c + k / 2u, PART_MAXIMA + LANES * (k % 2u) + t));
    uint n_valid = 0u;
    int low = key_max;
    for (uint k = 0u; k < SETS; k++)
        if (maxima[k] != KEY_NONE) {
            n_valid++;
            low = min(low, maxima[k]);
        }
    atomicAdd(counts[2], n_valid);
    atomicMin(least, low);
    barrier();
    if (counts[2] < n_list)
        return KEY_NONE + 1; /* all there are */
    low = least;
    int high = key_max;
    barrier();
    for (uint step = 0u; low < high; step++) {
        int middle = low + int((uint(high) - uint(low) + 1u) / 2u);
        uint here = 0u;
        for (uint k = 0u; k < SETS; k++)
            here += maxima[k] >= middle ? 1u : 0u;
        atomicAdd(counts[step % 3u], here);
        barrier();
        uint n = counts[step % 3u];
        if (t == 0u)
            counts[(step + 2u) % 3u] = 0u;
        if (n < n_list) {
            high = middle - 1;
            continue;
        }
        low = middle;
        if (n <= n_list + n_list / 8u)
            break;
    }
    return low;
}

/* The logits that reach `bound`, to keys and ids; n_found may be above FOUND. */
void fetch(int bound)
{
    for (uint c = 0u; c < p.n_parts; c++)
        for (uint h = 0u; h < 2u; h++) {
            int here = part(c, PART_MAXIMA + LANES * h + t);
            if (here < bound || here == KEY_NONE)
                continue;
            uint slot = atomicAdd(n_groups, 1u);
            if (slot < FOUND)
                weights[slot] = c * PART_GROUPS + h * LANES + t;
        }
    barrier();
    uint n = n_groups > FOUND ? 0u : n_groups * 8u;
    if (n_groups > FOUND && t == 0u)
        n_found = FOUND + 1u;
    for (uint i = t; i < n; i += LANES) {
        uint group = weights[i / 8u];
        uint quad = group % LANES + LANES * (group % PART_GROUPS / LANES + 2u * (i / 4u % 2u));
        uint id = group / PART_GROUPS * TOP_CHUNK + 4u * quad + i % 4u;
        if (id >= p.n_cols)
            continue;
        int key = top_key(x[gl_WorkGroupID.y * p.x_stride + p.x_col0 + id]);
        if (key < bound || is_recent(id))
            continue;
        uint slot = atomicAdd(n_found, 1u);
        if (slot < FOUND) {
            keys[slot] = key;
            ids[slot] = id;
        }
    }
    barrier();
}

/* Recent tokens, each once, behind the n entries that are there; all get their weights. */
void complete(uint n, float largest, float scale)
{
    uint n_recent = uint(draws[i_draw + DRAW_N_RECENT]);
    float penalty = draw_float(DRAW_PENALTY);
    if (t == 0u) {
        n_entries = n;
        first_key = n > 0u ? top_key(largest) : KEY_NONE;
    }
    barrier();
    if (t < n_recent) {
        uint id = uint(draws[i_draw + DRAW_RECENT + t]);
        bool is_new = id < p.n_cols;
        for (uint i = 0u; i < t; i++)
            is_new = is_new && uint(draws[i_draw + DRAW_RECENT + i]) != id;
        if (is_new) {
            float v = x[gl_WorkGroupID.y * p.x_stride + p.x_col0 + id];
            uint slot = atomicAdd(n_entries, 1u);
            int key = top_key(v > 0.0 ? v / penalty : v * penalty);
            keys[slot] = key;
            ids[slot] = id;
            atomicMax(first_key, key);
        }
    }
    barrier();
    for (uint i = t; i < n_entries; i += LANES)
        weights[i] = uint(exp2((top_value(keys[i]) - top_value(first_key)) * scale) * ONE);
    barrier();
}

/* Do top-p and min-p end within the n entries of the list, told by more than sums and masses err? */
bool is_enough(uint n, float mass, float largest, float scale)
{
    for (uint i = t; i < n_entries; i += LANES) {
        if (i >= n) {
            atomicAdd(recent, weights[i]);
            continue;
        }
        atomicAdd(listed, weights[i]);
        atomicMin(least_weight, weights[i]);
    }
    barrier();
    float total = mass * exp2((largest - top_value(first_key)) * scale) * ONE + float(recent);
    float top_p = draw_float(DRAW_TOP_P), min_p = draw_float(DRAW_MIN_P);
    bool is_by_p = top_p < 1.0 && float(listed) * (1.0 - SLACK) > top_p * total;
    return is_by_p || float(least_weight) < min_p * (ONE * (1.0 - SLACK));
}

/* Entries of the list as many as are wanted, or as do; their number. */
uint list(uint n_list, int key_max, float mass, float largest, float scale)
{
    uint n_recent = uint(draws[i_draw + DRAW_N_RECENT]), n = 0u;
    bool is_whole = draw_float(DRAW_TOP_P) == 1.0 || draws[i_draw + DRAW_HAS_MASS] != 0;
    bool is_tried = n_list > FEW && is_whole && draws[i_draw + DRAW_TOP_K] == 0;
    for (uint n_wanted = is_tried ? FEW : n_list;; n_wanted = n_list) {
        barrier();
        if (t == 0u) {
            n_found = 0u;
            n_groups = 0u;
            least = 0x7fffffff;
            least_weight = 0xffffffffu;
        }
        if (t < 3u)
            counts[t] = 0u;
        barrier();
        fetch(find_bound(n_wanted, key_max));
        n = n_found > FOUND ? 0u : n_found;
        if (n > 0u || n_recent > 0u)
            complete(n, largest, scale);
        if (n_wanted == n_list)
            return n;
        bool has_all = n > 0u && is_enough(n, mass, largest, scale);
        barrier();
        if (t == 0u) {
            listed = 0u;
            recent = 0u;
        }
        if (has_all)
            return n;
    }
}

/* The list is written in order. The device's own choice is the winner of those that top-k, top-p
 * and min-p keep; where the list ends before they do, it is the winner of all. */
uint choose(uint n, float mass, float largest, float scale, float score, uint token)
{
    uint i_list = gl_WorkGroupID.y * PICK_WORDS + PICK_LIST, n_list = uint(draws[i_draw + DRAW_N_LIST]);
    uint top_k = uint(draws[i_draw + DRAW_TOP_K]), n_all = n_entries;
    uint ranks[OWN], before[OWN];
    for (uint k = 0u; k < OWN; k++) {
        uint i = t + LANES * k, rank_list = 0u;
        ranks[k] = 0u;
        before[k] = 0u;
        if (i >= n_all)
            continue;
        int key = keys[i];
        uint id = ids[i];
        for (uint j = 0u; j < n_all; j++) {
            if (keys[j] < key || (keys[j] == key && ids[j] >= id))
                continue;
            ranks[k]++;
            rank_list += j < n ? 1u : 0u;
            before[k] += weights[j];
        }
        if (i < n && rank_list < n_list) {
            picks[i_list + 2u * rank_list] = int(id);
            picks[i_list + 2u * rank_list + 1u] = floatBitsToInt(top_value(key));
        }
        if (top_k == 0u || ranks[k] < top_k)
            atomicAdd(listed, weights[i]);
        if (i >= n)
            atomicAdd(recent, weights[i]);
    }
    barrier();
    float first = top_value(first_key), top_p = draw_float(DRAW_TOP_P);
    float total = top_k > 0u ? float(listed)
                             : mass * exp2((largest - first) * scale) * ONE + float(recent);
    float wanted = top_p == 1.0 ? 1e30 : total * top_p;
    float least_weight = draw_float(DRAW_MIN_P) * ONE;
    int key = KEY_NONE;
    uint id = NO_ID;
    for (uint k = 0u; k < OWN; k++) {
        uint i = t + LANES * k;
        if (i >= n_all)
            continue;
        if (float(weights[i]) < least_weight) {
            atomicAdd(n_dropped, 1u);
            continue;
        }
        bool is_kept = ranks[k] == 0u ||
                       ((top_k == 0u || ranks[k] < top_k) && float(before[k]) < wanted);
        int here = top_key(race_score(ids[i], (top_value(keys[i]) - largest) * scale));
        if (is_kept && (here > key || (here == key && ids[i] < id))) {
            key = here;
            id = ids[i];
        }
    }
    find_first(FIRST_KEPT, key, id);
    /* Does the list end before the others do? */
    bool is_open = top_k == 0u && draws[i_draw] == KIND_RACE && n_dropped == 0u &&
                   float(listed) < wanted;
    return is_open && top_key(score) > best[FIRST_KEPT].key ? token : best[FIRST_KEPT].id;
}

void main()
{
    t = gl_LocalInvocationID.x;
    uint r = gl_WorkGroupID.y, i_pick = r * PICK_WORDS;
    i_draw = r * DRAW_WORDS;
    i_parts = r * p.parts_stride;
    int kind = draws[i_draw], key = KEY_NONE;
    uint id = NO_ID, n_list = uint(draws[i_draw + DRAW_N_LIST]);
    if (t == 0u) {
        n_odd = 0u;
        n_found = 0u;
        n_dropped = 0u;
        listed = 0u;
        recent = 0u;
    }
    if (t < 4u) {
        best[t].key = KEY_NONE;
        best[t].id = NO_ID;
    }
    barrier();
    for (uint i = t; i < p.n_parts; i += LANES) {
        if (part(i, PART_FINITE) == 0)
            atomicAdd(n_odd, 1u);
        if (part(i, 0u) > key) { /* ids ascend */
            key = part(i, 0u);
            id = uint(part(i, PART_ID));
        }
    }
    find_first(FIRST_LOGIT, key, id);
    key = best[FIRST_LOGIT].key;
    id = key == KEY_NONE ? 0u : best[FIRST_LOGIT].id;
    bool is_finite = n_odd == 0u, has_key = key != KEY_NONE;
    float largest = has_key ? top_value(key) : 0.0;
    bool is_race = kind == KIND_RACE && is_finite;
    float scale = draw_float(DRAW_SCALE), score = FAR_DOWN, mass = 0.0;
    uint token = NO_ID;
    if (draws[i_draw + DRAW_HAS_MASS] != 0 && is_finite) {
        for (uint i = t; i < p.n_parts; i += LANES)
            if (part(i, 0u) != KEY_NONE)
                mass += intBitsToFloat(part(i, PART_MASS)) *
                        exp2((top_value(part(i, 0u)) - largest) * scale);
        mass = add_up(mass);
    }
    if (is_race)
        race(largest, scale, score, token);
    uint n_race = n_found;
    uint n = 0u, n_recent = uint(draws[i_draw + DRAW_N_RECENT]);
    if (n_list > 0u && is_finite && has_key)
        n = list(n_list, key, mass, largest, scale);
    else if (is_finite && n_recent > 0u)
        complete(0u, largest, scale);
    if (is_finite && (n > 0u || n_recent > 0u)) {
        barrier();
        if (kind != KIND_GREEDY && kind != KIND_NONE) {
            token = choose(n, mass, largest, scale, score, token);
        } else {
            int key_recent = KEY_NONE;
            uint id_recent = NO_ID;
            if (t < n_entries) {
                key_recent = keys[t];
                id_recent = ids[t];
            }
            find_first(FIRST_KEPT, key_recent, id_recent);
            key_recent = best[FIRST_KEPT].key;
            id_recent = best[FIRST_KEPT].id;
            bool is_first = !has_key || key_recent > key || (key_recent == key && id_recent < id);
            token = is_first ? id_recent : id;
        }
    } else {
        token = is_race ? token : id;
    }
    if (t < n_recent) {
        uint i = uint(draws[i_draw + DRAW_RECENT + t]);
        if (i < p.n_cols)
            picks[i_pick + PICK_RECENT + t] = floatBitsToInt(x[r * p.x_stride + p.x_col0 + i]);
    }
    if (t != 0u)
        return;
    uint n_said = is_race ? min(n_race, TOP_CANDIDATES + 1u) : TOP_CANDIDATES + 1u;
    if (kind == KIND_GREEDY) {
        n_said = 1u;
        picks[i_pick + PICK_CANDIDATES] = int(id);
        picks[i_pick + PICK_CANDIDATES + 1u] = floatBitsToInt(largest);
    }
    picks[i_pick] = int(n_said);
    picks[i_pick + 1u] = is_finite ? 1 : 0;
    picks[i_pick + 2u] = int(id);
    picks[i_pick + 3u] = floatBitsToInt(largest);
    picks[i_pick + 4u] = token < p.n_cols ? int(token) : int(id);
    picks[i_pick + 5u] = int(min(n, n_list));
    picks[i_pick + 6u] = floatBitsToInt(mass);
}
