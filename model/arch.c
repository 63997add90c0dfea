/* The table of architectures: one row of traits each, and the values that a family means where its
 * file has no key. Sources: the models' papers and the metadata of their files; golden data
 * confirms them. */
#include "model/arch.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

static const td_arch archs[] = {
    {.name = "llama", .is_normalized_router = true, .is_expert_ff_dense = true},
    {.name = "mistral3",
     .reads = TD_READS_TEMPERATURE | TD_READS_YARN_LOG | TD_READS_YARN_BETAS,
     .is_normalized_router = true,
     .is_expert_ff_dense = true},
    {.name = "llama4",
     .reads = TD_READS_LOCAL | TD_READS_INTERLEAVED,
     .qk_norm = TD_QK_NORM_AFTER,
     .gating = TD_GATING_SIGMOID,
     .local_period = 4,
     .local_chunk = 8192,
     .nope_period = 4,
     .is_expert_input_scaled = true,
     .shared = TD_SHARED_ONE},
    {.name = "deepseek2",
     .reads = TD_READS_MLA | TD_READS_LEADING | TD_READS_ROUTER | TD_READS_TEMPERATURE |
              TD_READS_YARN_LOG,
     .is_mla = true,
     .shared = TD_SHARED_COUNT,
     .has_head = true},
    {.name = "qwen2", .rope = TD_ROPE_NEOX},
    {.name = "qwen2moe", .rope = TD_ROPE_NEOX, .shared = TD_SHARED_WIDTH},
    {.name = "qwen3", .rope = TD_ROPE_NEOX, .qk_norm = TD_QK_NORM_HEADS},
    {.name = "qwen3moe",
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_HEADS,
     .is_normalized_router = true},
    {.name = "qwen3next",
     .reads = TD_READS_HYBRID,
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_HEADS,
     .is_normalized_router = true,
     .shared = TD_SHARED_WIDTH,
     .is_hybrid = true,
     .is_gated_attention = true,
     .is_ffn_norm_post = true,
     .is_grouped_heads = true},
    {.name = "qwen35",
     .reads = TD_READS_HYBRID,
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_HEADS,
     .is_hybrid = true,
     .is_gated_attention = true,
     .is_ffn_norm_post = true,
     .has_head = true},
    {.name = "qwen35moe",
     .reads = TD_READS_HYBRID,
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_HEADS,
     .is_normalized_router = true,
     .shared = TD_SHARED_WIDTH,
     .is_hybrid = true,
     .is_gated_attention = true,
     .is_ffn_norm_post = true,
     .has_head = true},
    {.name = "gpt-oss",
     .reads = TD_READS_LOCAL,
     .rope = TD_ROPE_NEOX,
     .glu = TD_GLU_CLAMPED,
     .gating = TD_GATING_SELECTED,
     .local_period = 2,
     .is_ffn_norm_post = true},
    {.name = "minimax-m2",
     .reads = TD_READS_GATING,
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_ALL,
     .gating = TD_GATING_SIGMOID,
     .is_normalized_router = true,
     .is_expert_ff_dense = true},
    {.name = "glm4moe",
     .reads = TD_READS_LEADING | TD_READS_ROUTER,
     .rope = TD_ROPE_NEOX,
     .qk_norm = TD_QK_NORM_OPTIONAL,
     .gating = TD_GATING_SIGMOID,
     .shared = TD_SHARED_COUNT,
     .is_ffn_norm_post = true,
     .has_head = true},
    {.name = "gemma2",
     .reads = TD_READS_LOCAL | TD_READS_ATTENTION_CAP | TD_READS_FINAL_CAP,
     .rope = TD_ROPE_NEOX,
     .glu = TD_GLU_GELU,
     .local_period = 2,
     .has_post_norms = true,
     .is_embd_scaled = true,
     .large_layers = 46},
    {.name = "gemma3",
     .reads = TD_READS_LOCAL | TD_READS_FINAL_CAP,
     .rope = TD_ROPE_NEOX,
     .glu = TD_GLU_GELU,
     .qk_norm = TD_QK_NORM_HEADS,
     .local_period = 6,
     .is_local_unscaled = true,
     .has_post_norms = true,
     .is_embd_scaled = true,
     .large_layers = 62},
    {.name = "phi3", .rope = TD_ROPE_NEOX, .is_ffn_fused = true},
};

/* What a family means by the absence of a key; NAN: its files never lack it. Zero in the key is
 * none all the same. */
static const struct {
    const char *arch, *key;
    double value;
} absences[] = {
    {"llama4", "attention.sliding_window", 8192}, {"gemma2", "attention.sliding_window", 4096},
    {"gemma2", "attn_logit_softcapping", 50},     {"gemma2", "final_logit_softcapping", 30},
    {"gemma3", "rope.freq_base_swa", 10000},      {"gpt-oss", "attention.sliding_window", NAN},
};

/* Tensors that others may lack, and this family's files never do. */
static const struct {
    const char *arch, *tensor;
} always[] = {
    {"qwen2moe", "output.weight"},
    {"qwen2moe", "ffn_gate_inp_shexp.weight"},
    {"qwen3next", "ffn_gate_inp_shexp.weight"},
    {"qwen35moe", "ffn_gate_inp_shexp.weight"},
    {"gpt-oss", "output.weight"},
    {"gpt-oss", "attn_output.bias"},
    {"gpt-oss", "attn_sinks.weight"},
    {"gpt-oss", "ffn_gate_inp.bias"},
    {"gpt-oss", "ffn_gate_exps.bias"},
    {"gpt-oss", "ffn_up_exps.bias"},
    {"gpt-oss", "ffn_down_exps.bias"},
    {"minimax-m2", "output.weight"},
    {"minimax-m2", "exp_probs_b.bias"},
    {"glm4moe", "exp_probs_b.bias"},
};

const char *td_arch_names(void)
{
    return "llama, mistral3, llama4, deepseek2, qwen2, qwen2moe, qwen3, qwen3moe, qwen3next, "
           "qwen35, qwen35moe, gpt-oss, minimax-m2, glm4moe, gemma2, gemma3, phi3";
}

const td_arch *td_arch_find(const char *name)
{
    for (size_t i = 0; i < TD_COUNT(archs); i++)
        if (!strcmp(archs[i].name, name))
            return &archs[i];
    return NULL;
}

double td_arch_absent(const td_arch *arch, const char *key, double fallback)
{
    for (size_t i = 0; i < TD_COUNT(absences); i++)
        if (!strcmp(absences[i].arch, arch->name) && !strcmp(absences[i].key, key))
            return absences[i].value;
    return fallback;
}

bool td_arch_needs(const td_arch *arch, const char *tensor)
{
    for (size_t i = 0; i < TD_COUNT(always); i++)
        if (!strcmp(always[i].arch, arch->name) && !strcmp(always[i].tensor, tensor))
            return true;
    return false;
}
