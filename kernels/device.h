/* A device runs programs of ops over tensors, weights and caches it owns. Two kinds: `host`
 * (CPU threads, SIMD) and `vulkan`; plus `scalar`, the slow plain-C oracle of the op tests.
 *
 *     td_device *dev = td_device_create("host:2", &err);
 *     td_weight *w = td_weight_create(dev, &(td_weight_params){...}, &err);
 *     td_weight_write(w, 0, n_rows, rows, &err);            // repacked as it arrives
 *     td_tensor *x = td_tensor_create(dev, &(td_tensor_params){...}, &err);
 *     td_program *p = td_program_begin(dev, &(td_program_params){...}, &err);
 *     td_op_mat_mul(p, w, NULL, td_all(x), td_all(y));      // ops.h: one verb per op
 *     td_program_end(p, &err);                              // compiled once
 *     memcpy(td_tensor_data(x), ...);                       // host-visible tensors only
 *     td_program_run(p, n_rows, n_out, &err);               // replayed per round, any row count
 *
 * A program is recorded once with the largest row counts and run with any smaller ones: nothing
 * is allocated in the token loop. What changes per run (tokens, positions, cache pages) lies in
 * host-visible input tensors.
 *
 * Law 1: in a program of mode TD_MODE_VERIFY the arithmetic of a row depends on that row alone,
 * never on n_rows, on its index or on its neighbours, for 1..TD_VERIFY_ROWS_MAX rows. In
 * TD_MODE_PREFILL a device may use another order, as long as it depends only on n_rows and the
 * row's index in the chunk.
 *
 * Ownership: tensors, weights, caches and programs belong to their device and must be destroyed
 * before it. Threads: one thread at a time uses a device; different devices are independent.
 * Errors: TD_E_USAGE (spec), TD_E_NOMEM (says which limit), TD_E_DEVICE_LOST (latched: every later
 * call on that device fails the same way). */
#ifndef TD_KERNELS_DEVICE_H
#define TD_KERNELS_DEVICE_H

#include "base/err.h"
#include "kernels/capacity.h"
#include "kernels/types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_VERIFY_ROWS_MAX  64u  /* rows of a verify batch */
#define TD_PREFILL_ROWS_MAX 256u /* rows of a prefill chunk; chunks start at multiples of it */
#define TD_PAGE_POSITIONS   64u  /* positions of a cache page */
#define TD_DEVICES_MAX      16u
#define TD_PCI_BYTES        20u /* "0000:c1:00.0", the domain of up to 8 digits */
#define TD_UUID_BYTES       37u

typedef struct td_device td_device;
typedef struct td_tensor td_tensor;
typedef struct td_weight td_weight;
typedef struct td_kv td_kv;
typedef struct td_state td_state;
typedef struct td_program td_program;
typedef struct td_home td_home;

typedef struct {
    char spec[32];  /* "host", "vulkan:0": what --device takes */
    char name[256]; /* CPU or GPU model */
    char vendor[64];
    char driver[256]; /* driver name and version, or the SIMD level in use */
    /* Which one it is; "" and 0 where that is not told. chips.h */
    uint32_t vendor_id, driver_id; /* Vulkan's */
    char pci[TD_PCI_BYTES], uuid[TD_UUID_BYTES];
    char id[96];      /* a SPEC that stays when indices change, if there is one; else spec */
    char same_as[32]; /* spec of the same chip by a driver that is preferred, or "" */
    td_device_kind kind;
    bool is_usable;            /* false: enumerated, but it cannot run ops; why_not says so */
    char why_not[128];         /* "compile-only (null device, no memory)", ... */
    td_memory_facts memory;    /* as the driver and the system tell it */
    td_capacity capacity;      /* what follows from it */
    uint64_t max_buffer_bytes; /* largest single buffer or storage range */
    uint32_t subgroup_size;    /* Vulkan; 0 on the host */
    uint32_t n_threads;        /* host; 0 on Vulkan */
    bool has_f16, has_int8_dot, has_coopmat; /* arithmetic the device accelerates */
    bool has_host_import;                    /* it reaches memory of the process (td_home) */
    char quirks[256];                        /* driver quirks in force, comma-separated, or "" */
} td_device_info;

/* Fills in the capacity of a device whose memory is described. */
void td_device_weigh(td_device_info *info);

/* Enumerates usable and compile-only devices, host first. Returns the count (<= max). Vulkan being
 * absent is not an error: only the host is listed. */
