/* Command buffers of a plan. Each begins with a barrier against everything submitted before, has
 * barriers where the hazard tracker wants them, and the last makes results visible to the host. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

void td_vk_barrier(VkCommandBuffer commands, VkPipelineStageFlags2 from, VkAccessFlags2 from_access,
                   VkPipelineStageFlags2 to, VkAccessFlags2 to_access)
{
    vkCmdPipelineBarrier2(commands,
                          &(VkDependencyInfo){.sType = VK_STRUCTURE_TYPE_DEPENDENCY_INFO,
                                              .memoryBarrierCount = 1,
                                              .pMemoryBarriers = &(VkMemoryBarrier2){
                                                  .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER_2,
                                                  .srcStageMask = from,
                                                  .srcAccessMask = from_access,
                                                  .dstStageMask = to,
                                                  .dstAccessMask = to_access,
                                              }});
}

#define STAGED_MAX     32u /* inputs of a program */
#define COMPUTE        VK_PIPELINE_STAGE_2_COMPUTE_SHADER_BIT
#define STORAGE_ACCESS (VK_ACCESS_2_SHADER_STORAGE_READ_BIT | VK_ACCESS_2_SHADER_STORAGE_WRITE_BIT)

static void record_part(td_vk_device *d, VkCommandBuffer commands, const td_vk_step *s,
                        const td_vk_part *part, uint32_t rows)
{
    td_vk_dispatch dispatch = td_vk_step_dispatch(s, rows);
    VkPipelineLayout layout = d->layouts[s->key.n_bindings];
    uint8_t push[TD_VK_PUSH_BYTES_MAX];
    memcpy(push, s->push, s->n_push);
    memcpy(push, &rows, sizeof rows); /* n_rows comes first in every struct */
    vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, dispatch.pipeline->handle);
    vkCmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, layout, 0, 1, &s->set, 0,
                            NULL);
    vkCmdPushConstants(commands, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, s->n_push, push);
    vkCmdDispatchBase(commands, part->x0, 0, 0, part->n_x, dispatch.y, dispatch.z);
}

static bool record_chunk(td_vk_program *p, td_vk_recording *r, uint32_t i_chunk, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    const td_vk_chunk *c = &r->chunks[i_chunk];
    VK_TRY(d,
           vkBeginCommandBuffer(
               c->commands,
               &(VkCommandBufferBeginInfo){
                   .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                   .flags = r->is_repeatable ? VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT : 0}));
    td_vk_barrier(c->commands, VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT,
                  VK_ACCESS_2_MEMORY_READ_BIT | VK_ACCESS_2_MEMORY_WRITE_BIT, COMPUTE,
                  STORAGE_ACCESS);
    if (r->queries) {
        vkCmdResetQueryPool(c->commands, r->queries, 2 * i_chunk, 2);
        if (r->is_profiled)
            vkCmdResetQueryPool(c->commands, r->queries, 2 * (r->n_chunks + c->first_part),
                                2 * c->n_parts);
        vkCmdWriteTimestamp2(c->commands, COMPUTE, r->queries, 2 * i_chunk);
    }
    for (uint32_t i = c->first_part; i < c->first_part + c->n_parts; i++) {
        const td_vk_step *s = &p->steps[r->parts[i].i_step];
        uint32_t query = 2 * (r->n_chunks + i);
        if (r->is_profiled || r->parts[i].needs_barrier)
            td_vk_barrier(c->commands, COMPUTE, STORAGE_ACCESS, COMPUTE, STORAGE_ACCESS);
        if (r->is_profiled)
            vkCmdWriteTimestamp2(c->commands, COMPUTE, r->queries, query);
        record_part(d, c->commands, s, &r->parts[i], td_op_rows(s->op, r->n_rows, r->n_out));
        if (r->is_profiled)
            vkCmdWriteTimestamp2(c->commands, COMPUTE, r->queries, query + 1);
    }
    if (r->queries)
        vkCmdWriteTimestamp2(c->commands, COMPUTE, r->queries, 2 * i_chunk + 1);
    if (i_chunk + 1 == r->n_chunks)
        td_vk_barrier(c->commands, COMPUTE, VK_ACCESS_2_SHADER_STORAGE_WRITE_BIT,
                      VK_PIPELINE_STAGE_2_HOST_BIT, VK_ACCESS_2_HOST_READ_BIT);
    VK_TRY(d, vkEndCommandBuffer(c->commands));
    return true;
fail:
    return false;
}

