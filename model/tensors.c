#include "model/tensors.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum {
    D_ONE,
    D_EMBD,
    D_VOCAB,
    D_HEADS,
    D_HEAD_K,
    D_2_HEAD_K, /* a head of q and its gate */
    D_Q,        /* all heads */
    D_K,
    D_V,
    D_Q_K, /* q and k */
    D_QKV,
    D_2_Q, /* q with its gates, */
    D_2_Q_K,
    D_2_QKV,
    D_OUT, /* inputs of attn_output */
    D_FF,
    D_2_FF,
    D_EXPERTS,
    D_FF_EX,
    D_2_FF_EX,
    D_FF_SH,
    D_EMBD_ALL, /* of all experts */
    D_FF_EX_ALL,
    D_LORA_Q,
    D_LORA_KV,
    D_CACHE_K, /* [lora_kv | rope] */
    D_NOPE,
    D_ROPE,
    D_MLA_K, /* [nope | rope] */
    D_MLA_V,
    D_NOPE_V, /* [nope | v] */
    D_DELTA_DIM,
    D_DELTA_HEADS,
    D_DELTA_2_RATIO, /* [beta | alpha] of the v heads of a k head */
    D_DELTA_RATIO,
    D_DELTA_HEADS_K,
    D_DELTA_V,        /* v heads of a k head */
    D_DELTA_QK,       /* q and k of one, */
    D_DELTA_QKV_HEAD, /* and its v heads, */
    D_DELTA_IN,       /* and their gates */
    D_DELTA_QKV,
    D_DELTA_INNER,
    D_DELTA_TAPS, /* of all channels */
    D_2_EMBD,
    D_COUNT
} dim;

typedef enum {
    ALWAYS,
    ATTENTION, /* neither latent nor recurrent */
    QK_NORM,   /* attention with them */
    QK_NORM_ALL,
    GATED_ATTENTION,
    PLAIN_ATTENTION, /* attention without the gate */
    LATENT,
    LATENT_Q, /* whose q is projected in two steps */
    RECURRENT,
    RECURRENT_PARTS, /* that has no attn_qkv */
    POST_NORMS,
    NORM_FFN, /* by the name of the norm before feed-forward */
    NORM_POST,
    DENSE, /* feed-forward */
    DENSE_FUSED,
    EXPERTS,
    EXPERTS_FACTORS, /* that have no biases, which would be scaled too */
    SHARED,
    HEAD,
} when;

/* LEADING: a matrix whose tensor may go on with other rows. COLUMN: a vector as a matrix. */
typedef enum { MATRIX, LEADING, COLUMN, VECTOR, GROUPS, TURNED } form;
typedef enum { REQUIRED, OPTIONAL } need;

/* Rows offset..offset+n_rows of every `period`; period D_ONE: all rows. Of a vector: columns from
 * offset on of `period` that the tensor has. */
struct td_tensor_row {
    uint32_t slot;
    const char *name;
    when when;
    need need;
    form form;
    dim n_cols, n_rows; /* GGUF order; of the weight, n_rows of each group */
    dim n_groups;       /* GROUPS and TURNED: matrices; or periods */
    dim period, offset;
};

#define D_ZERO D_COUNT /* offset 0 */

