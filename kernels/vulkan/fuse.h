/* Which ops a step does together (fuse.c). Private to lower*.c and program.c. One thread; nothing
 * fails. */
#ifndef TD_KERNELS_VULKAN_FUSE_H
#define TD_KERNELS_VULKAN_FUSE_H

#include "kernels/backend.h"

/* What the steps of an op do: that op, or several from it on. */
typedef enum {
    TD_VK_FUSE_NONE,
    TD_VK_FUSE_ADD_NORM,
    TD_VK_FUSE_NORM_GATE,
    TD_VK_FUSE_ROPE_STORE, /* after n_ops - 3 norms */
    TD_VK_FUSE_MUL_GLU,    /* by few rows; by more it is two steps */
    TD_VK_FUSE_ATTEND_GATE,
} td_vk_fuse_kind;
typedef struct {
    td_vk_fuse_kind kind;
    uint32_t n_ops;
} td_vk_fusion;
td_vk_fusion td_vk_fuse(const td_program *p, uint32_t i_op);
/* What is added to the stream, or gathered of it, and its norm: ops that stand together, NULL those
 * there are not. */
typedef struct {
    const td_op *experts, *gate, *shared, *post, *add, *gather, *norm; /* post: of what is added */
    uint32_t n_ops; /* 0: there is no such thing at op i */
} td_vk_addition;
td_vk_addition td_vk_find_addition(const td_program *p, uint32_t i_op);
/* The product that op i's step quantizes its output for; NULL: none. */
const td_op *td_vk_quantizes_for(const td_program *p, uint32_t i_op);
/* Whether the step of op i, a kv_store, or of the rope it is done with, also rotates the queries of
 * op i + 1, an attention. */
bool td_vk_rotates_q(const td_program *p, uint32_t i_op);
/* Whether op i, a route, lists who chose whom for a product by expert. */
bool td_vk_lists_choices(const td_program *p, uint32_t i_op);

#endif
