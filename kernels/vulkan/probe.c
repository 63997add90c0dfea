/* The tests' view of the backend, and the compilation of all there is for drivers that only
 * compile. */
#include "kernels/vulkan/probe.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/vulkan/shaders.h"
#include "kernels/vulkan/vk.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static const td_vk_recording *find(const td_program *program, uint32_t n_rows, uint32_t n_out)
{
    const td_vk_program *p = (const td_vk_program *)program;
    for (uint32_t i = 0; i < TD_VK_RECORDINGS_MAX; i++)
        if (p->recordings[i].n_rows == n_rows && p->recordings[i].n_out == n_out)
            return &p->recordings[i];
    return NULL;
}

uint32_t td_vulkan_count_submissions(const td_program *p, uint32_t n_rows, uint32_t n_out)
{
    const td_vk_recording *r = find(p, n_rows, n_out);
    return r ? r->n_chunks : 0;
}

uint32_t td_vulkan_count_dispatches(const td_program *p, uint32_t n_rows, uint32_t n_out)
{
    const td_vk_recording *r = find(p, n_rows, n_out);
    return r ? r->n_parts : 0;
}

uint64_t td_vulkan_count_submitted(const td_device *dev)
{
    return ((const td_vk_device *)dev)->n_submissions;
}

uint32_t td_vulkan_count_barriers(const td_program *p, uint32_t n_rows, uint32_t n_out)
{
    const td_vk_recording *r = find(p, n_rows, n_out);
    uint32_t n = 0;
    for (uint32_t i = 0; r && i < r->n_parts; i++)
        n += r->parts[i].needs_barrier;
    return n;
}

static bool is_staging(const td_vk_program *p, const td_vk_buffer *buffer)
{
    for (uint32_t i = 0; i < p->head.n_ops; i++)
        for (uint32_t k = 0; k < p->head.ops[i].n_in; k++)
            if (&((const td_vk_tensor *)p->head.ops[i].in[k].t)->staged == buffer)
                return true;
    return false;
}

uint32_t td_vulkan_count_far_reads(const td_program *program)
{
    const td_vk_program *p = (const td_vk_program *)program;
    const td_vk_device *d = (const td_vk_device *)program->dev;
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_steps; i++)
        for (uint32_t k = 0; k < p->steps[i].n_accesses; k++) {
            const td_vk_buffer *buffer = p->steps[i].accesses[k].buffer;
            n += !p->steps[i].accesses[k].is_write &&
                 (!td_vk_buffer_is_local(d, buffer) || is_staging(p, buffer));
        }
    return n;
}

uint32_t td_vulkan_count_slabs(const td_weight *w) { return ((const td_vk_weight *)w)->n_slabs; }

uint32_t td_vulkan_count_messages(const td_device *dev)
{
    return atomic_load(&((const td_vk_device *)dev)->instance.n_messages);
}

const char *td_vulkan_cache_path(const td_device *dev, bool *was_read)
{
    const td_vk_device *d = (const td_vk_device *)dev;
    *was_read = d->is_cache_read;
    return d->cache_path;
}

void td_vulkan_set_cost(td_program *program, double us)
{
    td_vk_program *p = (td_vk_program *)program;
    for (uint32_t i = 0; i < p->n_steps; i++)
        p->steps[i].us_per_work = us;
    for (uint32_t i = 0; i < TD_VK_RECORDINGS_MAX; i++)
        td_vk_recording_free(p, &p->recordings[i]);
}

#define MODULE_SPEC_MAX 16u
#define STATISTICS_MAX  64u

static uint32_t number(const VkPipelineExecutableStatisticKHR *s)
{
    switch (s->format) {
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR:
        return s->value.b32;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR:
        return (uint32_t)s->value.i64;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR:
        return (uint32_t)s->value.u64;
    default:
        return (uint32_t)s->value.f64;
    }
}

/* The statistics RADV gives, by its names; other drivers' that match are taken as well. */
static void read_statistics(td_vk_device *d, VkPipeline pipeline, td_vulkan_pipeline_info *out)
{
    struct {
        const char *name;
        uint32_t *value;
    } names[] = {
        {"VGPRs", &out->n_vgprs},
        {"SGPRs", &out->n_sgprs},
        {"Spilled VGPRs", &out->n_spilled},
        {"Spilled SGPRs", &out->n_spilled},
        {"Scratch size", &out->scratch_bytes},
        {"LDS size", &out->lds_bytes},
        {"Code size", &out->code_bytes},
        {"Subgroups per SIMD", &out->n_waves},
        {"Instructions", &out->n_instructions},
        {"Latency", &out->latency},
        {"Inverse Throughput", &out->inverse_throughput},
    };
    PFN_vkGetPipelineExecutableStatisticsKHR get =
        (PFN_vkGetPipelineExecutableStatisticsKHR)vkGetDeviceProcAddr(
            d->handle, "vkGetPipelineExecutableStatisticsKHR");
    if (!get)
        return;
    VkPipelineExecutableStatisticKHR statistics[STATISTICS_MAX];
    for (uint32_t i = 0; i < STATISTICS_MAX; i++)
        statistics[i] = (VkPipelineExecutableStatisticKHR){
            .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
    uint32_t n = STATISTICS_MAX;
    VkPipelineExecutableInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR,
                                         .pipeline = pipeline};
    if (get(d->handle, &which, &n, statistics) != VK_SUCCESS)
        return;
    for (uint32_t i = 0; i < n; i++)
        for (size_t k = 0; k < TD_COUNT(names); k++)
            if (!strcmp(statistics[i].name, names[k].name)) {
                *names[k].value += number(&statistics[i]);
                out->has_statistics = true;
            }
}