/* Rows of one slot follow one another: the first name that the file has is taken. */
/* clang-format off */
static const td_tensor_row layer_rows[] = {
    {TD_W_ATTN_NORM, "attn_norm.weight", ALWAYS, REQUIRED, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},

    {TD_W_Q, "attn_q.weight", PLAIN_ATTENTION, REQUIRED, MATRIX, D_EMBD, D_Q, D_ONE, D_ONE, D_ZERO},
    {TD_W_Q, "attn_qkv.weight", PLAIN_ATTENTION, REQUIRED, MATRIX, D_EMBD, D_Q, D_ONE, D_QKV, D_ZERO},
    {TD_W_Q, "attn_q.weight", GATED_ATTENTION, REQUIRED, MATRIX, D_EMBD, D_HEAD_K, D_HEADS, D_2_HEAD_K, D_ZERO},
    {TD_W_Q, "attn_qkv.weight", GATED_ATTENTION, REQUIRED, LEADING, D_EMBD, D_HEAD_K, D_HEADS, D_2_HEAD_K, D_ZERO},
    {TD_W_K, "attn_k.weight", ATTENTION, REQUIRED, MATRIX, D_EMBD, D_K, D_ONE, D_ONE, D_ZERO},
    {TD_W_K, "attn_qkv.weight", PLAIN_ATTENTION, REQUIRED, MATRIX, D_EMBD, D_K, D_ONE, D_QKV, D_Q},
    {TD_W_K, "attn_qkv.weight", GATED_ATTENTION, REQUIRED, MATRIX, D_EMBD, D_K, D_ONE, D_2_QKV, D_2_Q},
    {TD_W_V, "attn_v.weight", ATTENTION, REQUIRED, MATRIX, D_EMBD, D_V, D_ONE, D_ONE, D_ZERO},
    {TD_W_V, "attn_qkv.weight", PLAIN_ATTENTION, REQUIRED, MATRIX, D_EMBD, D_V, D_ONE, D_QKV, D_Q_K},
    {TD_W_V, "attn_qkv.weight", GATED_ATTENTION, REQUIRED, MATRIX, D_EMBD, D_V, D_ONE, D_2_QKV, D_2_Q_K},
    {TD_W_O, "attn_output.weight", ATTENTION, REQUIRED, MATRIX, D_OUT, D_EMBD, D_ONE, D_ONE, D_ZERO},
    {TD_W_BQ, "attn_qkv.bias", PLAIN_ATTENTION, OPTIONAL, VECTOR, D_Q, D_ONE, D_ONE, D_QKV, D_ZERO},
    {TD_W_BQ, "attn_q.bias", PLAIN_ATTENTION, OPTIONAL, VECTOR, D_Q, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_BK, "attn_qkv.bias", PLAIN_ATTENTION, OPTIONAL, VECTOR, D_K, D_ONE, D_ONE, D_QKV, D_Q},
    {TD_W_BK, "attn_k.bias", ATTENTION, OPTIONAL, VECTOR, D_K, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_BV, "attn_qkv.bias", PLAIN_ATTENTION, OPTIONAL, VECTOR, D_V, D_ONE, D_ONE, D_QKV, D_Q_K},
    {TD_W_BV, "attn_v.bias", ATTENTION, OPTIONAL, VECTOR, D_V, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_BO, "attn_output.bias", ATTENTION, OPTIONAL, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_Q_NORM, "attn_q_norm.weight", QK_NORM, REQUIRED, VECTOR, D_HEAD_K, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_Q_NORM, "attn_q_norm.weight", QK_NORM_ALL, REQUIRED, VECTOR, D_Q, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_K_NORM, "attn_k_norm.weight", QK_NORM, REQUIRED, VECTOR, D_HEAD_K, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_K_NORM, "attn_k_norm.weight", QK_NORM_ALL, REQUIRED, VECTOR, D_K, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_Q_GATE, "attn_q.weight", GATED_ATTENTION, REQUIRED, MATRIX, D_EMBD, D_HEAD_K, D_HEADS, D_2_HEAD_K, D_HEAD_K},
    {TD_W_Q_GATE, "attn_qkv.weight", GATED_ATTENTION, REQUIRED, LEADING, D_EMBD, D_HEAD_K, D_HEADS, D_2_HEAD_K, D_HEAD_K},
    {TD_W_SINKS, "attn_sinks.weight", ATTENTION, OPTIONAL, VECTOR, D_HEADS, D_ONE, D_ONE, D_ONE, D_ZERO},

    {TD_W_Q_A, "attn_q_a.weight", LATENT, OPTIONAL, MATRIX, D_EMBD, D_LORA_Q, D_ONE, D_ONE, D_ZERO},
    {TD_W_Q_A_NORM, "attn_q_a_norm.weight", LATENT_Q, REQUIRED, VECTOR, D_LORA_Q, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_Q_NOPE, "attn_q_b.weight", LATENT, REQUIRED, MATRIX, D_LORA_Q, D_NOPE, D_HEADS, D_MLA_K, D_ZERO},
    {TD_W_Q_NOPE, "attn_q.weight", LATENT, REQUIRED, MATRIX, D_EMBD, D_NOPE, D_HEADS, D_MLA_K, D_ZERO},
    {TD_W_Q_ROPE, "attn_q_b.weight", LATENT, REQUIRED, GROUPS, D_LORA_Q, D_ROPE, D_HEADS, D_MLA_K, D_NOPE},
    {TD_W_Q_ROPE, "attn_q.weight", LATENT, REQUIRED, GROUPS, D_EMBD, D_ROPE, D_HEADS, D_MLA_K, D_NOPE},
    {TD_W_KV_A, "attn_kv_a_mqa.weight", LATENT, REQUIRED, MATRIX, D_EMBD, D_CACHE_K, D_ONE, D_ONE, D_ZERO},
    {TD_W_KV_A_NORM, "attn_kv_a_norm.weight", LATENT, REQUIRED, VECTOR, D_LORA_KV, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_K_B, "attn_k_b.weight", LATENT, REQUIRED, GROUPS, D_NOPE, D_LORA_KV, D_HEADS, D_ONE, D_ZERO},
    {TD_W_K_B, "attn_kv_b.weight", LATENT, REQUIRED, TURNED, D_LORA_KV, D_NOPE, D_HEADS, D_NOPE_V, D_ZERO},
    {TD_W_V_B, "attn_v_b.weight", LATENT, REQUIRED, GROUPS, D_LORA_KV, D_MLA_V, D_HEADS, D_ONE, D_ZERO},
    {TD_W_V_B, "attn_kv_b.weight", LATENT, REQUIRED, GROUPS, D_LORA_KV, D_MLA_V, D_HEADS, D_NOPE_V, D_NOPE},
    {TD_W_O, "attn_output.weight", LATENT, REQUIRED, MATRIX, D_OUT, D_EMBD, D_ONE, D_ONE, D_ZERO},

    {TD_W_Z, "attn_gate.weight", RECURRENT, REQUIRED, MATRIX, D_EMBD, D_DELTA_INNER, D_ONE, D_ONE, D_ZERO},
    {TD_W_Z, "ssm_in.weight", RECURRENT, REQUIRED, MATRIX, D_EMBD, D_DELTA_V, D_DELTA_HEADS_K, D_DELTA_IN, D_DELTA_QKV_HEAD},
    {TD_W_QKV, "attn_qkv.weight", RECURRENT, OPTIONAL, MATRIX, D_EMBD, D_DELTA_QKV, D_ONE, D_ONE, D_ZERO},
    {TD_W_DELTA_Q, "ssm_in.weight", RECURRENT_PARTS, REQUIRED, MATRIX, D_EMBD, D_DELTA_DIM, D_DELTA_HEADS_K, D_DELTA_IN, D_ZERO},
    {TD_W_DELTA_K, "ssm_in.weight", RECURRENT_PARTS, REQUIRED, MATRIX, D_EMBD, D_DELTA_DIM, D_DELTA_HEADS_K, D_DELTA_IN, D_DELTA_DIM},
    {TD_W_DELTA_V, "ssm_in.weight", RECURRENT_PARTS, REQUIRED, MATRIX, D_EMBD, D_DELTA_V, D_DELTA_HEADS_K, D_DELTA_IN, D_DELTA_QK},
    {TD_W_ALPHA, "ssm_alpha.weight", RECURRENT, REQUIRED, MATRIX, D_EMBD, D_DELTA_HEADS, D_ONE, D_ONE, D_ZERO},
    {TD_W_ALPHA, "ssm_ba.weight", RECURRENT, REQUIRED, MATRIX, D_EMBD, D_DELTA_RATIO, D_DELTA_HEADS_K, D_DELTA_2_RATIO, D_DELTA_RATIO},
    {TD_W_BETA, "ssm_beta.weight", RECURRENT, REQUIRED, MATRIX, D_EMBD, D_DELTA_HEADS, D_ONE, D_ONE, D_ZERO},
    {TD_W_BETA, "ssm_ba.weight", RECURRENT, REQUIRED, MATRIX, D_EMBD, D_DELTA_RATIO, D_DELTA_HEADS_K, D_DELTA_2_RATIO, D_ZERO},
    {TD_W_CONV, "ssm_conv1d.weight", RECURRENT, REQUIRED, VECTOR, D_DELTA_TAPS, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_A, "ssm_a", RECURRENT, REQUIRED, VECTOR, D_DELTA_HEADS, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_DT, "ssm_dt.bias", RECURRENT, REQUIRED, VECTOR, D_DELTA_HEADS, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_DELTA_NORM, "ssm_norm.weight", RECURRENT, REQUIRED, VECTOR, D_DELTA_DIM, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_DELTA_OUT, "ssm_out.weight", RECURRENT, REQUIRED, MATRIX, D_DELTA_INNER, D_EMBD, D_ONE, D_ONE, D_ZERO},

    {TD_W_POST_ATTN_NORM, "post_attention_norm.weight", POST_NORMS, REQUIRED, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_FFN_NORM, "ffn_norm.weight", NORM_FFN, REQUIRED, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_FFN_NORM, "post_attention_norm.weight", NORM_POST, REQUIRED, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_GATE, "ffn_gate.weight", DENSE, REQUIRED, MATRIX, D_EMBD, D_FF, D_ONE, D_ONE, D_ZERO},
    {TD_W_GATE, "ffn_up.weight", DENSE_FUSED, REQUIRED, MATRIX, D_EMBD, D_FF, D_ONE, D_2_FF, D_ZERO},
    {TD_W_UP, "ffn_up.weight", DENSE, REQUIRED, MATRIX, D_EMBD, D_FF, D_ONE, D_ONE, D_ZERO},
    {TD_W_UP, "ffn_up.weight", DENSE_FUSED, REQUIRED, MATRIX, D_EMBD, D_FF, D_ONE, D_2_FF, D_FF},
    {TD_W_DOWN, "ffn_down.weight", DENSE, REQUIRED, MATRIX, D_FF, D_EMBD, D_ONE, D_ONE, D_ZERO},
    {TD_W_DOWN, "ffn_down.weight", DENSE_FUSED, REQUIRED, MATRIX, D_FF, D_EMBD, D_ONE, D_ONE, D_ZERO},
    {TD_W_B_GATE, "ffn_gate.bias", DENSE, OPTIONAL, VECTOR, D_FF, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_B_UP, "ffn_up.bias", DENSE, OPTIONAL, VECTOR, D_FF, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_B_DOWN, "ffn_down.bias", DENSE, OPTIONAL, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},

    {TD_W_ROUTER, "ffn_gate_inp.weight", EXPERTS, REQUIRED, MATRIX, D_EMBD, D_EXPERTS, D_ONE, D_ONE, D_ZERO},
    {TD_W_B_ROUTER, "ffn_gate_inp.bias", EXPERTS, OPTIONAL, VECTOR, D_EXPERTS, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_ROUTER_CHOICE, "exp_probs_b.bias", EXPERTS, OPTIONAL, VECTOR, D_EXPERTS, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_EX_GATE, "ffn_gate_exps.weight", EXPERTS, REQUIRED, GROUPS, D_EMBD, D_FF_EX, D_EXPERTS, D_ONE, D_ZERO},
    {TD_W_EX_GATE, "ffn_gate_up_exps.weight", EXPERTS, REQUIRED, GROUPS, D_EMBD, D_FF_EX, D_EXPERTS, D_2_FF_EX, D_ZERO},
    {TD_W_EX_UP, "ffn_up_exps.weight", EXPERTS, REQUIRED, GROUPS, D_EMBD, D_FF_EX, D_EXPERTS, D_ONE, D_ZERO},
    {TD_W_EX_UP, "ffn_gate_up_exps.weight", EXPERTS, REQUIRED, GROUPS, D_EMBD, D_FF_EX, D_EXPERTS, D_2_FF_EX, D_FF_EX},
    {TD_W_EX_DOWN, "ffn_down_exps.weight", EXPERTS, REQUIRED, GROUPS, D_FF_EX, D_EMBD, D_EXPERTS, D_ONE, D_ZERO},
    {TD_W_EX_B_GATE, "ffn_gate_exps.bias", EXPERTS, OPTIONAL, VECTOR, D_FF_EX_ALL, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_EX_B_UP, "ffn_up_exps.bias", EXPERTS, OPTIONAL, VECTOR, D_FF_EX_ALL, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_EX_B_DOWN, "ffn_down_exps.bias", EXPERTS, OPTIONAL, VECTOR, D_EMBD_ALL, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_EX_S_GATE, "ffn_gate_exps.scale", EXPERTS_FACTORS, OPTIONAL, COLUMN, D_ONE, D_EXPERTS, D_ONE, D_ONE, D_ZERO},
    {TD_W_EX_S_UP, "ffn_up_exps.scale", EXPERTS_FACTORS, OPTIONAL, COLUMN, D_ONE, D_EXPERTS, D_ONE, D_ONE, D_ZERO},
    {TD_W_EX_S_DOWN, "ffn_down_exps.scale", EXPERTS_FACTORS, OPTIONAL, COLUMN, D_ONE, D_EXPERTS, D_ONE, D_ONE, D_ZERO},
    {TD_W_SH_ROUTER, "ffn_gate_inp_shexp.weight", SHARED, OPTIONAL, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_SH_GATE, "ffn_gate_shexp.weight", SHARED, REQUIRED, MATRIX, D_EMBD, D_FF_SH, D_ONE, D_ONE, D_ZERO},
    {TD_W_SH_UP, "ffn_up_shexp.weight", SHARED, REQUIRED, MATRIX, D_EMBD, D_FF_SH, D_ONE, D_ONE, D_ZERO},
    {TD_W_SH_DOWN, "ffn_down_shexp.weight", SHARED, REQUIRED, MATRIX, D_FF_SH, D_EMBD, D_ONE, D_ONE, D_ZERO},
    {TD_W_POST_FFN_NORM, "post_ffw_norm.weight", POST_NORMS, REQUIRED, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},

    {TD_W_HEAD_PROJ, "nextn.eh_proj.weight", HEAD, REQUIRED, MATRIX, D_2_EMBD, D_EMBD, D_ONE, D_ONE, D_ZERO},
    {TD_W_HEAD_E_NORM, "nextn.enorm.weight", HEAD, REQUIRED, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_HEAD_H_NORM, "nextn.hnorm.weight", HEAD, REQUIRED, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_HEAD_EMBD, "nextn.embed_tokens.weight", HEAD, OPTIONAL, MATRIX, D_EMBD, D_VOCAB, D_ONE, D_ONE, D_ZERO},
    {TD_W_HEAD_OUT, "nextn.shared_head_head.weight", HEAD, OPTIONAL, MATRIX, D_EMBD, D_VOCAB, D_ONE, D_ONE, D_ZERO},
    {TD_W_HEAD_OUT_NORM, "nextn.shared_head_norm.weight", HEAD, OPTIONAL, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
};

static const td_tensor_row end_rows[] = {
    {TD_W_EMBD, "token_embd.weight", ALWAYS, REQUIRED, MATRIX, D_EMBD, D_VOCAB, D_ONE, D_ONE, D_ZERO},
    {TD_W_OUT_NORM, "output_norm.weight", ALWAYS, REQUIRED, VECTOR, D_EMBD, D_ONE, D_ONE, D_ONE, D_ZERO},
    {TD_W_OUT, "output.weight", ALWAYS, OPTIONAL, MATRIX, D_EMBD, D_VOCAB, D_ONE, D_ONE, D_ZERO},
    {TD_W_B_OUT, "output.bias", ALWAYS, OPTIONAL, VECTOR, D_VOCAB, D_ONE, D_ONE, D_ONE, D_ZERO},
};
/* clang-format on */

/* Every hyper-parameter is bounded so that none of these, nor a product of two, overflows; but for
 * those of all experts, which td_tensors_check bounds. */
static uint64_t dim_of(const td_hparams *h, dim d)
{
    bool is_mla = h->lora_kv != 0;
    uint64_t q = (uint64_t)h->n_head * h->head_dim_k, k = (uint64_t)h->n_head_kv * h->head_dim_k;
    uint64_t v = (uint64_t)h->n_head_kv * h->head_dim_v;
    uint64_t ratio = h->delta_heads_k ? h->delta_heads_v / h->delta_heads_k : 1;
    uint64_t qkv = (2ull * h->delta_heads_k + h->delta_heads_v) * h->delta_dim;
    const uint64_t dims[D_COUNT] = {
        [D_ONE] = 1,
        [D_EMBD] = h->n_embd,
        [D_2_EMBD] = 2ull * h->n_embd,
        [D_VOCAB] = h->n_vocab,
        [D_HEADS] = h->n_head,
        [D_HEAD_K] = h->head_dim_k,
        [D_2_HEAD_K] = 2ull * h->head_dim_k,
        [D_Q] = q,
        [D_K] = k,
        [D_V] = v,
        [D_Q_K] = q + k,
        [D_QKV] = q + k + v,
        [D_2_Q] = 2 * q,
        [D_2_Q_K] = 2 * q + k,
        [D_2_QKV] = 2 * q + k + v,
        [D_OUT] = (uint64_t)h->n_head * (is_mla ? h->mla_v : h->head_dim_v),
        [D_FF] = h->n_ff,
        [D_2_FF] = 2ull * h->n_ff,
        [D_EXPERTS] = h->n_expert,
        [D_FF_EX] = h->n_ff_expert,
        [D_2_FF_EX] = 2ull * h->n_ff_expert,
        [D_FF_SH] = h->n_ff_shared,
        [D_EMBD_ALL] = (uint64_t)h->n_expert * h->n_embd,
        [D_FF_EX_ALL] = (uint64_t)h->n_expert * h->n_ff_expert,
        [D_LORA_Q] = h->lora_q,
        [D_LORA_KV] = h->lora_kv,
        [D_CACHE_K] = h->head_dim_k,
        [D_NOPE] = h->mla_nope,
        [D_ROPE] = h->n_rot,
        [D_MLA_K] = (uint64_t)h->mla_nope + h->n_rot,
        [D_MLA_V] = h->mla_v,
        [D_NOPE_V] = (uint64_t)h->mla_nope + h->mla_v,
        [D_DELTA_DIM] = h->delta_dim,
        [D_DELTA_HEADS] = h->delta_heads_v,
        [D_DELTA_2_RATIO] = 2 * ratio,
        [D_DELTA_RATIO] = ratio,
        [D_DELTA_HEADS_K] = h->delta_heads_k,
        [D_DELTA_V] = ratio * h->delta_dim,
        [D_DELTA_QK] = 2ull * h->delta_dim,
        [D_DELTA_QKV_HEAD] = (2 + ratio) * h->delta_dim,
        [D_DELTA_IN] = (2 + 2 * ratio) * h->delta_dim,
        [D_DELTA_QKV] = qkv,
        [D_DELTA_INNER] = (uint64_t)h->delta_heads_v * h->delta_dim,
        [D_DELTA_TAPS] = qkv * h->delta_taps,
    };
    return d == D_ZERO ? 0 : dims[d];
}

static bool has_tensor(const td_model *m, const char *name, uint32_t layer)
{
    char full[TD_NAME_MAX];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    return td_gguf_find_tensor(m->gguf, full);
}

static bool is_wanted(const td_model *m, const td_tensor_row *r, uint32_t layer)
{
    const td_arch *a = m->arch;
    bool is_recurrent = layer != TD_ENDS && td_layer_is_recurrent(m, layer);
    bool is_attention = !is_recurrent && !a->is_mla;
    bool has_experts = layer != TD_ENDS && td_layer_has_experts(m, layer);
    switch (r->when) {
    case ALWAYS:
        break;
    case ATTENTION:
        return is_attention;
    case QK_NORM:
        return is_attention && (m->hparams.qk_norm == TD_QK_NORM_HEADS ||
                                m->hparams.qk_norm == TD_QK_NORM_OPTIONAL);
    case QK_NORM_ALL:
        return is_attention && m->hparams.qk_norm == TD_QK_NORM_ALL;
    case GATED_ATTENTION:
        return is_attention && a->is_gated_attention;
    case PLAIN_ATTENTION:
        return is_attention && !a->is_gated_attention;
    case LATENT:
        return a->is_mla;
    case LATENT_Q:
        return a->is_mla && has_tensor(m, "attn_q_a.weight", layer);
    case RECURRENT:
        return is_recurrent;
    case RECURRENT_PARTS:
        return is_recurrent && !has_tensor(m, "attn_qkv.weight", layer);
    case POST_NORMS:
        return a->has_post_norms;
    case NORM_FFN:
        return !a->is_ffn_norm_post;
    case NORM_POST:
        return a->is_ffn_norm_post;
    case DENSE:
        return !has_experts && !a->is_ffn_fused;
    case DENSE_FUSED:
        return !has_experts && a->is_ffn_fused;
    case EXPERTS:
        return has_experts;
    case EXPERTS_FACTORS:
        return has_experts && !has_tensor(m, "ffn_down_exps.bias", layer);
    case SHARED:
        return has_experts && m->hparams.n_ff_shared;
    case HEAD:
        return layer >= m->hparams.n_layer && layer != TD_ENDS;
    }
    return true;
}

static bool is_required(const td_model *m, const td_tensor_row *r)
{
    if (r->when == QK_NORM && m->hparams.qk_norm == TD_QK_NORM_OPTIONAL)
        return false;
    return r->need == REQUIRED || td_arch_needs(m->arch, r->name);
}

static const td_tensor_row *rows_of(uint32_t layer, uint32_t *n)
{
    *n = layer == TD_ENDS ? TD_COUNT(end_rows) : TD_COUNT(layer_rows);
    return layer == TD_ENDS ? end_rows : layer_rows;
}

static void name_of(const td_tensor_row *r, uint32_t layer, char name[TD_NAME_MAX])
{
    if (layer == TD_ENDS)
        snprintf(name, TD_NAME_MAX, "%s", r->name);
    else
        snprintf(name, TD_NAME_MAX, "blk.%u.%s", layer, r->name);
}

static const td_gguf_tensor *find(const td_model *m, const td_tensor_row *r, uint32_t layer)
{
    char name[TD_NAME_MAX];
    name_of(r, layer, name);
    return td_gguf_find_tensor(m->gguf, name);
}

/* Matrices whose products a file may scale, and the biases that are added after that. Of others a
 * factor is refused: passed over, it would give wrong numbers without a sign. */
static bool may_have_factor(uint32_t layer, uint32_t slot)
{
    static const uint8_t layer_slots[] = {
        TD_W_Q,       TD_W_K,       TD_W_V,       TD_W_O,         TD_W_BQ,
        TD_W_BK,      TD_W_BV,      TD_W_BO,      TD_W_Q_GATE,    TD_W_QKV,
        TD_W_DELTA_Q, TD_W_DELTA_K, TD_W_DELTA_V, TD_W_ALPHA,     TD_W_BETA,
        TD_W_Z,       TD_W_GATE,    TD_W_UP,      TD_W_DELTA_OUT, TD_W_DOWN,
        TD_W_SH_GATE, TD_W_SH_UP,   TD_W_SH_DOWN, TD_W_HEAD_PROJ, TD_W_HEAD_OUT};
    for (size_t i = 0; layer != TD_ENDS && i < TD_COUNT(layer_slots); i++)
        if (layer_slots[i] == slot)
            return true;
    return layer == TD_ENDS && slot == TD_W_OUT;
}

/* "a.weight" or "a.bias" -> "a.scale", or NULL. */
static const td_gguf_tensor *find_factor(const td_model *m, uint32_t layer, uint32_t slot,
                                         const td_gguf_tensor *t)
{
    char name[TD_NAME_MAX];
    const char *dot = strrchr(t->name, '.');
    if (!dot || !may_have_factor(layer, slot))
        return NULL;
    snprintf(name, sizeof name, "%.*s.scale", (int)(dot - t->name), t->name);
    return td_gguf_find_tensor(m->gguf, name);
}

static bool check_factor(const td_model *m, const td_tensor_row *r, uint32_t layer,
                         const td_gguf_tensor *t, bool *is_used, td_err *err)
{
    const td_gguf_tensor *f = find_factor(m, layer, r->slot, t);
    if (f && (f->type_id != TD_TYPE_F32 || f->n_bytes != sizeof(float)))
        return td_err_set(err, TD_E_DATA, "tensor %s must be one F32", f->name);
    if (f)
        is_used[f - td_gguf_tensor_at(m->gguf, 0)] = true;
    return true;
}

static td_wanted describe(const td_model *m, uint32_t layer, const td_tensor_row *r,
                          const td_gguf_tensor *t)
{
    const td_hparams *h = &m->hparams;
    uint32_t n_groups = (uint32_t)dim_of(h, r->n_groups);
    td_wanted w = {.tensor = t,
                   .factor = find_factor(m, layer, r->slot, t),
                   .slot = r->slot,
                   .is_vector = r->form == VECTOR,
                   .is_turned = r->form == TURNED,
                   .n_cols = (uint32_t)dim_of(h, r->n_cols),
                   .count = (uint32_t)dim_of(h, r->n_rows),
                   .offset = (uint32_t)dim_of(h, r->offset)};
    w.period = r->period == D_ONE ? w.count : (uint32_t)dim_of(h, r->period);
    w.n_rows = w.count * n_groups;
    w.into = w.slot;
    w.n_joined = w.n_rows;
    w.n_groups = r->form == GROUPS || r->form == TURNED ? n_groups : 0;
    if (r->slot == TD_W_CONV && r->when == RECURRENT)
        w.n_taps = h->delta_taps;
    return w;
}

/* Products of one input that stand side by side in its output, in this order: one op instead of
 * several, of each run of neighbours whose types are the same, that all have a bias or none, and to
 * none of which anything else (a factor) is done. Of experts the rows of each stand together. The
 * first of a run stands before the others in the table above, too: it makes the weight that they
 * are loaded into. */
#define JOINED_MAX 7u
#define NO_SLOT    TD_W_LAYER_COUNT
typedef struct {
    uint8_t n, slots[JOINED_MAX], biases[JOINED_MAX], factors[2], n_factors;
} join_row;
static const join_row joins[] = {
    {4, {TD_W_Q, TD_W_K, TD_W_V, TD_W_Q_GATE}, {TD_W_BQ, TD_W_BK, TD_W_BV, NO_SLOT}, {0}, 0},
    {2, {TD_W_Q_A, TD_W_KV_A}, {NO_SLOT, NO_SLOT}, {0}, 0},
    {2, {TD_W_GATE, TD_W_UP}, {TD_W_B_GATE, TD_W_B_UP}, {0}, 0},
    {2, {TD_W_ROUTER, TD_W_SH_ROUTER}, {TD_W_B_ROUTER, NO_SLOT}, {0}, 0},
    {2,
     {TD_W_EX_GATE, TD_W_EX_UP},
     {TD_W_EX_B_GATE, TD_W_EX_B_UP},
     {TD_W_EX_S_GATE, TD_W_EX_S_UP},
     2},
    {2, {TD_W_SH_GATE, TD_W_SH_UP}, {NO_SLOT, NO_SLOT}, {0}, 0},
    {7,
     {TD_W_Z, TD_W_QKV, TD_W_DELTA_Q, TD_W_DELTA_K, TD_W_DELTA_V, TD_W_ALPHA, TD_W_BETA},
     {NO_SLOT, NO_SLOT, NO_SLOT, NO_SLOT, NO_SLOT, NO_SLOT, NO_SLOT},
     {0},
     0},
};

static td_wanted *find_wanted(td_wanted *list, uint32_t n, uint32_t slot)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i].slot == slot)
            return &list[i];
    return NULL;
}

