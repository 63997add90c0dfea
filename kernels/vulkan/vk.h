/* The inside of the Vulkan backend; kernels/vulkan/ is the only user of vulkan.h.
 *
 * A td_vk_device owns its instance, logical device and queue, so that several devices (even of the
 * same GPU) share nothing. Every tensor, weight slab and cache is a VkBuffer of its own, bound into
 * blocks of device memory (memory.c). A program is lowered to steps, one dispatch each (lower.c);
 * a recording is the command buffers of the steps for one (n_rows, n_out) (record.c), replayed by
 * submit.c, which alone talks to the queue.
 *
 * Errors: every Vulkan call that can fail is wrapped in VK_TRY, whose function has one `fail:`
 * label. A lost device is latched in is_lost; each backend entry checks it. */
#ifndef TD_KERNELS_VULKAN_VK_H
#define TD_KERNELS_VULKAN_VK_H

#include "kernels/backend.h"
#include "kernels/pool.h"
#include "kernels/vulkan/hazard.h"
#include "kernels/vulkan/push.h"

#include <vulkan/vulkan.h>

#define TD_VK_BINDINGS_MAX   11u
#define TD_VK_GROUP_MIN      256u /* lanes of a workgroup that a device must have */
#define TD_VK_SLICES_MAX     8u   /* of k, of 64 lanes each; mat_vec: as many as there are lanes */
#define TD_VK_SHARED_BYTES   30720u /* of a workgroup at most: mat_tile.IQ2_S */
#define TD_VK_SPEC_MAX       8u
#define TD_VK_SIDES_MAX      4u            /* sizes of what lies beside a tensor */
#define TD_VK_BLOCK_BYTES    (1ull << 30)  /* largest block, unless one buffer needs more */
#define TD_VK_HOST_BYTES     (64ull << 20) /* the same of what the host accesses */
#define TD_VK_SLOTS          4u            /* of the upload ring */
#define TD_VK_SLOT_BYTES     (8ull << 20)  /* each, unless one row needs more */
#define TD_VK_ROW_VARIANTS   11u /* of a product, at most: by how many rows a pass takes */
#define TD_VK_PASSES_MAX     (TD_PREFILL_ROWS_MAX / 128) /* over a weight, by other workgroups */
#define TD_VK_RECORDINGS_MAX 128u
#define TD_VK_CHUNKS_MAX     1024u    /* of a recording; the last takes what is left */
#define TD_VK_CHUNK_US       75000.0  /* planned time of a submission */
#define TD_VK_CHUNK_MAX_US   150000.0 /* measured: above it the plan is made anew */
#define TD_VK_CACHE_PATH_MAX 4096u
#define TD_VK_COMPILERS_MAX  16u /* threads */
#define TD_VK_BATCH_MAX      64u /* command buffers of a submission */
#define TD_VK_WAIT_SLICE_NS  10000000000ull
#define TD_VK_DEADLINE_NS    60000000000ull

