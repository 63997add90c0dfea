/* The layouts of quantized weight rows, a row of the table each, and how a block of the file is
 * taken apart into them. kernels/shaders/inc/README describes them; inc/quant_types.glsl is the
 * shaders' copy of the table. Internal to pack.c. */
#ifndef TD_KERNELS_VULKAN_PACK_TYPES_H
#define TD_KERNELS_VULKAN_PACK_TYPES_H

#include <stdbool.h>
#include <stdint.h>

typedef struct td_vk_layout td_vk_layout;

typedef struct { /* the units of a group of 8 blocks of 32 elements, zeroed */
    const td_vk_layout *layout;
    uint8_t *head;  /* layout->head bytes */
    uint8_t *quads; /* of 4 blocks: their low planes, then their high planes */
} td_vk_group;

struct td_vk_layout {
    uint32_t id;      /* td_type */
    bool is_in_order; /* nibbles that are looked up two by two */
    uint8_t low;      /* bytes of a block of 32 elements: 4, 8, 16 or 32 */
    uint8_t high;     /* 0, 4 or 8 */
    uint8_t head;     /* bytes of scales that lead a group of 256 elements: 0, 16 or 32 */
    uint8_t tail;     /* bytes of a file's block that follow the row's groups: 0, 2, 4 or 8 */
    uint8_t tail_at;  /* where they are in the file's block */
    /* One block of the file, which begins with block b of the group. */
    void (*split)(const uint8_t *in, uint32_t b, const td_vk_group *out);
    const uint16_t *codebook; /* or NULL */
    uint32_t n_codebook;
};

/* The row of a type; NULL for one that is not packed in groups (F32, F16, BF16). */
const td_vk_layout *td_vk_layout_find(uint32_t type_id);

#endif