static const td_type_info *type_of(const td_wanted *w)
{
    return w->is_vector || w->is_turned ? td_type_find(TD_TYPE_F32) : w->tensor->type;
}

static bool is_joinable(const td_wanted *a, const td_wanted *b)
{
    return type_of(a) == type_of(b) && a->n_cols == b->n_cols && !a->factor && !b->factor &&
           a->n_groups == b->n_groups && !a->is_turned && !b->is_turned && !a->is_vector;
}

/* Those of `slots` that the list has, among them the first, become one weight. */
static void join_slots(td_wanted *list, uint32_t n, const uint8_t *slots, uint32_t n_slots)
{
    td_wanted *first = find_wanted(list, n, slots[0]), *next;
    uint32_t n_before = 0;
    for (uint32_t i = 0; i < n_slots; i++) {
        if (!(next = find_wanted(list, n, slots[i])))
            continue;
        next->into = first->slot;
        next->row0 = n_before / td_max_u32(first->n_groups, 1);
        n_before += next->is_bias ? next->n_cols : next->n_rows;
    }
    for (uint32_t i = 0; i < n_slots; i++)
        if ((next = find_wanted(list, n, slots[i])))
            next->n_joined = n_before;
}

/* Joins those that follow place i in a row of joins, as far as they can be, and their biases, by
 * the weight's groups; returns the place of the next that begins anew. */
