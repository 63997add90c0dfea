/* Each event is one line of the file's array. Stages say when they began and finished a batch; a
 * draft says only how long it was busy, so its span is laid before the arrival of the answer, and
 * those before it are moved back where they would overlap: the last few wait for that.
 *
 * Of stages elsewhere workers tell, later. Their clocks are measured again and again, so two spans
 * of a track may overlap by as much as that is uncertain, and batches wait side by side: the later
 * span begins where the one before ended. */
#include "run/trace.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_BYTES (64u << 10)
#define TAIL_BYTES  16384u /* of n_bytes_max, for what the end says */
#define TEXT_BYTES  1024u  /* which sequences a batch holds, the rest cut off */
#define N_WAITING   16u    /* draft spans that may be moved back yet */
#define N_BATCHES   (2 * TD_BATCHES_MAX)

#define N_HOSTS (2 * TD_STAGES_MAX) /* with those that stood in for others */

/* By stage and by host; cli/report_run.c knows none but the first. */
enum {
    TRACK_COORDINATOR = 1,
    TRACK_DRAFT,
    TRACK_STAGES,
    TRACK_WAITS = TRACK_STAGES + TD_STAGES_MAX,
    TRACK_RECEIVES = TRACK_WAITS + TD_STAGES_MAX,
    TRACK_SENDS = TRACK_RECEIVES + N_HOSTS,
    TRACKS_END = TRACK_SENDS + N_HOSTS
};

enum { PROCESS_HERE = 1, PROCESS_HOSTS };

typedef struct {                   /* of a machine that stages are on */
    td_target_clock clock;         /* as it was seen last */
    uint64_t worst_us;             /* the largest uncertainty of what is in the file */
    uint64_t n_batches, n_dropped; /* told of; of targets before: not */
} trace_host;

typedef struct { /* one that was given to the target */
    uint64_t id;
    bool is_prefill, is_cancelled;
    uint32_t n_rows;
    char text[TEXT_BYTES]; /* "3@120+4 ...": sequence, first position, rows */
} batch_mark;

typedef struct {
    uint64_t start_us, end_us;
    uint32_t sequence, epoch, position, n;
    bool is_stale;
} draft_span;

typedef struct { /* the newest epoch of a sequence */
    uint32_t sequence, epoch;
    bool is_used;
} newest;

struct td_trace {
    char path[512];
    int fd;
    uint64_t start_us, n_bytes, n_bytes_max, stopped_us; /* 0: not stopped */
    uint64_t first_us, last_us;                          /* actions */
    td_json_writer *w;
    char block[BLOCK_BYTES];
    size_t n_block;
    td_err failure;
    uint32_t n_stages, n_hosts;
    bool has_draft;
    trace_host hosts[N_HOSTS];
    uint32_t host_of_worker[TD_STAGES_MAX]; /* of the target that is */
    uint32_t process_of_stage[TD_STAGES_MAX];
    uint64_t ends_us[TRACKS_END]; /* of the last span of stages elsewhere */
    uint64_t busy_us[TD_STAGES_MAX], draft_busy_us;
    char names[TD_STAGES_MAX][160];
    batch_mark batches[N_BATCHES];
    newest epochs[TD_SEQUENCES_MAX];
    draft_span waiting[N_WAITING];
    uint32_t n_waiting;
    uint64_t draft_end_us; /* of the last written span, at first the start */
};

/* -- the file ---------------------------------------------------------------------------------- */

static void flush(td_trace *t)
{
    if (t->failure.code == TD_OK && t->n_block)
        td_io_write_all(t->fd, t->path, t->block, t->n_block, &t->failure);
    t->n_block = 0;
}

