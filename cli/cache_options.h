/* Options that say how a cache keeps things, beside its types: --kv-rotate and what its layers have
 * of their own. All add to a td_cache_types. TD_E_USAGE names the flag. */
#ifndef TD_CLI_CACHE_OPTIONS_H
#define TD_CLI_CACHE_OPTIONS_H

#include "base/err.h"
#include "model/cache_types.h"

/* "auto", "on" or "off", or of keys and values apart: "k=on,v=off". */
bool td_cache_options_rotate(const char *flag, const char *text, td_cache_types *out, td_err *err);

/* The first n_bytes of text: "auto", "on" or "off". */
bool td_cache_options_mode(const char *flag, const char *text, size_t n_bytes, td_rotate *out,
                           td_err *err);
const char *td_cache_options_mode_name(td_rotate rotate);

#endif
