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
#include "model/gguf.h"
#include "model/tokenizer.h"

#define TD_LAYERS_MAX 512u
#define TD_EMBD_MAX   65536u
#define TD_HEADS_MAX  512u
#define TD_FF_MAX     (1u << 20)
#define TD_CTX_MAX    (1u << 24)
#define TD_NAME_MAX   128u

typedef enum { TD_ROPE_SCALING_NONE, TD_ROPE_SCALING_LINEAR, TD_ROPE_SCALING_YARN } td_rope_scaling;

/* What differs between architectures; one row each in model.c. */
typedef struct {
    const char *name;
    td_rope_kind rope;
    bool has_qk_norm; /* per-head norms of q and k before rope */
} td_arch;

typedef struct {
    uint32_t n_vocab, n_embd, n_layer, n_ff;
    uint32_t n_head, n_head_kv;
    uint32_t head_dim_k, head_dim_v;
    uint32_t n_rot; /* columns of each head that rope rotates */
    uint32_t n_ctx_train;
    float rms_eps;
    float rope_base;
    td_rope_scaling rope_scaling;
    float rope_factor; /* linear and YaRN: > 0 */
    uint32_t rope_orig_ctx;
    bool is_tied; /* logits come from token_embd */
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
/* "llama, qwen2, ..."; static storage. */
const char *td_arch_names(void);

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
    TD_W_FFN_NORM,
    TD_W_GATE,
    TD_W_UP,
    TD_W_DOWN,
    TD_W_B_GATE,
    TD_W_B_UP,
    TD_W_B_DOWN,
    TD_W_LAYER_COUNT
} td_layer_weight;

typedef enum { TD_W_EMBD, TD_W_OUT_NORM, TD_W_OUT, TD_W_END_COUNT } td_end_weight;

/* Layers first..last (inclusive) of a model on one device. */
typedef struct {
    uint32_t first, last;
    td_weight *(*layers)[TD_W_LAYER_COUNT]; /* [last - first + 1]; NULL where the file has none */
    td_weight *ends[TD_W_END_COUNT];        /* embd on the first part; norm and out on the last;
                                               out is NULL where tied (use embd) */
    uint64_t n_file_bytes, load_us;         /* what was read, and how long all of it took */
} td_weights;

/* Every tensor the model needs is there with its shape and a usable type. Extra ones are logged. */
bool td_weights_check(const td_model *m, td_err *err);
/* Reads, repacks and uploads; source pages are dropped as they are consumed. progress may be NULL:
 * called with bytes done and total. */
td_weights *td_weights_load(const td_model *m, td_device *dev, uint32_t first, uint32_t last,
                            void (*progress)(void *user, uint64_t done, uint64_t total), void *user,
                            td_err *err);
void td_weights_destroy(td_weights **w);
/* Bytes a device would take for layer i; and for the ends a part of first..last needs. */
uint64_t td_weights_layer_bytes(const td_model *m, const td_device *dev, uint32_t layer);
uint64_t td_weights_end_bytes(const td_model *m, const td_device *dev, uint32_t first,
                              uint32_t last);

/* Angles: cos_sin[2i], cos_sin[2i+1] of pair i at a position, [n_rot], magnitude scaling included.
 * Computed in double precision. Sources: Su et al. 2021; Peng et al. 2023 (YaRN). */
void td_rope_cos_sin(const td_model *m, uint32_t position, float *cos_sin);

#endif
