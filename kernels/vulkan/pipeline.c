/* Layouts and pipelines. All bindings are storage buffers in set 0, so a layout is a number of
 * bindings; a pipeline is a shader and its specialization constants, made once per device. A driver
 * may take a second for one: those a program wants are compiled together, by several threads. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "kernels/vulkan/exact.h"
#include "kernels/vulkan/shaders.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool td_vk_layouts_create(td_vk_device *d, td_err *err)
{
    VkDescriptorSetLayoutBinding bindings[TD_VK_BINDINGS_MAX];
    for (uint32_t i = 0; i < TD_VK_BINDINGS_MAX; i++)
        bindings[i] = (VkDescriptorSetLayoutBinding){
            .binding = i,
            .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
            .descriptorCount = 1,
            .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT,
        };
    VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT,
                                .size = TD_VK_PUSH_BYTES_MAX};
    for (uint32_t n = 1; n <= TD_VK_BINDINGS_MAX; n++) {
        VkDescriptorSetLayoutCreateInfo set = {
            .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
            .bindingCount = n,
            .pBindings = bindings,
        };
        VK_TRY(d, vkCreateDescriptorSetLayout(d->handle, &set, NULL, &d->set_layouts[n]));
        VkPipelineLayoutCreateInfo layout = {
            .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
            .setLayoutCount = 1,
            .pSetLayouts = &d->set_layouts[n],
            .pushConstantRangeCount = 1,
            .pPushConstantRanges = &push,
        };
        VK_TRY(d, vkCreatePipelineLayout(d->handle, &layout, NULL, &d->layouts[n]));
    }
    return td_vk_cache_open(d, err);
fail:
    return false;
}

void td_vk_layouts_destroy(td_vk_device *d)
{
    for (td_vk_pipeline *p = d->pipelines, *next; p; p = next) {
        next = p->next;
        vkDestroyPipeline(d->handle, p->handle, NULL);
        td_free(p);
    }
    d->pipelines = NULL;
    vkDestroyPipelineCache(d->handle, d->cache, NULL);
    for (uint32_t n = 1; n <= TD_VK_BINDINGS_MAX; n++) {
        vkDestroyPipelineLayout(d->handle, d->layouts[n], NULL);
        vkDestroyDescriptorSetLayout(d->handle, d->set_layouts[n], NULL);
    }
}

static bool is_same(const td_vk_pipeline_key *a, const td_vk_pipeline_key *b)
{
    return !strcmp(a->shader, b->shader) && a->n_bindings == b->n_bindings &&
           a->n_spec == b->n_spec && a->has_full_subgroups == b->has_full_subgroups &&
           !memcmp(a->spec, b->spec, a->n_spec * sizeof *a->spec);
}

/* Called by several threads, for different pipelines. */
static bool create(td_vk_device *d, td_vk_pipeline *out, td_err *err)
{
    const td_shader *shader = td_shader_find(out->key.shader);
    VkShaderModule module = VK_NULL_HANDLE;
    size_t n_words;
    uint32_t *words = td_vk_exact_module(shader->words, *shader->n_words, &n_words, err);
    if (!words)
        goto fail;
    VkSpecializationMapEntry entries[TD_VK_SPEC_MAX + 1];
    uint32_t values[TD_VK_SPEC_MAX + 1], n_spec = out->key.n_spec;
    for (uint32_t i = 0; i <= n_spec; i++) {
        bool is_last = i == n_spec;
        values[i] = is_last ? out->key.has_full_subgroups : out->key.spec[i];
        entries[i] = (VkSpecializationMapEntry){is_last ? TD_VK_SPEC_FULL : i,
                                                i * (uint32_t)sizeof *values, sizeof *values};
    }
    VkSpecializationInfo spec = {.mapEntryCount = n_spec + 1,
                                 .pMapEntries = entries,
                                 .dataSize = (n_spec + 1) * sizeof *values,
                                 .pData = values};
    VK_TRY(d, vkCreateShaderModule(d->handle,
                                   &(VkShaderModuleCreateInfo){
                                       .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                       .codeSize = n_words * sizeof *words,
                                       .pCode = words,
                                   },
                                   NULL, &module));
    VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .flags = VK_PIPELINE_CREATE_DISPATCH_BASE_BIT | out->flags, /* long dispatches are cut */
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .flags = out->key.has_full_subgroups
                               ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT
                               : 0,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module,
                  .pName = "main",
                  .pSpecializationInfo = &spec},
        .layout = d->layouts[out->key.n_bindings],
    };
    VK_TRY(d, vkCreateComputePipelines(d->handle, d->cache, 1, &info, NULL, &out->handle));
    vkDestroyShaderModule(d->handle, module, NULL);
    td_free(words);
    td_vk_set_name(d, VK_OBJECT_TYPE_PIPELINE, (uint64_t)(uintptr_t)out->handle, out->key.shader);
    return true;
