/* Exact arithmetic in shaders (law 1): SPIR-V in, SPIR-V out, with every floating-point operation
 * decorated NoContraction. Without it a driver may fuse, split or rearrange operations, and may do
 * so in one specialization of a shader and not in the other. GLSL's `precise` says this too, but
 * glslang does not pass it on to fma(), and it does not reach through function calls. */
#ifndef TD_KERNELS_VULKAN_EXACT_H
#define TD_KERNELS_VULKAN_EXACT_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* A module of our own build, copied with the decorations added; to be freed with td_free. NULL with
 * err set when there is no memory, TD_E_BUG when the words are not a module. */
uint32_t *td_vk_exact_module(const uint32_t *words, size_t n_words, size_t *n_out, td_err *err);

#endif
