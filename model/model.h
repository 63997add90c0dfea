/* An opened model: the GGUF file, its hyper-parameters checked against ranges, the traits of its
 * architecture and the directory of tensors checked against the shapes they imply. Weights are
 * loaded per device by forward.h; nothing here holds tensor data.
 *
 * Owns the td_gguf and the tokenizer. Immutable after open; any thread.
 * Errors: TD_E_DATA (what the file says against what is allowed), TD_E_IO, TD_E_NOMEM. */
#ifndef TD_MODEL_H
#define TD_MODEL_H

#include "base/err.h"
#include "kernels/ops.h"
#include "model/arch.h"
#include "model/dealing.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

#define TD_LAYERS_MAX   512u
#define TD_EMBD_MAX     65536u
#define TD_HEADS_MAX    512u
#define TD_HEAD_DIM_MAX 1024u
#define TD_FF_MAX       (1u << 20)
#define TD_CTX_MAX      (1u << 24)
#define TD_NAME_MAX     128u

typedef struct {
    uint64_t words[TD_LAYERS_MAX / 64]; /* bit of a layer */
} td_layer_set;

typedef struct {
    uint32_t n_vocab, n_embd, n_layer, n_ff;
    uint32_t n_nextn; /* layers behind n_layer that predict further tokens: heads */
    uint32_t n_head, n_head_kv;
    uint32_t head_dim_k, head_dim_v; /* of the cache */
    uint32_t n_rot;                  /* columns of each head that rope rotates */
    uint32_t n_ctx_train;
    float rms_eps;
    td_qk_norm qk_norm;
    float attention_scale;
    float attention_softcap, final_softcap; /* 0: none */
    uint32_t window;                        /* of local layers; chunked ones have another */
    td_layer_set local, recurrent, routed;  /* what layers are; routed: those with experts */
    uint32_t nope_period;
    float rope_base, rope_base_local; /* of local layers, where it is another; else 0 */
    bool is_yarn;                     /* else linear */
    float rope_factor;                /* > 0; 1: not scaled */
    uint32_t rope_orig_ctx;
    float yarn_log_multiplier, yarn_beta_fast, yarn_beta_slow;
    float rope_magnitude; /* of cos and sin, but for what YaRN adds by the factor */
    /* q *= 1 + q_scale ln(floor((position + offset) / every) + 1); q_scale 0: no such scale. */
    float q_scale;
    uint32_t q_scale_every, q_scale_offset;
    bool is_tied; /* logits come from token_embd */
    /* Mixture of experts. */
    uint32_t n_expert, n_expert_used, n_ff_expert, n_ff_shared; /* n_ff_shared 0: no shared one */
    uint32_t n_expert_shared;
    uint32_t n_dense;   /* leading layers without experts */
    uint32_t moe_every; /* of the others every so many-th has experts */
    td_route_params route;
    /* Latent attention: real heads; the cache has one head of lora_kv + n_rot. */
    uint32_t lora_q, lora_kv; /* lora_q 0: q is one projection */
    uint32_t mla_nope, mla_v;
    /* Gated delta net. */
    uint32_t full_interval; /* layers i with (i + 1) % interval == 0 are full attention */
    uint32_t delta_heads_k, delta_heads_v, delta_dim, delta_taps;
} td_hparams;

typedef struct td_model td_model;

td_model *td_model_open(const char *path, td_err *err);
void td_model_close(td_model **m);

const td_gguf *td_model_gguf(const td_model *m);
const td_arch *td_model_arch(const td_model *m);
const td_hparams *td_model_hparams(const td_model *m);
const td_tokenizer *td_model_tokenizer(const td_model *m);
const char *td_model_path(const td_model *m);
const char *td_model_name(const td_model *m); /* general.name or the file's name */

/* A next-token head (multi-token prediction: DeepSeek-V3, 2024): layer n_layer of a file, the first
 * of n_nextn, which drafts for the model (forward.h). Files are opened without a look at it; here
 * its tensors are checked. TD_E_DATA names what is missing, or says that there is none. */
