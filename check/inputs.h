/* Made-up inputs of ops: random numbers, and weight rows of every type with values of about 1; the
 * same for the same seed on every machine. What `tandem check` and the op tests share. Any thread.
 */
#ifndef TD_CHECK_INPUTS_H
#define TD_CHECK_INPUTS_H

#include "kernels/types.h"

/* The weight types, the plain ones (any row length) first, and the cache types. */
#define TD_INPUT_PLAIN_TYPES  3u
#define TD_INPUT_WEIGHT_TYPES 28u
#define TD_INPUT_CACHE_TYPES  10u
#define TD_INPUT_CACHE_COMMON 4u /* the first */
extern const char *const td_input_weight_types[TD_INPUT_WEIGHT_TYPES];
extern const char *const td_input_cache_types[TD_INPUT_CACHE_TYPES];

/* Uniform in [-1, 1): number i of a seed. */
float td_input_random(uint64_t seed, size_t i);

/* n_rows rows of n_cols elements into rows[n_rows * td_row_bytes]: encoded where that is quick,
 * else random quants under moderate scales. */
void td_input_rows(const td_type_info *type, size_t n_rows, size_t n_cols, uint64_t seed,
                   unsigned char *rows);

#endif