/* `call` is one Vulkan function's: errors name it. */
#define VK_TRY(d, call)                                                                            \
    do {                                                                                           \
        VkResult vk_result_ = (call);                                                              \
        if (vk_result_ != VK_SUCCESS) {                                                            \
            td_vk_fail((d), vk_result_, #call, err);                                               \
            goto fail;                                                                             \
        }                                                                                          \
    } while (0)

/* -- instance.c: instance, validation ------------------------------------------------------- */

typedef struct {
    VkInstance handle;
    VkDebugUtilsMessengerEXT messenger;
    PFN_vkSetDebugUtilsObjectNameEXT set_name; /* NULL without validation */
    _Atomic uint32_t n_messages;               /* warnings and errors of the validation layers */
    bool is_sync_checked; /* by them, who know of whole buffers only: td_vk_access has none less */
} td_vk_instance;

/* Not movable once made: the messenger points to it. Failure: no loader or driver. */
bool td_vk_instance_create(td_vk_instance *instance, td_err *err);
/* Aborts when validation had messages: a test must not pass with them. */
void td_vk_instance_destroy(td_vk_instance *instance);
/* keep_loaded.c: called before an instance is made and before it is destroyed; under
 * AddressSanitizer what came in with it stays in memory. */
void td_vk_loaded_before(void);
void td_vk_keep_loaded(void);

/* -- physical.c: what a GPU can do ---------------------------------------------------------- */

/* Driver quirks; quirks.c says which driver has which. */
enum {
    TD_VK_QUIRK_NO_COOPMAT = 1u << 0, /* cooperative matrices are reported but not to be trusted */
    TD_VK_QUIRK_IMPORTS = 1u << 1,    /* it imports memory of the process, but denies it */
};

typedef struct { /* limits in force, lowered by TD_VK_LIMIT */
    uint64_t storage_range_bytes, buffer_bytes, allocation_bytes;
    uint64_t direct_write_bytes; /* larger weights and caches are written through staging always */
    uint64_t direct_input_bytes; /* larger inputs are copied by the device always */
    uint64_t groups_x, groups_y, groups_z;                      /* workgroups of a dispatch */
    uint64_t invocations, size_x;                               /* of a workgroup */
    uint64_t shared_bytes, push_bytes;                          /* of a shader */
    uint64_t n_stage_buffers, n_set_buffers, n_stage_resources; /* its descriptors */
    uint64_t has_full_subgroups; /* 1: workgroups can be asked to be whole subgroups */
    uint64_t fused_ops;          /* that a dispatch does at most */
    uint64_t row_variants;       /* 1: a software driver has one kernel of a kind for all rows */
    uint64_t loads_by_lane;      /* 1: a software driver, whose lanes load one after another */
    uint64_t host_import;        /* 1: it imports memory of the process */
    double timestamp_ns;         /* a tick; 0: no timestamps */
    uint64_t timestamp_bits;     /* above them a timestamp wraps around */
    uint32_t quirks;
    bool has_memory_budget, has_executable_info, is_uma;
} td_vk_limits;

typedef struct {
    VkPhysicalDevice handle;
    VkPhysicalDeviceMemoryProperties memory;
    uint32_t queue_family, transfer_family; /* the same where none only copies */
    td_vk_limits limits;
    td_device_info info;
} td_vk_physical;

/* Devices of the instance in the order of their index; returns the count. */
uint32_t td_vk_physical_list(const td_vk_instance *instance, td_vk_physical *out, uint32_t max);
/* The device `which` means, as td_chips_find. */
bool td_vk_physical_find(const td_vk_instance *instance, const char *which, td_vk_physical *out,
                         td_err *err);
/* limits.c. Fills in the limits that a driver tells. */
void td_vk_limits_read(td_vk_physical *physical, const VkPhysicalDeviceProperties *basic,
                       const VkPhysicalDeviceVulkan11Properties *v11,
                       const VkPhysicalDeviceVulkan13Properties *v13);
/* Applies TD_VK_LIMIT, a list name=value,..., and says why_not where what is left is too little for
 * the kernels; TD_E_USAGE names the item that is not understood. */
bool td_vk_limits_lower(td_vk_physical *physical, const char *text, td_err *err);

/* Quirks of a driver, and their names into `names`. */
uint32_t td_vk_quirks_find(uint32_t vendor, VkDriverId driver, uint32_t version, char *names,
                           size_t n_names);

/* -- memory.c: blocks and buffers ----------------------------------------------------------- */

typedef struct td_vk_block td_vk_block;

typedef struct {
    VkBuffer handle;
    uint64_t n_bytes; /* as bound in descriptors: a multiple of 16 */
    td_vk_block *block;
    uint64_t offset, n_reserved;
    void *mapped; /* NULL when the host cannot see it */
} td_vk_buffer;

typedef enum {
    TD_VK_USE_DEVICE, /* weights, caches, activations */
    TD_VK_USE_HOST,   /* read and written by the host: coherent, cached where possible */
    TD_VK_USE_INPUT,  /* written by the host, read by many dispatches: local where possible */
} td_vk_use;

/* How well a memory type (TD_MEMORY_*) of a device suits a use; 0: not at all. */
int td_vk_memory_score(uint32_t flags, td_vk_use use, td_device_kind kind, bool is_uma);

/* -- device.c ------------------------------------------------------------------------------- */

typedef struct td_vk_pipeline td_vk_pipeline;

typedef struct { /* of the upload ring */
    td_vk_buffer buffer;
    VkCommandBuffer commands;
    VkFence fence;
    bool is_in_flight;
} td_vk_slot;

typedef struct {
    td_device head;
    td_vk_instance instance;
    td_vk_physical physical;
    VkDevice handle;
    VkQueue queue;
    VkCommandPool pool;      /* of recordings and of once */
    VkCommandBuffer once;    /* uploads and fills */
    VkCommandBuffer hops[2]; /* home.c: before a run, and after it */
    VkFence fence;           /* of the last submission of a run; unsignaled between runs */
    VkPipelineCache cache;
    char cache_path[TD_VK_CACHE_PATH_MAX]; /* its file, or "" */
    bool is_cache_read;                    /* from the file */
    uint32_t n_unsaved;                    /* pipelines made since it was written */
    VkDescriptorSetLayout set_layouts[TD_VK_BINDINGS_MAX + 1]; /* by number of bindings */
    VkPipelineLayout layouts[TD_VK_BINDINGS_MAX + 1];
    td_vk_pipeline *pipelines;
    td_vk_block *blocks;
    uint32_t n_blocks;
    uint64_t heap_used_bytes[TD_HEAPS_MAX]; /* in blocks */
    td_vk_buffer dummy, readback;           /* readback: of tensors the host cannot see; grows */
    VkQueue transfer_queue;
    VkCommandPool transfer_pool;
    td_pool *packers; /* threads that repack weights; NULL before a large one comes */
    td_vk_slot slots[TD_VK_SLOTS];
    uint32_t i_slot;      /* the next one */
    VkSemaphore uploaded; /* signaled on the transfer queue, waited for by the next submission */
    bool has_uploads;     /* since it was signaled */
    bool is_signaled;     /* and not yet waited for */
    bool is_running;      /* a run was submitted and is not waited for yet */
    struct {              /* of the next run, as far as it was told */
        struct td_vk_program *p; /* NULL: nothing was */
        uint32_t n_rows, n_out;
    } expected;
    bool is_lost;
    bool is_hung;                       /* work may still be running: nothing can be destroyed */
    uint64_t n_submissions, lose_after; /* lose_after 0: never */
} td_vk_device;

/* Sets err for a failed Vulkan call and latches a lost device. Returns false. */
bool td_vk_fail(td_vk_device *d, VkResult result, const char *call, td_err *err);
/* False with TD_E_DEVICE_LOST when the device was lost before. */
bool td_vk_check(td_vk_device *d, td_err *err);
const char *td_vk_result_name(VkResult result);
/* A debug label, when validation is on. */
void td_vk_set_name(td_vk_device *d, VkObjectType type, uint64_t handle, const char *name);
td_vk_device *td_vk_device_open(const char *which, bool is_compile_only, td_err *err);
void td_vk_device_close(td_vk_device *d);

bool td_vk_buffer_create(td_vk_device *d, uint64_t n_bytes, td_vk_use use, const char *name,
                         td_vk_buffer *out, td_err *err);
void td_vk_buffer_destroy(td_vk_device *d, td_vk_buffer *buffer);
/* Whether it lies in the device's own memory. */
bool td_vk_buffer_is_local(const td_vk_device *d, const td_vk_buffer *buffer);
bool td_vk_buffer_clear(td_vk_device *d, td_vk_buffer *buffer, td_err *err);

/* -- upload.c: the staging ring ------------------------------------------------------------- */

bool td_vk_upload_open(td_vk_device *d, td_err *err);
void td_vk_upload_close(td_vk_device *d);
/* Memory of the next slot, for at least n_bytes and at most *n_room; NULL with err set. */
void *td_vk_upload_begin(td_vk_device *d, uint64_t n_bytes, uint64_t *n_room, td_err *err);
typedef struct { /* bytes first + i * pitch .. + n_bytes of a slot, for i < n */
    uint64_t first, n_bytes, pitch;
    uint32_t n;
} td_vk_pieces;
/* Has pieces of it copied to a buffer the host cannot see, each `offset` further on; does not
 * wait. */
bool td_vk_upload_end(td_vk_device *d, td_vk_buffer *to, uint64_t offset,
                      const td_vk_pieces *pieces, td_err *err);
bool td_vk_upload_drain(td_vk_device *d, td_err *err); /* waits for all copies */
/* What the next submission has to wait for; null when nothing. */
bool td_vk_upload_fence(td_vk_device *d, VkSemaphore *wait_for, td_err *err);

/* -- objects.c, slabs.c --------------------------------------------------------------------- */

typedef struct {
    td_tensor head;
    td_vk_buffer buffer;
    /* An input's host memory, where the device would read it through its bus: a run begins with a
     * copy of it into the buffer. Else null. */
    td_vk_buffer staged;
    /* Made for the programs that want them (lower.h), by size: */
    td_vk_buffer int8[TD_VK_SIDES_MAX];     /* its rows as inc/int8.glsl says */
    td_vk_buffer partials[TD_VK_SIDES_MAX]; /* of the attention that writes it */
    /* Of experts: who chose which; of slots: whose rows stand together. inc/push.glsl */
    td_vk_buffer lists[TD_VK_SIDES_MAX];
} td_vk_tensor;

typedef struct {
    td_weight head;
    uint32_t n_units;    /* of 16 bytes of a packed row */
    uint32_t panel_rows; /* rows that lie interleaved (pack.h) */
    uint64_t panel_bytes;
    uint32_t group_panels;  /* of one of its groups, each padded to whole panels */
    uint32_t rows_per_slab; /* of all slabs but the last: whole groups, where there are several */
    uint32_t n_slabs;
    td_vk_buffer *slabs;
} td_vk_weight;

typedef struct {
    td_kv head;
    uint32_t k_words, v_words; /* of a cache row of one head */
    td_vk_buffer k, v;
} td_vk_kv;

typedef struct {
    td_state head;
    td_vk_buffer s, counts, ring; /* inc/push.glsl */
} td_vk_state;

typedef struct {
    td_home head;
    VkBuffer handle; /* of what was imported */
    VkDeviceMemory memory;
    td_vk_buffer own; /* where nothing was */
} td_vk_home;

bool td_vk_tensor_init(td_tensor *t, td_err *err);
void td_vk_tensor_free(td_tensor *t);
const void *td_vk_tensor_read(td_tensor *t, uint32_t row0, uint32_t n_rows, td_err *err);
/* cut.c */
uint32_t td_vk_cut_ranges(const td_cut *cut, td_cut_range *out);
bool td_vk_cuts_move(const td_cut *cuts, uint32_t n, bool is_read, td_err *err);
bool td_vk_kv_init(td_kv *kv, td_err *err);
void td_vk_kv_free(td_kv *kv);
uint64_t td_vk_kv_bytes(const td_device *dev, const td_kv_params *params);
uint64_t td_vk_kv_piece_bytes(const td_kv_params *params);
bool td_vk_state_init(td_state *s, td_err *err);
void td_vk_state_free(td_state *s);
uint64_t td_vk_state_bytes(const td_device *dev, const td_state_params *params);
uint64_t td_vk_state_piece_bytes(const td_state_params *params);
bool td_vk_weight_init(td_weight *w, td_err *err);
void td_vk_weight_free(td_weight *w);
bool td_vk_weight_write(td_weight *w, uint32_t row0, uint32_t n_rows, const void *rows,
                        td_err *err);
uint64_t td_vk_weight_bytes(const td_device *dev, const td_weight_params *params);
uint64_t td_vk_weight_piece_bytes(const td_weight_params *params);
/* What may lie beside a tensor at most, and beside an attention's output (td_vk_tensor). */
uint64_t td_vk_side_bytes(const td_tensor_params *params);
uint64_t td_vk_attention_bytes(uint32_t n_rows, uint32_t n_head, uint32_t head_dim_v,
                               uint32_t n_ctx);
/* Rows of a slab, as the weight counts them. */
uint32_t td_vk_slab_rows(const td_vk_weight *w, uint32_t i_slab);

/* -- pipeline.c ----------------------------------------------------------------------------- */

typedef struct {
    const char *shader; /* name for td_shader_find, static storage */
    uint32_t n_bindings;
    uint32_t spec[TD_VK_SPEC_MAX]; /* constant_id 0.. */
    uint32_t n_spec;
    /* Ask for full subgroups, so that 64 lanes in a row are whole ones, and set the constant
     * TD_VK_SPEC_FULL. */
    bool has_full_subgroups;
} td_vk_pipeline_key;

struct td_vk_pipeline {
    td_vk_pipeline *next;
    td_vk_pipeline_key key;
    VkPipelineCreateFlags flags;
    bool is_due;       /* at the next td_vk_pipelines_compile */
    VkPipeline handle; /* null until it is compiled */
};

bool td_vk_layouts_create(td_vk_device *d, td_err *err);
void td_vk_layouts_destroy(td_vk_device *d);
/* The pipeline of a key, owned by the device, to be compiled by td_vk_pipelines_compile, which
 * takes several threads for all that are due. `flags` are added at creation. */
td_vk_pipeline *td_vk_pipeline_want(td_vk_device *d, const td_vk_pipeline_key *key,
                                    VkPipelineCreateFlags flags, td_err *err);
bool td_vk_pipelines_compile(td_vk_device *d, td_err *err);
/* Both at once, for one. */
const td_vk_pipeline *td_vk_pipeline_find(td_vk_device *d, const td_vk_pipeline_key *key,
                                          VkPipelineCreateFlags flags, td_err *err);

/* -- pipeline_cache.c: compiled pipelines on disk ------------------------------------------- */

/* Makes d->cache, filled from its file if there is one that fits. Only Vulkan can fail. */
bool td_vk_cache_open(td_vk_device *d, td_err *err);
/* Writes the file if pipelines were made since; what fails is logged, once. */
void td_vk_cache_save(td_vk_device *d);

/* -- lower*.c, program.c, record.c, submit.c ------------------------------------------------- */

typedef struct {      /* how attention cuts its rows and query heads, inc/push.glsl */
    uint32_t n_group; /* query heads of a key/value head; 0: not attention */
    uint32_t quads;   /* of pairs of a row and a head that a slice takes at most */
    uint32_t tile_rows, n_blocks, block_heads;
    uint32_t n_head_kv, n_slots;
    bool has_one_variant;
} td_vk_tiling;

typedef struct { /* one dispatch */
    const td_op *op;
    td_vk_pipeline_key key;
    td_vk_pipeline *pipelines[TD_VK_ROW_VARIANTS]; /* [0] alone, or by row variant */
    uint32_t n_row_variants;                       /* a product; 0: one pipeline, a row per group */
    td_vk_tiling tiling;                           /* attention, which has variants too */
    const char *tile_shader; /* a product: mat_tile of the type, key.shader being mat_vec */
    uint32_t n_panels;       /* a product: of the slab, or of one of its groups */
    uint32_t n_gate_panels;  /* the same where mat_vec gates or quantizes; 0: it does not */
    uint32_t n_used;         /* a product by expert: those a row chose; else 0 */
    uint32_t n_experts;      /* of them */
    bool is_software, has_few_variants;
    uint32_t subgroup; /* a product on a software driver: lanes that hand each other rows, or 0 */
    const td_vk_buffer *bindings[TD_VK_BINDINGS_MAX];
    VkDescriptorSet set;
    uint8_t push[TD_VK_PUSH_BYTES_MAX]; /* n_rows, the first member, is filled in per recording */
    uint32_t n_push;
    uint32_t groups_x, groups_z;               /* groups_y: rows, or groups of rows, */
    uint32_t groups_y_max;                     /* at most so many; 0: any number */
    uint32_t n_rows_min;                       /* not needed for fewer */
    bool is_last;                              /* of its op's steps */
    td_vk_access accesses[TD_VK_BINDINGS_MAX]; /* but to weights, which no program writes */
    uint32_t n_accesses;
    double work_per_row; /* multiply-adds or so */
    double us_per_work;  /* learned from timestamps */
} td_vk_step;

/* What of an attention step's specialization and tiling follows from its shape: head_dim_v and the
 * query heads of a key/value head. */
void td_vk_attention_shape(const td_vk_device *d, uint32_t head_dim_v, uint32_t n_group,
                           td_vk_step *s);
/* Which of its variants is for so many rows (more rows never have a lower one), and its key. */
uint32_t td_vk_attention_variant(const td_vk_tiling *t, uint32_t n_rows);
void td_vk_attention_key(const td_vk_step *s, uint32_t i, td_vk_pipeline_key *key);
/* What of a product follows from the type and shape of its weight: shaders and specialization. */
void td_vk_mat_mul_shape(const td_vk_device *d, const td_type_info *type, uint32_t n_k,
                         uint32_t n_o, td_vk_step *s);
/* The i-th row variant of a product, and how many rows a pass of it takes. */
void td_vk_row_variant(const td_vk_step *s, uint32_t i, td_vk_pipeline_key *key);
uint32_t td_vk_variant_rows(const td_vk_step *s, uint32_t i);

/* Steps an op takes: one, or one for each slab of its weight, after one that quantizes its input
 * where no earlier op has done so. */
uint32_t td_vk_lower_count(const td_program *p, uint32_t i_op);
/* Fills everything of step i of an op but its pipelines, set and ids. Fails when there is no memory
 * for the quantized rows. */
bool td_vk_lower(td_program *p, uint32_t i_op, uint32_t i, td_vk_step *out, td_err *err);
/* How a step runs for a number of rows. */
typedef struct {
    td_vk_pipeline *pipeline;
    uint32_t x, y, z; /* workgroups */
    /* a product: over the weight, each with workgroups of its own along x; attention: slices of a
     * workgroup. */
    uint32_t n_passes;
} td_vk_dispatch;
td_vk_dispatch td_vk_step_dispatch(const td_vk_step *s, uint32_t n_rows);

/* traffic.c: a step's, in the run that was last, whose inputs are still there. */
td_traffic td_vk_step_traffic(const td_vk_step *s, uint32_t n_rows);

typedef struct { /* workgroups x0..x0+n_x-1 of a step */
    uint32_t i_step, x0, n_x;
    bool begins_chunk;
    bool needs_barrier;
} td_vk_part;

typedef struct { /* a command buffer */
    VkCommandBuffer commands;
    uint32_t first_part, n_parts; /* in the recording's plan */
} td_vk_chunk;

typedef struct {
    uint32_t n_rows, n_out; /* n_rows 0: empty slot */
    uint64_t last_use, n_uses;
    td_vk_part *parts;   /* [n_parts] */
    td_vk_chunk *chunks; /* [n_chunks] */
    td_vk_chunk head;    /* copies what is staged of the inputs, once a run; or null commands */
    uint32_t n_parts, n_chunks;
    VkQueryPool queries; /* two timestamps a chunk, or none; then two a part, when profiled */
    bool is_profiled, is_repeatable; /* repeatable: may stand more than once in a submission */
    double chunk_us;                 /* mean measured time, or what was planned */
    bool is_stale;                   /* its chunks are too long or too short: record it anew */
} td_vk_recording;

typedef struct td_vk_program {
    td_program head;
    td_vk_step *steps;
    uint32_t n_steps;
    VkDescriptorPool sets;
    struct td_vk_visitor { /* a tensor that may have a home */
        td_tensor *t;
        bool is_read, is_written;
    } * visitors; /* [n_visitors] */
    uint32_t n_visitors;
    td_vk_hazard hazard;
    td_vk_part *plan; /* scratch, [n_steps + TD_VK_CHUNKS_MAX] */
    td_vk_recording recordings[TD_VK_RECORDINGS_MAX];
    uint32_t n_recordings; /* slots ever used: those behind are empty, and not looked at */
    uint64_t n_runs;
} td_vk_program;

bool td_vk_program_compile(td_program *p, td_err *err);
bool td_vk_program_run(td_program *p, uint32_t n_rows, uint32_t n_out, td_err *err);
bool td_vk_programs_run(const td_program_call *calls, uint32_t n_calls, td_err *err);
void td_vk_program_free(td_program *p);
void td_vk_program_expect(td_program *p, uint32_t n_rows, uint32_t n_out);
bool td_vk_program_profile(td_program *p, bool is_on, td_err *err);

/* home.c: memory between devices. What of a program may have a home is found when it ends. The
 * copies of a run that begin and end it; null where there are none. */
/* Whether a driver that has the extension imports buffers' memory. */
bool td_vk_can_import(const td_vk_physical *p);
bool td_vk_home_init(td_home *home, td_err *err);
bool td_vk_home_free(td_home *home);
bool td_vk_find_visitors(td_vk_program *p, td_err *err);
bool td_vk_record_hops(td_vk_device *d, const td_program_call *calls, uint32_t n_calls,
                       VkCommandBuffer hops[2], td_err *err);

/* chunks.c: cuts the steps into parts and chunks of about TD_VK_CHUNK_US for the row counts;
 * returns the number of parts. After a run, td_vk_learn corrects the steps' costs by the measured
 * times of the chunks (or of all, where n_us is 1) and says when the plan should be made anew.
 * td_vk_learns: whether there is anything to learn of a run that took so long by the host's clock;
 * asking a device for its times may take as long as a submission. */
uint32_t td_vk_plan(td_vk_program *p, uint32_t n_rows, uint32_t n_out, td_vk_part *out);
bool td_vk_learns(const td_vk_recording *r, double run_us);
void td_vk_learn(td_vk_program *p, td_vk_recording *r, const double *us, uint32_t n_us);

/* record.c: command buffers of a plan. The barrier orders all memory that `from` wrote or read
 * before `to`. */
void td_vk_barrier(VkCommandBuffer commands, VkPipelineStageFlags2 from, VkAccessFlags2 from_access,
                   VkPipelineStageFlags2 to, VkAccessFlags2 to_access);
double td_vk_seconds(const td_vk_device *d, uint64_t from_ticks, uint64_t to_ticks);
bool td_vk_record(td_vk_program *p, uint32_t n_rows, uint32_t n_out, bool is_repeatable,
                  td_vk_recording *out, td_err *err);
void td_vk_recording_free(td_vk_program *p, td_vk_recording *r);

typedef struct { /* command buffers to run in order, all of them n_times over */
    const td_vk_chunk *chunks;
    uint32_t n_chunks, n_times;
    double chunk_us; /* what each takes, about */
} td_vk_work;

/* Submits it all in order, as few submissions of about TD_VK_CHUNK_US; td_vk_finish waits for the
 * last. In between the host may record, but free nothing that was submitted. */
bool td_vk_submit(td_vk_device *d, const td_vk_work *work, uint32_t n_work, td_err *err);
bool td_vk_finish(td_vk_device *d, td_err *err);
/* One submission; null handles are left out. Every submission goes through here. */
bool td_vk_queue_submit(td_vk_device *d, VkQueue queue, const VkCommandBuffer *commands,
                        uint32_t n_commands, VkSemaphore wait_for, VkSemaphore signal,
                        VkFence fence, td_err *err);
/* Waits for a fence and resets it; a deadline makes the device lost. */
bool td_vk_wait(td_vk_device *d, VkFence fence, td_err *err);
bool td_vk_submit_once(td_vk_device *d, td_err *err); /* d->once, recorded by the caller */
bool td_vk_once_begin(td_vk_device *d, td_err *err);

#endif