static void put(td_trace *t, const char *bytes, size_t n_bytes)
{
    t->n_bytes += n_bytes;
    while (n_bytes > 0) {
        size_t n = BLOCK_BYTES - t->n_block < n_bytes ? BLOCK_BYTES - t->n_block : n_bytes;
        memcpy(t->block + t->n_block, bytes, n);
        t->n_block += n;
        bytes += n;
        n_bytes -= n;
        if (t->n_block == BLOCK_BYTES)
            flush(t);
    }
}

static uint32_t process_of(const td_trace *t, uint32_t track)
{
    if (track >= TRACK_SENDS)
        return PROCESS_HOSTS + track - TRACK_SENDS;
    if (track >= TRACK_RECEIVES)
        return PROCESS_HOSTS + track - TRACK_RECEIVES;
    if (track >= TRACK_WAITS)
        return t->process_of_stage[track - TRACK_WAITS];
    return track >= TRACK_STAGES ? t->process_of_stage[track - TRACK_STAGES] : PROCESS_HERE;
}

/* An event, args open. phase: "X" a span, "i" a moment, "M" a name. */
static void begin(td_trace *t, const char *name, const char *phase, uint32_t track,
                  uint64_t start_us, uint64_t us)
{
    td_json_begin_object(t->w);
    td_json_put_string(t->w, "name", name);
    td_json_put_string(t->w, "ph", phase);
    td_json_put_u64(t->w, "pid", process_of(t, track));
    td_json_put_u64(t->w, "tid", track);
    td_json_put_u64(t->w, "ts", start_us > t->start_us ? start_us - t->start_us : 0);
    if (phase[0] == 'X')
        td_json_put_u64(t->w, "dur", us);
    if (phase[0] == 'i')
        td_json_put_string(t->w, "s", "t"); /* a mark on its track */
    td_json_write_key(t->w, "args");
    td_json_begin_object(t->w);
}

static void end(td_trace *t, bool is_last_words)
{
    td_json_end_object(t->w);
    td_json_end_object(t->w);
    const char *text;
    size_t n_bytes;
    td_err failure = {0};
    if (!td_json_writer_end(t->w, &text, &n_bytes, &failure)) {
        td_json_writer_reset(t->w);
        if (t->failure.code == TD_OK)
            t->failure = failure;
        return;
    }
    if (!is_last_words && t->n_bytes + n_bytes + TAIL_BYTES > t->n_bytes_max) {
        t->stopped_us = t->last_us;
        td_log_warn("%s: the trace stops here, after %.3f s: it has %llu bytes; allowed: %llu",
                    t->path, (double)(t->stopped_us - t->start_us) * 1e-6,
                    (unsigned long long)t->n_bytes, (unsigned long long)t->n_bytes_max);
        return;
    }
    put(t, t->n_bytes ? ",\n" : "[", t->n_bytes ? 2 : 1);
    put(t, text, n_bytes);
}

/* What was written is all there will be, but for the end. */
static bool is_silent(const td_trace *t) { return t->stopped_us || t->failure.code != TD_OK; }

static void name_process(td_trace *t, uint32_t track, const char *name)
{
    begin(t, "process_name", "M", track, 0, 0);
    td_json_put_string(t->w, "name", name);
    end(t, false);
}

static void name_track(td_trace *t, uint32_t track, const char *name)
{
    begin(t, "thread_name", "M", track, 0, 0);
    td_json_put_string(t->w, "name", name);
    end(t, false);
    begin(t, "thread_sort_index", "M", track, 0, 0);
    td_json_put_u64(t->w, "sort_index", track);
    end(t, false);
}

/* -- the draft --------------------------------------------------------------------------------- */

static newest *epoch_of(td_trace *t, uint32_t sequence)
{
    newest *unused = NULL;
    for (uint32_t i = 0; i < TD_SEQUENCES_MAX; i++) {
        if (t->epochs[i].is_used && t->epochs[i].sequence == sequence)
            return &t->epochs[i];
        if (!t->epochs[i].is_used)
            unused = &t->epochs[i];
    }
    return unused;
}