#define TEXTS_MAX 8u

/* The driver's assembly listing, to be freed with td_free; NULL where it gives none. */
static char *new_assembly(td_vk_device *d, VkPipeline pipeline)
{
    PFN_vkGetPipelineExecutableInternalRepresentationsKHR get =
        (PFN_vkGetPipelineExecutableInternalRepresentationsKHR)vkGetDeviceProcAddr(
            d->handle, "vkGetPipelineExecutableInternalRepresentationsKHR");
    VkPipelineExecutableInternalRepresentationKHR texts[TEXTS_MAX];
    for (uint32_t i = 0; i < TEXTS_MAX; i++)
        texts[i] = (VkPipelineExecutableInternalRepresentationKHR){
            .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR};
    uint32_t n = TEXTS_MAX;
    VkPipelineExecutableInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR,
                                         .pipeline = pipeline};
    char *assembly = NULL;
    if (!get || get(d->handle, &which, &n, texts) != VK_SUCCESS)
        return NULL;
    for (uint32_t i = 0; i < n; i++) /* all are copied, with memory or not */
        if (!strcmp(texts[i].name, "Assembly") && texts[i].isText) {
            assembly = td_alloc(texts[i].dataSize + 1, 1, NULL);
            texts[i].pData = assembly;
        }
    if (assembly && get(d->handle, &which, &n, texts) != VK_SUCCESS) {
        td_free(assembly);
        return NULL;
    }
    return assembly;
}

typedef struct {
    td_vk_device *d;
    void (*visit)(const td_vulkan_pipeline_info *info, void *context);
    void *context;
} compile_run;

static VkPipelineCreateFlags capture_flags(const td_vk_device *d)
{
    return d->physical.limits.has_executable_info
               ? VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR |
                     VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR
               : 0;
}

static void show(const compile_run *run, const char *name, VkPipeline pipeline)
{
    td_vulkan_pipeline_info info = {.shader = name};
    char *assembly = NULL;
    if (capture_flags(run->d)) {
        info.assembly = assembly = new_assembly(run->d, pipeline);
        read_statistics(run->d, pipeline, &info);
    }
    run->visit(&info, run->context);
    td_free(assembly);
}

static bool compile_one(const compile_run *run, const td_vk_pipeline_key *key, td_err *err)
{
    char name[128];
    int n = snprintf(name, sizeof name, "%s", key->shader);
    for (uint32_t i = 0; i < key->n_spec; i++)
        n += snprintf(name + n, sizeof name - (size_t)n, " %u", key->spec[i]);
    const td_vk_pipeline *pipeline = td_vk_pipeline_find(run->d, key, capture_flags(run->d), err);
    if (!pipeline)
        return td_err_prepend(err, "%s", name);
    show(run, name, pipeline->handle);
    return true;
}

/* Its variants for groups of 4 heads, of a latent cache where values are shorter than keys; of
 * unlike types the largest shows what there is to see. */
static bool compile_attention(const compile_run *run, const td_vk_pipeline_key *key, bool is_full,
                              td_err *err)
{
    td_vk_step step = {.key = *key};
    td_vk_attention_shape(run->d, key->spec[3], 4, &step);
    step.key.spec[7] = is_full && key->spec[2] != key->spec[3];
    uint32_t last = td_vk_attention_variant(&step.tiling, TD_PREFILL_ROWS_MAX);
    for (uint32_t i = is_full ? 0 : last; i <= last; i++) {
        td_vk_pipeline_key variant;
        td_vk_attention_key(&step, i, &variant);
        if (!compile_one(run, &variant, err))
            return false;
    }
    return true;
}