/* The tensors of an op that the host may have written; n of them. */
static uint32_t list_inputs(const td_op *op, td_tensor *out[TD_VIEWS_MAX + TD_WRITES_MAX + 4])
{
    uint32_t n = 0;
    td_tensor *batch[] = {op->batch.positions, op->batch.slots, op->batch.pages, op->batch.spans};
    for (uint32_t i = 0; i < op->n_in; i++)
        out[n++] = op->in[i].t;
    for (uint32_t i = 0; i < op->n_writes; i++)
        out[n++] = op->writes[i];
    for (uint32_t i = 0; i < TD_COUNT(batch); i++)
        if (batch[i])
            out[n++] = batch[i];
    return n;
}

/* The program's staged inputs, each once. */
static uint32_t find_staged(const td_program *p, td_vk_tensor *found[STAGED_MAX])
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_ops; i++) {
        td_tensor *inputs[TD_VIEWS_MAX + TD_WRITES_MAX + 4];
        uint32_t n_inputs = list_inputs(&p->ops[i], inputs);
        for (uint32_t k = 0; k < n_inputs; k++) {
            td_vk_tensor *t = (td_vk_tensor *)inputs[k];
            bool is_new = t->staged.handle != VK_NULL_HANDLE;
            for (uint32_t j = 0; j < n; j++)
                is_new &= found[j] != t;
            TD_ASSERT(!is_new || n < STAGED_MAX);
            if (is_new)
                found[n++] = t;
        }
    }
    return n;
}

static uint32_t rows_of(const td_tensor *t, const td_vk_recording *r)
{
    return t->params.rows == TD_ROWS_BATCH ? r->n_rows
           : t->params.rows == TD_ROWS_OUT ? r->n_out
                                           : t->params.n_rows;
}

/* Copies the rows of a run; the chunks begin with barriers that wait for it. */
static bool record_head(td_vk_program *p, td_vk_recording *r, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    td_vk_tensor *staged[STAGED_MAX];
    uint32_t n = find_staged(&p->head, staged);
    if (!n)
        return true;
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = d->pool,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = 1};
    VK_TRY(d, vkAllocateCommandBuffers(d->handle, &info, &r->head.commands));
    VK_TRY(d, vkBeginCommandBuffer(r->head.commands,
                                   &(VkCommandBufferBeginInfo){
                                       .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO}));
    td_vk_barrier(r->head.commands, VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT,
                  VK_ACCESS_2_MEMORY_READ_BIT | VK_ACCESS_2_MEMORY_WRITE_BIT,
                  VK_PIPELINE_STAGE_2_COPY_BIT, VK_ACCESS_2_TRANSFER_WRITE_BIT);
    for (uint32_t i = 0; i < n; i++) {
        const td_tensor *t = &staged[i]->head;
        VkBufferCopy region = {.size = 4ull * rows_of(t, r) * t->params.n_cols};
        if (region.size)
            vkCmdCopyBuffer(r->head.commands, staged[i]->staged.handle, staged[i]->buffer.handle, 1,
                            &region);
    }
    VK_TRY(d, vkEndCommandBuffer(r->head.commands));
    return true;
fail:
    return false;
}

