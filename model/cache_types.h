/* How a cache keeps keys and values: their types, of all layers and of some, and whether they are
 * rotated. What was asked for; td_cache_types_apply says what that means for a layer. Plain values,
 * copied at will. */
#ifndef TD_MODEL_CACHE_TYPES_H
#define TD_MODEL_CACHE_TYPES_H

#include "kernels/device.h"

#define TD_CACHE_RULES_MAX  48u
#define TD_CACHE_TYPES_TEXT 1500u /* bytes of td_cache_types_write at most, with the final 0 */

/* In a rule that has been asked for: the first and the last layer that has keys and values,
 * whatever model that is (cache_choice.h). */
#define TD_CACHE_LAYER_FIRST 0xfffeu
#define TD_CACHE_LAYER_LAST  0xffffu

typedef enum {
    TD_ROTATE_AUTO, /* what takes less than 8 bits */
    TD_ROTATE_OFF,
    TD_ROTATE_ON
} td_rotate;

typedef struct {
    uint16_t first, last;      /* layers of the model, inclusive */
    const td_type_info *k, *v; /* NULL: nothing is said */
} td_cache_rule;

typedef struct {
    const td_type_info *k, *v; /* of layers of which no rule says more */
    td_rotate rotate_k, rotate_v;
    uint32_t n_rules;
    td_cache_rule rules[TD_CACHE_RULES_MAX]; /* of those of a layer the last counts */
} td_cache_types;

/* Sets types and rotation of a layer of the model. kv: its dims of heads and is_latent are known.
 * Values of a latent cache are as its keys are. */
void td_cache_types_apply(const td_cache_types *t, uint32_t layer, td_kv_params *kv);

/* "Q4_0 rotated,F16", and rules behind it as " 0-1 F16,-"; the same for the same caches. `out` has
 * TD_CACHE_TYPES_TEXT bytes. */
void td_cache_types_write(const td_cache_types *t, char *out);

/* The layers of rule i and of those behind it that say the same, and what, as --kv-keep reads it:
 * "0,4-7=q8_0", "0,27=f16/-" (keys alone). `separators`: ",=" here. False: i is none, or an earlier
 * rule says the same, so that calls for all i < n_rules list all. Rules of td_cache_choose only. */
bool td_cache_types_write_kept(const td_cache_types *t, uint32_t i, const char separators[2],
                               char *out, size_t n_bytes);
/* All of them, "0,27=f16/- 3=q8_0"; "": no layer is kept otherwise. */
void td_cache_types_list_kept(const td_cache_types *t, char *out, size_t n_bytes);

#endif