static void write_oldest_draft(td_trace *t)
{
    draft_span s = t->waiting[0];
    memmove(t->waiting, t->waiting + 1, --t->n_waiting * sizeof s);
    uint64_t from = s.start_us > t->draft_end_us ? s.start_us : t->draft_end_us;
    uint64_t to = s.end_us > from ? s.end_us : from;
    t->draft_end_us = to;
    begin(t,
          s.is_stale ? "draft (stale)"
          : s.n      ? "draft"
                     : "draft (none)",
          "X", TRACK_DRAFT, from, to - from);
    td_json_put_u64(t->w, "sequence", s.sequence);
    td_json_put_u64(t->w, "epoch", s.epoch);
    td_json_put_u64(t->w, "position", s.position);
    td_json_put_u64(t->w, "tokens", s.n);
    end(t, false);
}

void td_trace_draft(td_trace *t, uint32_t sequence, uint32_t epoch, uint32_t position, uint32_t n,
                    uint32_t busy_us, uint64_t now_us)
{
    if (!t)
        return;
    t->draft_busy_us += busy_us;
    if (is_silent(t))
        return;
    if (t->n_waiting == N_WAITING)
        write_oldest_draft(t);
    const newest *e = epoch_of(t, sequence);
    uint64_t start = now_us > busy_us ? now_us - busy_us : 0;
    t->waiting[t->n_waiting++] = (draft_span){.start_us = start,
                                              .end_us = now_us,
                                              .sequence = sequence,
                                              .epoch = epoch,
                                              .position = position,
                                              .n = n,
                                              .is_stale = !e || !e->is_used || e->epoch != epoch};
    for (uint32_t i = t->n_waiting - 1; i-- > 0 && t->waiting[i].end_us > start;) {
        draft_span *s = &t->waiting[i];
        uint64_t us = s->end_us - s->start_us;
        s->end_us = start;
        s->start_us = start > us ? start - us : 0;
        start = s->start_us;
    }
}

/* -- the target -------------------------------------------------------------------------------- */

static batch_mark *find_batch(td_trace *t, uint64_t id) { return &t->batches[id % N_BATCHES]; }

static void note_batch(td_trace *t, const td_action *a)
{
    batch_mark *b = find_batch(t, a->batch);
    *b = (batch_mark){.id = a->batch, .is_prefill = a->is_prefill, .n_rows = a->n_rows};
    size_t n_text = 0;
    for (uint32_t i = 0, next; i < a->n_rows; i = next) {
        for (next = i + 1; next < a->n_rows && a->rows[next].sequence == a->rows[i].sequence;)
            next++;
        int n = snprintf(b->text + n_text, TEXT_BYTES - n_text, "%s%u@%u+%u", i ? " " : "",
                         a->rows[i].sequence, a->rows[i].position, next - i);
        if (n < 0 || (size_t)n >= TEXT_BYTES - n_text) {
            b->text[n_text] = 0;
            return;
        }
        n_text += (size_t)n;
    }
}

static const char *batch_name(bool is_prefill, bool is_cancelled)
{
    static const char *const names[2][2] = {{"verify", "prefill"},
                                            {"verify (cancelled)", "prefill (cancelled)"}};
    return names[is_cancelled][is_prefill];
}

static void put_batch(td_trace *t, const batch_mark *b)
{
    td_json_put_u64(t->w, "batch", b->id);
    td_json_put_u64(t->w, "rows", b->n_rows);
    td_json_put_string(t->w, "sequences", b->text);
}

