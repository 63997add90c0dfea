/* A program: lowered to steps when it ends (pipelines made, descriptor sets written once), recorded
 * per row counts on first use, replayed after. The recordings kept are bounded; the one unused for
 * longest makes room. */
#include "kernels/vulkan/lower.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"

/* Multiply-adds per microsecond that a first run counts on, far below what such devices do. */
static double first_speed(td_device_kind kind)
{
    return kind == TD_DEVICE_DISCRETE ? 50000 : kind == TD_DEVICE_INTEGRATED ? 5000 : 500;
}

/* Of all variants, so that none is missing in the middle of a text. A software driver compiles at
 * the first dispatch whatever was asked of it before: there each is made when it is recorded. */
static bool want_pipelines(td_vk_program *p, td_vk_step *s, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    uint32_t rows = td_op_rows(s->op, p->head.params.n_rows_max, p->head.params.n_out_max);
    bool is_attention = s->tiling.n_group != 0;
    uint32_t n = is_attention ? td_vk_attention_variant(&s->tiling, rows) + 1 : s->n_row_variants;
    for (uint32_t i = 0; i == 0 || i < n; i++) {
        td_vk_pipeline_key key = s->key;
        if (is_attention)
            td_vk_attention_key(s, i, &key);
        else if (s->n_row_variants)
            td_vk_row_variant(s, i, &key);
        s->pipelines[i] = td_vk_pipeline_want(d, &key, 0, err);
        if (!s->pipelines[i])
            return false;
        s->pipelines[i]->is_due = d->head.info.kind != TD_DEVICE_SOFTWARE;
        if (s->n_row_variants && td_vk_variant_rows(s, i) >= rows)
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
    d->head.counts.n_sets_written++;
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

/* Steps in the order that needs fewest barriers. */
static bool order_steps(td_vk_program *p, td_err *err)
{
    td_vk_accesses *accesses = td_alloc(p->n_steps, sizeof *accesses, err);
    uint32_t *order = td_alloc(p->n_steps, sizeof *order, err);
    td_vk_step *sorted = td_alloc(p->n_steps, sizeof *sorted, err);
    bool is_ok = accesses && order && sorted;
    for (uint32_t i = 0; is_ok && i < p->n_steps; i++)
        accesses[i] = (td_vk_accesses){p->steps[i].accesses, p->steps[i].n_accesses};
    is_ok = is_ok && td_vk_order(accesses, p->n_steps, order, err);
    for (uint32_t i = 0; is_ok && i < p->n_steps; i++)
        sorted[i] = p->steps[order[i]];
    if (is_ok) {
        td_free(p->steps);
        p->steps = sorted;
        sorted = NULL;
    }
    td_free(sorted);
    td_free(order);
    td_free(accesses);
    return is_ok;
}

/* The steps of op i_op and of those done with it. */
static bool lower_op(td_vk_program *p, uint32_t i_op, td_err *err)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    uint32_t n = td_vk_lower_count(&p->head, i_op);
    for (uint32_t k = 0; k < n; k++) {
        td_vk_step *s = &p->steps[p->n_steps++];
        if (!td_vk_lower(&p->head, i_op, k, s, err))
            return false;
        bool is_spared = k + 1 == n && k && s->n_rows_min; /* few rows do without */
        s->is_last = k + 1 == n && !(is_spared && s[-1].op == s->op);
        if (k && (is_spared || s[-1].op != s->op))
            s[-1].is_last = true;
        s->us_per_work = 1 / first_speed(d->head.info.kind);
        for (uint32_t i = 0; d->instance.is_sync_checked && i < s->n_accesses; i++)
            s->accesses[i] =
                (td_vk_access){s->accesses[i].buffer, 0, UINT32_MAX, s->accesses[i].is_write, 0, 0};
        if (!want_pipelines(p, s, err))
            return false;
    }
    return true;
}

bool td_vk_program_compile(td_program *program, td_err *err)
{
    td_vk_program *p = (td_vk_program *)program;
    td_vk_device *d = (td_vk_device *)program->dev;
    if (!td_vk_check(d, err))
        return false;
    uint32_t n = 0;
    for (uint32_t i = 0; i < program->n_ops; i++)
        n += td_vk_lower_count(program, i);
    p->steps = td_alloc(n, sizeof *p->steps, err);
    p->plan = td_alloc(n + TD_VK_CHUNKS_MAX, sizeof *p->plan, err);
    if (!p->steps || !p->plan)
        return false;
    for (uint32_t i = 0; i < program->n_ops; i += td_vk_fuse(program, i).n_ops)
        if (!lower_op(p, i, err))
            return false;
    if (!td_vk_pipelines_compile(d, err))
        return false;
    td_vk_cache_save(d);
    return order_steps(p, err) && create_sets(p, err) && td_vk_find_visitors(p, err);
}

void td_vk_program_free(td_program *program)
{
    td_vk_program *p = (td_vk_program *)program;
    td_vk_device *d = (td_vk_device *)program->dev;
    if (d->expected.p == p)
        d->expected.p = NULL;
    for (uint32_t i = 0; i < TD_VK_RECORDINGS_MAX; i++)
        td_vk_recording_free(p, &p->recordings[i]);
    if (!d->is_hung)
        vkDestroyDescriptorPool(d->handle, p->sets, NULL);
    td_free(p->plan);
    td_free(p->visitors);
    td_free(p->steps);
}

/* The recording for the row counts, or the slot unused for longest. */
static td_vk_recording *find_slot(td_vk_program *p, uint32_t n_rows, uint32_t n_out)
{
    td_vk_recording *slot = &p->recordings[0];
    for (uint32_t i = 0; i < p->n_recordings; i++) {
        td_vk_recording *r = &p->recordings[i];
        if (r->n_rows == n_rows && r->n_out == n_out)
            return r;
        if (r->last_use < slot->last_use)
            slot = r;
    }
    return p->n_recordings < TD_VK_RECORDINGS_MAX ? &p->recordings[p->n_recordings] : slot;
}

static bool make_recording(td_vk_program *p, td_vk_recording *slot, uint32_t n_rows, uint32_t n_out,
                           bool is_repeatable, td_err *err)
{
    td_vk_recording_free(p, slot);
    p->n_recordings = td_max_u32(p->n_recordings, (uint32_t)(slot - p->recordings) + 1);
    if (!td_vk_record(p, n_rows, n_out, is_repeatable, slot, err))
        return false;
    slot->last_use = p->n_runs;
    return true;
}

/* The recording to run. */
static td_vk_recording *find_recording(td_vk_program *p, uint32_t n_rows, uint32_t n_out,
                                       bool is_repeated, td_err *err)
{
    td_vk_recording *slot = find_slot(p, n_rows, n_out);
    bool is_repeatable = is_repeated || (slot->n_rows == n_rows && slot->is_repeatable);
    if (slot->n_rows != n_rows || slot->n_out != n_out || slot->is_stale ||
        is_repeatable != slot->is_repeatable)
        if (!make_recording(p, slot, n_rows, n_out, is_repeatable, err))
            return NULL;
    slot->last_use = ++p->n_runs;
    slot->n_uses++;
    return slot;
}

/* -- recording ahead ---------------------------------------------------------------------------
 * Between a submission and its end the host has nothing to do. What the next run was said to be is
 * recorded then; else what it may well be: a verification grows or shrinks by a row when a draft
 * does. A guess takes neither a place that another recording has nor a pipeline that would have to
 * be compiled (on a software driver), and none begins when the run has ended. */

static bool has_pipelines(const td_vk_program *p, uint32_t n_rows, uint32_t n_out)
{
    for (uint32_t i = 0; i < p->n_steps; i++) {
        const td_vk_step *s = &p->steps[i];
        uint32_t rows = td_op_rows(s->op, n_rows, n_out);
        if (rows && rows >= s->n_rows_min && !td_vk_step_dispatch(s, rows).pipeline->handle)
            return false;
    }
    return true;
}

/* What fails is left to the run that needs it, which says so. */
static void record_expected(td_vk_device *d)
{
    td_vk_program *p = d->expected.p;
    d->expected.p = NULL;
    if (!p)
        return;
    td_vk_recording *slot = find_slot(p, d->expected.n_rows, d->expected.n_out);
    bool is_there = slot->n_rows == d->expected.n_rows && slot->n_out == d->expected.n_out;
    /* The slot unused for longest is none of the run's: those are the last used, and few. */
    if (!is_there)
        make_recording(p, slot, d->expected.n_rows, d->expected.n_out, false, NULL);
}

static void record_guesses(td_vk_device *d, const td_program_call *run)
{
    td_vk_program *p = (td_vk_program *)run->p;
    const td_program_params *params = &p->head.params;
    if (params->mode != TD_MODE_VERIFY || p->head.is_profiled)
        return;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t n_rows = i ? run->n_rows - 1 : run->n_rows + 1;
        uint32_t n_out =
            run->n_out == run->n_rows ? td_min_u32(n_rows, params->n_out_max) : run->n_out;
        if (n_rows < 1 || n_rows > params->n_rows_max ||
            n_out > td_min_u32(n_rows, params->n_out_max))
            continue;
        td_vk_recording *slot = find_slot(p, n_rows, n_out);
        if (!slot->n_rows && has_pipelines(p, n_rows, n_out) &&
            vkGetFenceStatus(d->handle, d->fence) == VK_NOT_READY)
            make_recording(p, slot, n_rows, n_out, run->n_times > 1, NULL);
    }
}

