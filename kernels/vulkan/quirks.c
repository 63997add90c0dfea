/* Driver quirks, one row each: who has it, up to which driver version, what we do about it, and
 * where it is known from. A row goes when no driver in the field needs it. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"

#include <stdio.h>

#define ANY_VERSION UINT32_MAX

static const struct {
    uint32_t vendor; /* VkPhysicalDeviceProperties.vendorID */
    VkDriverId driver;
    uint32_t first_version, last_version; /* driverVersion, inclusive */
    uint32_t quirk;
    const char *name;
    const char *link;
} quirks[] = {
    /* They report cooperative matrices on GPUs that have none. */
    {0x1002, VK_DRIVER_ID_AMD_PROPRIETARY, 0, ANY_VERSION, TD_VK_QUIRK_NO_COOPMAT, "no-coopmat",
     "https://github.com/ggml-org/llama.cpp, ggml_vk_khr_cooperative_matrix_support"},
    {0x1002, VK_DRIVER_ID_AMD_OPEN_SOURCE, 0, ANY_VERSION, TD_VK_QUIRK_NO_COOPMAT, "no-coopmat",
     "https://github.com/ggml-org/llama.cpp, ggml_vk_khr_cooperative_matrix_support"},
    /* It has VK_EXT_external_memory_host, but says of no buffer that it imports. */
    {0x1ae0, VK_DRIVER_ID_GOOGLE_SWIFTSHADER, 0, ANY_VERSION, TD_VK_QUIRK_IMPORTS, "imports",
     "https://swiftshader.googlesource.com/SwiftShader, VkDeviceMemoryExternalHost.hpp"},
};

uint32_t td_vk_quirks_find(uint32_t vendor, VkDriverId driver, uint32_t version, char *names,
                           size_t n_names)
{
    uint32_t found = 0;
    size_t n = 0;
    names[0] = 0;
    for (size_t i = 0; i < TD_COUNT(quirks); i++) {
        if (quirks[i].vendor != vendor || quirks[i].driver != driver ||
            version < quirks[i].first_version || version > quirks[i].last_version)
            continue;
        found |= quirks[i].quirk;
        int written = snprintf(names + n, n_names - n, "%s%s", n ? "," : "", quirks[i].name);
        n = td_min_u32((uint32_t)(n + (size_t)written), (uint32_t)n_names - 1);
    }
    return found;
}