void td_trace_verified(td_trace *t, const td_target_result *r, uint64_t now_us)
{
    if (!t || r->err.code != TD_OK)
        return;
    for (uint32_t i = 0; i < t->n_stages; i++)
        t->busy_us[i] += r->spans[i].end_us - r->spans[i].start_us;
    const batch_mark *b = find_batch(t, r->batch);
    if (is_silent(t) || b->id != r->batch)
        return;
    for (uint32_t i = 0; i < t->n_stages; i++) {
        uint64_t us = r->spans[i].end_us - r->spans[i].start_us;
        if (t->process_of_stage[i] != PROCESS_HERE)
            continue; /* its worker tells */
        begin(t, batch_name(b->is_prefill, b->is_cancelled), us ? "X" : "i", TRACK_STAGES + i,
              r->spans[i].start_us, us);
        put_batch(t, b);
        end(t, false);
    }
    begin(t, b->is_cancelled ? "answer (cancelled)" : "answer", "i", TRACK_COORDINATOR, now_us, 0);
    td_json_put_string(t->w, "of", batch_name(b->is_prefill, false));
    put_batch(t, b);
    end(t, false);
}

/* -- stages elsewhere -------------------------------------------------------------------------- */

/* On a track whose spans do not overlap; args open. */
static void begin_span(td_trace *t, const char *name, uint32_t track, td_target_span s)
{
    uint64_t *end_us = &t->ends_us[track];
    uint64_t from = s.start_us > *end_us ? s.start_us : *end_us;
    uint64_t to = s.end_us > from ? s.end_us : from;
    *end_us = to;
    begin(t, name, "X", track, from, to - from);
}

static void write_event(td_trace *t, const td_target_event *e)
{
    uint32_t host = t->host_of_worker[e->host];
    begin_span(t, "receive", TRACK_RECEIVES + host, e->received);
    td_json_put_u64(t->w, "batch", e->batch);
    td_json_put_u64(t->w, "bytes", e->n_in_bytes);
    end(t, false);
    uint64_t there_us = e->received.end_us;
    for (uint32_t k = 0; k < e->n_stages; k++) {
        uint32_t i = e->first_stage + k;
        const td_target_span *s = &e->spans[k];
        begin_span(t, "wait", TRACK_WAITS + i,
                   (td_target_span){.start_us = there_us, .end_us = s->start_us});
        td_json_put_u64(t->w, "batch", e->batch);
        td_json_put_u64(t->w, "waited_us", s->start_us - there_us);
        end(t, false);
        there_us = s->end_us;
        if (s->end_us > s->start_us)
            begin_span(t, batch_name(e->is_prefill, e->is_skipped), TRACK_STAGES + i, *s);
        else
            begin(t, batch_name(e->is_prefill, e->is_skipped), "i", TRACK_STAGES + i, s->start_us,
                  0);
        td_json_put_u64(t->w, "batch", e->batch);
        td_json_put_u64(t->w, "rows", e->n_rows);
        end(t, false);
    }
    begin_span(t, "send", TRACK_SENDS + host, e->sent);
    td_json_put_u64(t->w, "batch", e->batch);
    td_json_put_u64(t->w, "bytes", e->n_out_bytes);
    end(t, false);
}

static void look_at_clocks(td_trace *t, const td_target *target)
{
    for (uint32_t i = 0; i < td_target_n_hosts(target); i++)
        td_target_get_clock(target, i, &t->hosts[t->host_of_worker[i]].clock);
}

/* Those from before the trace began, of a session that had another, and from times that are still
 * to come, which a worker makes up, are left out. */
void td_trace_take(td_trace *t, td_target *target, uint64_t within_us)
{
    td_target_event e;
    const td_clock real = td_clock_real();
    const uint64_t end_us = td_clock_now_us(&real) + within_us;
    if (!t || !td_target_n_hosts(target))
        return;
    for (bool is_more = true; is_more;) {
        while (td_target_next_event(target, &e)) {
            trace_host *h = &t->hosts[t->host_of_worker[e.host]];
            uint64_t now_us = td_clock_now_us(&real);
            if (e.received.start_us + e.uncertainty_us < t->start_us ||
                e.sent.end_us < e.received.start_us || e.sent.end_us > now_us + e.uncertainty_us ||
                is_silent(t))
                continue;
            h->n_batches++;
            h->worst_us = e.uncertainty_us > h->worst_us ? e.uncertainty_us : h->worst_us;
            write_event(t, &e);
        }
        uint64_t now_us = td_clock_now_us(&real);
        uint64_t left_us = now_us < end_us ? end_us - now_us : 0;
        bool is_due = within_us && td_target_await_events(target, left_us);
        is_more = is_due && left_us;
        if (is_due && !is_more)
            td_log_warn("%s: what stages elsewhere did in the end was not told", t->path);
    }
    look_at_clocks(t, target);
}

