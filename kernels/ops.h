/* The ops: one verb each, appended to a program that is being recorded (device.h). Shapes are
 * checked here by TD_ASSERT: they come from a model that was validated before.
 *
 * Notation: x[r][c] is row r, column c of a view; rows run over the program's batch (or outputs).
 *
 * Activation types of mat_mul by weight type (td_type_info.has_int8_activations):
 *   host:    F32, F16, BF16: f32 activations; all other types: activations are quantized per row
 *            in blocks of 32 (q = round-half-even(x * 127 / amax), f32 scale amax / 127) and
 *            products are integer inside a block.
 *   vulkan:  the same types and blocks; divisions and the order of the blocks' sums are the
 *            device's own, so results are near the host's, not equal to them.
 *   scalar:  as the host; its results are bit-equal to the host's at every SIMD level. */
#ifndef TD_KERNELS_OPS_H
#define TD_KERNELS_OPS_H

#include "kernels/device.h"

/* Columns col0..col0+n_cols-1 of every row of a tensor. */
typedef struct {
    td_tensor *t;
    uint32_t col0, n_cols;
} td_view;

td_view td_all(td_tensor *t);
td_view td_columns(td_tensor *t, uint32_t col0, uint32_t n_cols);

/* Where the rows of a batch stand. All are host-visible I32 tensors. */
typedef struct {
    td_tensor *positions; /* [n_rows][1] absolute position of the row in its sequence */
    td_tensor *slots;     /* [n_rows][1] row of the page table: the sequence's slot */
    td_tensor *pages;     /* [n_slots][n_pages_max] page of positions 64 j .. 64 j + 63; FIXED */
} td_batch_tensors;

/* y[r] = w row ids[r][0], dequantized to f32. ids: I32, each < w.n_rows. */
void td_op_embed(td_program *p, td_weight *w, td_view ids, td_view y);

/* y[r][i] = x[r][i] / sqrt(mean_j x[r][j]^2 + eps) * w[i]. The columns are n_groups equal groups,
 * each normed on its own (heads: w then has n_cols / n_groups entries). w (F32 vector) may be NULL.
 * y may be x. Source: Zhang & Sennrich 2019. */
void td_op_rms_norm(td_program *p, td_view x, td_weight *w, uint32_t n_groups, float eps,
                    td_view y);

/* y[r][o] = sum_k w[o][k] x[r][k] (+ bias[o]). bias: F32 vector of w.n_rows, or NULL. */
void td_op_mat_mul(td_program *p, td_weight *w, td_weight *bias, td_view x, td_view y);

typedef enum {
    TD_ROPE_NORM, /* pairs (2i, 2i+1) */
    TD_ROPE_NEOX, /* pairs (i, i + n_rot/2) */
} td_rope_kind;

/* Rotates, in place, the first n_rot of the head_dim columns of each head: pair i of row r by the
 * angle whose cosine and sine are cos_sin[r][2i], cos_sin[r][2i+1] (F32, host-visible, computed by
 * the model in double precision, magnitude scaling included).
 * (a, b) -> (a cos - b sin, a sin + b cos). Source: Su et al. 2021. */
void td_op_rope(td_program *p, td_view x, td_tensor *cos_sin, td_rope_kind kind, uint32_t head_dim,
                uint32_t n_rot);

/* Writes k[r] ([n_head_kv][head_dim_k]) and v[r] to the page slots of the rows' positions, in the
 * cache's types. */
void td_op_kv_store(td_program *p, td_kv *kv, td_view k, td_view v, const td_batch_tensors *batch);

typedef struct {
    uint32_t n_head; /* query heads; query head h uses kv head h / (n_head / n_head_kv) */
    float scale;     /* of q . k */
    uint32_t window; /* position j is visible to i if i - j < window; 0: all j <= i */
    float softcap;   /* s = cap tanh(s / cap); 0: none */
} td_attention_params;

/* y[r][h] = sum_j softmax_j(scale q[r][h] . k[j]) v[j] over the visible positions j of the row's
 * sequence, read from the cache (rows of this batch included: kv_store comes first). Positions are
 * folded in blocks of TD_PAGE_POSITIONS by absolute position with a running maximum. */
