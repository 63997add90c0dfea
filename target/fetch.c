/* Asking for weights, and lending them. */
#include "target/fetch.h"

#include "base/check.h"

#include <inttypes.h>

/* -- the worker -------------------------------------------------------------------------------- */

void td_fetch_begin(td_fetch *f, td_kept *kept, td_stage_way *way)
{
    uint32_t n;
    const td_kept_piece *pieces = td_kept_missing(kept, &n);
    *f = (td_fetch){.kept = kept, .way = way};
    for (uint32_t i = 0; i < n; i++)
        f->total += pieces[i].n_bytes;
}

/* The message that begins n bytes into a piece. */
static td_stage_data part_of(const td_kept_piece *p, uint64_t n)
{
    uint64_t left = p->n_bytes - n;
    return (td_stage_data){.file = (uint8_t)p->file,
                           .n = left < TD_STAGE_DATA_MAX ? (uint32_t)left : TD_STAGE_DATA_MAX,
                           .offset = p->offset + n};
}

bool td_fetch_ask(td_fetch *f, td_err *err)
{
    uint32_t n;
    const td_kept_piece *pieces = td_kept_missing(f->kept, &n);
    while (f->asked.i < n && f->n_out < TD_STAGE_WANTS_MAX) {
        td_stage_msg m = {.type = TD_STAGE_WANT, .data = part_of(&pieces[f->asked.i], f->asked.n)};
        td_err why = {0};
        if (!td_stage_way_send(f->way, &m, &why))
            return why.code == TD_E_AGAIN || td_err_set(err, why.code, "%s", why.message);
        f->n_out++;
        f->asked.n += m.data.n;
        if (f->asked.n == pieces[f->asked.i].n_bytes) {
            f->asked.i++;
            f->asked.n = 0;
        }
    }
    return true;
}

bool td_fetch_take(td_fetch *f, const td_stage_data *data, td_err *err)
{
    uint32_t n;
    const td_kept_piece *pieces = td_kept_missing(f->kept, &n);
    if (!f->n_out)
        return td_err_set(err, TD_E_DATA, "weights that were not asked for");
    td_stage_data want = part_of(&pieces[f->come.i], f->come.n);
    if (data->file != want.file || data->offset != want.offset || data->n != want.n)
        return td_err_set(err, TD_E_DATA,
                          "%u bytes from %" PRIu64 " of file %u; asked for: %u from %" PRIu64
                          " of file %u",
                          data->n, data->offset, data->file, want.n, want.offset, want.file);
    if (!td_kept_put(f->kept, f->come.i, data->bytes, data->n, err))
        return false;
    f->n_out--;
    f->done += data->n;
    f->come.n += data->n;
    if (f->come.n == pieces[f->come.i].n_bytes) {
        f->come.i++;
        f->come.n = 0;
    }
    return true;
}

bool td_fetch_is_done(const td_fetch *f) { return f->done == f->total; }

/* -- the coordinator --------------------------------------------------------------------------- */

bool td_lend_take(td_lend *l, const td_gguf *g, const td_stage_data *want, td_err *err)
{
    if (l->n == TD_STAGE_WANTS_MAX)
        return td_err_set(err, TD_E_DATA, "it wants more than %u pieces at once",
                          TD_STAGE_WANTS_MAX);
    uint64_t n_bytes = want->file < td_gguf_n_shards(g) ? td_gguf_shard_bytes(g, want->file) : 0;
    if (want->offset > n_bytes || want->n > n_bytes - want->offset)
        return td_err_set(err, TD_E_DATA,
                          "it wants %u bytes from %" PRIu64 " of file %u, which has %" PRIu64,
                          want->n, want->offset, want->file, n_bytes);
    l->wants[(l->first + l->n++) % TD_STAGE_WANTS_MAX] = *want;
    return true;
}

bool td_lend_send(td_lend *l, const td_gguf *g, td_stage_way *way, td_err *err)
{
    uint8_t bytes[TD_STAGE_DATA_MAX];
    while (l->n) {
        td_stage_msg m = {.type = TD_STAGE_DATA, .data = l->wants[l->first]};
        td_err why = {0};
        m.data.bytes = bytes;
        if (!td_gguf_read_shard(g, m.data.file, m.data.offset, m.data.n, bytes, err))
            return false;
        if (!td_stage_way_send(way, &m, &why))
            return why.code == TD_E_AGAIN || td_err_set(err, why.code, "%s", why.message);
        l->first = (l->first + 1) % TD_STAGE_WANTS_MAX;
        l->n--;
    }
    return true;
}

void td_lend_describe(const td_gguf *g, td_stage_plan *plan)
{
    uint32_t n = td_gguf_n_shards(g);
    bool is_ok = n <= TD_STAGE_FILES_MAX;
    for (uint32_t i = 0; is_ok && i < n; i++) {
        plan->files[i].n_bytes = td_gguf_shard_bytes(g, i);
        plan->files[i].head_bytes = td_gguf_head_bytes(g, i);
        is_ok = plan->files[i].n_bytes <= TD_STAGE_FILE_MAX;
    }
    plan->n_files = is_ok ? (uint8_t)n : 0;
}