static void write_clock(td_trace *t, uint32_t host, bool is_last_words)
{
    const trace_host *h = &t->hosts[host];
    begin(t, "clock", "M", TRACK_RECEIVES + host, 0, 0);
    td_json_put_string(t->w, "host", h->clock.host);
    td_json_write_key(t->w, "offset_us");
    td_json_write_i64(t->w, h->clock.offset_us);
    td_json_put_u64(t->w, "uncertainty_us", h->worst_us ? h->worst_us : h->clock.uncertainty_us);
    td_json_put_u64(t->w, "round_trip_us", h->clock.trip_us);
    td_json_put_u64(t->w, "round_trips", h->clock.n_trips);
    td_json_put_u64(t->w, "batches", h->n_batches);
    td_json_put_u64(t->w, "dropped", h->n_dropped + h->clock.n_dropped);
    end(t, is_last_words);
}

static uint32_t find_host(td_trace *t, const td_target_clock *clock)
{
    uint32_t h = 0;
    while (h < t->n_hosts && strcmp(t->hosts[h].clock.host, clock->host) != 0)
        h++;
    if (h < t->n_hosts || h == N_HOSTS)
        return h == N_HOSTS ? h - 1 : h;
    char name[400];
    t->hosts[t->n_hosts++].clock = *clock;
    snprintf(name, sizeof name, "%s (%s)", clock->host, clock->endpoint);
    name_process(t, TRACK_RECEIVES + h, name);
    snprintf(name, sizeof name, "%s receive", clock->host);
    name_track(t, TRACK_RECEIVES + h, name);
    snprintf(name, sizeof name, "%s send", clock->host);
    name_track(t, TRACK_SENDS + h, name);
    write_clock(t, h, false);
    return h;
}

/* The stage's name; after a loss also whom it was before. */
static void name_stage(td_trace *t, uint32_t i, const td_stage_info *info)
{
    char name[640], spec[160];
    size_t n = strlen(t->names[i]);
    snprintf(spec, sizeof spec, "stage %u %s", i, info->spec);
    if (!n)
        snprintf(t->names[i], sizeof t->names[i], "%s", spec);
    else if (!strstr(t->names[i], info->spec))
        snprintf(t->names[i] + n, sizeof t->names[i] - n, ", then %s", info->spec);
    snprintf(name, sizeof name, "%s (layers %u-%u)", spec, info->first, info->last);
    name_track(t, TRACK_STAGES + i, name);
    if (!info->host)
        return;
    snprintf(name, sizeof name, "%s wait", spec);
    name_track(t, TRACK_WAITS + i, name);
}

void td_trace_set_target(td_trace *t, td_target *target)
{
    td_err err = {0};
    if (!t)
        return;
    if (!td_target_trace(target, &err))
        td_log_warn("%s: stages elsewhere are missing: %s", t->path, err.message);
    for (uint32_t h = 0; h < t->n_hosts; h++) {
        t->hosts[h].n_dropped += t->hosts[h].clock.n_dropped;
        t->hosts[h].clock.n_dropped = 0;
    }
    for (uint32_t i = 0; i < td_target_n_hosts(target); i++) {
        td_target_clock clock;
        td_target_get_clock(target, i, &clock);
        t->host_of_worker[i] = find_host(t, &clock);
    }
    t->n_stages = td_target_n_stages(target);
    for (uint32_t i = 0; i < t->n_stages; i++) {
        td_stage_info info;
        td_target_get_stage_info(target, i, &info);
        t->process_of_stage[i] = PROCESS_HERE;
        for (uint32_t h = 0; info.host && h < t->n_hosts; h++)
            if (!strcmp(t->hosts[h].clock.host, info.host))
                t->process_of_stage[i] = PROCESS_HOSTS + h;
        name_stage(t, i, &info);
    }
}

