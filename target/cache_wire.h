/* The types of a cache as a plan for another machine has them (transport/stage_wire.h). */
#ifndef TD_TARGET_CACHE_WIRE_H
#define TD_TARGET_CACHE_WIRE_H

#include "base/err.h"
#include "model/cache_types.h"
#include "transport/stage_wire.h"

td_stage_kv td_cache_to_wire(const td_cache_types *t);
/* TD_E_DATA: a type that no cache has. */
bool td_cache_from_wire(const td_stage_kv *kv, td_cache_types *out, td_err *err);

#endif
