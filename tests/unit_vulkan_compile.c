/* Every shader in every specialization compiles on the driver at hand, or on those the script
 * check_radv.sh names, and none spills registers. RADV tells registers and scratch memory; with
 * TD_VERBOSE=1 all are printed. */
#include "kernels/backend.h"
#include "kernels/vulkan/inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t n_compiled, n_spilling, n_most_vgprs;
static char most_vgprs[128];

static void visit(const td_vulkan_pipeline_info *info, void *context)
{
    (void)context;
    bool is_spilling = info->has_statistics && (info->n_spilled || info->scratch_bytes);
    n_compiled++;
    n_spilling += is_spilling;
    if (info->n_vgprs > n_most_vgprs) {
        n_most_vgprs = info->n_vgprs;
        snprintf(most_vgprs, sizeof most_vgprs, "%s", info->shader);
    }
    if (is_spilling || getenv("TD_VERBOSE"))
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
    printf("%s, %s: %u pipelines, %u spill registers; most VGPRs: %u (%s)\n", info.name,
           info.driver, n_compiled, n_spilling, n_most_vgprs,
           n_most_vgprs ? most_vgprs : "not told");
    return n_spilling ? 1 : 0;
}
