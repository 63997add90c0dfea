/* Private to kernels/host: the structs of the host device and the table of SIMD kernels. */
#ifndef TD_KERNELS_HOST_HOST_H
#define TD_KERNELS_HOST_HOST_H

#include "kernels/backend.h"
#include "kernels/host/arith.h"
#include "kernels/pool.h"
#include "kernels/types_encode.h"

/* Tiles are inlined and unrolled so that their accumulators live in registers. Under a sanitizer
 * each unrolled access is instrumented and a file would take minutes to compile: not there. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TD_HOST_INLINE static __attribute__((noinline, unused))
#define UNROLL
#else
#define TD_HOST_INLINE static inline __attribute__((always_inline))
#define UNROLL         _Pragma("GCC unroll 8")
#endif

/* Rows of a weight lie in panels of 16, interleaved so that a vector lane is an output. All
 * panels of a weight have the same size; the last one is padded with zeros. A panel is read from
 * front to back in one stream: floats are [k][16]; quantized types are chunks, scales first.
 *   Q8_0   chunk of 2 blocks: [2][16] f16 d; per block [8 groups of 4 k][16 rows][4] quants + 128
 *   Q4_0   chunk of 2 blocks: [2][16] f16 d; per block [4][16 rows][4] bytes, element e of the
 *          block in byte e % 16, nibble e / 16. Of an odd number the last chunk is half empty
 *   Q4_K   chunk of 256: [16] f16 d, [16] f16 d_min, [8][16] u8 scale, [8][16] u8 minimum; then 8
 *          times 32 elements as in Q4_0
 *   Q6_K   chunk of 256: [16] f16 d, [16][16] i8 scale, 32 bytes of nothing; then 8 times 32
 *          elements: low nibbles as in Q4_0, then [2][16 rows][4] bytes, element e's high two bits
 *          in vector e / 16, at bits 2 (e / 4 % 4)
 *   others the file's blocks, 16 rows of each together: [words of 4 bytes][16 rows][4], then the
 *          bytes that fill no word, [16 rows][0..3]: the block's first ones, but Q3_K, TQ1_0 and
 *          TQ2_0 have them last
 * An F32 weight of one row (a vector) is kept as it is. */
#define TD_PANEL_ROWS 16u

/* Bytes: the scales of a chunk, the quants of 32 elements. */
#define TD_SMALL_SCALES 64u /* Q8_0, Q4_0 */
#define TD_K_SCALES     320u
#define TD_Q8_0_QUANTS  512u
#define TD_Q4_QUANTS    256u
#define TD_Q6_K_QUANTS  384u

typedef struct {
    td_weight base;
    uint8_t *data;
    size_t panel_bytes;
    uint32_t group_rows, group_panels; /* of each of its groups, which begin with a panel */
    uint64_t n_bytes;
    bool is_vector;
} td_host_weight;

/* Up to 256 elements of a panel of the other types, taken apart (td_type_part) in the
 * order of the integer kernels. Scales of both halves are written, unless a type is not
 * by 16: then the first. */
typedef struct {
    uint8_t q[TD_PARTS_MAX][8][TD_PANEL_ROWS][4]; /* [part][group of 4 k][row][4], plus 128 */
    float scale[TD_PARTS_MAX][2][TD_PANEL_ROWS], minimum[TD_PARTS_MAX][2][TD_PANEL_ROWS];
} td_host_parts;

/* One kv head of one page. Keys are transposed, so that a vector lane is a position:
 *   F32, F16, BF16   [head_dim][64]
 *   in blocks        [padded dim / 32][bytes of a block's quants, in its order][64]; then
 *                    [padded dim / 32][its scale, and its minimum if it has one][64], f16
 * Values are [64] rows in the cache's type. */
typedef struct {
    td_kv base;
    uint8_t *k, *v; /* [n_pages][n_head_kv] of head_bytes */
    size_t head_bytes_k, head_bytes_v;
    size_t scales_offset_k;
    size_t row_bytes_v;          /* of one position */
    uint32_t padded_k, padded_v; /* head_dim rounded up to the type's block */
    uint64_t n_bytes;
} td_host_kv;