fail:
    vkDestroyShaderModule(d->handle, module, NULL);
    td_free(words);
    return td_err_prepend(err, "shader %s", out->key.shader);
}

td_vk_pipeline *td_vk_pipeline_want(td_vk_device *d, const td_vk_pipeline_key *key,
                                    VkPipelineCreateFlags flags, td_err *err)
{
    for (td_vk_pipeline *p = d->pipelines; p; p = p->next)
        if (is_same(&p->key, key)) {
            p->is_due = true;
            return p;
        }
    const td_shader *shader = td_shader_find(key->shader);
    if (!shader) {
        td_err_set(err, TD_E_BUG, "there is no shader %s", key->shader);
        return NULL;
    }
    td_vk_pipeline *p = td_alloc(1, sizeof *p, err);
    if (!p)
        return NULL;
    p->key = *key;
    p->key.shader = shader->name; /* static storage */
    p->flags = flags;
    p->is_due = true;
    p->next = d->pipelines;
    d->pipelines = p;
    return p;
}

typedef struct {
    td_vk_device *d;
    td_vk_pipeline *_Atomic next; /* in the device's list */
    atomic_bool is_failed;
} compilation;

/* A compiling thread: takes pipelines off the list until it is through. */
static bool compile_some(compilation *c, td_err *err)
{
    td_vk_pipeline *p = atomic_load(&c->next);
    while (p && !atomic_load(&c->is_failed)) {
        if (!atomic_compare_exchange_weak(&c->next, &p, p->next))
            continue;
        if (p->is_due && !p->handle && !create(c->d, p, err)) {
            atomic_store(&c->is_failed, true);
            return false;
        }
        p = atomic_load(&c->next);
    }
    return true;
}

typedef struct {
    compilation *c;
    pthread_t thread;
    bool is_started;
    td_err err;
} compiler;

static void *compiler_main(void *arg)
{
    compiler *self = arg;
    compile_some(self->c, &self->err);
    return NULL;
}

bool td_vk_pipelines_compile(td_vk_device *d, td_err *err)
{
    uint32_t n = 0;
    for (const td_vk_pipeline *p = d->pipelines; p; p = p->next)
        n += p->is_due && !p->handle;
    if (!n)
        return true;
    const td_clock clock = td_clock_real();
    uint64_t start_us = td_clock_now_us(&clock);
    compilation c = {.d = d, .next = d->pipelines};
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t n_threads = td_min_u32(n, n_cpus > 1 ? (uint32_t)n_cpus : 1);
    n_threads = td_min_u32(n_threads, TD_VK_COMPILERS_MAX);
    compiler *others = NULL;
    if (n_threads > 1 && !(others = td_alloc(n_threads - 1, sizeof *others, err)))
        return false;
    for (uint32_t i = 0; i + 1 < n_threads; i++) {
        others[i].c = &c; /* a thread that cannot start leaves its share to the others */
        others[i].is_started =
            pthread_create(&others[i].thread, NULL, compiler_main, &others[i]) == 0;
    }
    bool is_ok = compile_some(&c, err);
    for (uint32_t i = 0; i + 1 < n_threads; i++) {
        if (others[i].is_started)
            pthread_join(others[i].thread, NULL);
        if (others[i].err.code != TD_OK)
            is_ok = td_err_set(err, others[i].err.code, "%s", others[i].err.message);
    }
    td_free(others);
    if (is_ok) {
        d->n_unsaved += n;
        td_log_debug("%s: %u pipelines by %u threads in %llu ms", d->head.info.spec, n, n_threads,
                     (unsigned long long)(td_clock_now_us(&clock) - start_us) / 1000);
    }
    return is_ok;
}

const td_vk_pipeline *td_vk_pipeline_find(td_vk_device *d, const td_vk_pipeline_key *key,
                                          VkPipelineCreateFlags flags, td_err *err)
{
    const td_vk_pipeline *p = td_vk_pipeline_want(d, key, flags, err);
    return p && td_vk_pipelines_compile(d, err) ? p : NULL;
}