static uint32_t join_run(td_wanted *list, uint32_t n, const join_row *row, uint32_t i)
{
    td_wanted *first = find_wanted(list, n, row->slots[i]), *bias;
    bool has_bias = find_wanted(list, n, row->biases[i]) != NULL;
    uint64_t n_rows = first ? first->n_rows : 0;
    uint32_t begin = i++;
    for (; first && i < row->n; i++) {
        td_wanted *next = find_wanted(list, n, row->slots[i]);
        n_rows += next ? next->n_rows : 0;
        if (next && (!is_joinable(first, next) || n_rows > UINT32_MAX ||
                     has_bias != (find_wanted(list, n, row->biases[i]) != NULL)))
            break;
    }
    if (!first)
        return i;
    join_slots(list, n, row->slots + begin, i - begin);
    if (!has_bias || first->n_joined == first->n_rows)
        return i;
    for (uint32_t k = begin; k < i; k++)
        if ((bias = find_wanted(list, n, row->biases[k]))) {
            bias->is_bias = true;
            bias->n_groups = first->n_groups;
        }
    join_slots(list, n, row->biases + begin, i - begin);
    return i;
}

static void join(td_wanted *list, uint32_t n)
{
    for (size_t i = 0; i < TD_COUNT(joins); i++) {
        bool has_factor = false;
        for (uint32_t k = 0; k < joins[i].n_factors; k++)
            has_factor |= find_wanted(list, n, joins[i].factors[k]) != NULL;
        for (uint32_t k = 0; k < joins[i].n && !has_factor;)
            k = join_run(list, n, &joins[i], k);
    }
}

