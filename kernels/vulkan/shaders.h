/* The compiled shaders (cmake/shaders.cmake), by name: "add", "mat_vec.Q4_K". Immutable. */
#ifndef TD_KERNELS_VULKAN_SHADERS_H
#define TD_KERNELS_VULKAN_SHADERS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name;
    const uint32_t *words;
    const size_t *n_words;
} td_shader;

const td_shader *td_shader_find(const char *name); /* NULL when there is none */
const td_shader *td_shader_list(uint32_t *n);

#endif
