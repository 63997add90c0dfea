/* One mutex guards the sink: the level, where lines go, and the progress line that is on the
 * screen. A log line first wipes the progress line, and draws it again below itself. Each line is
 * put together in memory and written with one write(2), so that lines of several processes on one
 * terminal or file do not mix. */
#include "base/log.h"

#include "base/check.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PROGRESS_MAX     256
#define WIPE             "\r\x1b[K"
#define COLUMNS_DEFAULT  80
#define COLUMNS_SMALLEST 20

static const struct {
    const char *name, *label, *colour;
} levels[TD_LOG_LEVEL_COUNT] = {
    [TD_LOG_ERROR] = {"error", "error", "\x1b[1;31m"},
    [TD_LOG_WARN] = {"warn", "warning", "\x1b[1;33m"},
    [TD_LOG_INFO] = {"info", "info", ""},
    [TD_LOG_DEBUG] = {"debug", "debug", "\x1b[2m"},
};

static atomic_int current_level = TD_LOG_INFO;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
    int fd;
    bool is_terminal, is_known; /* is_terminal has been found out */
    char progress[PROGRESS_MAX];
} sink = {.fd = STDERR_FILENO};

static void look_at_sink(void)
{
    if (!sink.is_known)
        sink.is_terminal = isatty(sink.fd) == 1;
    sink.is_known = true;
}

/* Bytes that may stand in a line: no control bytes. UTF-8 passes as it is. */
static size_t escape(const char *text, char *out, size_t size)
{
    size_t n = 0;
    for (const char *p = text; *p; p++) {
        uint8_t b = (uint8_t)*p;
        bool is_control = b < 0x20 || b == 0x7f;
        if (n + (is_control ? 4 : 1) + sizeof "..." > size) {
            memcpy(out + n, "...", 3);
            n += 3;
            break;
        }
        if (is_control)
            n += (size_t)snprintf(out + n, 5, "\\x%02x", b);
        else
            out[n++] = *p;
    }
    out[n] = 0;
    return n;
}

static void put(const char *text, size_t n_bytes)
{
    while (n_bytes > 0) {
        ssize_t n = write(sink.fd, text, n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* there is no place left to complain to */
        text += n;
        n_bytes -= (size_t)n;
    }
}

void td_log_write(td_log_level level, const char *format, ...)
{
    TD_ASSERT((unsigned)level < TD_LOG_LEVEL_COUNT);
    if ((int)level > atomic_load_explicit(&current_level, memory_order_relaxed))
        return;
    char raw[TD_LOG_LINE_MAX], text[TD_LOG_LINE_MAX];
    va_list args;
    va_start(args, format);
    int n_wanted = vsnprintf(raw, sizeof raw, format, args);
    va_end(args);
    if (n_wanted >= (int)sizeof raw)
        memcpy(raw + sizeof raw - 4, "...", 4);
    escape(raw, text, sizeof text);

    char line[TD_LOG_LINE_MAX + PROGRESS_MAX + 128];
    pthread_mutex_lock(&mutex);
    look_at_sink();
    bool has_colour = sink.is_terminal && !getenv("NO_COLOR");
    bool has_progress = sink.is_terminal && sink.progress[0];
    int n = snprintf(line, sizeof line, "%s%standem: %s:%s %s\n%s", has_progress ? WIPE : "",
                     has_colour ? levels[level].colour : "", levels[level].label,
                     has_colour ? "\x1b[0m" : "", text, has_progress ? sink.progress : "");
    put(line, (size_t)n);
    pthread_mutex_unlock(&mutex);
}

void td_log_set_level(td_log_level level)
{
    TD_ASSERT((unsigned)level < TD_LOG_LEVEL_COUNT);
    atomic_store(&current_level, (int)level);
}

td_log_level td_log_get_level(void) { return (td_log_level)atomic_load(&current_level); }

bool td_log_find_level(const char *name, td_log_level *level)
{
    for (int i = 0; i < TD_LOG_LEVEL_COUNT; i++) {
        if (strcmp(levels[i].name, name) == 0) {
            *level = (td_log_level)i;
            return true;
        }
    }
    return false;
}

/* Cuts to so many columns, counting one for each code point. */
static void cut_columns(char *text, unsigned n_columns)
{
    unsigned n = 0;
    for (char *p = text; *p; p++) {
        bool is_continuation = ((uint8_t)*p & 0xc0) == 0x80;
        if (!is_continuation && n++ == n_columns) {
            *p = 0;
            return;
        }
    }
}

void td_log_progress(const char *format, ...)
{
    char raw[PROGRESS_MAX], line[PROGRESS_MAX + 16];
    va_list args;
    va_start(args, format);
    vsnprintf(raw, sizeof raw, format, args);
    va_end(args);
    pthread_mutex_lock(&mutex);
    look_at_sink();
    if (sink.is_terminal) {
        struct winsize size = {0};
        unsigned n_columns = COLUMNS_DEFAULT;
        if (ioctl(sink.fd, TIOCGWINSZ, &size) == 0 && size.ws_col >= COLUMNS_SMALLEST)
            n_columns = size.ws_col;
        escape(raw, sink.progress, sizeof sink.progress);
        /* One column stays free, or some terminals would wrap. */
        cut_columns(sink.progress, n_columns - 1);
        int n = snprintf(line, sizeof line, WIPE "%s", sink.progress);
        put(line, (size_t)n);
    }
    pthread_mutex_unlock(&mutex);
}

void td_log_progress_end(void)
{
    pthread_mutex_lock(&mutex);
    if (sink.progress[0])
        put(WIPE, sizeof WIPE - 1);
    sink.progress[0] = 0;
    pthread_mutex_unlock(&mutex);
}

void td_log_set_output(int fd, bool is_terminal)
{
    pthread_mutex_lock(&mutex);
    sink.fd = fd;
    sink.is_terminal = is_terminal;
    sink.is_known = true;
    sink.progress[0] = 0;
    pthread_mutex_unlock(&mutex);
}