static bool compile_cache_pair(const compile_run *run, const td_shader *shader, uint32_t type_k,
                               uint32_t type_v, const uint32_t *head_dims, td_err *err)
{
    const td_type_info *k = td_type_find(type_k);
    bool is_rotated =
        k->block_bytes < k->block_elements; /* as unless something else is asked for */
    td_vk_pipeline_key key = {
        .shader = shader->name,
        .n_bindings = TD_VK_BINDINGS_MAX,
        .spec = {type_k, type_v, head_dims[0], head_dims[1], head_dims[1], is_rotated ? 7 : 0},
        .n_spec = strcmp(shader->name, "rope_store") ? 4 : 6};
    return strcmp(shader->name, "attention") ? compile_one(run, &key, err)
                                             : compile_attention(run, &key, type_k == type_v, err);
}

/* Every cache type beside itself and another, with head sizes that are and are not multiples of the
 * blocks; the rarer types, which differ in how they decode, with the usual size and the largest.
 * The last constants are rope_store's: columns that are normed, what is rotated. */
static bool compile_cache_shader(const compile_run *run, const td_shader *shader, td_err *err)
{
    static const uint32_t types[] = {TD_TYPE_F32,  TD_TYPE_F16,   TD_TYPE_Q8_0, TD_TYPE_Q4_0,
                                     TD_TYPE_BF16, TD_TYPE_Q6_0,  TD_TYPE_Q5_1, TD_TYPE_Q5_0,
                                     TD_TYPE_Q4_1, TD_TYPE_IQ4_NL};
    static const uint32_t head_dims[][2] = {{128, 128}, {576, 512}, {64, 64}, {80, 80}, {256, 256}};
    enum { COMMON = 4, USUAL = 2 };
    for (size_t t = 0; t < TD_COUNT(types); t++) {
        for (size_t i = 0; i < (t < COMMON ? TD_COUNT(head_dims) : USUAL); i++)
            if (!compile_cache_pair(run, shader, types[t], types[t], head_dims[i], err))
                return false;
        uint32_t next = types[(t + 1) % TD_COUNT(types)];
        if (!compile_cache_pair(run, shader, types[t], next, head_dims[t % TD_COUNT(head_dims)],
                                err))
            return false;
    }
    return true;
}

/* Of weight types that few files have, some row counts show what there is to see. */
static bool is_compiled(const td_shader *shader, uint32_t kind, uint32_t i_rows)
{
    static const char *const common[] = {"F32",  "F16",  "BF16", "Q4_0", "Q8_0",
                                         "Q4_K", "Q5_K", "Q6_K", "MXFP4"};
    /* 1, 8, 16, 128; 4, 64 rows */
    const uint32_t is_sampled = kind == TD_VK_MUL_PLAIN ? 0x491u : 0x204u;
    for (size_t i = 0; i < TD_COUNT(common); i++)
        if (!strcmp(shader->name + strlen("mat_vec."), common[i]))
            return true;
    return is_sampled >> i_rows & 1;
}

/* A product of a weight with glu's kind (mat_vec.comp), or -1; or one that only quantizes. */
#define QUANTIZES -2
static bool compile_products(const compile_run *run, const td_shader *shader, int glu, td_err *err)
{
    static const uint32_t kinds[] = {TD_VK_MUL_PLAIN, TD_VK_MUL_EXPERT};
    const td_type_info *type = td_type_find_name(shader->name + strlen("mat_vec."));
    td_vk_pipeline_key key = {.shader = shader->name, .n_bindings = TD_VK_BINDINGS_MAX};
    td_vk_step step = {.key = key, .n_gate_panels = glu != -1};
    td_vk_mat_mul_shape(run->d, type, 4096, 4096, &step);
    step.key.spec[6] = glu == QUANTIZES ? 0 : (uint32_t)(glu + 1);
    step.key.spec[7] = glu == QUANTIZES || type->has_int8_activations;
    for (size_t k = 0; k < TD_COUNT(kinds); k++) {
        step.key.spec[4] = kinds[k];
        for (uint32_t i = 0; i < step.n_row_variants; i++) {
            td_vk_row_variant(&step, i, &key);
            bool is_known = glu != -1 && strcmp(key.shader, shader->name) != 0; /* a mat_tile */
            is_known |= glu == QUANTIZES && (kinds[k] != TD_VK_MUL_PLAIN || !(0x84u >> i & 1));
            if (!is_known && is_compiled(shader, kinds[k], i) && !compile_one(run, &key, err))
                return false;
        }
    }
    return true;
}

