/* Layouts of weights and cache rows in device memory, and the repacking of a file's rows into
 * them: units of 16 bytes, those of 64 rows side by side, as a shader's lanes read them.
 * kernels/shaders/inc/README describes the layouts; inc/quant.glsl and inc/kv.glsl decode them.
 * Pure functions without errors or allocations; any thread. */
#ifndef TD_KERNELS_VULKAN_PACK_H
#define TD_KERNELS_VULKAN_PACK_H

#include "kernels/types.h"

#define TD_VK_UNIT_BYTES 16u
#define TD_VK_PANEL_ROWS 64u /* TD_VK_PANEL of the shaders */

/* Units of 16 bytes of a packed weight row, padding to whole blocks or quads included. n_cols is a
 * multiple of the type's block. */
uint32_t td_vk_row_units(const td_type_info *type, uint32_t n_cols);

/* Rows of a panel of a weight of n_rows: 64, or 1 for a vector, which so stays an array of its
 * elements. A weight is a sequence of panels, the last one padded. */
uint32_t td_vk_panel_rows(uint32_t n_rows);

/* Bytes of n_rows packed rows, without the codebook. */
uint64_t td_vk_packed_bytes(const td_type_info *type, uint32_t n_rows, uint32_t n_cols);

/* What stands in front of a weight's rows, in each of its slabs: the codebook of some types. Its
 * bytes, a multiple of 256; 0 and *codebook NULL where there is none. Static storage. */
uint32_t td_vk_codebook(const td_type_info *type, const void **codebook);

/* Packs n_rows rows of the file's layout (td_row_bytes each, unaligned) into rows lane0.. of the
 * panel of `height` rows at `dst`: unit u of row r is at byte (u * height + r) * 16. Each byte of
 * these rows is written once, in ascending order; other rows are left alone. */
void td_vk_pack_rows(const td_type_info *type, const void *src, uint32_t n_rows, uint32_t n_cols,
                     uint32_t height, uint32_t lane0, void *dst);

/* Words of a cache row of one head: head_dim padded to 16 bytes and to the type's block, and its
 * scales. A page's rows of one head take TD_PAGE_POSITIONS times that and begin at a multiple of
 * it (a multiple of 256 bytes); inside they are ordered as inc/kv.glsl says. */
uint32_t td_vk_kv_row_words(const td_type_info *type, uint32_t head_dim);

#endif
