/* Layouts of weights and cache rows in device memory, and the repacking of a file's rows into
 * them: quants and scales lie apart, so that a shader reads quants 16 bytes at a time.
 * kernels/shaders/inc/README describes the layouts; inc/quant_*.glsl and inc/kv.glsl decode them.
 * Pure functions without errors or allocations; any thread. */
#ifndef TD_KERNELS_VULKAN_PACK_H
#define TD_KERNELS_VULKAN_PACK_H

#include "kernels/types.h"

/* Bytes of a packed weight row, a multiple of 16. Rows are packed each on its own, so that any
 * window of rows is a window of bytes. F32 rows are plain floats with padding behind them.
 * n_cols is a multiple of the type's block. */
uint64_t td_vk_packed_row_bytes(const td_type_info *type, uint32_t n_cols);

/* Bytes of n_rows packed rows. */
uint64_t td_vk_packed_bytes(const td_type_info *type, uint32_t n_rows, uint32_t n_cols);

/* Packs n_rows rows of the file's layout (td_row_bytes each, unaligned) into `dst` (aligned to 4;
 * n_rows * td_vk_packed_row_bytes bytes, written once in ascending order, padding zeroed). */
void td_vk_pack_rows(const td_type_info *type, const void *src, uint32_t n_rows, uint32_t n_cols,
                     void *dst);

/* Words of a cache row of one head: head_dim padded to 16 bytes and to the type's block, and its
 * scales. A page's rows of one head take TD_PAGE_POSITIONS times that and begin at a multiple of
 * it (a multiple of 256 bytes); inside they are ordered as inc/kv.glsl says. */
uint32_t td_vk_kv_row_words(const td_type_info *type, uint32_t head_dim);

#endif