void td_vk_program_expect(td_program *program, uint32_t n_rows, uint32_t n_out)
{
    td_vk_device *d = (td_vk_device *)program->dev;
    d->expected.p = (td_vk_program *)program;
    d->expected.n_rows = n_rows;
    d->expected.n_out = n_out;
}

double td_vk_seconds(const td_vk_device *d, uint64_t from_ticks, uint64_t to_ticks)
{
    uint64_t bits = d->physical.limits.timestamp_bits;
    uint64_t ticks = to_ticks - from_ticks;
    if (bits < 64)
        ticks &= (1ull << bits) - 1;
    return (double)ticks * d->physical.limits.timestamp_ns * 1e-9;
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
        us[i] = td_vk_seconds(d, ticks[0], ticks[1]) * 1e6;
    }
    return true;
}

bool td_vk_program_profile(td_program *program, bool is_on, td_err *err)
{
    td_vk_program *p = (td_vk_program *)program;
    td_vk_device *d = (td_vk_device *)program->dev;
    if (is_on && !(d->physical.limits.timestamp_ns > 0))
        return td_err_set(err, TD_E_UNAVAILABLE, "%s (%s) has no timestamps: ops cannot be timed",
                          d->head.info.spec, d->head.info.name);
    for (uint32_t i = 0; i < TD_VK_RECORDINGS_MAX; i++)
        td_vk_recording_free(p, &p->recordings[i]); /* recorded anew, with or without queries */
    return true;
}

