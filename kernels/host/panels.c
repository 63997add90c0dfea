/* Weights of the host device: the file's blocks taken apart into panels (host.h) as rows arrive,
 * and put together again where a single row is wanted (embeddings). pack and unpack are exact
 * inverses block by block, so a row read back decodes to the very same floats. Four types have a
 * layout of their own, from which their kernels compute at once; all others are only interleaved,
 * word by word, and taken apart when they are used. */
#include "kernels/host/host.h"

#include "base/check.h"
#include "base/mem.h"

#include <sys/mman.h>
#include <unistd.h>

typedef struct { /* where a row lies */
    uint8_t *panel;
    uint32_t lane;
} place;

static size_t small_chunk_bytes(size_t n_cols, size_t quant_bytes)
{
    size_t n_blocks = n_cols / 32;
    return (n_blocks + 1) / 2 * (TD_SMALL_SCALES + 2 * quant_bytes);
}

static size_t panel_size(const td_weight_params *p)
{
    size_t n = p->n_cols;
    switch (p->type->id) {
    case TD_TYPE_F32:
        return n * 64;
    case TD_TYPE_F16:
    case TD_TYPE_BF16:
        return (n * 32 + 63) / 64 * 64;
    case TD_TYPE_Q8_0:
        return small_chunk_bytes(n, TD_Q8_0_QUANTS);
    case TD_TYPE_Q4_0:
        return small_chunk_bytes(n, TD_Q4_QUANTS);
    case TD_TYPE_Q4_K:
        return n / 256 * (TD_K_SCALES + 8 * TD_Q4_QUANTS);
    case TD_TYPE_Q6_K:
        return n / 256 * (TD_K_SCALES + 8 * TD_Q6_K_QUANTS);
    default:
        return n / p->type->block_elements * TD_PANEL_ROWS * p->type->block_bytes;
    }
}

static bool is_vector(const td_weight_params *p)
{
    return p->type->id == TD_TYPE_F32 && p->n_rows == 1;
}

uint64_t td_host_weight_bytes(const td_device *dev, const td_weight_params *params)
{
    (void)dev;
    if (is_vector(params))
        return (uint64_t)params->n_cols * sizeof(float);
    return (uint64_t)td_div_up(td_group_rows(params), TD_PANEL_ROWS) *
           td_max_u32(params->n_groups, 1) * panel_size(params);
}

bool td_host_weight_init(td_weight *base, td_err *err)
{
    td_host_weight *w = (td_host_weight *)base;
    uint64_t n_bytes = td_host_weight_bytes(base->dev, &base->params);
    w->is_vector = is_vector(&base->params);
    w->panel_bytes = panel_size(&base->params);
    w->group_rows = td_group_rows(&base->params);
    w->group_panels = td_div_up(w->group_rows, TD_PANEL_ROWS);
    if (!td_host_reserve(base->dev, n_bytes, err))
        return false;
    w->n_bytes = n_bytes;
    w->data = td_alloc(n_bytes, 1, err);
    if (w->data)
        td_host_use_huge_pages(w->data, n_bytes);
    return w->data != NULL;
}

void td_host_weight_free(td_weight *base)
{
    td_host_weight *w = (td_host_weight *)base;
    td_host_release(base->dev, w->n_bytes);
    td_free(w->data);
}

static uint32_t panel_of(const td_host_weight *w, uint32_t row)
{
    return row / w->group_rows * w->group_panels + row % w->group_rows / TD_PANEL_ROWS;
}

/* The row a panel begins with. */
static uint32_t first_row(const td_host_weight *w, uint32_t panel)
{
    return panel / w->group_panels * w->group_rows + panel % w->group_panels * TD_PANEL_ROWS;
}

static place find_place(const td_host_weight *w, uint32_t row)
{
    return (place){w->data + panel_of(w, row) * w->panel_bytes,
                   row % w->group_rows % TD_PANEL_ROWS};
}

/* The row's half in the 16 at `halves`. */
static uint8_t *half_at(place p, uint8_t *halves) { return halves + 2 * p.lane; }

