/* Every source is a file with one whole number: microjoules so far, or microwatts now. One function
 * takes a sample of all of them; the thread calls it so that power is summed and a counter that
 * begins again (RAPL's does about every hour under load) is seen in time. */
#include "base/energy.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE_NS  100000000u /* between two samples of the thread */
#define ZONES_MAX  16u        /* RAPL packages, and zones within one */
#define HWMONS_MAX 128u
#define PATH_BYTES 512u

typedef struct {
    td_energy_source info;
    char path[PATH_BYTES];
    bool is_power;
    uint64_t range_uj; /* a counter begins again after this; 0: not known */
    uint64_t last;     /* value of the last sample */
    double joules;
} source;

struct td_energy {
    const char *root;
    uint32_t n;
    source sources[TD_ENERGY_SOURCES_MAX];
    uint64_t sampled_us;
    pthread_mutex_t lock;
    pthread_cond_t stop;
    pthread_t thread;
    bool is_thread, is_stopped;
};

/* A file's only line without its end; false when it cannot be read or is longer. */
static bool read_line(const char *path, char *line, size_t n_bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, line, n_bytes);
    close(fd);
    if (n < 1 || (size_t)n == n_bytes)
        return false;
    line[n] = 0;
    line[strcspn(line, "\n")] = 0;
    return true;
}

static bool read_number(const char *path, uint64_t *value)
{
    char line[32];
    return read_line(path, line, sizeof line) && td_text_read_u64(line, value);
}

/* Joins; false when the path does not fit. */
static bool join(char out[PATH_BYTES], const char *directory, const char *name)
{
    return snprintf(out, PATH_BYTES, "%s/%s", directory, name) < (int)PATH_BYTES;
}

/* Adds directory/file if it can be read. */
static source *add_source(td_energy *e, const char *directory, const char *file, bool is_power)
{
    source *s = &e->sources[e->n];
    if (e->n == TD_ENERGY_SOURCES_MAX)
        return NULL;
    *s = (source){.is_power = is_power};
    if (!join(s->path, directory, file) || !read_number(s->path, &s->last))
        return NULL;
    e->n++;
    return s;
}

/* Packages are whole sockets; of their parts memory alone is not in them. */
static void find_rapl(td_energy *e)
{
    char directory[PATH_BYTES / 2], path[PATH_BYTES], name[32];
    for (uint32_t i = 0; i < ZONES_MAX; i++)
        for (uint32_t k = 0; k <= ZONES_MAX; k++) {
            bool is_package = k == 0;
            int n = is_package ? snprintf(directory, sizeof directory,
                                          "%s/class/powercap/intel-rapl:%u", e->root, i)
                               : snprintf(directory, sizeof directory,
                                          "%s/class/powercap/intel-rapl:%u:%u", e->root, i, k - 1);
            if (n >= (int)sizeof directory || !join(path, directory, "name") ||
                !read_line(path, name, sizeof name) ||
                strncmp(name, is_package ? "package" : "dram", 4))
                continue;
            source *s = add_source(e, directory, "energy_uj", false);
            if (!s)
                continue;
            if (is_package)
                snprintf(s->info.name, sizeof s->info.name, "%s", name);
            else
                snprintf(s->info.name, sizeof s->info.name, "%s-%u", name, i);
            if (join(path, directory, "max_energy_range_uj"))
                read_number(path, &s->range_uj);
        }
}

