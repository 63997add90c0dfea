/* What the machine says of itself (/proc), and how fast its memory is read. */
#include "kernels/host/host.h"

#include "base/check.h"
#include "base/mem.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BANDWIDTH_BYTES   (256u << 20)
#define BANDWIDTH_SECONDS 0.5

/* The value of the line "key<blanks>: value", cut to fit; false when it is another line. */
static bool match_line(const char *line, const char *key, char *out, size_t out_size)
{
    size_t n = strlen(key);
    if (strncmp(line, key, n) || (line[n] != ':' && !isspace((unsigned char)line[n])))
        return false;
    const char *value = strchr(line, ':');
    if (!value)
        return false;
    value++;
    value += strspn(value, " \t");
    size_t length = strcspn(value, "\n");
    if (length >= out_size)
        length = out_size - 1;
    memcpy(out, value, length);
    out[length] = 0;
    return true;
}

void td_host_read_cpu(char *name, size_t name_size, char *vendor, size_t vendor_size)
{
    snprintf(name, name_size, "unknown CPU");
    vendor[0] = 0;
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f)
        return;
    char line[1024];
    bool has_name = false;
    while (!has_name && fgets(line, sizeof line, f)) {
        match_line(line, "vendor_id", vendor, vendor_size);
        has_name = match_line(line, "model name", name, name_size);
    }
    fclose(f);
}

void td_host_read_memory(uint64_t *n_bytes, uint64_t *available_bytes)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    *n_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * page;
    *available_bytes = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * page;
    FILE *f = fopen("/proc/meminfo", "re");
    if (!f)
        return;
    char line[256], value[64];
    unsigned long long kib;
    while (fgets(line, sizeof line, f)) /* counts the page cache that can be given up */
        if (match_line(line, "MemAvailable", value, sizeof value) &&
            sscanf(value, "%llu kB", &kib) == 1)
            *available_bytes = (uint64_t)kib << 10;
    fclose(f);
}

typedef uint64_t words __attribute__((vector_size(16)));

typedef struct {
    td_pool *pool;
    const words *at;
    size_t n_bytes;
    _Atomic uint64_t sum; /* so that the reads are not optimized away */
} read_job;

static void read_part(void *arg, uint32_t phase, uint32_t part)
{
    (void)phase;
    read_job *job = arg;
    size_t n_threads = td_pool_count(job->pool), n_lines = job->n_bytes / 64;
    const words *p = job->at + n_lines * part / n_threads * 4;
    const words *end = job->at + n_lines * (part + 1) / n_threads * 4;
    words a = {0}, b = {0}, c = {0}, d = {0}; /* no chain that takes longer than memory */
    for (; p < end; p += 4) {
        a += p[0];
        b += p[1];
        c += p[2];
        d += p[3];
    }
    a += b + c + d;
    job->sum += a[0] + a[1];
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

bool td_host_measure_bandwidth(td_device *base, double *bytes_per_s, td_err *err)
{
    td_host_device *dev = (td_host_device *)base;
    if (!dev->pool)
        return td_err_set(err, TD_E_USAGE, "the scalar device is not measured");
    uint64_t n_bytes = BANDWIDTH_BYTES;
    while (n_bytes > (1u << 20) && n_bytes > (base->budget_bytes - base->used_bytes) / 2)
        n_bytes /= 2;
    void *buffer = td_alloc(n_bytes, 1, err);
    if (!buffer)
        return false;
    td_host_use_huge_pages(buffer, n_bytes); /* as weights do */
    memset(buffer, 1, n_bytes);              /* else all of it is one page of zeros */
    read_job job = {.pool = dev->pool, .at = buffer, .n_bytes = n_bytes};
    double best = 0, start = seconds_now(), before = start;
    do {
        td_pool_run(dev->pool, 1, read_part, &job);
        double after = seconds_now(), rate = (double)n_bytes / (after - before);
        best = rate > best ? rate : best;
        before = after;
    } while (before - start < BANDWIDTH_SECONDS);
    td_free(buffer);
    *bytes_per_s = best;
    return true;
}