uint32_t td_device_list(td_device_info *out, uint32_t max);

/* The device a SPEC means, not opened. TD_E_USAGE as td_device_create. */
bool td_device_find(const char *spec, td_device_info *out, td_err *err);

#define TD_DEVICE_KIND_BYTES 600u /* hold any */
/* Devices of one kind round alike: the host at any SIMD level and any number of threads; a GPU with
 * a driver. */
void td_device_write_kind(const td_device_info *info, char *out, size_t n_bytes);

/* SPEC without a layer range: host[:threads[:cpus]] (cpus: each thread bound to one of a list like
 * 0-3,8), scalar, vulkan:INDEX, vulkan:VENDOR, vulkan:pci:ADDRESS, vulkan:uuid:ID,
 * vulkan:NAME-SUBSTRING (td_chips_find). */
td_device *td_device_create(const char *spec, td_err *err);
void td_device_destroy(td_device **dev);
const td_device_info *td_device_get_info(const td_device *dev);
/* For who tests what becomes of a lost device: the next submission and all later ones fail as a
 * driver that has lost it lets them. False where devices are never lost (the host). */
bool td_device_lose(td_device *dev);

/* Bytes taken so far and the bytes this process may take in all (budget). */
void td_device_memory(const td_device *dev, uint64_t *used_bytes, uint64_t *budget_bytes);

/* Measured read bandwidth of the device's memory in bytes/s (takes about a second). */
bool td_device_measure_bandwidth(td_device *dev, double *bytes_per_s, td_err *err);

/* -- tensors: rows of activations or inputs ------------------------------------------------- */

typedef enum { TD_ELEM_F32, TD_ELEM_I32 } td_elem;

/* How many rows of the tensor a run uses. */
typedef enum {
    TD_ROWS_FIXED, /* all, always */
    TD_ROWS_BATCH, /* the run's n_rows */
    TD_ROWS_OUT,   /* the run's n_out: the rows whose logits are wanted */
} td_rows;

/* What the host does with a tensor's memory between runs (td_tensor_data). */
typedef enum {
    TD_HOST_NONE,   /* it cannot */
    TD_HOST_READS,  /* outputs, and what it also writes */
    TD_HOST_WRITES, /* inputs: a GPU has them at hand, and to read them may take the host long */
} td_host_access;

typedef struct {
    const char *name; /* for messages and debug labels; copied */
    td_elem elem;
    td_rows rows;
    uint32_t n_rows; /* capacity */
    uint32_t n_cols;
    td_host_access host;
} td_tensor_params;

td_tensor *td_tensor_create(td_device *dev, const td_tensor_params *params, td_err *err);
void td_tensor_destroy(td_tensor **t);
/* Bytes the device takes for such a tensor, and for what programs keep beside it (quantized rows)
 * at most. */
uint64_t td_tensor_bytes(const td_device *dev, const td_tensor_params *params);
/* What attention over up to n_ctx positions keeps besides, for n_rows rows of its output. */
uint64_t td_attention_bytes(const td_device *dev, uint32_t n_rows, uint32_t n_head,
                            uint32_t head_dim_v, uint32_t n_ctx);
const td_tensor_params *td_tensor_get_params(const td_tensor *t);
/* Memory of a tensor the host may access, [n_rows][n_cols] of 4 bytes; NULL for others. May be
 * written between runs and read after one. */
void *td_tensor_data(td_tensor *t);
/* Rows row0..row0+n_rows-1 of any tensor, [n_rows][n_cols], valid until the next such call or run
 * on the device; NULL with err set. Slow on a GPU, where what the host cannot see is copied. */
const void *td_tensor_read(td_tensor *t, uint32_t row0, uint32_t n_rows, td_err *err);

/* -- homes: memory where activations lie between two devices ---------------------------------- */

#define TD_HOME_ALIGNMENT 65536u /* of a home's memory and its size, as devices may ask for */

/* `memory` as the device reaches it, zero or more tensors' worth; borrowed. Where it cannot
 * (td_device_info.has_host_import), the home is other memory, its own, which the host reaches.
 * NULL: there is no room for that either. */
