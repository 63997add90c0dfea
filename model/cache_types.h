/* How a cache keeps keys and values: their types. Plain values, copied at will. */
#ifndef TD_MODEL_CACHE_TYPES_H
#define TD_MODEL_CACHE_TYPES_H

#include "kernels/types.h"

typedef struct {
    const td_type_info *k, *v;
} td_cache_types;

#endif