/* Four elements at a time: a row's share of a 64-byte vector. */
static uint32_t load4(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static void store4(uint8_t *p, uint32_t v) { memcpy(p, &v, sizeof v); }

#define BYTES4(b) ((b)*0x01010101u) /* the byte b four times */

static uint64_t load8(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#define BYTES8(b) ((b)*0x0101010101010101u)

/* The row's four bytes of vector i. */
static uint8_t *four_at(place p, uint8_t *vectors, uint32_t i)
{
    return vectors + i * 64u + p.lane * 4;
}

/* Of vectors i and i + 1, those of i low. */
TD_HOST_INLINE void store_two(place p, uint8_t *vectors, uint32_t i, uint64_t v)
{
    store4(four_at(p, vectors, i), (uint32_t)v);
    store4(four_at(p, vectors, i + 1), (uint32_t)(v >> 32));
}

typedef struct { /* a block of Q8_0 or Q4_0 */
    uint8_t *d, *vectors;
} small_block;

static small_block small_at(place p, uint32_t b, size_t quant_bytes)
{
    uint8_t *chunk = p.panel + b / 2 * (TD_SMALL_SCALES + 2 * quant_bytes);
    return (small_block){half_at(p, chunk + b % 2 * 32),
                         chunk + TD_SMALL_SCALES + b % 2 * quant_bytes};
}

static void pack_q8_0(place p, uint32_t b, const uint8_t *block)
{
    small_block to = small_at(p, b, TD_Q8_0_QUANTS);
    memcpy(to.d, block, 2);
    for (uint32_t i = 0; i < 8; i++)
        store4(four_at(p, to.vectors, i), load4(block + 2 + 4 * i) ^ BYTES4(0x80u));
}

static void unpack_q8_0(place p, uint32_t b, uint8_t *block)
{
    small_block from = small_at(p, b, TD_Q8_0_QUANTS);
    memcpy(block, from.d, 2);
    for (uint32_t i = 0; i < 8; i++)
        store4(block + 2 + 4 * i, load4(four_at(p, from.vectors, i)) ^ BYTES4(0x80u));
}

/* The format pairs elements e and e + 16 as we do. */
static void pack_q4_0(place p, uint32_t b, const uint8_t *block)
{
    small_block to = small_at(p, b, TD_Q4_QUANTS);
    memcpy(to.d, block, 2);
    for (uint32_t i = 0; i < 4; i++)
        store4(four_at(p, to.vectors, i), load4(block + 2 + 4 * i));
}

static void unpack_q4_0(place p, uint32_t b, uint8_t *block)
{
    small_block from = small_at(p, b, TD_Q4_QUANTS);
    memcpy(block, from.d, 2);
    for (uint32_t i = 0; i < 4; i++)
        store4(block + 2 + 4 * i, load4(four_at(p, from.vectors, i)));
}

/* Scales and minima of 6 bits: types.c has the layout. */
static void pack_q4_k_scales(place p, uint8_t *chunk, const uint8_t *packed)
{
    uint32_t a = load4(packed), b = load4(packed + 4), c = load4(packed + 8);
    uint32_t low = BYTES4(15u), top = BYTES4(3u);
    const uint32_t fours[4] = {/* scales 0..3 and 4..7, minima 0..3 and 4..7 */
                               a & BYTES4(63u), (c & low) | (a >> 6 & top) << 4, b & BYTES4(63u),
                               (c >> 4 & low) | (b >> 6 & top) << 4};
    UNROLL for (uint32_t i = 0; i < 16; i++) chunk[64 + i * 16 + p.lane] =
        (uint8_t)(fours[i / 4] >> i % 4 * 8);
}

static void unpack_q4_k_scales(place p, const uint8_t *chunk, uint8_t *packed)
{
    memset(packed, 0, 12);
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t scale = chunk[64 + s * 16 + p.lane];
        uint32_t minimum = chunk[192 + s * 16 + p.lane];
        if (s < 4) {
            packed[s] = (uint8_t)scale;
            packed[s + 4] = (uint8_t)minimum;
        } else {
            packed[s + 4] = (uint8_t)((scale & 15u) | (minimum & 15u) << 4);
            packed[s - 4] = (uint8_t)(packed[s - 4] | scale >> 4 << 6);
            packed[s] = (uint8_t)(packed[s] | minimum >> 4 << 6);
        }
    }
}

/* Sub-block s has its nibbles in run s / 2 of 32 bytes, low nibbles for even s. */
static void pack_q4_k(place p, uint32_t b, const uint8_t *block)
{
    uint8_t *chunk = p.panel + b * (size_t)(TD_K_SCALES + 8 * TD_Q4_QUANTS);
    memcpy(half_at(p, chunk), block, 2);
    memcpy(half_at(p, chunk + 32), block + 2, 2);
    pack_q4_k_scales(p, chunk, block + 4);
    for (uint32_t s = 0; s < 8; s += 2) {
        const uint8_t *run = block + 16 + s * 16;
        uint8_t *even = chunk + TD_K_SCALES + s * TD_Q4_QUANTS, *odd = even + TD_Q4_QUANTS;
        for (uint32_t i = 0; i < 4; i += 2) {
            uint64_t first = load8(run + 4 * i), second = load8(run + 16 + 4 * i);
            uint64_t low = BYTES8(15u);
            store_two(p, even, i, (first & low) | (second & low) << 4);
            store_two(p, odd, i, (first >> 4 & low) | (second & ~low));
        }
    }
}

static void unpack_q4_k(place p, uint32_t b, uint8_t *block)
{
    uint8_t *chunk = p.panel + b * (size_t)(TD_K_SCALES + 8 * TD_Q4_QUANTS);
    memset(block, 0, 144);
    memcpy(block, half_at(p, chunk), 2);
    memcpy(block + 2, half_at(p, chunk + 32), 2);
    unpack_q4_k_scales(p, chunk, block + 4);
    for (uint32_t s = 0; s < 8; s++) {
        uint8_t *run = block + 16 + s / 2 * 32;
        uint8_t *vectors = chunk + TD_K_SCALES + s * TD_Q4_QUANTS;
        uint32_t shift = s % 2 * 4;
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t pair = load4(four_at(p, vectors, i));
            uint8_t *low = run + 4 * i, *high = run + 16 + 4 * i;
            store4(low, load4(low) | (pair & BYTES4(15u)) << shift);
            store4(high, load4(high) | ((pair >> 4) & BYTES4(15u)) << shift);
        }
    }
}

