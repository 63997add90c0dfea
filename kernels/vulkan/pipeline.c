/* Layouts and pipelines. All bindings are storage buffers in set 0, so a layout is a number of
 * bindings; a pipeline is a shader and its specialization constants, made once per device. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/mem.h"
#include "kernels/vulkan/exact.h"
#include "kernels/vulkan/shaders.h"

#include <stdio.h>
#include <string.h>

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
    VK_TRY(d, vkCreatePipelineCache(d->handle,
                                    &(VkPipelineCacheCreateInfo){
                                        .sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO},
                                    NULL, &d->cache));
    return true;
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
           a->n_spec == b->n_spec && !memcmp(a->spec, b->spec, a->n_spec * sizeof *a->spec);
}

static bool create(td_vk_device *d, const td_shader *shader, VkPipelineCreateFlags flags,
                   td_vk_pipeline *out, td_err *err)
{
    VkShaderModule module = VK_NULL_HANDLE;
    size_t n_words;
    uint32_t *words = td_vk_exact_module(shader->words, *shader->n_words, &n_words, err);
    if (!words)
        goto fail;
    VkSpecializationMapEntry entries[TD_VK_SPEC_MAX];
    for (uint32_t i = 0; i < out->key.n_spec; i++)
        entries[i] =
            (VkSpecializationMapEntry){i, i * (uint32_t)sizeof(uint32_t), sizeof(uint32_t)};
    VkSpecializationInfo spec = {.mapEntryCount = out->key.n_spec,
                                 .pMapEntries = entries,
                                 .dataSize = out->key.n_spec * sizeof(uint32_t),
                                 .pData = out->key.spec};
    VK_TRY(d, vkCreateShaderModule(d->handle,
                                   &(VkShaderModuleCreateInfo){
                                       .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                       .codeSize = n_words * sizeof *words,
                                       .pCode = words,
                                   },
                                   NULL, &module));
    VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .flags = VK_PIPELINE_CREATE_DISPATCH_BASE_BIT | flags, /* long dispatches are cut */
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
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

const td_vk_pipeline *td_vk_pipeline_find(td_vk_device *d, const td_vk_pipeline_key *key,
                                          VkPipelineCreateFlags flags, td_err *err)
{
    for (td_vk_pipeline *p = d->pipelines; p; p = p->next)
        if (is_same(&p->key, key))
            return p;
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
    if (!create(d, shader, flags, p, err)) {
        td_free(p);
        return NULL;
    }
    p->next = d->pipelines;
    d->pipelines = p;
    return p;
}