bool td_model_check_head(const td_model *m, td_err *err);
/* As a draft is named: of "mtp" "", of "mtp:FILE" FILE, else NULL. */
const char *td_head_name(const char *draft);
/* Of "mtp,D" and "mtp:FILE,D", a head and a model D beside it, where D begins; else NULL. */
const char *td_head_beside(const char *draft);
/* "auto": "mtp" where that drafts, else another. */
bool td_head_is_auto(const char *draft);
/* The head of that name: target, or a file of which only the head is wanted, opened into *file (to
 * be closed; whatever else it has is not used). TD_E_DATA if it is none of such a model. */
const td_model *td_head_find(const char *name, const td_model *target, td_model **file,
                             td_err *err);

/* What a layer (0-based) is. */
bool td_layer_is_recurrent(const td_model *m, uint32_t layer);
bool td_layer_is_local(const td_model *m, uint32_t layer);
bool td_layer_has_experts(const td_model *m, uint32_t layer);

/* -- the tensors of a layer and of the model's ends, as one table (weights.c) ------------------ */

typedef enum {
    TD_W_ATTN_NORM,
    TD_W_Q,
    TD_W_K,
    TD_W_V,
    TD_W_O,
    TD_W_BQ,
    TD_W_BK,
    TD_W_BV,
    TD_W_BO,
    TD_W_Q_NORM,
    TD_W_K_NORM,
    TD_W_Q_GATE, /* gated attention */
    TD_W_SINKS,  /* [n_head] */
    TD_W_Q_A,    /* latent attention: down to lora_q, its norm, */
    TD_W_Q_A_NORM,
    TD_W_Q_NOPE, /* up to the heads' parts, */
    TD_W_Q_ROPE,
    TD_W_KV_A, /* down to [lora_kv | rope], the norm of the first, */
    TD_W_KV_A_NORM,
    TD_W_K_B,     /* and by head: q's part to the latent, */
    TD_W_V_B,     /* the latent to values */
    TD_W_QKV,     /* gated delta net: what passes the convolution, */
    TD_W_DELTA_Q, /* or its parts, */
    TD_W_DELTA_K,
    TD_W_DELTA_V,
    TD_W_ALPHA,
    TD_W_BETA,
    TD_W_Z,    /* the output's gate, */
    TD_W_CONV, /* [taps][channels], */
    TD_W_A,
    TD_W_DT,
    TD_W_DELTA_NORM,
    TD_W_DELTA_OUT,
    TD_W_POST_ATTN_NORM,
    TD_W_FFN_NORM,
    TD_W_GATE,
    TD_W_UP,
    TD_W_DOWN,
    TD_W_B_GATE,
    TD_W_B_UP,
    TD_W_B_DOWN,
    TD_W_ROUTER, /* experts: [n_expert] outputs */
    TD_W_B_ROUTER,
    TD_W_ROUTER_CHOICE, /* added to the score of the choice alone */
    TD_W_EX_GATE,       /* groups of rows, one for each expert */
    TD_W_EX_UP,
    TD_W_EX_DOWN,
    TD_W_EX_B_GATE,
    TD_W_EX_B_UP,
    TD_W_EX_B_DOWN,
    TD_W_EX_S_GATE, /* [n_expert]: factors of an expert's products, where the file has them */
    TD_W_EX_S_UP,
    TD_W_EX_S_DOWN,
    TD_W_SH_ROUTER, /* [1] output: the shared expert's gate */
    TD_W_SH_GATE,
    TD_W_SH_UP,
    TD_W_SH_DOWN,
    TD_W_POST_FFN_NORM,
    TD_W_HEAD_PROJ, /* of a head: [2 n_embd] of a token's embedding and a hidden row, */
    TD_W_HEAD_E_NORM,
    TD_W_HEAD_H_NORM, /* normed each; */
    TD_W_HEAD_EMBD,   /* and what it has instead of the model's ends, or NULL */
    TD_W_HEAD_OUT,
    TD_W_HEAD_OUT_NORM,
    TD_W_LAYER_COUNT
} td_layer_weight;

typedef enum { TD_W_EMBD, TD_W_OUT_NORM, TD_W_OUT, TD_W_B_OUT, TD_W_END_COUNT } td_end_weight;