/* Command buffers and queries of a recording's chunks. */
static bool allocate(td_vk_program *p, td_vk_recording *r, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    for (uint32_t i = 0; i < r->n_chunks; i++) {
        VkCommandBufferAllocateInfo info = {
            .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
            .commandPool = d->pool,
            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
            .commandBufferCount = 1,
        };
        VK_TRY(d, vkAllocateCommandBuffers(d->handle, &info, &r->chunks[i].commands));
    }
    if (d->physical.limits.timestamp_ns > 0 && r->n_chunks > 0) { /* a run may have nothing to do */
        VkQueryPoolCreateInfo info = {
            .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
            .queryType = VK_QUERY_TYPE_TIMESTAMP,
            .queryCount = 2 * (r->n_chunks + (r->is_profiled ? r->n_parts : 0)),
        };
        VK_TRY(d, vkCreateQueryPool(d->handle, &info, NULL, &r->queries));
    }
    return true;
fail:
    return false;
}

/* What is recorded has its pipelines; see want_pipelines. */
static bool compile(td_vk_program *p, const td_vk_recording *r, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    for (uint32_t i = 0; i < r->n_parts; i++) {
        const td_vk_step *s = &p->steps[r->parts[i].i_step];
        td_vk_step_dispatch(s, td_op_rows(s->op, r->n_rows, r->n_out)).pipeline->is_due = true;
    }
    if (!td_vk_pipelines_compile(d, err))
        return false;
    td_vk_cache_save(d);
    return true;
}

bool td_vk_record(td_vk_program *p, uint32_t n_rows, uint32_t n_out, bool is_repeatable,
                  td_vk_recording *r, td_err *err)
{
    *r = (td_vk_recording){.n_rows = n_rows,
                           .n_out = n_out,
                           .is_profiled = p->head.is_profiled,
                           .is_repeatable = is_repeatable,
                           .chunk_us = TD_VK_CHUNK_US};
    td_vk_device *d = (td_vk_device *)p->head.dev;
    d->head.counts.n_recordings++;
    d->head.counts.n_recorded_ahead += d->is_running;
    r->n_parts = td_vk_plan(p, n_rows, n_out, p->plan);
    for (uint32_t i = 0; i < r->n_parts; i++)
        r->n_chunks += p->plan[i].begins_chunk;
    /* One allocation for both lists. */
    size_t part_bytes = r->n_parts * sizeof *r->parts;
    part_bytes = (part_bytes + 63) / 64 * 64;
    uint8_t *memory = td_alloc(part_bytes + r->n_chunks * sizeof *r->chunks, 1, err);
    if (!memory)
        goto fail;
    r->parts = (td_vk_part *)memory;
    r->chunks = (td_vk_chunk *)(memory + part_bytes);
    memcpy(r->parts, p->plan, r->n_parts * sizeof *r->parts);
    for (uint32_t i = 0, i_chunk = UINT32_MAX; i < r->n_parts; i++) {
        if (r->parts[i].begins_chunk)
            r->chunks[++i_chunk].first_part = i;
        r->chunks[i_chunk].n_parts++;
    }
    if (!compile(p, r, err) || !allocate(p, r, err) || !record_head(p, r, err))
        goto fail;
    for (uint32_t i = 0; i < r->n_chunks; i++)
        if (!record_chunk(p, r, i, err))
            goto fail;
    return true;
fail:
    td_vk_recording_free(p, r);
    return false;
}

void td_vk_recording_free(td_vk_program *p, td_vk_recording *r)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    if (!d->is_hung && r->head.commands)
        vkFreeCommandBuffers(d->handle, d->pool, 1, &r->head.commands);
    if (!d->is_hung && r->chunks) {
        for (uint32_t i = 0; i < r->n_chunks; i++)
            if (r->chunks[i].commands)
                vkFreeCommandBuffers(d->handle, d->pool, 1, &r->chunks[i].commands);
        vkDestroyQueryPool(d->handle, r->queries, NULL);
    }
    td_free(r->parts); /* the chunks lie behind */
    *r = (td_vk_recording){0};
}
