/* How a program is cut into submissions. A GPU's driver resets a device whose job takes too long
 * (some after 2 s), so a submission should take about TD_VK_CHUNK_US. Each step's cost is a guess
 * at first, a low speed by kind of device, and then learned from the measured times of chunks. A
 * dispatch that is too long by itself is cut along x; its parts lie in different chunks, which
 * begin with a barrier, so that cutting never changes what is computed.
 *
 * Hysteresis: a plan is dropped when a chunk measured more than TD_VK_CHUNK_MAX_US, or when its
 * chunks took about a third of what they were planned for. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"

#include <math.h>

#define LEARN_RUNS  4u /* every one of the first runs of a recording teaches, then one in 64 */
#define LEARN_EVERY 64u

/* Microseconds of a part. */
static double part_us(const td_vk_program *p, const td_vk_part *part, uint32_t n_rows,
                      uint32_t n_out)
{
    const td_vk_step *s = &p->steps[part->i_step];
    uint32_t rows = td_op_rows(s->op, n_rows, n_out);
    td_vk_dispatch dispatch = td_vk_step_dispatch(s, rows);
    return s->work_per_row * rows * s->us_per_work * part->n_x / dispatch.x;
}

uint32_t td_vk_plan(td_vk_program *p, uint32_t n_rows, uint32_t n_out, td_vk_part *out)
{
    uint32_t n_parts = 0, n_chunks = 0;
    double left_us = 0;
    td_vk_hazard_reset(&p->hazard);
    for (uint32_t i = 0; i < p->n_steps; i++) {
        const td_vk_step *s = &p->steps[i];
        uint32_t rows = td_op_rows(s->op, n_rows, n_out);
        if (!rows || rows < s->n_rows_min)
            continue;
        uint32_t n_x = td_vk_step_dispatch(s, rows).x;
        double x_us = s->work_per_row * rows * s->us_per_work / n_x;
        for (uint32_t x0 = 0; x0 < n_x;) {
            uint32_t rest = n_x - x0;
            bool fits = rest * x_us <= left_us;
            bool is_new = n_chunks == 0;
            if (!fits && rest * x_us <= TD_VK_CHUNK_US)
                is_new = true; /* fits into a chunk of its own: not worth cutting */
            else if (!fits && left_us < x_us)
                is_new = true;
            if (n_chunks == TD_VK_CHUNKS_MAX) {
                is_new = false;
                fits = true;
            }
            if (is_new) {
                n_chunks++;
                left_us = TD_VK_CHUNK_US;
                td_vk_hazard_reset(&p->hazard);
                fits = rest * x_us <= left_us;
            }
            uint32_t n = fits ? rest : td_max_u32((uint32_t)(left_us / x_us), 1);
            left_us -= n * x_us;
            bool needs_barrier = td_vk_hazard_add(&p->hazard, s->accesses, s->n_accesses);
            out[n_parts++] = (td_vk_part){i, x0, n, is_new, needs_barrier};
            x0 += n;
        }
    }
    return n_parts;
}

/* Corrects the costs of a range of parts that took `us`; the range took `expected` by them. */
static void correct(td_vk_program *p, const td_vk_recording *r, uint32_t first, uint32_t n,
                    double us)
{
    double expected = 0;
    for (uint32_t i = first; i < first + n; i++)
        expected += part_us(p, &r->parts[i], r->n_rows, r->n_out);
    if (!(expected > 0) || !(us > 0))
        return;
    double factor = fmin(fmax(us / expected, 1e-4), 1e4);
    for (uint32_t i = first; i < first + n; i++)
        if (r->parts[i].x0 == 0) /* once for a step that was cut into parts */
            p->steps[r->parts[i].i_step].us_per_work *= factor;
}

static bool is_due(const td_vk_recording *r)
{
    return r->n_uses < LEARN_RUNS || r->n_uses % LEARN_EVERY == 0;
}

bool td_vk_learns(const td_vk_recording *r, double run_us)
{
    return is_due(r) || run_us > TD_VK_CHUNK_MAX_US;
}

void td_vk_learn(td_vk_program *p, td_vk_recording *r, const double *us, uint32_t n_us)
{
    double total = 0;
    bool is_long = false, can_cut = false;
    for (uint32_t i = 0; i < n_us; i++) {
        const td_vk_chunk *c = &r->chunks[i];
        uint32_t n_chunks = n_us == r->n_chunks ? 1 : r->n_chunks;
        uint32_t n_parts = n_us == r->n_chunks ? c->n_parts : r->n_parts;
        total += us[i];
        is_long |= us[i] > TD_VK_CHUNK_MAX_US * n_chunks;
        for (uint32_t k = c->first_part; k < c->first_part + n_parts; k++)
            can_cut |= n_parts > n_chunks || r->parts[k].n_x > 1;
    }
    bool is_short = r->n_chunks > 1 && total < 0.35 * TD_VK_CHUNK_US * (r->n_chunks - 1);
    r->is_stale = (is_long && can_cut) || is_short;
    if (!r->is_stale && !is_due(r))
        return;
    if (n_us == r->n_chunks)
        for (uint32_t i = 0; i < n_us; i++)
            correct(p, r, r->chunks[i].first_part, r->chunks[i].n_parts, us[i]);
    else
        correct(p, r, 0, r->n_parts, total);
}
