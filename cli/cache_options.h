/* Options that say how a cache keeps things, beside its types: --kv-rotate and what its layers have
 * of their own. All add to a td_cache_types. TD_E_USAGE names the flag, TD_E_DATA and TD_E_IO a
 * file. */
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

/* Adds what some layers have of their own: "first,last=f16", "0,4-7=q8_0/q5_0" (keys, values),
 * "1=f16/-" (keys alone) with separators ",=". Of layers that are said twice the last counts. */
bool td_cache_options_keep(const char *flag, const char *text, size_t n_bytes,
                           const char separators[2], td_cache_types *out, td_err *err);
/* The same from a JSON file: {"first": {"k": "f16"}, "4-7": {"k": "q8_0", "v": "q5_0"}}. */
bool td_cache_options_layers(const char *path, td_cache_types *out, td_err *err);

/* The rows of a command's table for one td_cache_types, AT(kv), but for the types themselves.
 * in_file: CACHE_KEY, or CACHE_NO_KEY where no configuration has them. */
#define CACHE_KEY(key)    key
#define CACHE_NO_KEY(key) NULL
#define CACHE_ROWS(kv, in_file)                                                                    \
    {"--kv-rotate",                                                                                \
     in_file("cache.rotate"),                                                                      \
     OPT_ROTATE,                                                                                   \
     AT(kv),                                                                                       \
     0,                                                                                            \
     0,                                                                                            \
     "MODE",                                                                                       \
     "heads of keys and values are kept rotated, which spreads outliers: auto, on or off, or of "  \
     "each, k=on,v=off; auto: those of less than 8 bits (default: auto)"},                         \
        {"--kv-keep",                                                                              \
         in_file("cache.keep"),                                                                    \
         OPT_KEEP,                                                                                 \
         AT(kv),                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         "LAYERS=TYPE",                                                                            \
         "layers of other types: first,last=f16 or 0,4-7=q8_0/q5_0, of keys alone 1=f16/-; may "   \
         "be "                                                                                     \
         "given several times, the last counts (default: as --kv-k and --kv-v; keys with "         \
         "outlying "                                                                               \
         "biases f16)"},                                                                           \
    {                                                                                              \
        "--kv-layers", in_file("cache.layers"), OPT_KEEP_FILE, AT(kv), 0, 0, "FILE.json",          \
            "the same from a file, {\"0-3\": {\"k\": \"f16\", \"v\": \"q8_0\"}}"                   \
    }

#endif
