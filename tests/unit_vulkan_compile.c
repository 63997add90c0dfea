/* Every shader in every specialization compiles on the driver at hand, or on those the script
 * check_radv.sh names, and none spills registers. RADV tells registers and scratch memory; with
 * TD_VERBOSE=1 all are printed, with TD_TABLE=1 a table row each (scripts/shader_stats.sh). */
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

typedef struct {
    uint32_t n_instructions, n_dot4, n_fma;
} loop;

/* The innermost loop that multiplies: from a label to the last branch back to it. A listing has
 * labels "BB3:" and branches "s_branch BB3" or "s_cbranch_scc0 BB3". */
static loop find_loop(const char *assembly)
{
    loop best = {0};
    for (const char *at = assembly; (at = strstr(at, "\nBB")); at++) {
        char branch[32];
        int n = (int)strcspn(at + 1, ":");
        if (n > 8)
            continue;
        snprintf(branch, sizeof branch, " %.*s ", n, at + 1);
        const char *end = NULL;
        for (const char *b = at; (b = strstr(b, branch)); b++) {
            const char *line = b;
            while (line > at && line[-1] != '\n')
                line--;
            if (strstr(line, "branch") && strstr(line, "branch") < b)
                end = b;
        }
        if (!end)
            continue;
        loop l = {.n_instructions = count(at, end, "; "),
                  .n_dot4 = count(at, end, "v_dot4"),
                  .n_fma = count(at, end, "v_fma") + count(at, end, "v_dual_fma")};
        bool has_more = l.n_dot4 && !best.n_dot4, has_less = best.n_dot4 && !l.n_dot4;
        bool is_shorter = !best.n_instructions || l.n_instructions < best.n_instructions;
        if ((l.n_dot4 || l.n_fma) && (has_more || (is_shorter && !has_less)))
            best = l; /* the products' own, not one that unpacks for them */
    }
    return best;
}

/* How often the compiler's guess takes the loop that multiplies: 8 times, 4 times more a loop
 * around it and 2 times more for each around that; products of up to 8 rows have one, mat_tile has
 * three. 0: experts, whose loops depend on more. */
static double find_turns(const char *shader)
{
    uint32_t n_rows, kind;
    if (sscanf(shader, "mat_vec.%*s %u %*u %*u %*u %u", &n_rows, &kind) == 2)
        return kind ? 0 : n_rows <= 8 ? 8 : 32;
    if (sscanf(shader, "mat_tile.%*s %*u %*u %*u %*u %u", &kind) == 1)
        return kind ? 0 : 64;
    return 0;
}

/* | shader | VGPRs | SGPRs | spills | subgroups | LDS | instructions | latency |
 * inverse throughput | v_dot4 | 16-byte loads | instructions per weight |
 * cycles per multiply-add | */
static void print_row(const td_vulkan_pipeline_info *info)
{
    const char *text = info->assembly ? info->assembly : "", *end = text + strlen(text);
    uint32_t n_rows = 0;
    char name[128], per_weight[16] = "", per_product[16] = "";
    loop l = find_loop(text);
    uint32_t n_products = l.n_dot4 ? 4 * l.n_dot4 : l.n_fma;
    double turns = find_turns(info->shader);
    if (n_products && turns > 0)
        snprintf(per_product, sizeof per_product, "%.2f",
                 info->inverse_throughput / (turns * n_products));
    snprintf(name, sizeof name, "%s", info->shader);
    if (sscanf(info->shader, "mat_vec.%*s %u", &n_rows) == 1 && n_products)
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

int main(void)
{
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
