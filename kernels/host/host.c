/* The host device: creation, the SIMD level, memory accounting, tensors. */
#include "kernels/host/host.h"
#include "kernels/host/recurrent.h"

#include "base/check.h"
#include "base/mem.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
    const char *name; /* as TD_HOST_ISA has it */
    const td_host_kernels *kernels;
    bool (*is_there)(void);
} level;

static bool is_always(void) { return true; }

#if defined(__x86_64__)

static bool has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

static bool has_avxvnni(void)
{
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

#endif

/* The lowest first. */
static const level levels[] = {
    {"generic", &td_host_kernels_generic, is_always},
#if defined(__x86_64__)
    {"avx2", &td_host_kernels_avx2, has_avx2},
    {"avxvnni", &td_host_kernels_avxvnni, has_avxvnni},
    {"avx512", &td_host_kernels_avx512, has_avx512},
#endif
};

static bool is_level(const char *name)
{
    static const char *const names[] = {"generic", "avx2", "avxvnni", "avx512"};
    for (size_t i = 0; i < TD_COUNT(names); i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

const td_host_kernels *td_host_find_kernels(td_err *err)
{
    const char *wanted = getenv("TD_HOST_ISA");
    if (wanted && *wanted && !is_level(wanted)) {
        td_err_set(
            err, TD_E_USAGE,
            "environment variable TD_HOST_ISA is \"%.32s\"; allowed: generic, avx2, avxvnni, "
            "avx512",
            wanted);
        return NULL;
    }
    const td_host_kernels *best = NULL;
    for (size_t i = 0; i < TD_COUNT(levels); i++) {
        if (levels[i].is_there())
            best = levels[i].kernels;
        if (wanted && !strcmp(wanted, levels[i].name))
            break;
    }
    return best;
}

bool td_host_reserve(td_device *dev, uint64_t n_bytes, td_err *err)
{
    if (n_bytes > dev->budget_bytes - dev->used_bytes) {
        return td_err_set(err, TD_E_NOMEM,
                          "out of host memory: %llu bytes wanted, %llu of %llu available are taken",
                          (unsigned long long)n_bytes, (unsigned long long)dev->used_bytes,
                          (unsigned long long)dev->budget_bytes);
    }
    dev->used_bytes += n_bytes;
    return true;
}

void td_host_release(td_device *dev, uint64_t n_bytes) { dev->used_bytes -= n_bytes; }

/* They come faster when they are fresh, and a stream takes fewer walks of the page tables. */
void td_host_use_huge_pages(void *begin, uint64_t n_bytes)
{
#if defined(MADV_HUGEPAGE)
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)begin + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)begin + n_bytes) / page * page;
    if (first < end)
        (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)begin;
    (void)n_bytes;
#endif
}

static uint64_t tensor_bytes(const td_tensor *t)
{
    return (uint64_t)t->params.n_rows * t->params.n_cols * 4;
}

bool td_host_tensor_init(td_tensor *t, td_err *err)
{
    if (!td_host_reserve(t->dev, tensor_bytes(t), err))
        return false;
    t->data = td_alloc(tensor_bytes(t), 1, err);
    if (!t->data)
        td_host_release(t->dev, tensor_bytes(t));
    return t->data != NULL;
}

void td_host_tensor_free(td_tensor *t)
{
    if (t->data)
        td_host_release(t->dev, tensor_bytes(t));
    td_free(t->data);
}

void td_host_device_destroy(td_device *base)
{
    td_host_device *dev = (td_host_device *)base;
    td_pool_destroy(&dev->pool);
    td_free(dev);
}

static const td_backend host_backend = {
    .tensor_size = sizeof(td_tensor),
    .weight_size = sizeof(td_host_weight),
    .kv_size = sizeof(td_host_kv),
    .device_destroy = td_host_device_destroy,
    .tensor_init = td_host_tensor_init,
    .tensor_free = td_host_tensor_free,
    .weight_init = td_host_weight_init,
    .weight_free = td_host_weight_free,
    .weight_write = td_host_weight_write,
    .weight_bytes = td_host_weight_bytes,
    .kv_init = td_host_kv_init,
    .kv_free = td_host_kv_free,
    .kv_bytes = td_host_kv_bytes,
    .state_size = sizeof(td_host_state),
    .state_init = td_host_state_init,
    .state_free = td_host_state_free,
    .state_bytes = td_host_state_bytes,
    .cut_ranges = td_host_cut_ranges,
    .program_size = sizeof(td_host_program),
    .program_compile = td_host_program_compile,
    .program_run = td_host_program_run,
    .program_free = td_host_program_free,
    .measure_bandwidth = td_host_measure_bandwidth,
};

/* CPUs this process may run on. */
static uint32_t count_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return (uint32_t)CPU_COUNT(&set);
    return 1;
}

