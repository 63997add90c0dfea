/* What tests look at inside the Vulkan backend, without its headers. Not for the product. */
#ifndef TD_KERNELS_VULKAN_PROBE_H
#define TD_KERNELS_VULKAN_PROBE_H

#include "kernels/device.h"

/* Submissions, dispatches and barriers inside them, of a program's recording for the row counts; 0
 * if it was not run with them. */
uint32_t td_vulkan_count_submissions(const td_program *p, uint32_t n_rows, uint32_t n_out);
uint64_t td_vulkan_count_submitted(const td_device *dev); /* by the device, ever */
uint32_t td_vulkan_count_dispatches(const td_program *p, uint32_t n_rows, uint32_t n_out);
uint32_t td_vulkan_count_barriers(const td_program *p, uint32_t n_rows, uint32_t n_out);

/* Reads, by a program's steps, of memory that is not the device's own: of staged inputs, or of what
 * lies in no local heap. */
uint32_t td_vulkan_count_far_reads(const td_program *p);

/* Slabs of a weight. */
uint32_t td_vulkan_count_slabs(const td_weight *w);

/* Messages of the validation layers so far (TD_VK_VALIDATION); destroying the device aborts when
 * there were any. */
uint32_t td_vulkan_count_messages(const td_device *dev);

/* The file of compiled pipelines, "" when there is none; and whether it was read and taken. */
const char *td_vulkan_cache_path(const td_device *dev, bool *was_read);

/* Makes every step's cost per unit of work `us`, so that a test decides how a program is cut, and
 * drops its recordings. */
void td_vulkan_set_cost(td_program *p, double us);

typedef struct {
    const char *shader;  /* with its specialization constants: "mat_vec.Q4_K 16" */
    bool has_statistics; /* the driver tells the numbers below */
    uint32_t n_vgprs, n_sgprs, n_spilled, scratch_bytes, lds_bytes, code_bytes, n_waves;
    uint32_t n_instructions, latency, inverse_throughput; /* the last two as RADV reckons them */
    const char *assembly; /* the driver's listing, while `visit` runs; or NULL */
} td_vulkan_pipeline_info;

/* Compiles every shader in every specialization a program may ask for (of rare weight types in
 * some), on a device that need not be able to run anything, and hands each to `visit`. Errors:
 * TD_E_USAGE (which), or the failed compilation's. */
bool td_vulkan_compile_all(const char *which,
                           void (*visit)(const td_vulkan_pipeline_info *info, void *context),
                           void *context, td_err *err);

/* A compute shader that is not tandem's. */
typedef struct {
    const char *name;
    const uint32_t *words; /* SPIR-V */
    size_t n_words;
    const uint32_t *spec; /* constant_id 0.. */
    uint32_t n_spec;
    uint32_t subgroup; /* lanes, all full; 0: as the driver likes */
} td_vulkan_module;

/* Compiles it as td_vulkan_compile_all does ours. Up to TD_VK_BINDINGS_MAX storage buffers in set 0
 * and the push constants Vulkan promises are there. */
bool td_vulkan_compile_module(const char *which, const td_vulkan_module *m,
                              void (*visit)(const td_vulkan_pipeline_info *info, void *context),
                              void *context, td_err *err);

#endif