/* -- the coordinator --------------------------------------------------------------------------- */

static const char *name_of(const td_action *a)
{
    switch (a->kind) {
    case TD_ACT_OPEN:
        return "open";
    case TD_ACT_FORWARD:
        return a->is_prefill ? "send prefill" : "send verify";
    case TD_ACT_CANCEL:
        return "cancel";
    case TD_ACT_TRUNCATE:
        return "truncate";
    case TD_ACT_COMMIT:
        return "commit";
    case TD_ACT_DRAFT_FEED:
        return "epoch";
    case TD_ACT_DRAFT_PROPOSE:
        return "ask";
    case TD_ACT_HEAD_PROPOSE:
        return "ask head";
    case TD_ACT_FINISH:
        return "finish";
    default:
        return NULL;
    }
}

/* What the action means for later events; false: not worth one of its own. */
static bool note_action(td_trace *t, const td_action *a)
{
    newest *e;
    switch (a->kind) {
    case TD_ACT_FORWARD:
        note_batch(t, a);
        return true;
    case TD_ACT_CANCEL:
        find_batch(t, a->batch)->is_cancelled |= find_batch(t, a->batch)->id == a->batch;
        return true;
    case TD_ACT_DRAFT_FEED:
    case TD_ACT_DRAFT_PROPOSE:
        e = epoch_of(t, a->sequence);
        if (e && e->is_used && e->epoch == a->epoch)
            return a->kind == TD_ACT_DRAFT_PROPOSE;
        if (e)
            *e = (newest){a->sequence, a->epoch, true};
        return true;
    case TD_ACT_DRAFT_CLOSE:
    case TD_ACT_FINISH:
        e = epoch_of(t, a->sequence);
        if (e)
            e->is_used = false;
        return true;
    default:
        return true;
    }
}

static void write_sequence(td_trace *t, const td_action *a)
{
    td_json_put_u64(t->w, "sequence", a->sequence);
    switch (a->kind) {
    case TD_ACT_OPEN:
        td_json_put_u64(t->w, "slot", a->slot);
        td_json_put_u64(t->w, "shared_positions", a->length);
        break;
    case TD_ACT_TRUNCATE:
    case TD_ACT_COMMIT:
        td_json_put_u64(t->w, "length", a->length);
        break;
    case TD_ACT_DRAFT_PROPOSE:
    case TD_ACT_HEAD_PROPOSE:
        td_json_put_u64(t->w, "k", a->k);
        td_json_put_u64(t->w, "position", a->position);
        td_json_put_u64(t->w, "epoch", a->epoch);
        break;
    case TD_ACT_DRAFT_FEED:
        td_json_put_u64(t->w, "position", a->position);
        td_json_put_u64(t->w, "epoch", a->epoch);
        break;
    case TD_ACT_FINISH:
        td_json_put_string(t->w, "reason", td_reason_name(a->reason));
        break;
    default:
        break;
    }
}

void td_trace_action(td_trace *t, const td_action *a, uint64_t now_us)
{
    if (!t)
        return;
    t->first_us = t->first_us ? t->first_us : now_us;
    t->last_us = now_us;
    const char *name = name_of(a);
    if (!note_action(t, a) || !name || is_silent(t))
        return;
    begin(t, name, "i", TRACK_COORDINATOR, now_us, 0);
    if (a->kind == TD_ACT_FORWARD || a->kind == TD_ACT_CANCEL)
        td_json_put_u64(t->w, "batch", a->batch);
    else
        write_sequence(t, a);
    if (a->kind == TD_ACT_FORWARD)
        td_json_put_u64(t->w, "rows", a->n_rows);
    end(t, false);
}