td_home *td_home_create(td_device *dev, void *memory, uint64_t n_bytes, td_err *err);
/* False: the device hangs and may write to `memory` until the process ends. */
bool td_home_destroy(td_home **home);
void *td_home_data(td_home *home); /* `memory`, or what is in its place */
/* From the next run on a tensor that the host may access lies at `offset` of a home, and so says
 * td_tensor_data; NULL: in its own memory again. Nothing is copied now: a program that reads the
 * tensor takes its rows from there, one that writes it leaves them there, with no work of the
 * host's. */
void td_tensor_place(td_tensor *t, td_home *home, uint64_t offset);

/* -- weights: matrices and vectors of the model --------------------------------------------- */

typedef struct {
    const char *name; /* copied */
    const td_type_info *type;
    uint32_t n_rows; /* outputs; 1 for a vector */
    uint32_t n_cols; /* inputs, a multiple of the type's block */
    /* The rows are so many matrices of equal size, one after another (experts, heads); 0 is 1. */
    uint32_t n_groups;
} td_weight_params;

/* A weight may be larger than the device's largest buffer; it is then cut by rows inside. */
td_weight *td_weight_create(td_device *dev, const td_weight_params *params, td_err *err);
void td_weight_destroy(td_weight **w);
const td_weight_params *td_weight_get_params(const td_weight *w);
/* Rows row0..row0+n_rows-1 in the file's layout (td_row_bytes(type, n_cols) each), repacked on the
 * way. All rows must be written before the first run. */
bool td_weight_write(td_weight *w, uint32_t row0, uint32_t n_rows, const void *rows, td_err *err);
/* Bytes the device would take for such a weight. */
uint64_t td_weight_bytes(const td_device *dev, const td_weight_params *params);
/* Of the largest piece of it that must be one buffer, of which a device takes max_buffer_bytes; 0:
 * none must. Likewise of a cache and a state, below. */
uint64_t td_weight_piece_bytes(const td_device *dev, const td_weight_params *params);

/* -- kv: keys and values of one layer, in pages --------------------------------------------- */

/* A page holds TD_PAGE_POSITIONS consecutive positions of one sequence. Which page holds which
 * positions is the caller's page table (model/cache.h). Each head's row of head_dim elements is
 * padded to the type's block. */
typedef struct {
    const td_type_info *type_k, *type_v; /* is_cache_type */
    uint32_t n_head_kv, head_dim_k, head_dim_v;
    uint32_t n_pages;
    /* Latent attention: a value is the first head_dim_v columns of its key, kept once. type_v is
     * type_k then. */
    bool is_latent;
    /* Heads of keys, of values, are rotated before they are kept, which spreads outliers over a
     * head; so are queries, maybe in place, and what attention gives is rotated back. The
     * rotation is a Walsh-Hadamard transform, its own inverse, of groups of columns: each the
     * largest power of two that fits into what is left of the head. Of a latent cache both are
     * rotated or neither, and values are whole groups. */
    bool rotates_k, rotates_v;
} td_kv_params;

td_kv *td_kv_create(td_device *dev, const td_kv_params *params, td_err *err);
void td_kv_destroy(td_kv **kv);
const td_kv_params *td_kv_get_params(const td_kv *kv);
uint64_t td_kv_bytes(const td_device *dev, const td_kv_params *params);
uint64_t td_kv_piece_bytes(const td_device *dev, const td_kv_params *params);

/* -- state: of one recurrent layer ------------------------------------------------------------ */

/* For each slot: S of [n_head_v][dim][dim] floats over its first positions, how many those are
 * (each head has its own count, so that an op may run again), and a ring of n_pending rows of
 * inputs, position p in row p % n_pending. A run folds the positions below the committed length
 * into S for good, and those after it on the way only: rollback is nothing but a shorter length. A
 * sequence's first row (position 0) begins with S = 0. n_pending: at least the rows that may be in
 * flight twice, and the taps. */
#define TD_STATE_DIM_MAX 256u

typedef struct {
    uint32_t n_slots, n_head_k, n_head_v, dim, n_taps, n_pending;
} td_state_params;

/* Columns of a row of inputs: q, k, v, alpha, beta (ops.h). */
uint32_t td_state_cols(const td_state_params *params);
td_state *td_state_create(td_device *dev, const td_state_params *params, td_err *err);
void td_state_destroy(td_state **s);
const td_state_params *td_state_get_params(const td_state *s);
uint64_t td_state_bytes(const td_device *dev, const td_state_params *params);
uint64_t td_state_piece_bytes(const td_device *dev, const td_state_params *params);

