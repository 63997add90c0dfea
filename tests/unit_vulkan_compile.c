/* Every shader in every specialization compiles on the driver at hand, or on those the script
 * check_radv.sh names, and none spills registers. RADV tells registers and scratch memory; with
 * TD_VERBOSE=1 all are printed, with TD_TABLE=1 a table row each (scripts/shader_stats.sh).
 *
 * With arguments it compiles a shader that is not ours: FILE.spv NAME LANES CONSTANT... */
#include "kernels/backend.h"
#include "kernels/vulkan/probe.h"
#include "kernels/vulkan/vk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t n_compiled, n_spilling, n_most_vgprs, n_most_shared;
static char most_vgprs[128];

static uint32_t count(const char *from, const char *end, const char *what)
{
    uint32_t n = 0;
    for (const char *at = from; (at = strstr(at, what)) && at < end; at++)
        n++;
    return n;
}

#define SPANS_MAX 512u

/* Code between a branch and its target: a loop, or what a branch ahead may leave out. */
typedef struct {
    const char *begin, *end;
    double factor; /* of a branch ahead: how often what is between is taken; 0: a loop */
} span;

static void add_span(span *spans, uint32_t *n, span s)
{
    for (uint32_t i = 0; i < *n && s.factor == 0; i++)
        if (spans[i].factor == 0 && spans[i].begin == s.begin) { /* another branch to the same */
            spans[i].end = s.end > spans[i].end ? s.end : spans[i].end;
            return;
        }
    if (*n < SPANS_MAX)
        spans[(*n)++] = s;
}

static uint32_t list_spans(const char *text, span spans[SPANS_MAX])
{
    uint32_t n = 0;
    for (const char *at = text; (at = strstr(at, "branch")); at++) {
        char kind[16], label[24];
        int block;
        if (sscanf(at, "branch%15[_a-z0-9] BB%d", kind, &block) != 2) {
            kind[0] = '\0';
            if (sscanf(at, "branch BB%d", &block) != 1)
                continue;
        }
        snprintf(label, sizeof label, "\nBB%d:", block);
        const char *target = strstr(text, label);
        if (target && target < at)
            add_span(spans, &n, (span){target, at, 0});
        else if (target)
            add_span(spans, &n, (span){at, target, strstr(kind, "exec") ? 0.75 : 0.5});
    }
    return n;
}

typedef struct {
    uint32_t n_instructions, n_dot4, n_fma;
} loop;

/* Of the innermost loops the one with most products: of bytes, if it has any. */
static loop find_loop(const span *spans, uint32_t n)
{
    loop best = {0};
    for (uint32_t i = 0; i < n; i++) {
        bool is_inner = spans[i].factor == 0;
        for (uint32_t k = 0; k < n; k++)
            is_inner &= k == i || spans[k].factor > 0 || spans[k].begin < spans[i].begin ||
                        spans[k].begin > spans[i].end;
        const char *at = spans[i].begin, *end = spans[i].end;
        if (!is_inner)
            continue;
        loop l = {.n_instructions = count(at, end, "; "),
                  .n_dot4 = count(at, end, "v_dot4"),
                  .n_fma = count(at, end, "v_fma") + count(at, end, "v_dual_fma") +
                           2 * count(at, end, "v_pk_fma")};
        if (l.n_dot4 != best.n_dot4 ? l.n_dot4 > best.n_dot4 : l.n_fma > best.n_fma)
            best = l;
    }
    return best;
}

/* How often the compiler's guess takes what is at `at`: a loop 8 times, one within it 4 times as
 * often, each further one 2 times; what depends on a condition half as often, or three quarters if
 * lanes differ in it. A branch out of a loop is no condition. */
static double guess_turns(const span *spans, uint32_t n, const char *at)
{
    double turns = 1;
    for (uint32_t i = 0, depth = 0; i < n; i++) {
        bool is_out = false;
        for (uint32_t k = 0; k < n && spans[i].factor > 0; k++)
            is_out |= spans[k].factor == 0 && spans[i].begin > spans[k].begin &&
                      spans[i].begin < spans[k].end && spans[i].end > spans[k].end;
        if (is_out || at <= spans[i].begin || at >= spans[i].end)
            continue;
        turns *= spans[i].factor > 0 ? spans[i].factor : depth == 0 ? 8 : depth == 1 ? 4 : 2;
        depth += spans[i].factor == 0;
    }
    return turns;
}

/* Multiply-adds of a lane by the guess that inverse throughput rests on. Where bytes are
 * multiplied, others are of scales, and do not count. */
static double guess_products(const char *text, const span *spans, uint32_t n_spans)
{
    static const struct {
        const char *name;
        uint32_t n, is_int8;
    } kinds[] = {{"v_dot4", 4, 1},   {"v_fma", 1, 0},   {"v_dual_fma", 1, 0},
                 {"v_pk_fma", 2, 0}, {"v_mad_f", 1, 0}, {"v_mac_f", 1, 0}};
    double n[2] = {0, 0};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (const char *at = text; (at = strstr(at, kinds[k].name)); at++)
            n[kinds[k].is_int8] += guess_turns(spans, n_spans, at) * kinds[k].n;
    return n[1] > 0 ? n[1] : n[0];
}