/* With which a block of a cache's type begins, f16: a scale, and a minimum where there is one. */
static inline uint32_t td_host_scale_bytes(const td_type_info *type)
{
    return type->block_elements == 1 ? 0 : type->has_minimum ? 4 : 2;
}

#define TD_HOST_ACTS 2u /* activation buffers of a program */

typedef struct {
    const td_op *op;
    bool is_quantize; /* of op's input, op being a mat_mul */
    bool is_by_rows;  /* how a quantize step is cut */
    uint8_t i_act;    /* the buffer filled or read; TD_HOST_ACTS when none */
} td_host_step;

typedef struct {
    td_program base;
    td_host_step *steps;
    uint32_t *phase_ends; /* [n_phases]: the step after the phase's last */
    uint32_t n_steps, n_phases;
    td_act_block *acts[TD_HOST_ACTS]; /* [rows][blocks of the widest input] */
    uint8_t *gather;                  /* [threads][gather_bytes], experts.h */
    size_t gather_bytes;
    uint64_t n_bytes;
} td_host_program;

/* Outputs 16 (panel_begin - panel0).. of n_rows rows, panel0 being the group's first. x or act is
 * read, by weight type. */
typedef struct {
    const td_host_weight *w;
    uint32_t panel0;
    const float *bias;       /* or NULL */
    const float *x;          /* [n_rows], x_stride apart */
    const td_act_block *act; /* [n_rows][n_cols / 32] */
    float *y;
    size_t x_stride, y_stride; /* elements */
    uint32_t n_rows, panel_begin, panel_end;
} td_host_mat_mul;

/* How a level's tiles of a quantized type are cut: rows of a tile of several vectors of outputs and
 * of one vector, and rows of a batch that are multiplied from the panels; with more of them a piece
 * is taken apart first, once for all (body_parts.h). */
typedef struct {
    uint32_t shared, alone, direct;
} td_host_rows;

#define TD_HOST_QUERIES_MAX  32u
#define TD_HOST_HEAD_DIM_MAX 1024u /* of keys, and of values that are rotated */

/* Query heads, of one row or of several, that read the same kv head of the same sequence. */
typedef struct {
    const td_host_kv *kv;
    const td_attention_params *params;
    const int32_t *pages; /* the sequence's page table */
    uint32_t head_kv, n_queries;
    struct {
        const float *q; /* [head_dim_k] */
        float *y;       /* [head_dim_v] */
        uint32_t position, head;
    } queries[TD_HOST_QUERIES_MAX];
} td_host_attention;

#define TD_ENCODE_LANES 16u

/* The arithmetic of arith.h's delta_net. */
typedef struct td_host_delta_kernels {
    /* y[i] = silu(sum over t of w[t * stride + i] taps[t][i]), i < n */
    void (*conv)(const float *const *taps, uint32_t n_taps, const float *w, size_t stride,
                 uint32_t n, float *y);
    /* x = x / sqrt(sum16(x x) + eps) * scale */
    void (*unit)(float *x, uint32_t n, float eps, float scale);
    /* One row: s [n][n] decays by g and learns; y (may be NULL) is what it says to q. u: scratch
     * [n]. */
    void (*step)(float *s, uint32_t n, const float *q, const float *k, const float *v, float g,
                 float beta, float *u, float *y);
} td_host_delta_kernels;

typedef struct {
    const char *name;                                                /* for td_device_info.driver */
    void (*quantize)(const float *x, uint32_t n, td_act_block *out); /* n: a multiple of 32 */
    void (*mat_mul)(const td_host_mat_mul *m);
    void (*rms_norm)(const float *x, const float *w, uint32_t n, float eps, float *y);
    void (*rope)(float *x, const float *cos_sin, td_rope_kind kind, uint32_t n_rot);
    /* y = glu(gate * scale, up * scale); gate_step 0: gate is one number for all. */
    void (*glu)(td_glu_kind kind, const float *gate, uint32_t gate_step, const float *up,
                const float *scale, uint32_t n, float *y);
    void (*add)(const float *a, const float *b, uint32_t n, float *y);
    /* y = x * factor * by (by may be NULL) */
    void (*scale)(const float *x, float factor, const float *by, uint32_t n, float *y);
    void (*softcap)(const float *x, float cap, uint32_t n, float *y);
    /* y = sum over i of w[i] x[i * stride ..] */
    void (*experts_sum)(const float *x, size_t stride, const float *w, uint32_t n_used, uint32_t n,
                        float *y);
    struct td_host_delta_kernels delta;
    void (*to_f16)(const float *x, uint32_t n, uint16_t *y);
    /* y = the head x of n elements, rotated (arith.h); y may be x. */
    void (*rotate)(const float *x, uint32_t n, float *y);
    /* TD_ENCODE_LANES blocks of 32 as types_encode.c does it, element j of block l being
     * x[j * TD_ENCODE_LANES + l], and so the numbers of quants in n. d, m: to be stored as halves.
     */
    void (*encode)(const td_grid *g, const float *x, float *d, float *m, int32_t *n);
    void (*attention)(const td_host_attention *a);
    void (*exp)(const float *x, uint32_t n, float *y); /* for the tests */
} td_host_kernels;

