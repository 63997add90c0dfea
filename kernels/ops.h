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

/* Names of the kinds of ops there are: "embed", "mat_mul", ...; NULL past the last. */
const char *td_op_kind_name(uint32_t kind);

td_view td_all(td_tensor *t);
td_view td_columns(td_tensor *t, uint32_t col0, uint32_t n_cols);

/* Where the rows of a batch stand. All are host-visible I32 tensors. */
typedef struct {
    td_tensor *positions; /* [n_rows][1] absolute position of the row in its sequence */
    td_tensor *slots;     /* [n_rows][1] row of the page table: the sequence's slot */
    td_tensor *pages;     /* [n_slots][n_pages_max] page of positions 64 j .. 64 j + 63; FIXED */
    /* Recurrent layers only, else NULL. [n_slots][2], FIXED: how many positions of the sequence are
     * committed (in prefill: will be, the rows of this batch included), and the position after the
     * last row of this batch. */
    td_tensor *spans;
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

/* The same for each of w's groups (heads), whose inputs and outputs stand apart: with m = w.n_rows
 * / w.n_groups, y[r][g * y_stride + o] = sum_k w[g * m + o][k] x[r][g * x_stride + k]. The views
 * span all groups; between the groups of y nothing is written. x_stride is w.n_cols, or 0: all read
 * the same. At most TD_EXPERTS_MAX groups. */
void td_op_mat_mul_groups(td_program *p, td_weight *w, td_view x, uint32_t x_stride, td_view y,
                          uint32_t y_stride);

/* Mixture of experts: w has a group of rows for each expert. For the i-th expert chosen by a row,
 * e = experts[r][i]: y[r][i * m + o] = sum_k w[e * m + o][k] x[r][k] (+ bias[e * m + o]), or of
 * x[r][i * w.n_cols + k] where x has as many columns. experts: I32 [n_rows][n_used]; bias: F32
 * vector of w.n_rows, or NULL. Rows of a batch are gathered by expert, so that its weights are read
 * once; the arithmetic of a row is mat_mul's. */
void td_op_mat_mul_experts(td_program *p, td_weight *w, td_weight *bias, td_tensor *experts,
                           td_view x, td_view y);

typedef enum {
    TD_ROPE_NORM, /* pairs (2i, 2i+1) */
    TD_ROPE_NEOX, /* pairs (i, i + n_rot/2) */
} td_rope_kind;

/* Rotates, in place, columns col0..col0+n_rot-1 of the head_dim columns of each head, n_rot being
 * cos_sin's columns: pair i of row r by the angle whose cosine and sine are cos_sin[r][2i],
 * cos_sin[r][2i+1] (F32, of a host-visible tensor, computed by the model in double precision,
 * magnitude scaling included). (a, b) -> (a cos - b sin, a sin + b cos). Source: Su et al. 2021. */
void td_op_rope(td_program *p, td_view x, td_view cos_sin, td_rope_kind kind, uint32_t head_dim,
                uint32_t col0);

/* Writes k[r] ([n_head_kv][head_dim_k]) and v[r] to the page slots of the rows' positions, in the
 * cache's types. A latent cache takes v from k: what the view v has is not looked at. */
void td_op_kv_store(td_program *p, td_kv *kv, td_view k, td_view v, const td_batch_tensors *batch);

typedef struct {
    uint32_t n_head; /* query heads; query head h uses kv head h / (n_head / n_head_kv) */
    float scale;     /* of q . k */
    uint32_t window; /* position j is visible to i if i - j < window; 0: all j <= i */
    uint32_t chunk;  /* and if j / chunk == i / chunk; 0: none */
    float softcap;   /* s = cap tanh(s / cap); 0: none */
    /* F32 vector [n_head] or NULL: a score of each head that takes part in the softmax like one of
     * a position of no value (Xiao et al. 2023). */
    td_weight *sinks;
} td_attention_params;

/* y[r][h] = sum_j softmax_j(scale q[r][h] . k[j]) v[j] over the visible positions j of the row's
 * sequence, read from the cache (rows of this batch included: kv_store comes first). Positions are
 * folded in blocks of TD_PAGE_POSITIONS by absolute position with a running maximum. */
void td_op_attention(td_program *p, td_kv *kv, td_view q, td_view y,
                     const td_attention_params *params, const td_batch_tensors *batch);

typedef enum {
    TD_GLU_SILU,    /* g / (1 + exp(-g)) * u (SwiGLU, Shazeer 2020) */
    TD_GLU_GELU,    /* g / 2 (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) * u */
    TD_GLU_CLAMPED, /* g = min(g, 7), u = min(max(u, -7), 7): g / (1 + exp(-1.702 g)) * (u + 1) */
    TD_GLU_SIGMOID, /* 1 / (1 + exp(-g)) * u; g may be one column, for all of u's */
} td_glu_kind;

/* y = glu(gate, up), element by element. y may be gate or up. scales: F32 [n_rows][n], of tensor of
 * its own, or NULL: the columns are n equal groups, and gate and up are first multiplied by
 * scales[r][their group]. */
void td_op_glu(td_program *p, td_glu_kind kind, td_view gate, td_view up, td_tensor *scales,
               td_view y);
/* The same where gate and up are n_groups groups of columns, each `stride` columns behind the one
 * before; gate.n_cols = (n_groups - 1) * stride + y.n_cols / n_groups. y is of another tensor. */
void td_op_glu_groups(td_program *p, td_glu_kind kind, td_view gate, td_view up, uint32_t n_groups,
                      uint32_t stride, td_tensor *scales, td_view y);

/* y = a + b. y may be a or b. */
void td_op_add(td_program *p, td_view a, td_view b, td_view y);

/* y = x * factor * factors[r][0]; factors: one column, or {NULL} for none. y may be x. */
void td_op_scale(td_program *p, td_view x, float factor, td_view factors, td_view y);

/* y = cap tanh(x / cap). y may be x. */
void td_op_softcap(td_program *p, td_view x, float cap, td_view y);

/* -- mixture of experts ------------------------------------------------------------------------ */

#define TD_EXPERTS_MAX      1024u
#define TD_EXPERTS_USED_MAX 64u

typedef enum {
    TD_GATING_SOFTMAX,  /* prob = softmax over all experts */
    TD_GATING_SIGMOID,  /* prob = 1 / (1 + exp(-logit)) */
    TD_GATING_SELECTED, /* softmax over the logits of those selected */
} td_gating;

typedef struct {
    td_gating gating;
    uint32_t n_groups, n_groups_used; /* experts are n_groups equal groups; 0 or 1: one */
    bool is_normalized;               /* weights are divided by their sum (at least 2^-14) */
    float scale;                      /* and multiplied by this at last */
} td_route_params;

/* Chooses the experts of each row, experts.n_cols of them in descending order of score, ties to the
 * lower index: experts[r][i] (I32) and weights[r][i] (F32). The score is prob + bias[e] (bias: F32
 * vector or NULL), for TD_GATING_SELECTED the logit (+ bias[e]); the weight is made of prob without
 * bias. With groups, a group counts by the sum of its two best scores, and only experts of the
 * n_groups_used best are taken. logits: [n_rows][n_expert]. Source: DeepSeek-V3, 2024. */
void td_op_route(td_program *p, td_view logits, td_weight *bias, const td_route_params *params,
                 td_tensor *experts, td_tensor *weights);

/* y[r] = sum_i weights[r][i] x[r][i], i ascending; x: [n_rows][n_used * y.n_cols]. */
void td_op_experts_sum(td_program *p, td_view x, td_tensor *weights, td_view y);

/* -- recurrent layers -------------------------------------------------------------------------- */

typedef enum { TD_HEADS_TILED, TD_HEADS_GROUPED } td_heads_order;

/* A row of x for td_op_delta_net: q [n_head_k][dim], k [n_head_k][dim], v [n_head_v][dim], then
 * alpha [n_head_v], beta [n_head_v]. The first part (q, k, v) passes the convolution. */
typedef struct {
    /* F32 vector, [n_taps][channels of q, k, v]: the last tap is the row's own input. */
    td_weight *conv;
    td_weight *a, *dt;    /* F32 vectors [n_head_v]: negative rates, and a bias of alpha */
    td_heads_order order; /* v head h has k head h % n_head_k, or h / (n_head_v / n_head_k) */
    float eps;
} td_delta_net_params;

/* Gated delta rule (Yang et al. 2024), a state S [dim][dim] per v head. In a row's order, with c =
 * silu(conv of x with the rows before), q and k of a head divided by sqrt(sum of squares + eps), q
 * also by sqrt(dim); beta' = sigmoid(beta); g = exp(a softplus(alpha + dt)):
 *     S = g S;  u = beta' (v - S^T k);  S = S + k u^T;  y[r][h] = S^T q
 * Rows of a sequence stand together in the batch, ascending. What lies in td_state is the S of the
 * first positions of a sequence, as far as spans says they are committed, and the inputs x of the
 * rows after those, from which a row's S is computed anew: td_state_params. */
void td_op_delta_net(td_program *p, td_state *state, td_view x, const td_delta_net_params *params,
                     const td_batch_tensors *batch, td_view y);

/* Keeps the rows' inputs x in the state, after td_op_delta_net has read what was there. */
void td_op_state_keep(td_program *p, td_state *state, td_view x, const td_batch_tensors *batch);

/* y[i] = x[rows[i][0]] for the outputs i. rows: I32, ROWS_OUT; y: ROWS_OUT. */
void td_op_gather(td_program *p, td_view x, td_tensor *rows, td_view y);

/* -- tokens: what a caller needs of a row of logits to choose its token exactly -------------- */

#define TD_TOP_CHUNK      4096u /* columns of logits a part of top looks at */
#define TD_TOP_CANDIDATES 4u
#define TD_TOP_WINDOW     0x1p-8f /* of scores, below; far above what they err by */
#define TD_TOP_LIST       256u    /* of the largest logits of a row, at most */
#define TD_TOP_RECENT     64u     /* tokens that are penalized, at most */
#define TD_TOP_MASS_ERROR 0x1p-10 /* relative, of td_pick.mass; far above what it errs by */
#define TD_DRAW_WORDS     80u
#define TD_PART_WORDS     532u
#define TD_PICK_WORDS     592u

typedef enum {
    TD_DRAW_NONE,   /* the row will be read: pick.n is above TD_TOP_CANDIDATES */
    TD_DRAW_GREEDY, /* the largest logit that is a number, ties to the lower id; else id 0 */
    TD_DRAW_RACE,   /* argmin E / exp((x - max) / T), model/sampling.h */
    TD_DRAW_LIST,   /* no race over all: n_list of the largest hold the winner */
} td_draw_kind;

/* A row of draws, in; feed moves it on. Recent tokens are those whose logits the chain changes:
 * they are told apart, and take no part in what is said of the others. */
typedef struct {
    uint32_t kind;
    float scale;                     /* RACE, LIST: log2(e) / T */
    uint32_t stream[2], position[2]; /* of the noise, low words first */
    uint32_t step;                   /* row of trail that feed writes next */
    uint32_t n_list;                 /* RACE, LIST: largest logits wanted, 0..TD_TOP_LIST */
    uint32_t has_mass;               /* RACE, LIST: is pick.mass wanted? */
    /* Of the device's own choice: top_k is 0 (all) or at most n_list. */
    uint32_t top_k;
    float top_p, min_p;
    float penalty;             /* of recent tokens; 1: none */
    uint32_t n_recent, i_next; /* of these; where feed puts the next one */
    uint32_t n_recent_max;     /* 0..TD_TOP_RECENT, 0: feed adds none */
    uint32_t recent[TD_TOP_RECENT];
} td_draw;

typedef struct {
    uint32_t id;
    float logit;
} td_top_logit;

/* The result of a row. n <= TD_TOP_CANDIDATES: the winner over all tokens that are not recent is
 * among the candidates, and only the caller's own arithmetic tells which (one candidate needs
 * none). Above: that is not known. Those that min-p or top-p is known to take away need not take
 * part. list: the n_list largest logits in descending order, ties to the lower id, -0 as 0; as many
 * as are wanted, or all, or as many as end min-p or top-p; or none, where too many are alike. */
typedef struct {
    uint32_t n;
    uint32_t is_finite; /* no logit is NaN or infinite, recent ones included */
    uint32_t id_max;    /* lowest id of the largest logit that is a number; 0 when there is none */
    float max;
    uint32_t token;  /* the device's own choice by the whole chain, in f32 */
    uint32_t n_list; /* of list; 0 unless is_finite */
    float mass;      /* sum of 2^(scale (x - max)), within TD_TOP_MASS_ERROR; if it is wanted */
    uint32_t unused;
    td_top_logit candidates[TD_TOP_CANDIDATES];
    td_top_logit list[TD_TOP_LIST];
    float recent[TD_TOP_RECENT]; /* logits of draw.recent */
} td_pick;

/* A token more that is recent, where d has a place for such. */
void td_draw_push(td_draw *d, uint32_t token);

/* Of each chunk of a row's logits the largest; by RACE the tokens whose score
 * s = log2(e) (x - max) / T - log2 E is within TD_TOP_WINDOW of the chunk's best; the chunk's mass,
 * and the largest of each eight logits. Scores are f32 and err by less than a quarter of the
 * window: among those that can win (within 38 of the largest, as 2^-33 <= E < 23) each of about ten
 * roundings is below 2^-18, and Vulkan allows log2 3 ulp. The mass errs by less than 2^-11: terms
 * below 2^-40 do not count, of the others the exponent errs by 2^-17, exp2 by 83 ulp, and 16 at a
 * time are rounded to 2^-19 (256 roundings in a chunk, whose mass is 1 at least). logits:
 * ROWS_OUT; draws: I32 [n_out][TD_DRAW_WORDS]; parts: I32 [n_out][chunks * TD_PART_WORDS], of
 * private layout. */
void td_op_top(td_program *p, td_view logits, td_tensor *draws, td_tensor *parts);

/* picks[i] (I32 [n_out][TD_PICK_WORDS], td_pick) of the parts of row i. */
void td_op_pick(td_program *p, td_view logits, td_tensor *parts, td_tensor *draws,
                td_tensor *picks);

/* The next step of a draft: row 0 of `picks` becomes row 0 of the inputs. With d = draws[0] and
 * position d.position: ids[0] = its token; positions[0] = position; cos_sin[0] = row `position` of
 * table (F32 weight, [n_ctx][n_rot]); trail[d.step] = picks[0] (trail: I32, FIXED,
 * [n_steps_max][TD_PICK_WORDS]); then d.step and d.position grow by one, and the token becomes a
 * recent one, in the place of the oldest (td_draw_push). What lies outside a table or the trail is
 * not written. */
typedef struct {
    td_tensor *picks, *draws, *ids, *positions, *cos_sin, *trail;
    td_weight *table;
} td_feed_tensors;
void td_op_feed(td_program *p, const td_feed_tensors *feed);

#endif
