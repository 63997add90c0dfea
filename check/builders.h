/* What builds the rigs of the cases (cases.c), by families of ops. Private to check/. Each begins
 * the rig, makes objects and data, records and ends; false with err set. Sizes are c->n, as each
 * says. */
#ifndef TD_CHECK_BUILDERS_H
#define TD_CHECK_BUILDERS_H

#include "check/cases.h"

/* build_layers.c */
bool td_build_embed(td_rig *r, td_device *dev, const td_case *c, td_err *err);    /* n_vocab, n */
bool td_build_rms_norm(td_rig *r, td_device *dev, const td_case *c, td_err *err); /* n, groups */
bool td_build_mat_mul(td_rig *r, td_device *dev, const td_case *c, td_err *err);  /* n_o, n_k */
bool td_build_groups(td_rig *r, td_device *dev, const td_case *c, td_err *err);   /* n, m, n_k */
bool td_build_experts(td_rig *r, td_device *dev, const td_case *c, td_err *err); /* n, used, m, k */
bool td_build_rope(td_rig *r, td_device *dev, const td_case *c, td_err *err); /* heads, dim, rot */
bool td_build_glu(td_rig *r, td_device *dev, const td_case *c, td_err *err);  /* n, scales */
bool td_build_element(td_rig *r, td_device *dev, const td_case *c, td_err *err);     /* n */
bool td_build_gather(td_rig *r, td_device *dev, const td_case *c, td_err *err);      /* n */
bool td_build_route(td_rig *r, td_device *dev, const td_case *c, td_err *err);       /* n, used */
bool td_build_experts_sum(td_rig *r, td_device *dev, const td_case *c, td_err *err); /* n, used */
/* build_sequence.c: of attention and kv_store heads of kv, queries of each, dims of k and v,
 * positions; of the others k heads, v heads, dim, taps */
bool td_build_attention(td_rig *r, td_device *dev, const td_case *c, td_err *err);
bool td_build_kv_store(td_rig *r, td_device *dev, const td_case *c, td_err *err);
bool td_build_delta_net(td_rig *r, td_device *dev, const td_case *c, td_err *err);
bool td_build_state_keep(td_rig *r, td_device *dev, const td_case *c, td_err *err);
/* build_blocks.c: embd, ff; embd, heads of kv, queries of each, dim; embd, experts, used, ff */
bool td_build_feed_forward(td_rig *r, td_device *dev, const td_case *c, td_err *err);
bool td_build_attention_block(td_rig *r, td_device *dev, const td_case *c, td_err *err);
bool td_build_mixture(td_rig *r, td_device *dev, const td_case *c, td_err *err);
/* build_tokens.c */
bool td_build_top(td_rig *r, td_device *dev, const td_case *c, td_err *err);  /* n_vocab */
bool td_build_pick(td_rig *r, td_device *dev, const td_case *c, td_err *err); /* n_vocab */
bool td_build_feed(td_rig *r, td_device *dev, const td_case *c, td_err *err); /* n_ctx, n_rot */

/* A batch's tensors, with the rows' positions and slots as inputs of the rig. */
td_batch_tensors td_build_batch(td_rig *r, const int32_t *positions, const int32_t *slots,
                                uint32_t n_slots, uint32_t n_pages);
/* Fills a cache with so many positions of each slot, by kv_store. */
void td_build_fill(td_rig *r, td_kv *kv, td_tensor *pages, uint32_t n_slots, uint32_t n_positions);

/* Variants of attention, and of the ops that go element by element. */
enum { TD_ATTEND_PLAIN, TD_ATTEND_WINDOW, TD_ATTEND_SINKS, TD_ATTEND_SOFTCAP, TD_ATTEND_CHUNK };
enum { TD_ELEMENT_ADD, TD_ELEMENT_SCALE, TD_ELEMENT_SOFTCAP };

#endif