/* One "a" or "a-b" of a list of CPUs; *text moves past it and a comma. */
static bool read_cpus(const char **text, unsigned long *first, unsigned long *last)
{
    char *end;
    bool is_ok = (*text)[0] >= '0' && (*text)[0] <= '9';
    *first = *last = strtoul(*text, &end, 10);
    if (*end == '-') {
        is_ok &= end[1] >= '0' && end[1] <= '9';
        *last = strtoul(end + 1, &end, 10);
    }
    is_ok &= *first <= *last && *last < CPU_SETSIZE && (!*end || (*end == ',' && end[1]));
    *text = *end ? end + 1 : end;
    return is_ok;
}

bool td_host_pin(td_device *base, const char *text, td_err *err)
{
    td_host_device *dev = (td_host_device *)base;
    uint32_t cpus[CPU_SETSIZE], n = 0;
    cpu_set_t allowed, taken;
    CPU_ZERO(&taken);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return td_err_set(err, TD_E_IO, "cannot read the CPUs of this process");
    for (const char *at = text; *at || at == text;) {
        unsigned long first, last;
        if (!read_cpus(&at, &first, &last))
            return td_err_set(err, TD_E_USAGE,
                              "CPUs \"%.64s\": a list like 0-3,8 of numbers below %d", text,
                              CPU_SETSIZE);
        for (unsigned long cpu = first; cpu <= last; cpu++) {
            if (!CPU_ISSET(cpu, &allowed) || CPU_ISSET(cpu, &taken))
                return td_err_set(err, TD_E_USAGE, "CPUs \"%.64s\": %lu %s", text, cpu,
                                  CPU_ISSET(cpu, &taken) ? "is given twice"
                                                         : "is none this process may use");
            CPU_SET(cpu, &taken);
            cpus[n++] = (uint32_t)cpu;
        }
    }
    if (n < dev->base.info.n_threads)
        return td_err_set(err, TD_E_USAGE, "CPUs \"%.64s\": %u for %u threads", text, n,
                          dev->base.info.n_threads);
    td_pool_pin(dev->pool, cpus);
    return true;
}

td_device *td_host_create(uint32_t n_threads, bool is_scalar, td_err *err)
{
    td_host_device *dev = td_alloc(1, sizeof *dev, err);
    if (!dev)
        return NULL;
    dev->base.backend = is_scalar ? &td_scalar_backend : &host_backend;
    td_device_info *info = &dev->base.info;
    td_host_describe(info);
    dev->base.budget_bytes = info->capacity.most_bytes;
    if (is_scalar) {
        snprintf(info->spec, sizeof info->spec, "scalar");
        snprintf(info->driver, sizeof info->driver, "plain C, the reference of the op tests");
        info->n_threads = 1;
        info->has_f16 = info->has_int8_dot = false;
        snprintf(info->id, sizeof info->id, "%s", info->spec);
        return &dev->base;
    }
    dev->kernels = td_host_find_kernels(err);
    if (!dev->kernels)
        goto fail;
    info->n_threads = n_threads ? n_threads : count_cpus();
    if (n_threads)
        snprintf(info->spec, sizeof info->spec, "host:%u", n_threads);
    snprintf(info->id, sizeof info->id, "%s", info->spec);
    dev->pool = td_pool_create(info->n_threads, err);
    if (!dev->pool)
        goto fail;
    return &dev->base;
fail:
    td_host_device_destroy(&dev->base);
    return NULL;
}

void td_host_describe(td_device_info *info)
{
    *info =
        (td_device_info){.kind = TD_DEVICE_HOST, .is_usable = true, .spec = "host", .id = "host"};
    td_host_read_cpu(info->name, sizeof info->name, info->vendor, sizeof info->vendor);
    const td_host_kernels *kernels = td_host_find_kernels(NULL);
    snprintf(info->driver, sizeof info->driver, "%s", kernels ? kernels->name : "?");
    if (!kernels) {
        info->is_usable = false;
        snprintf(info->why_not, sizeof info->why_not, "TD_HOST_ISA names no SIMD level");
    }
    td_host_read_memory(&info->memory.system_bytes, &info->memory.available_bytes);
    info->memory.n_heaps = 1;
    info->memory.heaps[0].n_bytes = info->memory.system_bytes;
    info->memory.heaps[0].is_device_local = true;
    td_device_weigh(info);
    info->max_buffer_bytes = info->memory.system_bytes;
    info->n_threads = count_cpus();
#if defined(__x86_64__)
    info->has_f16 = kernels && kernels != &td_host_kernels_generic;
    info->has_int8_dot = kernels == &td_host_kernels_avx512 || kernels == &td_host_kernels_avxvnni;
#endif
}
