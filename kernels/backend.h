/* What a kind of device implements. Private to kernels/: device.c and ops.c are the front that
 * checks and records, a backend is a table of functions over the records. */
#ifndef TD_KERNELS_BACKEND_H
#define TD_KERNELS_BACKEND_H

#include "kernels/cut.h"
#include "kernels/ops.h"

#include <string.h>

#define TD_PROGRAM_OPS_MAX 8192u
#define TD_VIEWS_MAX       3u
#define TD_WRITES_MAX      4u

typedef enum {
    TD_OP_EMBED,
    TD_OP_RMS_NORM,
    TD_OP_MAT_MUL,
    TD_OP_ROPE,
    TD_OP_KV_STORE,
    TD_OP_ATTENTION,
    TD_OP_GLU,
    TD_OP_ADD,
    TD_OP_SCALE,
    TD_OP_SOFTCAP,
    TD_OP_GATHER,
    TD_OP_ROUTE,       /* in: logits; out: weights; writes: experts */
    TD_OP_EXPERTS_SUM, /* in: x, weights */
    TD_OP_DELTA_NET,   /* in: x; out: y; state */
    TD_OP_STATE_KEEP,  /* in: x; state */
    TD_OP_TOP,         /* in: logits, draws */
    TD_OP_PICK,        /* in: parts, draws */
    TD_OP_FEED,  /* in: picks; weight: table; out: trail; writes: draws, ids, positions, cos_sin */
    TD_OP_SPOIL, /* in: out; writes: a counter. Sabotage: sabotage.h; no model asks for it */
    TD_OP_COUNT
} td_op_kind;

/* How a sabotaged op is wrong, as TD_OP_SPOIL does it to the op's output. */
typedef enum {
    TD_SPOIL_NONE,
    TD_SPOIL_BIT,  /* bit 30 of the first column of the last row is flipped */
    TD_SPOIL_RACE, /* the same, in some runs only */
    TD_SPOIL_ROW,  /* the last row went where the next one would be (the first where none would) */
} td_spoil;

/* One recorded op. Reads in[0..n_in) (and, by kind, weight, bias, kv, batch); writes out (and kv
 * for kv_store; rope writes in[0]'s columns, which out repeats). */
typedef struct {
    td_op_kind kind;
    uint32_t n_in;
    td_view in[TD_VIEWS_MAX];
    td_view out;
    td_tensor *writes[TD_WRITES_MAX]; /* [n_writes] tensors it reads and writes besides */
    uint32_t n_writes;
    td_weight *weight, *bias;
    td_kv *kv;
    td_state *state;
    td_batch_tensors batch;
    union {
        struct {
            uint32_t n_groups;
            float eps;
        } rms_norm;
        struct { /* all 0: one group. experts: in[1], I32, says which group */
            uint32_t n_groups, x_stride, y_stride;
            bool is_by_expert;
        } mat_mul;
        struct {
            td_rope_kind kind;
            uint32_t head_dim, col0, n_rot;
        } rope;
        struct {
            td_glu_kind kind;
            uint32_t n_scales;         /* columns of in[2]; 0: there is none */
            uint32_t n_groups, stride; /* of columns of in[0] and in[1] */
        } glu;
        struct {
            float factor; /* scale; softcap's cap */
        } scale;
        td_attention_params attention;
        td_route_params route;
        td_delta_net_params delta_net;
        td_spoil spoil;
    } u;
} td_op;

/* A row of `parts` holds one for each chunk of logits. Of what is in them, recent tokens
 * (td_draw) only count in is_finite. */
#define TD_TOP_GROUPS 512u /* of eight columns: four from 4 i on, four from 2048 + 4 i on */
typedef struct {
    int32_t key_max; /* td_top_key of the largest number; INT32_MIN when there is none */
    uint32_t id_max;
    uint32_t is_finite;
    uint32_t n; /* candidates; above TD_TOP_CANDIDATES: there were more than fit */
    float best; /* score, relative to this chunk's largest logit */
    float mass; /* relative to it, too */
    uint32_t unused[2];
    struct {
        uint32_t id;
        float score, logit;
    } candidates[TD_TOP_CANDIDATES];
    int32_t maxima[TD_TOP_GROUPS]; /* keys; INT32_MIN where a group has no number */
} td_part;

