/* The C side of kernels/shaders/inc/push.glsl, which is valid in both languages. */
#ifndef TD_KERNELS_VULKAN_PUSH_H
#define TD_KERNELS_VULKAN_PUSH_H

#include <stdint.h>

#define uint uint32_t
#include "kernels/shaders/inc/push.glsl"
#undef uint

#define TD_VK_PUSH_BYTES_MAX 128u /* the least maxPushConstantsSize Vulkan allows */

#endif
