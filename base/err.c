#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int exit_code;
} codes[TD_E_CODE_COUNT] = {
    [TD_OK] = {"ok", 0},           [TD_E_USAGE] = {"usage", 2},
    [TD_E_DATA] = {"data", 65},    [TD_E_UNAVAILABLE] = {"unavailable", 69},
    [TD_E_BUG] = {"bug", 70},      [TD_E_IO] = {"io", 74},
    [TD_E_AGAIN] = {"again", 75},  [TD_E_DEVICE_LOST] = {"device-lost", 75},
    [TD_E_NOMEM] = {"memory", 75},
};

/* Marks a message that did not fit, so that nobody takes the cut text for the whole. */
static void mark_if_cut(char *message, int n_wanted)
{
    if (n_wanted >= TD_ERR_MESSAGE_MAX)
        memcpy(message + TD_ERR_MESSAGE_MAX - 4, "...", 4);
}

bool td_err_set(td_err *err, td_err_code code, const char *format, ...)
{
    if (!err || err->code != TD_OK)
        return false;
    err->code = code;
    va_list args;
    va_start(args, format);
    mark_if_cut(err->message, vsnprintf(err->message, sizeof err->message, format, args));
    va_end(args);
    return false;
}

bool td_err_prepend(td_err *err, const char *format, ...)
{
    if (!err || err->code == TD_OK)
        return false;
    char old[TD_ERR_MESSAGE_MAX];
    memcpy(old, err->message, sizeof old);
    char context[TD_ERR_MESSAGE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
    /* Who opens a file names it, and whoever asked for that may not know. */
    size_t n_context = strlen(context);
    if (!strncmp(old, context, n_context) && !strncmp(old + n_context, ": ", 2))
        return false;
    /* Two %s of bounded strings; the cut is marked below. */
    int n = snprintf(err->message, sizeof err->message, "%.500s: %s", context, old);
    mark_if_cut(err->message, n);
    return false;
}

void td_err_clear(td_err *err)
{
    if (err)
        *err = (td_err){.code = TD_OK};
}

int td_err_exit_code(td_err_code code)
{
    return (unsigned)code < TD_E_CODE_COUNT ? codes[code].exit_code : 70;
}

const char *td_err_code_name(td_err_code code)
{
    return (unsigned)code < TD_E_CODE_COUNT ? codes[code].name : "?";
}
