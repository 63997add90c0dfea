/* Errors. Every fallible function is `bool f(..., td_err *err)`: false means err is set.
 *
 * The first error wins: setting an error that is already set keeps the first message. Callers
 * prepend context with td_err_prepend ("configs/desktop.json: draft.model: ..."). A message says
 * what, where, the value seen, the values allowed, and a hint if cheap. Input and environment
 * failures are errors; our own bugs are TD_ASSERT (check.h). `err` may be NULL where the caller
 * does not care. Thread-safe as long as each thread has its own td_err. */
#ifndef TD_BASE_ERR_H
#define TD_BASE_ERR_H

#include <stdbool.h>
#include <stddef.h>

#define TD_ERR_MESSAGE_MAX 1024 /* bytes with the terminating 0; longer messages end in "..." */

typedef enum {
    TD_OK = 0,
    TD_E_USAGE,       /* exit 2: a flag or a config value */
    TD_E_DATA,        /* exit 65: a file, a peer or a prompt is malformed */
    TD_E_UNAVAILABLE, /* exit 69: a peer cannot be reached or refuses */
    TD_E_BUG,         /* exit 70 */
    TD_E_IO,          /* exit 74 */
    TD_E_AGAIN,       /* exit 75: try again (device lost, output locked) */
    TD_E_DEVICE_LOST, /* exit 75 */
    TD_E_NOMEM,       /* exit 75: host or device memory */
    TD_E_CODE_COUNT
} td_err_code;

typedef struct {
    td_err_code code;
    char message[TD_ERR_MESSAGE_MAX];
} td_err;

/* Sets the error unless one is set already. Always returns false: `return td_err_set(...)`. */
bool td_err_set(td_err *err, td_err_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "context: " before the message of an error that is set, if it does not begin so already.
 * Always returns false. */
bool td_err_prepend(td_err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

void td_err_clear(td_err *err);

/* The process exit code of an error code (sysexits(3) where one fits). */
int td_err_exit_code(td_err_code code);

/* A short word for the code, such as "data"; "?" for a code that does not exist. */
const char *td_err_code_name(td_err_code code);

#endif
