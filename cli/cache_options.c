#include "cli/cache_options.h"

#include "base/check.h"
#include "base/text.h"

#include <string.h>

static const char *const modes[] = {
    [TD_ROTATE_AUTO] = "auto", [TD_ROTATE_OFF] = "off", [TD_ROTATE_ON] = "on"};

const char *td_cache_options_mode_name(td_rotate rotate) { return modes[rotate]; }

bool td_cache_options_mode(const char *flag, const char *text, size_t n_bytes, td_rotate *out,
                           td_err *err)
{
    for (size_t i = 0; i < TD_COUNT(modes); i++)
        if (strlen(modes[i]) == n_bytes && !memcmp(modes[i], text, n_bytes)) {
            *out = (td_rotate)i;
            return true;
        }
    return td_err_set(err, TD_E_USAGE, "%s: %s; allowed: auto, on, off, or k=on,v=off", flag,
                      td_text_quote(text, n_bytes).text);
}

bool td_cache_options_rotate(const char *flag, const char *text, td_cache_types *out, td_err *err)
{
    td_rotate both;
    if (!strchr(text, '=')) {
        if (!td_cache_options_mode(flag, text, strlen(text), &both, err))
            return false;
        out->rotate_k = out->rotate_v = both;
        return true;
    }
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, ",");
        bool is_k = !strncmp(p, "k=", 2), is_v = !strncmp(p, "v=", 2);
        bool is_ok = is_k || is_v;
        if (!td_cache_options_mode(flag, is_ok ? p + 2 : p, is_ok ? n - 2 : n,
                                   is_k ? &out->rotate_k : &out->rotate_v, err))
            return false;
        p += n + (p[n] == ',');
    }
    return true;
}
