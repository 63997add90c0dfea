/* Log lines and one progress line, on stderr.
 *
 * A call is one line: "tandem: warning: ..."; control bytes in it are shown as \xNN, so that text
 * from a file or a peer can neither break the line nor drive the terminal. Lines longer than
 * TD_LOG_LINE_MAX are cut and marked "...". Colour only on a terminal (and without NO_COLOR). The
 * progress line is drawn in place, only on a terminal, and log lines move it aside.
 *
 * Thread-safe. Errors in writing the log are ignored. */
#ifndef TD_BASE_LOG_H
#define TD_BASE_LOG_H

#include <stdbool.h>

#define TD_LOG_LINE_MAX 2048 /* bytes */

typedef enum {
    TD_LOG_ERROR,
    TD_LOG_WARN,
    TD_LOG_INFO,
    TD_LOG_DEBUG,
    TD_LOG_LEVEL_COUNT
} td_log_level;

void td_log_write(td_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
#define td_log_error(...) td_log_write(TD_LOG_ERROR, __VA_ARGS__)
#define td_log_warn(...)  td_log_write(TD_LOG_WARN, __VA_ARGS__)
#define td_log_info(...)  td_log_write(TD_LOG_INFO, __VA_ARGS__)
#define td_log_debug(...) td_log_write(TD_LOG_DEBUG, __VA_ARGS__)

/* Lines of a higher level are dropped. At the start: TD_LOG_INFO. */
void td_log_set_level(td_log_level level);
td_log_level td_log_get_level(void);

/* The level called "error", "warn", "info" or "debug"; false for another name. */
bool td_log_find_level(const char *name, td_log_level *level);

/* Draws the progress line anew (one line; cut to the terminal's width). */
void td_log_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Removes the progress line. */
void td_log_progress_end(void);

/* Test hook: where lines go, and whether that counts as a terminal. */
void td_log_set_output(int fd, bool is_terminal);

#endif