/* In each half of 128 elements, group g of 32 has its low bits in low[32 (g % 2) + j], nibble
 * g / 2, and its high bits in high[j], bits 2g. Our block s of 32 is group s % 4 of half s / 4. */
static void pack_q6_k(place p, uint32_t b, const uint8_t *block)
{
    uint8_t *chunk = p.panel + b * (size_t)(TD_K_SCALES + 8 * TD_Q6_K_QUANTS);
    memcpy(half_at(p, chunk), block + 208, 2);
    for (uint32_t i = 0; i < 16; i++)
        chunk[32 + i * 16 + p.lane] = block[192 + i];
    UNROLL for (uint32_t s = 0; s < 8; s++)
    {
        uint32_t g = s % 4, shift = g / 2 * 4;
        const uint8_t *low = block + s / 4 * 64 + g % 2 * 32, *high = block + 128 + s / 4 * 32;
        uint8_t *vectors = chunk + TD_K_SCALES + s * TD_Q6_K_QUANTS;
        uint64_t tops[2] = {0, 0}; /* of elements i and i + 4, then folded */
        for (uint32_t i = 0; i < 4; i += 2) {
            uint64_t first = load8(low + 4 * i) >> shift & BYTES8(15u);
            uint64_t second = load8(low + 16 + 4 * i) >> shift & BYTES8(15u);
            store_two(p, vectors, i, first | second << 4);
            for (uint32_t h = 0; h < 2; h++)
                tops[h] |= (load8(high + 16 * h + 4 * i) >> 2 * g & BYTES8(3u)) << 2 * i;
        }
        for (uint32_t h = 0; h < 2; h++)
            store4(four_at(p, vectors, 4 + h), (uint32_t)tops[h] | (uint32_t)(tops[h] >> 32) << 2);
    }
}

static void unpack_q6_k(place p, uint32_t b, uint8_t *block)
{
    uint8_t *chunk = p.panel + b * (size_t)(TD_K_SCALES + 8 * TD_Q6_K_QUANTS);
    memset(block, 0, 210);
    memcpy(block + 208, half_at(p, chunk), 2);
    for (uint32_t i = 0; i < 16; i++)
        block[192 + i] = chunk[32 + i * 16 + p.lane];
    for (uint32_t s = 0; s < 8; s++) {
        uint32_t g = s % 4, shift = g / 2 * 4;
        uint8_t *low = block + s / 4 * 64 + g % 2 * 32, *high = block + 128 + s / 4 * 32;
        uint8_t *vectors = chunk + TD_K_SCALES + s * TD_Q6_K_QUANTS;
        for (uint32_t i = 0; i < 8; i++) { /* groups of four elements */
            uint32_t pair = load4(four_at(p, vectors, i % 4)) >> i / 4 * 4;
            uint32_t top = load4(four_at(p, vectors, 4 + i / 4)) >> i % 4 * 2;
            store4(low + 4 * i, load4(low + 4 * i) | (pair & BYTES4(15u)) << shift);
            store4(high + 4 * i, load4(high + 4 * i) | (top & BYTES4(3u)) << 2 * g);
        }
    }
}