/* Order of floats as integers, for all that are numbers: -0 is 0, nothing is flushed to it. */
static inline int32_t td_top_key(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = bits == INT32_MIN ? 0 : bits;
    return bits ^ ((bits >> 31) & INT32_MAX);
}
static inline float td_top_value(int32_t key)
{
    float x;
    key ^= (key >> 31) & INT32_MAX;
    memcpy(&x, &key, sizeof x);
    return x;
}

typedef struct td_backend td_backend;

/* Where bytes of a cut lie on the device, or words that follow from it and are only written. */
#define TD_CUT_RANGES_MAX 20u
typedef struct {
    void *where;              /* memory, or a buffer of the backend's */
    uint64_t offset, n_bytes; /* of whole words */
    bool is_fill;             /* with `word`: not among the cut's bytes */
    uint32_t word;
} td_cut_range;

typedef struct { /* of one op, while the program is profiled */
    uint64_t n_calls;
    double seconds;
    td_traffic traffic;
} td_op_sum;

/* The common head of every object; a backend's own struct begins with it. */
struct td_device {
    const td_backend *backend;
    td_device_info info;
    uint64_t used_bytes, budget_bytes;
    td_device_counts counts;
    struct { /* sabotage.h; of devices that it names, else 0 */
        td_op_kind kind;
        td_spoil how;
        td_tensor *count; /* [1][1] runs so far */
    } sabotage;
};
struct td_tensor {
    td_device *dev;
    td_tensor_params params; /* name is owned */
    void *data;              /* host-visible memory or NULL; of its home, if it has one */
    td_home *home;
    uint64_t home_offset;
    void *own; /* `data` without a home */
};
struct td_home {
    td_device *dev;
    uint8_t *data;
    uint64_t n_bytes;
};
struct td_weight {
    td_device *dev;
    td_weight_params params; /* name is owned */
};
struct td_kv {
    td_device *dev;
    td_kv_params params;
};
struct td_state {
    td_device *dev;
    td_state_params params;
};
struct td_program {
    td_device *dev;
    td_program_params params; /* name is owned */
    td_op *ops;               /* [n_ops], complete when compile is called */
    uint32_t n_ops, capacity;
    bool is_compiled;
    bool is_out_of_memory; /* an op could not be recorded; td_program_end reports it */
    bool is_profiled;
    td_op_sum *sums; /* [n_ops] once the program was profiled, else NULL */
    td_program_counts counts;
};

/* Sizes are of the backend's own structs; the front allocates them zeroed, fills the head, calls
 * *_init, and on failure *_free, which must accept half-built objects. */