extern const td_host_kernels td_host_kernels_generic;
#if defined(__x86_64__)
extern const td_host_kernels td_host_kernels_avx2, td_host_kernels_avxvnni, td_host_kernels_avx512;
#endif
/* The best level this CPU has, or a lower one named by TD_HOST_ISA (host.c). NULL
 * with err set (TD_E_USAGE) when that names no level. */
const td_host_kernels *td_host_find_kernels(td_err *err);

typedef struct {
    td_device base;
    td_pool *pool; /* NULL for the scalar device */
    const td_host_kernels *kernels;
} td_host_device;

/* Counts bytes against the device's budget before they are allocated. */
bool td_host_reserve(td_device *dev, uint64_t n_bytes, td_err *err);
void td_host_release(td_device *dev, uint64_t n_bytes);

/* Model and vendor of the CPU. */
void td_host_read_cpu(char *name, size_t name_size, char *vendor, size_t vendor_size);

/* For memory that is about to be written whole and then read as a stream. */
void td_host_use_huge_pages(void *begin, uint64_t n_bytes);

/* cut.c */
uint32_t td_host_cut_ranges(const td_cut *cut, td_cut_range *out);

bool td_host_tensor_init(td_tensor *t, td_err *err);
void td_host_tensor_free(td_tensor *t);
void td_host_device_destroy(td_device *dev);
bool td_host_measure_bandwidth(td_device *dev, double *bytes_per_s, td_err *err);

uint64_t td_host_weight_bytes(const td_device *dev, const td_weight_params *params);
bool td_host_weight_init(td_weight *w, td_err *err);
void td_host_weight_free(td_weight *w);
bool td_host_weight_write(td_weight *w, uint32_t row0, uint32_t n_rows, const void *rows,
                          td_err *err);
/* One row as f32, equal to the type's dequantize of what was written. */
void td_host_weight_read(const td_host_weight *w, uint32_t row, float *out);

uint64_t td_host_kv_bytes(const td_device *dev, const td_kv_params *params);
bool td_host_kv_init(td_kv *kv, td_err *err);
void td_host_kv_free(td_kv *kv);
/* Where a position's heads lie. */
typedef struct {
    uint32_t page, slot; /* position % 64 */
    uint32_t head, n_heads;
} td_host_place;

/* k: [n_heads][head_dim_k], v: [n_heads][head_dim_v], of these heads. */
void td_host_kv_write(td_host_kv *kv, const td_host_place *at, const float *k, const float *v);
/* The page of a row's position; asserts that row, position and page are in range. */
uint32_t td_host_find_page(const td_kv *kv, const td_batch_tensors *batch, uint32_t row);

bool td_host_program_compile(td_program *p, td_err *err);
bool td_host_program_run(td_program *p, uint32_t n_rows, uint32_t n_out, td_err *err);
void td_host_program_free(td_program *p);
extern const td_backend td_scalar_backend;

/* An F32 vector. Weights of the scalar device begin like those of the fast one. */
static inline const float *td_host_vector(const td_weight *w)
{
    return (const float *)(const void *)((const td_host_weight *)w)->data;
}

/* Row r of a view's memory; rows are n_cols of the tensor apart. */
static inline float *td_host_row(td_view v, uint32_t r)
{
    return (float *)v.t->data + (size_t)r * v.t->params.n_cols + v.col0;
}

#endif