/* | shader | VGPRs | SGPRs | spills | subgroups | LDS | instructions | latency |
 * inverse throughput | v_dot4 | 16-byte loads | instructions per weight |
 * cycles per multiply-add | */
static void print_row(const td_vulkan_pipeline_info *info)
{
    const char *text = info->assembly ? info->assembly : "", *end = text + strlen(text);
    uint32_t n_rows = 0;
    bool is_product = !strncmp(info->shader, "mat_", 4) || !strncmp(info->shader, "mul_", 4);
    char name[128], per_weight[16] = "", per_product[16] = "";
    static span spans[SPANS_MAX];
    uint32_t n_spans = list_spans(text, spans);
    loop l = find_loop(spans, n_spans);
    uint32_t n_products = l.n_dot4 ? 4 * l.n_dot4 : l.n_fma;
    double n_guessed = guess_products(text, spans, n_spans);
    if (is_product && n_guessed > 0)
        snprintf(per_product, sizeof per_product, "%.2f", info->inverse_throughput / n_guessed);
    snprintf(name, sizeof name, "%s", info->shader);
    if (is_product && sscanf(info->shader, "%*s %u", &n_rows) == 1 && n_products &&
        strstr(info->shader, "mat_vec"))
        snprintf(per_weight, sizeof per_weight, "%.2f",
                 (double)l.n_instructions * n_rows / n_products);
    uint32_t n_loads =
        count(text, end, "buffer_load_b128") - count(text, end, "s_buffer_load_b128");
    n_loads += count(text, end, "buffer_load_dwordx4") - count(text, end, "s_buffer_load_dwordx4");
    printf("| %s | %u | %u | %u | %u | %u | %u | %u | %u | %u | %u | %s | %s |\n", name,
           info->n_vgprs, info->n_sgprs, info->n_spilled + info->scratch_bytes, info->n_waves,
           info->lds_bytes, info->n_instructions, info->latency, info->inverse_throughput,
           count(text, end, "v_dot4"), n_loads, per_weight, per_product);
}

static void visit(const td_vulkan_pipeline_info *info, void *context)
{
    (void)context;
    bool is_spilling = info->has_statistics && (info->n_spilled || info->scratch_bytes);
    n_compiled++;
    n_spilling += is_spilling;
    n_most_shared = info->lds_bytes > n_most_shared ? info->lds_bytes : n_most_shared;
    if (info->n_vgprs > n_most_vgprs) {
        n_most_vgprs = info->n_vgprs;
        snprintf(most_vgprs, sizeof most_vgprs, "%s", info->shader);
    }
    if (getenv("TD_TABLE"))
        print_row(info);
    else if (is_spilling || getenv("TD_VERBOSE"))
        printf("%-28s vgprs %3u sgprs %3u spilled %u scratch %u lds %u code %u waves %u%s\n",
               info->shader, info->n_vgprs, info->n_sgprs, info->n_spilled, info->scratch_bytes,
               info->lds_bytes, info->code_bytes, info->n_waves, is_spilling ? "  SPILLS" : "");
}

/* FILE NAME LANES CONSTANT...; the constants are numbered from 0. */
static int compile_file(int argc, char **argv)
{
    uint32_t spec[16], n_spec = 0;
    td_err err = {0};
    FILE *file = fopen(argv[1], "rb");
    static uint32_t words[1 << 20];
    size_t n_words = file ? fread(words, sizeof *words, sizeof words / sizeof *words, file) : 0;
    if (file)
        fclose(file);
    for (int i = 4; i < argc && n_spec < 16; i++)
        spec[n_spec++] = (uint32_t)strtoul(argv[i], NULL, 10);
    td_vulkan_module m = {argv[2], words,  n_words,
                          spec,    n_spec, (uint32_t)strtoul(argv[3], NULL, 10)};
    if (!n_words || !td_vulkan_compile_module("0", &m, visit, NULL, &err)) {
        fprintf(stderr, "%s: %s\n", argv[1], n_words ? err.message : "cannot be read");
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 3)
        return compile_file(argc, argv);
    td_device_info info;
    td_err err = {0};
    if (!td_vulkan_list(&info, 1)) {
        fprintf(stderr, "skipped: no Vulkan device\n");
        return 77;
    }
    if (!td_vulkan_compile_all("0", visit, NULL, &err)) {
        fprintf(stderr, "%s: %s\n", info.name, err.message);
        return 1;
    }
    fprintf(getenv("TD_TABLE") ? stderr : stdout,
            "%s, %s: %u pipelines, %u spill registers; most VGPRs: %u (%s)\n", info.name,
            info.driver, n_compiled, n_spilling, n_most_vgprs,
            n_most_vgprs ? most_vgprs : "not told");
    /* What kernels/vulkan/limits.c asks of a device; 0 where a driver does not tell. */
    if (n_most_shared > TD_VK_SHARED_BYTES)
        fprintf(stderr, "%u bytes are shared; TD_VK_SHARED_BYTES says %u\n", n_most_shared,
                TD_VK_SHARED_BYTES);
    return n_spilling || n_most_shared > TD_VK_SHARED_BYTES ? 1 : 0;
}