/* -- words: any quantized type ----------------------------------------------------------------- */

/* The bytes of a block before its first word: those that fill none, unless they are the last. */
static uint32_t first_word(const td_type_info *type)
{
    switch (type->id) {
    case TD_TYPE_Q3_K:
    case TD_TYPE_TQ1_0:
    case TD_TYPE_TQ2_0:
        return 0;
    default:
        return type->block_bytes % 4;
    }
}

static void pack_words(place p, const td_type_info *type, uint32_t begin, uint32_t b,
                       const uint8_t *block)
{
    uint32_t n_words = type->block_bytes / 4, n_odd = type->block_bytes % 4;
    uint8_t *to = p.panel + (size_t)b * TD_PANEL_ROWS * type->block_bytes;
    const uint8_t *odd = block + (begin ? 0 : 4 * n_words);
    for (uint32_t i = 0; i < n_words; i++)
        store4(four_at(p, to, i), load4(block + begin + 4 * i));
    for (uint32_t i = 0; i < n_odd; i++)
        to[n_words * 64 + p.lane * n_odd + i] = odd[i];
}

static void unpack_words(place p, const td_type_info *type, uint32_t b, uint8_t *block)
{
    uint32_t n_words = type->block_bytes / 4, n_odd = type->block_bytes % 4;
    uint32_t begin = first_word(type);
    uint8_t *from = p.panel + (size_t)b * TD_PANEL_ROWS * type->block_bytes;
    for (uint32_t i = 0; i < n_words; i++)
        store4(block + begin + 4 * i, load4(four_at(p, from, i)));
    memcpy(block + (begin ? 0 : 4 * n_words), from + n_words * 64 + p.lane * n_odd, n_odd);
}

/* Four halves, a row of 16 apart. */
static void store_halves(uint8_t *p, uint64_t v)
{
    for (uint32_t i = 0; i < 4; i++) {
        uint16_t half = (uint16_t)(v >> 16 * i);
        memcpy(p + 32 * i, &half, sizeof half);
    }
}

/* n rows that lie in one panel. A block of all of them is packed before the next: what is written
 * then stays in the first level cache until its lines are full. */
static void pack_rows(const td_host_weight *w, uint32_t row, uint32_t n, const uint8_t *src)
{
    const td_type_info *type = w->base.params.type;
    place first = find_place(w, row);
    uint32_t n_blocks = w->base.params.n_cols / type->block_elements, begin = first_word(type);
    size_t row_bytes = td_row_bytes(type, w->base.params.n_cols);
#define EACH_BLOCK(n_bytes, pack)                                                                  \
    for (uint32_t b = 0; b < n_blocks; b++, src += (n_bytes))                                      \
        for (uint32_t r = 0; r < n; r++) {                                                         \
            const place p = {first.panel, first.lane + r};                                         \
            const uint8_t *block = src + r * row_bytes;                                            \
            pack;                                                                                  \
        }                                                                                          \
    break
    switch (type->id) {
    case TD_TYPE_F32:
        EACH_BLOCK(4, memcpy(p.panel + b * (size_t)64 + p.lane * 4, block, 4));
    case TD_TYPE_F16:
    case TD_TYPE_BF16:
        for (; n_blocks >= 4; n_blocks -= 4, src += 8, first.panel += 4 * 32)
            for (uint32_t r = 0; r < n; r++)
                store_halves(first.panel + (first.lane + r) * 2, load8(src + r * row_bytes));
        EACH_BLOCK(2, memcpy(p.panel + b * (size_t)32 + p.lane * 2, block, 2));
    case TD_TYPE_Q8_0:
        EACH_BLOCK(34, pack_q8_0(p, b, block));
    case TD_TYPE_Q4_0:
        EACH_BLOCK(18, pack_q4_0(p, b, block));
    case TD_TYPE_Q4_K:
        EACH_BLOCK(144, pack_q4_k(p, b, block));
    case TD_TYPE_Q6_K:
        EACH_BLOCK(210, pack_q6_k(p, b, block));
    default:
        EACH_BLOCK(type->block_bytes, pack_words(p, type, begin, b, block));
    }
#undef EACH_BLOCK
}

