/* What tells one architecture from another, as data: the traits that the blocks of a forward pass
 * and the reading of a file ask for. A new architecture is a row in arch.c.
 *
 * Owns nothing: static tables, any thread. */
#ifndef TD_MODEL_ARCH_H
#define TD_MODEL_ARCH_H

#include "kernels/ops.h"

typedef enum {
    TD_QK_NORM_NONE,
    TD_QK_NORM_HEADS,    /* of each head of q and k, before rope */
    TD_QK_NORM_OPTIONAL, /* the same, where the file has them */
    TD_QK_NORM_ALL,      /* of all heads together, before rope */
    TD_QK_NORM_AFTER,    /* of each head after rope, without weights; layers with rope only */
} td_qk_norm;

typedef enum {
    TD_SHARED_NONE,
    TD_SHARED_ONE,   /* one expert that is always asked, as wide as the others */
    TD_SHARED_COUNT, /* expert_shared_count of them */
    TD_SHARED_WIDTH, /* as wide as expert_shared_feed_forward_length, else feed_forward_length */
} td_shared;

/* Keys that are read beside those of all: a family that does not name one has another meaning for
 * it, or none. */
typedef enum {
    TD_READS_ALL = 0,
    TD_READS_MLA = 1 << 0,
    TD_READS_HYBRID = 1 << 1,
    TD_READS_LOCAL = 1 << 2,
    TD_READS_ATTENTION_CAP = 1 << 3,
    TD_READS_FINAL_CAP = 1 << 4,
    TD_READS_TEMPERATURE = 1 << 5,
    TD_READS_YARN_LOG = 1 << 6,
    TD_READS_YARN_BETAS = 1 << 7,
    TD_READS_LEADING = 1 << 8,
    TD_READS_INTERLEAVED = 1 << 9,
    TD_READS_GATING = 1 << 10,
    TD_READS_ROUTER = 1 << 10 | 1 << 11, /* its gating, and the norm and scale of its weights */
} td_reads;

/* What differs between architectures; one row each in arch.c. Zero is the common choice. */
typedef struct {
    const char *name;
    uint32_t reads; /* td_reads */
    td_rope_kind rope;
    td_glu_kind glu;
    td_qk_norm qk_norm;
    td_gating gating;          /* where the file does not say */
    bool is_normalized_router; /* likewise */
    bool is_mla;               /* latent attention */
    bool is_hybrid;            /* gated delta net, with full attention at intervals */
    bool is_gated_attention;   /* q rows come with a gate for the attended values */
    uint32_t local_period;     /* layers i with i % period < period - 1 are local; 0: none is */
    uint32_t local_chunk;      /* local means the same chunk of so many positions; 0: the window */
    bool is_local_unscaled;    /* rope of local layers, whatever the file's scaling */
    uint32_t nope_period;      /* layers i with (i + 1) % period == 0 have no rope; 0: all have */
    bool has_post_norms;       /* of what attention and feed-forward add */
    bool is_ffn_norm_post;     /* the norm before feed-forward is named post_attention_norm */
    bool is_ffn_fused;         /* ffn_up holds the gate's rows, then its own */
    bool is_embd_scaled;       /* by sqrt(n_embd) */
    bool is_expert_input_scaled; /* a router weight multiplies the input, not the output */
    bool is_expert_ff_dense;     /* experts are as wide as feed_forward_length says */
    td_shared shared;
    bool is_grouped_heads; /* delta net: v head h has k head h / ratio, not h % n_head_k */
    bool has_head;         /* files may have a next-token head that is known here */
    uint32_t large_layers; /* so many layers: attention scale is 1 / sqrt(n_embd / n_head) */
} td_arch;

/* "llama, qwen2, ..."; static storage. */
const char *td_arch_names(void);
/* The row of a general.architecture, or NULL. */
const td_arch *td_arch_find(const char *name);
/* What its family means where a file lacks this key ("attention.sliding_window"), else fallback;
 * NAN: it is an error. */
double td_arch_absent(const td_arch *arch, const char *key, double fallback);
/* Whether its files always have this tensor ("attn_sinks.weight", of each layer). */
bool td_arch_needs(const td_arch *arch, const char *tensor);

#endif