void td_op_attention(td_program *p, td_kv *kv, td_view q, td_view y,
                     const td_attention_params *params, const td_batch_tensors *batch);

/* y = silu(gate) * up, silu(x) = x / (1 + exp(-x)). y may be gate or up. */
void td_op_swiglu(td_program *p, td_view gate, td_view up, td_view y);

/* y = a + b. y may be a or b. */
void td_op_add(td_program *p, td_view a, td_view b, td_view y);

/* y[i] = x[rows[i][0]] for the outputs i. rows: I32, ROWS_OUT; y: ROWS_OUT. */
void td_op_gather(td_program *p, td_view x, td_tensor *rows, td_view y);

/* -- tokens: what a caller needs of a row of logits to choose its token exactly -------------- */

#define TD_TOP_CHUNK      4096u /* columns of logits a part of top looks at */
#define TD_TOP_CANDIDATES 4u
#define TD_TOP_WINDOW     0x1p-8f /* of scores, below; far above what they err by */
#define TD_DRAW_WORDS     8u
#define TD_PART_WORDS     20u
#define TD_PICK_WORDS     16u

typedef enum {
    TD_DRAW_NONE,   /* the row will be read: pick.n is above TD_TOP_CANDIDATES */
    TD_DRAW_GREEDY, /* the largest logit that is a number, ties to the lower id; else id 0 */
    TD_DRAW_RACE,   /* argmin E / exp((x - max) / T), model/sampling.h */
} td_draw_kind;

typedef struct { /* a row of draws, in; feed moves it on */
    uint32_t kind;
    float scale;                     /* RACE: log2(e) / T */
    uint32_t stream[2], position[2]; /* of the noise, low words first */
    uint32_t step;                   /* row of trail that feed writes next */
    uint32_t unused;
} td_draw;

/* The result of a row. n <= TD_TOP_CANDIDATES: the token is among the candidates, and only the
 * caller's own arithmetic tells which (one candidate needs none). Above: read the row. */
typedef struct {
    uint32_t n;
    uint32_t is_finite; /* no logit is NaN or infinite */
    uint32_t id_max;    /* lowest id of the largest logit that is a number; 0 when there is none */
    float max;
    uint32_t token; /* the device's own choice */
    uint32_t unused[3];
    struct {
        uint32_t id;
        float logit;
    } candidates[TD_TOP_CANDIDATES];
} td_pick;

/* Of each chunk of a row's logits the largest, and by RACE the tokens whose score
 * s = log2(e) (x - max) / T - log2 E is within TD_TOP_WINDOW of the chunk's best. Scores are f32
 * and err by less than a quarter of the window: among those that can win (within 38 of the
 * largest, as 2^-33 <= E < 23) each of about ten roundings is below 2^-18, and Vulkan allows log2
 * 3 ulp. logits: ROWS_OUT; draws: I32 [n_out][TD_DRAW_WORDS]; parts: I32
 * [n_out][chunks * TD_PART_WORDS], of private layout. */
void td_op_top(td_program *p, td_view logits, td_tensor *draws, td_tensor *parts);

/* picks[i] (I32 [n_out][TD_PICK_WORDS], td_pick) of the parts of row i. */
void td_op_pick(td_program *p, td_tensor *parts, td_tensor *draws, td_tensor *picks);

/* The next step of a draft: row 0 of `picks` becomes row 0 of the inputs. With d = draws[0] and
 * position d.position: ids[0] = its token; positions[0] = position; cos_sin[0] = row `position` of
 * table (F32 weight, [n_ctx][n_rot]); trail[d.step] = picks[0] (trail: I32, FIXED,
 * [n_steps_max][TD_PICK_WORDS]); then d.step and d.position grow by one. What lies outside a table
 * or the trail is not written. */
typedef struct {
    td_tensor *picks, *draws, *ids, *positions, *cos_sin, *trail;
    td_weight *table;
} td_feed_tensors;
void td_op_feed(td_program *p, const td_feed_tensors *feed);

#endif