static void unpack_block(const td_host_weight *w, place p, uint32_t b, uint8_t *block)
{
    switch (w->base.params.type->id) {
    case TD_TYPE_F32:
        memcpy(block, p.panel + b * (size_t)64 + p.lane * 4, 4);
        break;
    case TD_TYPE_F16:
    case TD_TYPE_BF16:
        memcpy(block, p.panel + b * (size_t)32 + p.lane * 2, 2);
        break;
    case TD_TYPE_Q8_0:
        unpack_q8_0(p, b, block);
        break;
    case TD_TYPE_Q4_0:
        unpack_q4_0(p, b, block);
        break;
    case TD_TYPE_Q4_K:
        unpack_q4_k(p, b, block);
        break;
    case TD_TYPE_Q6_K:
        unpack_q6_k(p, b, block);
        break;
    default:
        unpack_words(p, w->base.params.type, b, block);
    }
}

/* Fresh pages come at once, where the system can do that: a fault for each takes longer than
 * packing what goes there. */
static void touch(uint8_t *begin, const uint8_t *end)
{
#if defined(MADV_POPULATE_WRITE)
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)begin / page * page;
    (void)madvise((void *)first, (uintptr_t)end - first, MADV_POPULATE_WRITE);
#else
    (void)begin;
    (void)end;
#endif
}

typedef struct {
    const td_host_weight *w;
    uint32_t row0, n_rows, n_parts;
    const uint8_t *rows;
} write_job;

/* A part has whole panels, since rows of one share cache lines. */
static void write_part(void *arg, uint32_t phase, uint32_t part)
{
    (void)phase;
    const write_job *job = arg;
    size_t row_bytes = td_row_bytes(job->w->base.params.type, job->w->base.params.n_cols);
    uint32_t end_row = job->row0 + job->n_rows;
    uint32_t panel0 = panel_of(job->w, job->row0);
    uint64_t n_panels = panel_of(job->w, end_row - 1) + 1 - panel0;
    uint32_t begin = first_row(job->w, panel0 + (uint32_t)(n_panels * part / job->n_parts));
    uint32_t end = first_row(job->w, panel0 + (uint32_t)(n_panels * (part + 1) / job->n_parts));
    end = td_min_u32(end, end_row);
    if (begin < end)
        touch(find_place(job->w, begin).panel,
              find_place(job->w, end - 1).panel + job->w->panel_bytes);
    for (uint32_t r = td_max_u32(begin, job->row0), n; r < end; r += n) {
        uint32_t next = first_row(job->w, panel_of(job->w, r) + 1);
        n = td_min_u32(next, end) - r;
        pack_rows(job->w, r, n, job->rows + (r - job->row0) * row_bytes);
    }
}

bool td_host_weight_write(td_weight *base, uint32_t row0, uint32_t n_rows, const void *rows,
                          td_err *err)
{
    (void)err;
    td_host_weight *w = (td_host_weight *)base;
    if (w->is_vector) {
        memcpy(w->data, rows, n_rows * td_row_bytes(base->params.type, base->params.n_cols));
        return true;
    }
    td_pool *pool = ((td_host_device *)base->dev)->pool;
    write_job job = {w, row0, n_rows, td_pool_count(pool), rows};
    td_pool_run(pool, 1, write_part, &job);
    return true;
}

void td_host_weight_read(const td_host_weight *w, uint32_t row, float *out)
{
    const td_type_info *type = w->base.params.type;
    if (w->is_vector) {
        memcpy(out, w->data, w->base.params.n_cols * sizeof *out);
        return;
    }
    place p = find_place(w, row);
    uint32_t n_blocks = w->base.params.n_cols / type->block_elements;
    uint8_t block[TD_BLOCK_BYTES_MAX];
    for (uint32_t b = 0; b < n_blocks; b++, out += type->block_elements) {
        unpack_block(w, p, b, block);
        type->dequantize(block, out, type->block_elements);
    }
}