/* hwmons of devices whose PCI class is a display controller's. */
static void find_gpus(td_energy *e)
{
    static const struct {
        const char *file;
        bool is_power;
    } files[] = {{"energy1_input", false}, {"power1_input", true}, {"power1_average", true}};
    char directory[PATH_BYTES / 2], path[PATH_BYTES], class[32], name[32], real[PATH_MAX];
    for (uint32_t i = 0; i < HWMONS_MAX; i++) {
        if (snprintf(directory, sizeof directory, "%s/class/hwmon/hwmon%u", e->root, i) >=
                (int)sizeof directory ||
            !join(path, directory, "device/class") || !read_line(path, class, sizeof class) ||
            strncmp(class, "0x03", 4) || !join(path, directory, "name") ||
            !read_line(path, name, sizeof name))
            continue;
        source *s = NULL;
        for (size_t k = 0; !s && k < sizeof files / sizeof *files; k++)
            s = add_source(e, directory, files[k].file, files[k].is_power);
        if (!s)
            continue;
        s->info.is_gpu = true;
        const char *slash = join(path, directory, "device") && realpath(path, real)
                                ? strrchr(real, '/')
                                : NULL; /* the PCI address, which tells two cards apart */
        snprintf(s->info.name, sizeof s->info.name, "%s%s%.48s", name, slash ? " " : "",
                 slash ? slash + 1 : "");
    }
}

static void take_sample(td_energy *e)
{
    const td_clock clock = td_clock_real();
    uint64_t now_us = td_clock_now_us(&clock);
    for (uint32_t i = 0; i < e->n; i++) {
        source *s = &e->sources[i];
        uint64_t value;
        if (!read_number(s->path, &value)) {
            s->joules = NAN;
        } else if (s->is_power) { /* the mean of both ends, over the time between */
            s->joules += ((double)s->last + (double)value) / 2 * 1e-6 *
                         (double)(now_us - e->sampled_us) * 1e-6;
            s->last = value;
        } else {
            double wrapped = s->range_uj > s->last ? (double)(s->range_uj - s->last) : 0;
            s->joules +=
                1e-6 * (value >= s->last ? (double)(value - s->last) : (double)value + wrapped);
            s->last = value;
        }
    }
    e->sampled_us = now_us;
}

static void *sampler_main(void *arg)
{
    td_energy *e = arg;
    pthread_mutex_lock(&e->lock);
    while (!e->is_stopped) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += SAMPLE_NS;
        t.tv_sec += t.tv_nsec / 1000000000;
        t.tv_nsec %= 1000000000;
        if (pthread_cond_timedwait(&e->stop, &e->lock, &t) == ETIMEDOUT)
            take_sample(e);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

td_energy *td_energy_open(const char *root, td_err *err)
{
    td_energy *e = td_alloc(1, sizeof *e, err);
    if (!e)
        return NULL;
    e->root = root ? root : getenv("TD_SYSFS");
    if (!e->root)
        e->root = "/sys";
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->stop, NULL);
    const td_clock clock = td_clock_real();
    e->sampled_us = td_clock_now_us(&clock);
    find_rapl(e);
    find_gpus(e);
    if (e->n) {
        e->is_thread = !pthread_create(&e->thread, NULL, sampler_main, e);
        if (!e->is_thread) {
            td_err_set(err, TD_E_NOMEM, "energy: no thread");
            td_energy_close(&e);
        }
    }
    return e;
}

void td_energy_close(td_energy **energy)
{
    td_energy *e = *energy;
    if (!e)
        return;
    if (e->is_thread) {
        pthread_mutex_lock(&e->lock);
        e->is_stopped = true;
        pthread_cond_signal(&e->stop);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    pthread_cond_destroy(&e->stop);
    pthread_mutex_destroy(&e->lock);
    td_free(e);
    *energy = NULL;
}

uint32_t td_energy_count(const td_energy *e) { return e ? e->n : 0; }

const td_energy_source *td_energy_source_at(const td_energy *e, uint32_t i)
{
    return &e->sources[i].info;
}

void td_energy_read(td_energy *e, double joules[TD_ENERGY_SOURCES_MAX])
{
    if (!e)
        return;
    pthread_mutex_lock(&e->lock);
    take_sample(e);
    for (uint32_t i = 0; i < e->n; i++)
        joules[i] = e->sources[i].joules;
    pthread_mutex_unlock(&e->lock);
}
