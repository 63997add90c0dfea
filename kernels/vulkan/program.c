/* A program: lowered to steps when it ends (pipelines made, descriptor sets written once), recorded
 * per row counts on first use, replayed after. The recordings kept are bounded; the one unused for
 * longest makes room. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

/* Multiply-adds per microsecond that a first run counts on, far below what such devices do. */
static double first_speed(td_device_kind kind)
{
    return kind == TD_DEVICE_DISCRETE ? 50000 : kind == TD_DEVICE_INTEGRATED ? 5000 : 500;
}

static bool find_pipelines(td_vk_program *p, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    uint32_t rows = td_op_rows(s->op, p->head.params.n_rows_max, p->head.params.n_out_max);
    if (s->key_mul.shader) {
        s->pipeline_mul = td_vk_pipeline_find(d, &s->key_mul, 0, err);
        if (!s->pipeline_mul)
            return false;
    }
    for (uint32_t i = 0; i == 0 || i < s->n_row_variants; i++) {
        td_vk_pipeline_key key = s->key;
        if (s->n_row_variants) {
            key.n_spec = 1;
            key.spec[0] = 1u << i;
        }
        s->pipelines[i] = td_vk_pipeline_find(d, &key, 0, err);
        if (!s->pipelines[i])
            return false;
        if (1u << i >= rows)
            break;
    }
    return true;
}

static bool write_set(td_vk_program *p, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    VkDescriptorSetAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
        .descriptorPool = p->sets,
        .descriptorSetCount = 1,
        .pSetLayouts = &d->set_layouts[s->key.n_bindings],
    };
    VK_TRY(d, vkAllocateDescriptorSets(d->handle, &info, &s->set));
    VkDescriptorBufferInfo buffers[TD_VK_BINDINGS_MAX];
    VkWriteDescriptorSet writes[TD_VK_BINDINGS_MAX];
    for (uint32_t i = 0; i < s->key.n_bindings; i++) {
        buffers[i] = (VkDescriptorBufferInfo){s->bindings[i]->handle, 0, s->bindings[i]->n_bytes};
        writes[i] = (VkWriteDescriptorSet){
            .sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
            .dstSet = s->set,
            .dstBinding = i,
            .descriptorCount = 1,
            .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
            .pBufferInfo = &buffers[i],
        };
    }
    vkUpdateDescriptorSets(d->handle, s->key.n_bindings, writes, 0, NULL);
    return true;
fail:
    return false;
}

static bool create_sets(td_vk_program *p, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    uint32_t n_bindings = 0;
    for (uint32_t i = 0; i < p->n_steps; i++)
        n_bindings += p->steps[i].key.n_bindings;
    VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, n_bindings};
    VK_TRY(d, vkCreateDescriptorPool(d->handle,
                                     &(VkDescriptorPoolCreateInfo){
                                         .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                         .maxSets = p->n_steps,
                                         .poolSizeCount = 1,
                                         .pPoolSizes = &size,
                                     },
                                     NULL, &p->sets));
    for (uint32_t i = 0; i < p->n_steps; i++)
        if (!write_set(p, &p->steps[i], err))
            return false;
    return true;
fail:
    return false;
}

/* The id of a buffer that ops write, new ones at the end. */
static uint32_t find_id(const td_vk_buffer **ids, uint32_t *n, const td_vk_buffer *buffer)
{
    for (uint32_t i = 0; i < *n; i++)
        if (ids[i] == buffer)
            return i;
    ids[*n] = buffer;
    return (*n)++;
}

static const td_vk_buffer *buffer_of(td_tensor *t) { return &((td_vk_tensor *)t)->buffer; }

/* What a step reads and writes, by id. Weights are never written by a program: no hazards. */
static void declare_accesses(td_vk_step *s, const td_vk_buffer **ids, uint32_t *n)
{
    const td_op *op = s->op;
    for (uint32_t i = 0; i < op->n_in; i++)
        s->reads[s->n_reads++] = find_id(ids, n, buffer_of(op->in[i].t));
    if (op->out.t)
        s->writes[s->n_writes++] = find_id(ids, n, buffer_of(op->out.t));
    if (!op->kv)
        return;
    const td_tensor *batch[] = {op->batch.positions, op->batch.slots, op->batch.pages};
    for (uint32_t i = 0; i < TD_COUNT(batch); i++)
        s->reads[s->n_reads++] = find_id(ids, n, &((const td_vk_tensor *)batch[i])->buffer);
    const td_vk_kv *kv = (const td_vk_kv *)op->kv;
    uint32_t *list = op->kind == TD_OP_KV_STORE ? s->writes : s->reads;
    uint32_t *n_list = op->kind == TD_OP_KV_STORE ? &s->n_writes : &s->n_reads;
    list[(*n_list)++] = find_id(ids, n, &kv->k);
    list[(*n_list)++] = find_id(ids, n, &kv->v);
}