/* -- begin and end ----------------------------------------------------------------------------- */

td_trace *td_trace_open(const td_trace_params *p, td_err *err)
{
    td_trace *t = td_alloc(1, sizeof *t, err);
    if (!t)
        return NULL;
    t->fd = -1;
    t->start_us = t->draft_end_us = p->start_us;
    t->n_bytes_max = p->n_bytes_max ? p->n_bytes_max : TD_TRACE_BYTES_MAX;
    t->has_draft = p->draft;
    snprintf(t->path, sizeof t->path, "%s", p->path);
    t->w = td_json_writer_create(false, err);
    if (!t->w)
        goto fail;
    t->fd = td_io_open(p->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (t->fd < 0) {
        td_err_set(err, TD_E_IO, "%s: %s", p->path, strerror(errno));
        goto fail;
    }
    name_process(t, TRACK_COORDINATOR, "this machine");
    name_track(t, TRACK_COORDINATOR, "coordinator");
    char name[640];
    snprintf(name, sizeof name, "draft %s", p->draft ? p->draft : "");
    if (p->draft)
        name_track(t, TRACK_DRAFT, name);
    td_trace_set_target(t, p->target);
    return t;
fail:
    td_err_prepend(err, "trace");
    td_trace_close(&t, 0, NULL);
    return NULL;
}

static void put_idle(td_trace *t, const char *name, uint64_t busy_us)
{
    uint64_t us = t->last_us - t->first_us;
    td_json_put_double(t->w, name, us > busy_us ? 1.0 - (double)busy_us / (double)us : 0);
}

static void write_end(td_trace *t, uint64_t now_us)
{
    while (t->n_waiting && !t->stopped_us)
        write_oldest_draft(t);
    if (t->stopped_us) {
        begin(t, "the trace stops here", "i", TRACK_COORDINATOR, t->stopped_us, 0);
        td_json_put_u64(t->w, "limit_bytes", t->n_bytes_max);
        end(t, true);
    }
    for (uint32_t h = 0; h < t->n_hosts; h++)
        write_clock(t, h, true);
    begin(t, "idle share", "i", TRACK_COORDINATOR, now_us, 0);
    for (uint32_t i = 0; i < TD_STAGES_MAX && t->names[i][0]; i++)
        put_idle(t, t->names[i], t->busy_us[i]);
    if (t->has_draft)
        put_idle(t, "draft", t->draft_busy_us);
    end(t, true);
    put(t, "]\n", 2);
    flush(t);
}

bool td_trace_close(td_trace **trace, uint64_t now_us, td_err *err)
{
    td_trace *t = *trace;
    if (!t)
        return true;
    if (t->fd >= 0 && now_us)
        write_end(t, now_us);
    for (uint32_t h = 0; h < t->n_hosts; h++)
        if (t->hosts[h].n_dropped + t->hosts[h].clock.n_dropped)
            td_log_warn("%s: host %s had no room to tell of %llu batches", t->path,
                        t->hosts[h].clock.host,
                        (unsigned long long)(t->hosts[h].n_dropped + t->hosts[h].clock.n_dropped));
    if (t->fd >= 0 && close(t->fd) != 0 && t->failure.code == TD_OK)
        td_err_set(&t->failure, TD_E_IO, "%s: %s", t->path, strerror(errno));
    bool is_ok = t->failure.code == TD_OK;
    if (!is_ok)
        td_err_set(err, t->failure.code, "trace: %s", t->failure.message);
    td_json_writer_destroy(&t->w);
    td_free(t);
    *trace = NULL;
    return is_ok;
}