/* Adds the times of a run's parts to its ops' sums. */
static void count_parts(td_vk_program *p, const td_vk_recording *r)
{
    td_vk_device *d = (td_vk_device *)p->head.dev;
    uint64_t last = 0;
    p->head.counts.n_dispatches += r->n_parts;
    p->head.counts.n_submissions += r->n_chunks;
    for (uint32_t i = 0; i < r->n_parts; i++) {
        uint64_t ticks[2];
        if (vkGetQueryPoolResults(d->handle, r->queries, 2 * (r->n_chunks + i), 2, sizeof ticks,
                                  ticks, sizeof ticks[0], VK_QUERY_RESULT_64_BIT) != VK_SUCCESS)
            return;
        const td_vk_step *s = &p->steps[r->parts[i].i_step];
        bool is_call = r->parts[i].x0 == 0 && s->is_last;
        td_traffic traffic = {0};
        if (r->parts[i].x0 == 0)
            traffic = td_vk_step_traffic(s, td_op_rows(s->op, r->n_rows, r->n_out));
        td_program_count_op(&p->head, s->op, is_call, td_vk_seconds(d, ticks[0], ticks[1]),
                            traffic);
        p->head.counts.n_barriers += r->parts[i].needs_barrier;
        if (i > 0)
            p->head.counts.gap_seconds += td_vk_seconds(d, last, ticks[0]);
        last = ticks[1];
    }
}