static bool declare_all(td_vk_program *p, td_err *err)
{
    uint32_t n = 0;
    const td_vk_buffer **ids = td_alloc((size_t)p->n_steps * TD_VK_BINDINGS_MAX, sizeof *ids, err);
    if (!ids)
        return false;
    for (uint32_t i = 0; i < p->n_steps; i++)
        declare_accesses(&p->steps[i], ids, &n);
    td_free(ids);
    return td_vk_hazard_create(&p->hazard, n, err);
}

bool td_vk_program_compile(td_program *program, td_err *err)
{
    td_vk_program *p = (td_vk_program *)program;
    td_vk_device *d = (td_vk_device *)program->dev;
    if (!td_vk_check(d, err))
        return false;
    uint32_t n = 0;
    for (uint32_t i = 0; i < program->n_ops; i++)
        n += td_vk_lower_count(&program->ops[i]);
    p->steps = td_alloc(n, sizeof *p->steps, err);
    p->plan = td_alloc(n + TD_VK_CHUNKS_MAX, sizeof *p->plan, err);
    if (!p->steps || !p->plan)
        return false;
    double us_per_work = 1 / first_speed(d->head.info.kind);
    for (uint32_t i = 0; i < program->n_ops; i++)
        for (uint32_t k = 0; k < td_vk_lower_count(&program->ops[i]); k++) {
            td_vk_step *s = &p->steps[p->n_steps++];
            td_vk_lower(d, &program->ops[i], program->params.mode, k, s);
            s->us_per_work = us_per_work;
            if (!find_pipelines(p, s, err))
                return false;
        }
    return declare_all(p, err) && create_sets(p, err);
}

void td_vk_program_free(td_program *program)
{
    td_vk_program *p = (td_vk_program *)program;
    td_vk_device *d = (td_vk_device *)program->dev;
    for (uint32_t i = 0; i < TD_VK_RECORDINGS_MAX; i++)
        td_vk_recording_free(p, &p->recordings[i]);
    if (!d->is_hung)
        vkDestroyDescriptorPool(d->handle, p->sets, NULL);
    td_vk_hazard_destroy(&p->hazard);
    td_free(p->plan);
    td_free(p->steps);
}

/* The recording for the row counts: one there is, or a new one in the slot unused for longest. */
static td_vk_recording *find_recording(td_vk_program *p, uint32_t n_rows, uint32_t n_out,
                                       td_err *err)
{
    td_vk_recording *slot = &p->recordings[0];
    for (uint32_t i = 0; i < TD_VK_RECORDINGS_MAX; i++) {
        td_vk_recording *r = &p->recordings[i];
        if (r->n_rows == n_rows && r->n_out == n_out) {
            slot = r;
            break;
        }
        if (r->last_use < slot->last_use)
            slot = r;
    }
    if (slot->n_rows != n_rows || slot->n_out != n_out || slot->is_stale) {
        td_vk_recording_free(p, slot);
        if (!td_vk_record(p, n_rows, n_out, slot, err))
            return NULL;
    }
    slot->last_use = ++p->n_runs;
    slot->n_uses++;
    return slot;
}

/* Microseconds of each chunk by the device's clock; false where it has none. */
static bool read_timestamps(td_vk_device *d, const td_vk_recording *r, double *us)
{
    for (uint32_t i = 0; i < r->n_chunks; i++) {
        uint64_t ticks[2];
        if (!r->queries ||
            vkGetQueryPoolResults(d->handle, r->queries, 2 * i, 2, sizeof ticks, ticks,
                                  sizeof ticks[0], VK_QUERY_RESULT_64_BIT) != VK_SUCCESS)
            return false;
        us[i] = (double)(ticks[1] - ticks[0]) * d->physical.limits.timestamp_ns / 1000;
    }
    return true;
}

bool td_vk_program_run(td_program *program, uint32_t n_rows, uint32_t n_out, td_err *err)
{
    td_vk_program *p = (td_vk_program *)program;
    td_vk_device *d = (td_vk_device *)program->dev;
    if (!td_vk_check(d, err))
        return false;
    td_vk_recording *r = find_recording(p, n_rows, n_out, err);
    if (!r)
        return false;
    td_clock clock = td_clock_real();
    uint64_t start_us = td_clock_now_us(&clock);
    if (!td_vk_submit(d, r->chunks, r->n_chunks, err))
        return false;
    double us[TD_VK_CHUNKS_MAX];
    if (read_timestamps(d, r, us)) {
        td_vk_learn(p, r, us, r->n_chunks);
    } else {
        us[0] = (double)(td_clock_now_us(&clock) - start_us);
        td_vk_learn(p, r, us, 1);
    }
    return true;
}