static bool compile_shader(const compile_run *run, const td_shader *shader, td_err *err)
{
    td_vk_pipeline_key key = {.shader = shader->name, .n_bindings = TD_VK_BINDINGS_MAX};
    if (!strcmp(shader->name, "attention") || strstr(shader->name, "_store"))
        return compile_cache_shader(run, shader, err);
    /* The plain ones, which follow, do one op; these do what is done with it (fuse.c). */
    static const struct {
        const char *name;
        uint32_t spec[3], n_spec;
    } fused[] = {{"rms_norm", {TD_VK_NORM_SUM, 1}, 2},
                 {"rms_norm", {TD_VK_NORM_POST, 1, TD_VK_NORM_PLAIN}, 3},
                 {"rms_norm", {TD_VK_NORM_GATED, 1, TD_VK_NORM_PLAIN}, 3},
                 {"rms_norm", {TD_VK_NORM_GATED, 0, TD_VK_NORM_NONE}, 3},
                 {"rms_norm", {TD_VK_NORM_X, 1, TD_VK_NORM_SILU}, 3},
                 {"glu", {0, 1}, 2},
                 {"route", {true}, 1},
                 {"attention_join", {1}, 1},
                 {"attention_join", {1, 1}, 2},
                 {"attention_join", {1, 1, 128}, 3},
                 {"attention_join", {1, 0, 512}, 3}};
    for (size_t i = 0; i < TD_COUNT(fused); i++) {
        td_vk_pipeline_key k = {.shader = shader->name,
                                .n_bindings = TD_VK_BINDINGS_MAX,
                                .spec = {fused[i].spec[0], fused[i].spec[1], fused[i].spec[2]},
                                .n_spec = fused[i].n_spec};
        if (!strcmp(shader->name, fused[i].name) && !compile_one(run, &k, err))
            return false;
    }
    if (!strncmp(shader->name, "mat_tile", 8)) /* with mat_vec */
        return true;
    if (strncmp(shader->name, "mat_vec", 7))
        return compile_one(run, &key, err);
    bool has_glu = strstr(shader->name, ".Q8_0") || strstr(shader->name, ".Q4_K") ||
                   strstr(shader->name, ".F32"); /* enough to see what it takes */
    return compile_products(run, shader, -1, err) &&
           (!has_glu || compile_products(run, shader, 0, err)) &&
           (!strstr(shader->name, ".Q4_K") || compile_products(run, shader, QUANTIZES, err));
}

bool td_vulkan_compile_all(const char *which,
                           void (*visit)(const td_vulkan_pipeline_info *info, void *context),
                           void *context, td_err *err)
{
    compile_run run = {td_vk_device_open(which, true, err), visit, context};
    if (!run.d)
        return false;
    uint32_t n;
    const td_shader *shaders = td_shader_list(&n);
    bool is_ok = true;
    for (uint32_t i = 0; i < n && is_ok; i++)
        is_ok = compile_shader(&run, &shaders[i], err);
    td_vk_device_close(run.d);
    return is_ok;
}

static bool compile_module(const compile_run *run, const td_vulkan_module *m, td_err *err)
{
    td_vk_device *d = run->d;
    VkShaderModule module = VK_NULL_HANDLE;
    VkPipeline pipeline = VK_NULL_HANDLE;
    VkSpecializationMapEntry entries[MODULE_SPEC_MAX];
    TD_ASSERT(m->n_spec <= MODULE_SPEC_MAX);
    for (uint32_t i = 0; i < m->n_spec; i++)
        entries[i] = (VkSpecializationMapEntry){i, i * (uint32_t)sizeof *m->spec, sizeof *m->spec};
    VkShaderModuleCreateInfo code = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                     .codeSize = m->n_words * sizeof *m->words,
                                     .pCode = m->words};
    VkSpecializationInfo spec = {.mapEntryCount = m->n_spec,
                                 .pMapEntries = entries,
                                 .dataSize = m->n_spec * sizeof *m->spec,
                                 .pData = m->spec};
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo lanes = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = m->subgroup};
    VK_TRY(d, vkCreateShaderModule(d->handle, &code, NULL, &module));
    VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .flags = capture_flags(d),
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .pNext = m->subgroup ? &lanes : NULL,
                  .flags =
                      m->subgroup ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT : 0,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module,
                  .pName = "main",
                  .pSpecializationInfo = &spec},
        .layout = d->layouts[TD_VK_BINDINGS_MAX],
    };
    VK_TRY(d, vkCreateComputePipelines(d->handle, VK_NULL_HANDLE, 1, &info, NULL, &pipeline));
    show(run, m->name, pipeline);
    vkDestroyPipeline(d->handle, pipeline, NULL);
    vkDestroyShaderModule(d->handle, module, NULL);
    return true;
fail:
    vkDestroyShaderModule(d->handle, module, NULL);
    return td_err_prepend(err, "%s", m->name);
}

bool td_vulkan_compile_module(const char *which, const td_vulkan_module *m,
                              void (*visit)(const td_vulkan_pipeline_info *info, void *context),
                              void *context, td_err *err)
{
    compile_run run = {td_vk_device_open(which, true, err), visit, context};
    bool is_ok = run.d && compile_module(&run, m, err);
    if (run.d)
        td_vk_device_close(run.d);
    return is_ok;
}
