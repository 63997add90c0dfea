/* The inside of td_forward, for forward.c, which runs it, and layers.c, which records it. */
#ifndef TD_MODEL_FORWARD_PRIVATE_H
#define TD_MODEL_FORWARD_PRIVATE_H

#include "model/forward.h"
#include "model/shortlist.h"

/* A pass through the layers: one program, or with experts elsewhere programs that take turns, the
 * even ones on the part's device. Between two the hand-over tensors are copied. With dealt experts
 * all are on the part's device (seats.h). */
typedef struct {
    td_program **items; /* [n] */
    uint32_t n, capacity;
} td_pass;

typedef struct td_seats td_seats; /* seats.h */

struct td_forward {
    td_forward_params params;
    td_seats *seats; /* where experts are dealt; or NULL */
    const td_hparams *h;
    td_weights *weights;
    td_cache *cache;
    td_rope *rope;
    /* Inputs, host-visible. */
    td_tensor *ids;                      /* I32 [rows][1] */
    td_tensor *x_in;                     /* [rows][n_embd], parts after the first */
    td_tensor *out_rows;                 /* I32 [outs][1] */
    td_tensor *constants;                /* [rows][td_rope_cols] */
    td_batch_tensors batch, local_batch; /* local: the pages of local layers */
    /* Activations. */
    td_tensor *x;              /* [rows][n_embd] the residual stream */
    td_tensor *normed;         /* [rows][n_embd] */
    td_tensor *delta;          /* [rows][n_embd] what a block adds */
    td_tensor *qkv;            /* [rows]: q, k, v, q's gates; of latent attention instead */
    td_tensor *q;              /* [rows][n_head * head_dim_k] */
    td_tensor *attended;       /* [rows][n_head * head_dim_v] */
    td_tensor *latents;        /* [rows]: what q is made of [lora_q], then k */
    td_tensor *q_nope;         /* [rows][n_head * mla_nope] */
    td_tensor *values;         /* [rows][n_head * mla_v] */
    td_tensor *gate_up;        /* [rows][2 * the widest feed-forward] */
    td_tensor *router;         /* [rows][n_expert], then the gate of the shared expert */
    td_tensor *gated;          /* [rows][n_expert_used * n_ff_expert] */
    td_tensor *experts;        /* I32 [rows][n_expert_used] */
    td_tensor *expert_weights; /* [rows][n_expert_used] */
    td_tensor *expert_out;     /* [rows][n_expert_used * n_embd] */
    td_tensor *expert_factor;  /* [rows][1] */
    td_tensor *shared;         /* [rows][n_embd] */
    td_tensor *shared_gate_up; /* [rows][2 * n_ff_shared] */
    td_tensor *state_in;       /* [rows]: a gate as state_out, then td_state_cols */
    td_tensor *state_out;      /* [rows][delta_heads_v * delta_dim] */
    td_tensor *x_out;          /* [outs][n_embd] (last part), or host-visible [rows][n_embd] */
    td_tensor *normed_out;     /* [outs][n_embd] */
    td_tensor *logits;         /* [outs][n_vocab], host-visible */
    /* Experts elsewhere: what they are given, on both sides, and what they give back. */
    td_tensor *handed;                              /* [rows][n_embd], host-visible */
    td_tensor *returned;                            /* likewise */
    td_tensor *far_in, *far_experts, *far_weights;  /* as handed, experts, expert_weights */
    td_tensor *far_gate_up, *far_gated, *far_parts; /* as gate_up, gated, expert_out */
    td_tensor *far_factor;                          /* as expert_factor */
    td_tensor *far_out;                             /* as returned */
    /* The head: rows after the final norm that go to it, and pairs with tokens in its input. */
    td_tensor *hidden;     /* [rows][n_embd], host-visible */
    td_tensor *head_in;    /* [rows][n_embd], host-visible */
    td_tensor *head_pairs; /* [rows][2 * n_embd] */
    td_pass verify, prefill;
    td_pass head_verify, head_prefill;
    const td_pass *expected; /* and its rows, of the run after the next; or NULL */
    uint32_t n_expected_rows, n_expected_out;
    /* Choosing tokens. */
    td_tensor *draws, *picks; /* I32 [outs][..], host-visible: td_draw, td_pick */
    td_tensor *parts;         /* I32 [outs][..] */
    uint32_t n_out;           /* of the last run */
    const float *read;        /* [n_out][n_vocab] its logits, when a token took them; else NULL */
    uint64_t n_read;          /* tokens that took them, of all runs */
    /* Drafting: steps that feed each other. */
    td_weight *table;     /* [n_ctx][td_rope_cols] rows of constants by position */
    td_tensor *trail;     /* I32 [n_steps_max][..], host-visible: td_pick of each step */
    td_tensor *step_rows; /* I32 [1][1] the out_rows of a step: its only row */
    td_pass draft;        /* one program: verify, and then feed */
    td_pass step;         /* the same for one row */
};

/* One table for creating, counting and destroying the tensors of a part. */
typedef struct {
    td_tensor **slot;
    td_tensor_params params;
    bool is_wanted, is_far; /* far: on experts_dev */
} td_forward_tensor;

#define TD_FORWARD_TENSORS_MAX 60u
uint32_t td_forward_tensors(td_forward *f, td_forward_tensor rows[TD_FORWARD_TENSORS_MAX]);

static inline bool td_part_is_first(const td_forward_params *p) { return p->first == 0; }
static inline bool td_part_is_last(const td_forward_params *p)
{
    return p->last + 1 == td_model_hparams(p->model)->n_layer;
}

static inline bool td_part_has_head(const td_forward_params *p)
{
    return p->head && td_part_is_last(p);
}

/* Layer k of a part, 0..td_part_n_layers - 1, and whose it is: behind the last comes the head. */
typedef struct {
    const td_model *model;
    uint32_t layer;
} td_part_layer;

static inline uint32_t td_part_n_layers(const td_forward_params *p)
{
    return p->last - p->first + (td_part_has_head(p) ? 2 : 1);
}

static inline td_part_layer td_part_layer_at(const td_forward_params *p, uint32_t k)
{
    if (p->first + k <= p->last)
        return (td_part_layer){p->model, p->first + k};
    return (td_part_layer){p->head, td_model_hparams(p->head)->n_layer};
}

/* Whether the experts of layer k are dealt; the head's never are. */
static inline bool td_part_is_dealt(const td_forward_params *p, uint32_t k)
{
    return p->dealing && p->first + k <= p->last;
}

/* Programs being recorded, p the last of them. */
typedef struct {
    td_forward *f;
    td_program_params params;
    td_pass *pass;
    td_program *p;
    td_err *err;
} td_recorder;

/* Ends the program, if there is one, and begins another on dev. */
bool td_recorder_cut(td_recorder *r, td_device *dev);
bool td_recorder_end(td_recorder *r);

/* Records the layers and, on the last part, the logits of out_rows. */
bool td_forward_record(td_recorder *r, td_tensor *out_rows);
/* The same of the head alone. */
bool td_forward_record_head(td_recorder *r, td_tensor *out_rows);

/* The tensors of the experts' part, on the device where it runs, for the n_used experts that a row
 * of it asks. */
typedef struct {
    uint32_t n_used;
    td_tensor *in, *experts, *weights, *gate_up, *gated, *parts, *factor;
} td_expert_tensors;

/* in -> parts: each of the experts that were asked, not weighed yet but where the architecture
 * scales their input. w: of the layer. */
void td_forward_record_experts(td_program *p, const td_model *m, td_weight *const *w,
                               const td_expert_tensors *t);

#endif