/* Corrects the costs by what a run took; without timestamps only if it was alone. */
static void learn(td_vk_program *p, td_vk_recording *r, const double *alone_us)
{
    double us[TD_VK_CHUNKS_MAX], total = 0;
    uint32_t n = r->n_chunks;
    if (!read_timestamps((td_vk_device *)p->head.dev, r, us)) {
        if (!alone_us || !n)
            return;
        us[0] = *alone_us;
        n = 1;
    }
    for (uint32_t i = 0; i < n; i++)
        total += us[i];
    if (r->n_chunks)
        r->chunk_us = total / r->n_chunks;
    td_vk_learn(p, r, us, n);
}

bool td_vk_programs_run(const td_program_call *calls, uint32_t n_calls, td_err *err)
{
    td_vk_device *d = (td_vk_device *)calls[0].p->dev;
    td_vk_recording *recordings[TD_CALLS_MAX];
    td_vk_work work[2 * TD_CALLS_MAX + 2];
    td_vk_chunk hops[2] = {{0}};
    VkCommandBuffer commands[2];
    uint32_t n_work = 0;
    if (!td_vk_check(d, err))
        return false;
    for (uint32_t i = 0; i < n_calls; i++) {
        const td_program_call *c = &calls[i];
        td_vk_recording *r =
            find_recording((td_vk_program *)c->p, c->n_rows, c->n_out, c->n_times > 1, err);
        if (!r)
            return false;
        recordings[i] = r;
        if (r->head.commands)
            work[n_work++] = (td_vk_work){&r->head, 1, 1, 0};
    }
    if (!td_vk_record_hops(d, calls, n_calls, commands, err))
        return false;
    hops[0].commands = commands[0];
    hops[1].commands = commands[1];
    if (commands[0])
        work[n_work++] = (td_vk_work){&hops[0], 1, 1, 0};
    for (uint32_t i = 0; i < n_calls; i++) /* what a call writes the next may read: copies first */
        work[n_work++] = (td_vk_work){recordings[i]->chunks, recordings[i]->n_chunks,
                                      calls[i].n_times, recordings[i]->chunk_us};
    if (commands[1])
        work[n_work++] = (td_vk_work){&hops[1], 1, 1, 0};
    uint64_t start_ns = td_clock_real_ns();
    if (!td_vk_submit(d, work, n_work, err))
        return false;
    if (d->is_running) {
        record_expected(d);
        if (td_vk_learns(recordings[0], 0)) /* not each time: the answer seldom changes */
            record_guesses(d, &calls[0]);
    }
    if (!td_vk_finish(d, err))
        return false;
    double run_us = (double)(td_clock_real_ns() - start_ns) * 1e-3;
    double us = run_us / calls[0].n_times;
    for (uint32_t i = 0; i < n_calls; i++) {
        td_vk_recording *r = recordings[i];
        if (r->is_profiled && r->n_parts)
            count_parts((td_vk_program *)calls[i].p, r);
        if (td_vk_learns(r, run_us))
            learn((td_vk_program *)calls[i].p, r, n_calls == 1 ? &us : NULL);
    }
    return true;
}

bool td_vk_program_run(td_program *program, uint32_t n_rows, uint32_t n_out, td_err *err)
{
    return td_vk_programs_run(&(td_program_call){program, n_rows, n_out, 1}, 1, err);
}