/* Layers first..last (inclusive) of a model on one device, and behind the last its head. */
typedef struct {
    uint32_t first, last, n_layers;         /* n_layers: with the head */
    td_weight *(*layers)[TD_W_LAYER_COUNT]; /* [n_layers]; NULL where the file has none */
    td_weight *ends[TD_W_END_COUNT];        /* embd on the first part; norm and out on the last;
                                               out is NULL where tied (use embd) */
    /* What a matrix's products are multiplied by, 1 where the file has no such factor; biases are
     * loaded divided by it. */
    float (*factors)[TD_W_LAYER_COUNT];
    float end_factors[TD_W_END_COUNT];
    uint64_t n_file_bytes, load_us; /* what was read, and how long all of it took */
} td_weights;

/* Every tensor the model needs is there with its shape and a usable type. Extra ones are logged. */
bool td_weights_check(const td_model *m, td_err *err);
typedef enum { TD_SHARE_ALL, TD_SHARE_OTHERS, TD_SHARE_EXPERTS } td_weight_share;
typedef struct {
    const td_model *model;
    const td_model *head; /* whose head is loaded too, by the last part: the model itself or a file
                           * of only that, which is not dealt; NULL: none */
    td_device *dev, *experts_dev; /* experts_dev: of the experts' weights; NULL: dev */
    uint32_t first, last;
    td_weight_share share;     /* of the layers' weights; the ends are no experts */
    const td_dealing *dealing; /* of the experts only those of `seat`; NULL: all */
    uint32_t seat;
    /* May be NULL: called with bytes done and total; when it says false loading ends
     * (TD_E_AGAIN). */
    bool (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
} td_weights_params;
/* Reads, repacks and uploads. Source pages are dropped as they are consumed. */
td_weights *td_weights_load(const td_weights_params *params, td_err *err);
void td_weights_destroy(td_weights **w);
/* Bytes params->dev would take for the share of a layer (`of`: model or head); of a whole layer, or
 * for its experts or all but them, that are not dealt; and for the ends a part of first..last
 * needs. */
uint64_t td_weights_bytes_of(const td_weights_params *params, const td_model *of, uint32_t layer);
uint64_t td_weights_layer_bytes(const td_model *m, td_device *dev, uint32_t layer,
                                td_weight_share share);
uint64_t td_weights_end_bytes(const td_model *m, const td_model *head, const td_device *dev,
                              uint32_t first, uint32_t last);
/* Which tensors of the file a part of first..last reads: is_read[td_gguf_n_tensors], the others'
 * stay as they are. head: the model, where the last part has its head too; else NULL. */
void td_weights_mark_read(const td_model *m, const td_model *head, uint32_t first, uint32_t last,
                          bool *is_read);
/* Whether the device (the experts', for theirs) takes each weight, in pieces if need be. TD_E_NOMEM
 * names the first that it does not. */
bool td_weights_check_pieces(const td_model *m, const td_model *head, const td_device *dev,
                             const td_device *experts_dev, uint32_t first, uint32_t last,
                             td_err *err);

/* -- what depends on a row's position alone (rope.c) ------------------------------------------- */

/* A row of constants for each position, as columns of one tensor: cosines and sines of the layers'
 * rope, of the local layers' where those differ, and a scale of q. n_cols 0: there is none. */
typedef struct td_rope td_rope;
typedef struct {
    uint32_t col0, n_cols;
} td_rope_part;

/* n_ctx: positions of a sequence, where that chooses the factors of the frequencies. */
td_rope *td_rope_create(const td_model *m, uint32_t n_ctx, td_err *err);
void td_rope_destroy(td_rope **rope);
uint32_t td_rope_cols(const td_model *m);
td_rope_part td_rope_of_layer(const td_model *m, uint32_t layer); /* cos and sin, [n_rot] */
td_rope_part td_rope_q_scale(const td_model *m);
/* Computed in double precision. Pair i: out[2i], out[2i+1], magnitude scaling included. Sources: Su
 * et al. 2021; Peng et al. 2023 (YaRN). */
void td_rope_row(const td_rope *rope, uint32_t position, float *out);

#endif
