/* SIGINT and SIGTERM ask for a drain: the handler notes the signal and makes a file descriptor
 * readable, nothing more. A SIGINT after either exits at once with 130. SIGPIPE is ignored, so that
 * a closed pipe is an error of write(2).
 *
 * td_signals_open is called once, by the main thread, before any other thread starts. */
#ifndef TD_BASE_SIGNALS_H
#define TD_BASE_SIGNALS_H

#include "base/err.h"

/* Installs the handlers. Calling it again does nothing. Error: TD_E_IO. */
bool td_signals_open(td_err *err);

/* Puts the earlier handlers back and forgets a pending signal (for tests and for exec). */
void td_signals_close(void);

/* Readable once a signal has arrived (it stays readable: poll it, do not read it); -1 before
 * td_signals_open. */
int td_signals_fd(void);

/* 0, or the number of the first signal that arrived (SIGINT or SIGTERM); any thread. The exit
 * code of a drained run is 128 + that number. */
int td_signals_pending(void);

#endif