/* -- programs ------------------------------------------------------------------------------- */

typedef enum { TD_MODE_VERIFY, TD_MODE_PREFILL } td_mode;

typedef struct {
    const char *name;
    td_mode mode;
    uint32_t n_rows_max, n_out_max; /* n_rows_max <= TD_VERIFY_ROWS_MAX or TD_PREFILL_ROWS_MAX */
} td_program_params;

td_program *td_program_begin(td_device *dev, const td_program_params *params, td_err *err);
bool td_program_end(td_program *p, td_err *err);
void td_program_destroy(td_program **p);

/* Runs the program for rows 0..n_rows-1 and outputs 0..n_out-1 and waits for it.
 * Ops on TD_ROWS_OUT tensors are skipped when n_out is 0. 1 <= n_rows <=
 * n_rows_max, n_out <= n_out_max. */
bool td_program_run(td_program *p, uint32_t n_rows, uint32_t n_out, td_err *err);

typedef struct {
    td_program *p;
    uint32_t n_rows, n_out;
    uint32_t n_times; /* over, >= 1 */
} td_program_call;

#define TD_CALLS_MAX 8u /* of td_programs_run */

/* Runs programs of one device one after another, as td_program_run would, but hands them over at
 * once: on Vulkan one submission (more where they take long) and one wait. */
bool td_programs_run(const td_program_call *calls, uint32_t n_calls, td_err *err);

/* A hint: a run of these row counts will come soon. Vulkan records it while the device works on
 * another run, if it is not recorded yet, and so, unasked, verifications of a row more and a row
 * less. The last hint counts. It cannot fail: what did not work is done by the run itself. */
void td_program_expect(td_program *p, uint32_t n_rows, uint32_t n_out);

/* What a device did besides its ops' work, since it was opened. Vulkan; 0 on others. A run whose
 * row counts are recorded is one submission (more where it takes long) and one wait. */
typedef struct {
    uint64_t n_submissions, n_waits; /* of runs and uploads */
    uint64_t n_recordings;           /* of a program for row counts */
    uint64_t n_recorded_ahead;       /* of those, while the device worked on a run */
    uint64_t n_sets_written;         /* of descriptors */
} td_device_counts;
void td_device_get_counts(const td_device *dev, td_device_counts *out);
/* sum += factor * n, for sums (1) and differences (-1). */
void td_device_counts_add(td_device_counts *sum, const td_device_counts *n, int factor);

/* -- where the time goes -------------------------------------------------------------------- */

#define TD_OP_NAMES_MAX 128u /* entries that hold the ops of any model */

/* Bytes of weights, keys and values: what the device's workgroups ask for, and what there is to be
 * read once. Vulkan; 0 on the host. */
typedef struct {
    double issued, there;
} td_traffic;

typedef struct {
    char name[96]; /* the op and the shape of its weight or rows: "mat_mul Q4_K 2816x1024" */
    uint64_t n_calls;
    double seconds;
    td_traffic traffic;
} td_op_time;

typedef struct { /* sums since the profile was turned on */
    uint64_t n_runs;
    uint64_t n_dispatches, n_submissions; /* Vulkan; 0 on the host */
    uint64_t n_barriers;                  /* full ones that runs without the profile have */
    double run_seconds;                   /* in td_program_run, waiting included */
    double busy_seconds;                  /* the ops' */
    double gap_seconds; /* Vulkan: the device's, between two dispatches of a run; barriers, and
                         * submissions where a run has several */
} td_program_counts;

/* Times every op of the runs that follow; off by default. On: resets the sums. It costs speed (on
 * Vulkan no two dispatches overlap then) and changes no result. The host times an op by the first
 * thread's part of it. TD_E_UNAVAILABLE: a device without timestamps. TD_E_NOMEM. */
bool td_program_profile(td_program *p, bool is_on, td_err *err);
/* One entry per distinct name in order of first use, at most max; returns how many. */
uint32_t td_program_op_times(const td_program *p, td_op_time *out, uint32_t max);
void td_program_get_counts(const td_program *p, td_program_counts *out);
/* Adds `n` to `sum`, n_runs too. */
void td_program_counts_add(td_program_counts *sum, const td_program_counts *n);
/* Adds an entry to out[n], to the one of its name if there is one; returns the new n (<= max). */
uint32_t td_op_times_add(td_op_time *out, uint32_t n, uint32_t max, const td_op_time *time);

#endif