uint32_t td_tensors_wanted(const td_model *m, uint32_t layer, td_wanted out[TD_WANTED_MAX])
{
    uint32_t n_rows, n = 0;
    const td_tensor_row *rows = rows_of(layer, &n_rows);
    for (uint32_t i = 0; i < n_rows; i++) {
        const td_gguf_tensor *t = is_wanted(m, &rows[i], layer) ? find(m, &rows[i], layer) : NULL;
        if (!t || (n && out[n - 1].slot == rows[i].slot))
            continue;
        TD_ASSERT(n < TD_WANTED_MAX);
        out[n++] = describe(m, layer, &rows[i], t);
    }
    if (layer != TD_ENDS)
        join(out, n);
    return n;
}

bool td_wanted_is_of_experts(const td_wanted *w)
{
    return w->slot >= TD_W_EX_GATE && w->slot <= TD_W_EX_S_DOWN;
}

void td_wanted_deal(td_wanted *w, const uint8_t *seats, uint32_t n_expert, uint32_t seat)
{
    uint32_t n = 0;
    for (uint32_t e = 0; e < n_expert; e++)
        n += seats[e] == seat;
    if (w->is_vector &&
        !w->is_bias) { /* one that stands alone is loaded as those that are joined */
        w->is_bias = true;
        w->n_joined = w->n_cols;
    }
    w->seats = seats;
    w->n_dealt = n_expert;
    w->seat = seat;
    w->n_joined = w->n_joined / n_expert * n;
    if (!w->is_vector && !w->n_groups)
        w->n_joined = td_max_u32(w->n_joined, 2); /* factors: one row would be a vector */
    if (!w->is_vector)
        w->n_rows = w->n_rows / n_expert * n;
    if (w->n_groups || w->is_vector)
        w->n_groups = n;
}