struct td_backend {
    size_t tensor_size, weight_size, kv_size, state_size, program_size, home_size;
    void (*device_destroy)(td_device *dev); /* frees the device struct too */
    bool (*tensor_init)(td_tensor *t, td_err *err);
    void (*tensor_free)(td_tensor *t);
    /* Optional: NULL where `data`, the process's memory so far, is the home's. free: false as
     * td_home_destroy. */
    bool (*home_init)(td_home *home, td_err *err);
    bool (*home_free)(td_home *home);
    bool (*weight_init)(td_weight *w, td_err *err);
    void (*weight_free)(td_weight *w);
    bool (*weight_write)(td_weight *w, uint32_t row0, uint32_t n_rows, const void *rows,
                         td_err *err);
    uint64_t (*weight_bytes)(const td_device *dev, const td_weight_params *params);
    /* device.h; all of these NULL: no object must be one buffer, tensors have little beside them */
    uint64_t (*side_bytes)(const td_tensor_params *params);
    uint64_t (*attention_bytes)(uint32_t n_rows, uint32_t n_head, uint32_t head_dim_v,
                                uint32_t n_ctx);
    uint64_t (*weight_piece_bytes)(const td_weight_params *params);
    uint64_t (*kv_piece_bytes)(const td_kv_params *params);
    uint64_t (*state_piece_bytes)(const td_state_params *params);
    bool (*kv_init)(td_kv *kv, td_err *err);
    void (*kv_free)(td_kv *kv);
    uint64_t (*kv_bytes)(const td_device *dev, const td_kv_params *params);
    bool (*state_init)(td_state *s, td_err *err);
    void (*state_free)(td_state *s);
    uint64_t (*state_bytes)(const td_device *dev, const td_state_params *params);
    /* cut.h: ranges of `out`, at most TD_CUT_RANGES_MAX; their number. And moving them, all of one
     * device; NULL: they are in memory. */
    uint32_t (*cut_ranges)(const td_cut *cut, td_cut_range *out);
    bool (*cuts_move)(const td_cut *cuts, uint32_t n, bool is_read, td_err *err);
    bool (*program_compile)(td_program *p, td_err *err);
    bool (*program_run)(td_program *p, uint32_t n_rows, uint32_t n_out, td_err *err);
    /* All calls in one go; NULL: one after another by program_run. */
    bool (*programs_run)(const td_program_call *calls, uint32_t n_calls, td_err *err);
    void (*program_expect)(td_program *p, uint32_t n_rows, uint32_t n_out); /* may be NULL */
    /* Rows of a tensor that the host cannot see. */
    const void *(*tensor_read)(td_tensor *t, uint32_t row0, uint32_t n_rows, td_err *err);
    void (*program_free)(td_program *p);
    /* is_profiled is about to become is_on; NULL: nothing to prepare. While it is set the backend
     * calls td_program_count_op for each op of a run. */
    bool (*program_profile)(td_program *p, bool is_on, td_err *err);
    bool (*measure_bandwidth)(td_device *dev, double *bytes_per_s, td_err *err);
    void (*lose)(td_device *dev); /* NULL: cannot be lost */
};

/* Makers, by the spec's kind. host: n_threads 0 = all online CPUs; scalar = the oracle. `which` is
 * the text after "vulkan:". */
td_device *td_host_create(uint32_t n_threads, bool is_scalar, td_err *err);
/* Binds the device's threads to CPUs: a list like "0-3,8" of at least as many as it has threads.
 * Error: TD_E_USAGE. */
bool td_host_pin(td_device *dev, const char *cpus, td_err *err);
void td_host_describe(td_device_info *info);
/* The system's memory: total and available. */
void td_host_read_memory(uint64_t *n_bytes, uint64_t *available_bytes);
td_device *td_vulkan_create(const char *which, td_err *err);
bool td_vulkan_find(const char *which, td_device_info *out, td_err *err);
uint32_t td_vulkan_list(td_device_info *out, uint32_t max);

/* Rows an op works on in a run: n_rows, n_out or the tensor's capacity. */
uint32_t td_op_rows(const td_op *op, uint32_t n_rows, uint32_t n_out);

/* Rows of one of a weight's groups. */
static inline uint32_t td_group_rows(const td_weight_params *p)
{
    return p->n_groups ? p->n_rows / p->n_groups : p->n_rows;
}

/* The first position that a row sees. */
static inline uint32_t td_first_visible(const td_attention_params *p, uint32_t position)
{
    uint32_t of_window = p->window && position >= p->window ? position - p->window + 1 : 0;
    uint32_t of_chunk = p->chunk ? position - position % p->chunk : 0;
    return of_window > of_chunk ? of_window : of_chunk;
}

/* Adds to an op's sums; `is_call` false for a part of an op that is counted elsewhere. */
void td_program_count_op(td_program *p, const td_op *op, bool is_call, double seconds,
                         td_traffic traffic);

#endif