td_weight_params td_wanted_params(const td_wanted *w)
{
    td_weight_params p = {.name = w->tensor->name,
                          .type = type_of(w),
                          .n_rows = w->is_bias ? 1 : w->n_joined,
                          .n_cols = w->is_bias ? w->n_joined : w->n_cols,
                          .n_groups = w->is_vector ? 0 : w->n_groups};
    if (w->is_turned) {
        p.n_cols = w->count;
        p.n_rows = w->n_groups * w->n_cols;
    }
    return p;
}

/* A vector may be stored in any shape; a matrix has its columns first, and its rows in one
 * dimension or in two. */
static bool check_shape(const td_model *m, const td_tensor_row *r, const td_gguf_tensor *t,
                        td_err *err)
{
    uint64_t n_groups = dim_of(&m->hparams, r->n_groups), n_cols = dim_of(&m->hparams, r->n_cols);
    uint64_t n_rows = dim_of(&m->hparams, r->period == D_ONE ? r->n_rows : r->period);
    if (n_cols > UINT32_MAX || n_rows * n_groups > UINT32_MAX)
        return td_err_set(err, TD_E_DATA, "tensor %s: %llu x %llu x %llu is too large", t->name,
                          (unsigned long long)n_cols, (unsigned long long)n_rows,
                          (unsigned long long)n_groups);
    uint64_t n = t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; /* gguf.c bounds it */
    bool is_ok;
    if (r->form == VECTOR)
        is_ok = n == (r->period == D_ONE ? n_cols : n_rows);
    else if (r->form == COLUMN)
        is_ok = n == n_rows && t->type_id == TD_TYPE_F32;
    else if (r->form == LEADING)
        is_ok = t->ne[0] == n_cols && t->ne[1] >= n_rows * n_groups && n == n_cols * t->ne[1];
    else
        is_ok = t->ne[0] == n_cols && n == n_cols * n_rows * n_groups &&
                (t->ne[1] == n_rows || t->ne[1] == n_rows * n_groups);
    if (!is_ok)
        return td_err_set(err, TD_E_DATA,
                          "tensor %s is %llu x %llu x %llu; expected: %llu x %llu x %llu", t->name,
                          (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                          (unsigned long long)t->ne[2], (unsigned long long)n_cols,
                          (unsigned long long)n_rows, (unsigned long long)n_groups);
    if (!t->type)
        return td_err_set(err, TD_E_DATA,
                          "tensor %s has type %s, which is not supported; allowed: %s", t->name,
                          td_type_format_name(t->type_id), td_type_names());
    if (r->form == VECTOR && t->type->block_elements != 1)
        return td_err_set(err, TD_E_DATA,
                          "tensor %s has type %s; allowed for a vector: F32, F16, BF16", t->name,
                          t->type->name);
    return true;
}

/* The rows of layer `layer`; marks in is_used the tensors that they name. */
static bool check_layer(const td_model *m, uint32_t layer, bool *is_used, td_err *err)
{
    uint32_t n_rows;
    const td_tensor_row *rows = rows_of(layer, &n_rows), *missing = NULL;
    bool is_found = false;
    for (uint32_t i = 0; i < n_rows; i++) {
        const td_tensor_row *r = &rows[i];
        if (i == 0 || r->slot != rows[i - 1].slot) {
            missing = NULL;
            is_found = false;
        }
        const td_gguf_tensor *t = is_wanted(m, r, layer) && !is_found ? find(m, r, layer) : NULL;
        if (t) {
            if (!check_shape(m, r, t, err) || !check_factor(m, r, layer, t, is_used, err))
                return false;
            is_found = true;
            is_used[t - td_gguf_tensor_at(m->gguf, 0)] = true;
        } else if (is_wanted(m, r, layer) && is_required(m, r) && !missing) {
            missing = r;
        }
        bool is_last = i + 1 == n_rows || rows[i + 1].slot != r->slot;
        if (is_last && missing && !is_found) {
            char name[TD_NAME_MAX];
            name_of(missing, layer, name);
            return td_err_set(err, TD_E_DATA, "tensor %s is missing", name);
        }
    }
    return true;
}

/* The layer and the rest of "blk.N.REST", or false. */
static bool split_name(const char *name, unsigned long *layer, const char **rest)
{
    char *end;
    if (strncmp(name, "blk.", 4) != 0 || name[4] < '0' || name[4] > '9')
        return false;
    *layer = strtoul(name + 4, &end, 10);
    *rest = end + 1;
    return *end == '.';
}

/* Whether a tensor that is not used stands beside another of its purpose. */
static bool is_spare(const td_model *m, uint32_t layer, const char *rest)
{
    td_wanted wanted[TD_WANTED_MAX];
    uint32_t n = td_tensors_wanted(m, layer, wanted);
    for (size_t i = 0; i < TD_COUNT(layer_rows); i++)
        for (uint32_t k = 0; !strcmp(layer_rows[i].name, rest) && k < n; k++)
            if (wanted[k].slot == layer_rows[i].slot)
                return true;
    return false;
}

/* Tensors that are used elsewhere, or knowingly not: scales of quantized activations, layers that
 * predict further tokens. */
static bool is_known(const td_model *m, const char *name)
{
    static const char *const others[] = {"rope_freqs.weight", "rope_factors_long.weight",
                                         "rope_factors_short.weight"};
    unsigned long layer, n_layer = m->hparams.n_layer;
    const char *rest;
    for (size_t k = 0; k < TD_COUNT(others); k++)
        if (!strcmp(name, others[k]))
            return true;
    return strstr(name, ".input_scale") || (split_name(name, &layer, &rest) && layer >= n_layer &&
                                            layer - n_layer < m->hparams.n_nextn);
}

/* What no row names: within a layer that is run it would be missed, so the file is refused; others
 * (files carry extra heads) are said once. */
static bool check_extra(const td_model *m, const bool *is_used, td_err *err)
{
    uint32_t n_extra = 0;
    const char *first = NULL, *rest;
    for (uint32_t i = 0; i < td_gguf_n_tensors(m->gguf); i++) {
        const char *name = td_gguf_tensor_at(m->gguf, i)->name;
        unsigned long layer;
        if (is_used[i] || is_known(m, name))
            continue;
        bool is_factor = strlen(name) > 6 && !strcmp(name + strlen(name) - 6, ".scale");
        bool is_of_layer = split_name(name, &layer, &rest) && layer < m->hparams.n_layer;
        if (is_factor || (is_of_layer && !is_spare(m, (uint32_t)layer, rest)))
            return td_err_set(err, TD_E_DATA,
                              "tensor %s: nothing in this architecture (%s, as the file's keys "
                              "describe it) uses it, so the model must be another",
                              name, m->arch->name);
        first = first ? first : name;
        n_extra++;
    }
    if (n_extra)
        td_log_warn("%s: %u tensors are not used, the first is %s", m->path, n_extra, first);
    return true;
}

/* Layers that are not run, as the key of heads says: each has what only a head has, or nothing at
 * all where it was left out. Else the key is wrong, and layers of the model would be missed. */
static bool check_heads(const td_model *m, td_err *err)
{
    const td_hparams *h = &m->hparams;
    for (uint32_t k = h->n_layer; k < h->n_layer + h->n_nextn; k++) {
        bool is_there = false, is_head = false;
        for (uint32_t i = 0; i < td_gguf_n_tensors(m->gguf); i++) {
            const char *rest;
            unsigned long layer;
            if (split_name(td_gguf_tensor_at(m->gguf, i)->name, &layer, &rest) && layer == k) {
                is_there = true;
                is_head |= !strncmp(rest, "nextn.", 6);
            }
        }
        if (is_there && !is_head)
            return td_err_set(
                err, TD_E_DATA,
                "%s.nextn_predict_layers is %u, but layer %u has no tensors of a head "
                "(blk.%u.nextn.*); allowed: the number of layers that are heads",
                m->arch->name, h->n_nextn, k, k);
    }
    return true;
}

bool td_weights_check(const td_model *m, td_err *err)
{
    bool *is_used = td_alloc(td_gguf_n_tensors(m->gguf) + 1, sizeof *is_used, err);
    bool is_ok = is_used && check_layer(m, TD_ENDS, is_used, err);
    for (uint32_t layer = 0; is_ok && layer < m->hparams.n_layer; layer++)
        is_ok = check_layer(m, layer, is_used, err);
    is_ok = is_ok && check_heads(m, err) && check_extra(m, is_used, err);
    td_free(is_used);
    return is_ok;
}

/* A tensor of the head's layer that no row names would be missed. */
static bool check_head_extra(const td_model *m, const bool *is_used, td_err *err)
{
    for (uint32_t i = 0; i < td_gguf_n_tensors(m->gguf); i++) {
        const char *name = td_gguf_tensor_at(m->gguf, i)->name, *rest;
        unsigned long layer;
        if (!is_used[i] && split_name(name, &layer, &rest) && layer == m->hparams.n_layer &&
            !strstr(name, ".input_scale") && !is_spare(m, (uint32_t)layer, rest))
            return td_err_set(err, TD_E_DATA, "tensor %s: nothing in a head of %s uses it", name,
                              m->arch->name);
    }
    return true;
}

bool td_model_check_head(const td_model *m, td_err *err)
{
    const td_hparams *h = &m->hparams;
    if (!h->n_nextn)
        return td_err_set(err, TD_E_DATA,
                          "%s: no head for multi-token prediction: %s.nextn_predict_layers is 0 "
                          "or missing",
                          m->path, m->arch->name);
    if (!m->arch->has_head)
        return td_err_set(
            err, TD_E_DATA,
            "%s: heads for multi-token prediction of %s are not known; allowed: those "
            "of deepseek2, glm4moe, qwen35, qwen35moe",
            m->path, m->arch->name);
    bool *is_used = td_alloc(td_gguf_n_tensors(m->gguf) + 1, sizeof *is_used, err);
    bool is_ok =
        is_used && check_layer(m, h->n_layer, is_used, err) && check_head_extra(m, is_used, err);
    td_free(is_used);
    if (is_ok && h->n_nextn > 1)
        td_log_info("%s: the first of %u heads is used", m->path, h->n_nextn);
    return is_ok || td_err_prepend(err, "%s: the head for multi-token prediction", m->path);
}
