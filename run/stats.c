#include "run/stats.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json_writer.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static double ratio(uint64_t a, uint64_t b) { return b ? (double)a / (double)b : 0; }

/* -- CPU time ---------------------------------------------------------------------------------- */

/* One line of a file of a thread of ours; "" when it cannot be had. */
static void read_task(const char *task, const char *file, char line[128])
{
    char path[320];
    snprintf(path, sizeof path, "/proc/self/task/%s/%s", task, file);
    FILE *f = fopen(path, "re");
    if (!f || !fgets(line, 128, f))
        line[0] = 0;
    if (f)
        fclose(f);
}

/* The threads that move bytes for a link to another process. */
static uint64_t zmq_cpu_us(void)
{
    uint64_t sum_ns = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *d; tasks && (d = readdir(tasks));) {
        char line[128];
        read_task(d->d_name, "comm", line);
        if (strncmp(line, "ZMQbg", 5) != 0)
            continue;
        uint64_t ns;
        read_task(d->d_name, "schedstat", line); /* the first number: ns on a CPU */
        if (sscanf(line, "%" SCNu64, &ns) == 1)
            sum_ns += ns;
    }
    if (tasks)
        closedir(tasks);
    return sum_ns / 1000;
}

uint64_t td_stats_cpu_us(const td_draft_client *drafting)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    uint64_t us = (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
    return us + zmq_cpu_us() + (drafting ? td_draft_client_cpu_us(drafting) : 0);
}

/* -- the file ---------------------------------------------------------------------------------- */

/* The share of the run in which something was not busy. */
static void put_idle(td_json_writer *w, const td_run_totals *t, uint64_t busy_us)
{
    uint64_t us = t->end_us - t->start_us;
    td_json_put_double(w, "idle", us > busy_us ? 1.0 - (double)busy_us / (double)us : 0);
}

static void write_losses(td_json_writer *w, const td_run_totals *t)
{
    static const char *const backs[] = {"same", "spare", "rest"};
    td_json_write_key(w, "losses");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < t->n_target_losses && i < TD_RUN_LOSSES_MAX; i++) {
        const td_run_loss *l = &t->losses[i];
        td_json_begin_object(w);
        td_json_put_string(w, "reason", l->reason);
        td_json_put_string(w, "back", backs[l->back]);
        td_json_put_double(w, "at_ms", (double)l->at_us * 1e-3);
        td_json_put_double(w, "away_ms", (double)l->away_us * 1e-3);
        td_json_put_double(w, "next_token_ms", (double)l->next_token_us * 1e-3);
        td_json_put_u64(w, "replayed_positions", l->n_replayed);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

static void write_totals(td_json_writer *w, const td_run_totals *t)
{
    double seconds = (double)(t->end_us - t->start_us) * 1e-6;
    td_json_write_key(w, "totals");
    td_json_begin_object(w);
    td_json_put_u64(w, "ok", t->n_ok);
    td_json_put_u64(w, "errors", t->n_error);
    td_json_put_u64(w, "skipped", t->n_skipped);
    td_json_put_u64(w, "prompt_tokens", t->n_prompt_tokens);
    td_json_put_u64(w, "tokens", t->n_tokens);
    td_json_put_u64(w, "rounds", t->n_rounds);
    td_json_put_u64(w, "drafted", t->n_drafted);
    td_json_put_u64(w, "accepted", t->n_accepted);
    if (t->n_by_head) {
        td_json_put_u64(w, "by_head", t->n_by_head);
        td_json_put_u64(w, "by_head_accepted", t->n_head_accepted);
    }
    td_json_put_u64(w, "looked_up", t->n_looked_up);
    td_json_put_u64(w, "lookup_accepted", t->n_lookup_accepted);
    td_json_put_u64(w, "shared_prompt_tokens", t->n_shared);
    td_json_put_double(w, "acceptance", ratio(t->n_accepted, t->n_drafted));
    td_json_put_double(w, "tokens_per_verification", ratio(t->n_tokens, t->n_rounds));
    td_json_put_double(w, "seconds", seconds);
    td_json_put_double(w, "tokens_per_second", seconds > 0 ? (double)t->n_tokens / seconds : 0);
    td_json_put_double(w, "ttft_ms_mean", ratio(t->ttft_sum_us, t->n_ok) * 1e-3);
    td_json_put_double(w, "line_tokens_per_second_mean",
                       t->n_timed_lines ? t->line_sum_per_s / (double)t->n_timed_lines : 0);
    td_json_put_double(w, "line_tokens_per_second_min", t->line_min_per_s);
    td_json_put_double(w, "line_tokens_per_second_max", t->line_max_per_s);
    td_json_put_double(w, "predicted_tokens_per_second", t->predicted_per_s);
    td_json_put_u64(w, "draft_joins", t->n_draft_joins);
    td_json_put_u64(w, "draft_losses", t->n_draft_losses);
    td_json_put_u64(w, "target_losses", t->n_target_losses);
    td_json_put_double(w, "target_away_ms", (double)t->target_away_us * 1e-3);
    td_json_end_object(w);
    write_losses(w, t);
    td_json_write_key(w, "acceptance_by_position");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < TD_DRAFT_MAX && t->drafted_at[i]; i++) {
        td_json_begin_object(w);
        td_json_put_u64(w, "drafted", t->drafted_at[i]);
        td_json_put_u64(w, "accepted", t->accepted_at[i]);
        td_json_put_double(w, "rate", ratio(t->accepted_at[i], t->drafted_at[i]));
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

/* null where the system shows none. */
static void write_energy(td_json_writer *w, const td_stats *s)
{
    uint32_t n = td_energy_count(s->energy);
    double tokens = (double)s->totals->n_tokens;
    td_json_write_key(w, "energy");
    if (!n) {
        td_json_write_null(w);
        return;
    }
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n; i++) {
        const td_energy_source *source = td_energy_source_at(s->energy, i);
        td_json_begin_object(w);
        td_json_put_string(w, "device", source->name);
        td_json_put_string(w, "kind", source->is_gpu ? "gpu" : "host");
        td_json_put_double(w, "joules", s->totals->joules[i]);
        td_json_put_double(w, "joules_per_token", s->totals->joules[i] / tokens);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

static void write_deal(td_json_writer *w, const td_stage_info *s)
{
    const td_layout_deal *deal = s->deal;
    const uint32_t n = deal->dealing->n_layer * deal->dealing->n_expert;
    td_json_write_key(w, "asked");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n; i++)
        td_json_write_u64(w, s->asked[i]);
    td_json_end_array(w);
    td_json_put_string(w, "dealt", deal->text);
    td_json_put_u64(w, "expert_rows", s->dealt[0]);
    td_json_write_key(w, "seats");
    td_json_begin_array(w);
    for (uint32_t i = 1; i < deal->dealing->n_seats; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "device", deal->seats[i].spec);
        td_json_put_u64(w, "bytes", deal->seats[i].n_bytes);
        td_json_put_u64(w, "expert_rows", s->dealt[i]);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

static void write_stages(td_json_writer *w, const td_stats *stats)
{
    const td_target *target = stats->target;
    td_json_write_key(w, "stages");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < td_target_n_stages(target); i++) {
        td_stage_info s;
        td_target_get_stage_info(target, i, &s);
        td_json_begin_object(w);
        td_json_put_string(w, "device", s.spec);
        td_json_put_string(w, "id", s.device->id);
        td_json_put_string(w, "name", s.name);
        td_json_put_string(w, "driver", s.device->driver);
        td_json_put_u64(w, "first_layer", s.first);
        td_json_put_u64(w, "last_layer", s.last);
        td_json_put_u64(w, "bytes", s.n_bytes);
        td_json_put_u64(w, "usable_bytes", s.n_usable_bytes);
        if (s.experts_spec[0]) {
            td_json_put_string(w, "experts_device", s.experts_spec);
            td_json_put_u64(w, "experts_bytes", s.n_experts_bytes);
        }
        if (s.deal)
            write_deal(w, &s);
        td_json_put_u64(w, "load_bytes", s.n_file_bytes);
        td_json_put_double(w, "load_ms", (double)s.load_us * 1e-3);
        td_json_put_double(w, "load_gb_per_second", ratio(s.n_file_bytes, s.load_us) * 1e-3);
        td_json_put_double(w, "prefill_ms", (double)s.busy_prefill_us * 1e-3);
        td_json_put_u64(w, "prefill_rows", s.n_prefill_rows);
        td_json_put_u64(w, "prefills", s.n_prefills);
        td_json_put_double(w, "verify_ms", (double)s.busy_verify_us * 1e-3);
        td_json_put_u64(w, "verify_rows", s.n_verify_rows);
        td_json_put_u64(w, "verifies", s.n_verifies);
        put_idle(w, stats->totals, stats->totals->stage_us[i]);
        td_json_end_object(w);
    }
    td_json_end_array(w);
}

/* The busy time of a draft elsewhere is what its answers told. */
static void write_draft(td_json_writer *w, const td_stats *s)
{
    const td_run_totals *t = s->totals;
    const char *device =
        s->draft_device && *s->draft_device ? s->draft_device : s->params->draft_endpoint;
    if (!device)
        return;
    uint64_t busy_us = s->draft ? t->draft_us : t->answers_us;
    td_json_write_key(w, "draft");
    td_json_begin_object(w);
    td_json_put_string(w, "device", device);
    td_json_put_double(w, "busy_ms", (double)busy_us * 1e-3);
    put_idle(w, t, busy_us);
    if (s->draft) {
        td_json_put_string(w, "id", s->draft_info->id);
        td_json_put_string(w, "driver", s->draft_info->driver);
        td_json_put_u64(w, "bytes", s->draft_bytes);
        td_json_put_u64(w, "proposals", s->draft->n_proposals);
        td_json_put_u64(w, "tokens", s->draft->n_tokens);
        td_json_put_u64(w, "evaluated_rows", s->draft->n_evaluated);
        if (s->prompts_kept)
            td_json_put_u64(w, "restored_positions", s->draft->n_restored);
    }
    td_json_end_object(w);
}

/* What of prompts was read from the disk instead of computed, and what was written there. */
static void write_prefix_cache(td_json_writer *w, const td_stats *s)
{
    const td_prefix_counts *c = s->prompts_kept;
    td_json_write_key(w, "prefix_cache");
    td_json_begin_object(w);
    td_json_put_u64(w, "restored_positions", s->totals->n_restored);
    td_json_put_u64(w, "restored_bytes", c->read_bytes);
    td_json_put_double(w, "restored_seconds", (double)c->read_us * 1e-6);
    td_json_put_u64(w, "stored_positions", c->written_positions);
    td_json_put_u64(w, "stored_bytes", c->written_bytes);
    td_json_put_double(w, "stored_seconds", (double)c->write_us * 1e-6);
    td_json_put_u64(w, "dropped_chunks", td_target_n_unkept(s->target));
    td_json_put_u64(w, "failed_chunks", c->n_failed);
    td_json_put_u64(w, "damaged_files", c->n_damaged);
    td_json_put_u64(w, "removed_files", c->n_removed);
    td_json_end_object(w);
}

static void write_config(td_json_writer *w, const td_stats *s)
{
    const td_run_params *p = s->params;
    char kept[TD_CACHE_TYPES_TEXT];
    td_json_write_key(w, "config");
    td_json_begin_object(w);
    td_json_put_string(w, "target", p->target_path);
    bool is_head_alone = s->head_name && !p->draft_head;
    td_json_put_string(w, "draft", is_head_alone ? s->head_name : p->draft_path);
    if (p->draft_head)
        td_json_put_string(w, "draft_head", s->head_name);
    td_json_put_string(w, "draft_device",
                       s->draft_device && *s->draft_device ? s->draft_device : NULL);
    td_json_put_string(w, "draft_endpoint", p->draft_endpoint);
    td_json_put_u64(w, "draft_max", p->draft_max);
    td_json_put_u64(w, "draft_fixed", p->draft_fixed);
    td_json_put_string(w, "in", p->in_path);
    td_json_put_string(w, "out", p->out_path);
    td_json_put_u64(w, "n", p->n_predict);
    td_json_put_double(w, "temp", (double)p->sampling.temperature);
    td_json_put_u64(w, "top_k", p->sampling.top_k);
    td_json_put_double(w, "top_p", (double)p->sampling.top_p);
    td_json_put_double(w, "min_p", (double)p->sampling.min_p);
    td_json_put_double(w, "repeat_penalty", (double)p->sampling.repeat_penalty);
    td_json_put_u64(w, "seed", p->seed);
    td_json_write_key(w, "stop");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < p->n_stops; i++)
        td_json_write_string(w, p->stops[i]);
    td_json_end_array(w);
    td_json_put_string(w, "kv_k", p->kv.k->name);
    td_json_put_string(w, "kv_v", p->kv.v->name);
    td_json_write_key(w, "kv_keep");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < p->kv.n_rules; i++)
        if (td_cache_types_write_kept(&p->kv, i, ",=", kept, sizeof kept))
            td_json_write_string(w, kept);
    td_json_end_array(w);
    td_json_put_string(w, "draft_kv_k", p->draft_kv.k ? p->draft_kv.k->name : NULL);
    td_json_put_string(w, "draft_kv_v", p->draft_kv.v ? p->draft_kv.v->name : NULL);
    td_json_put_string(w, "wire", p->wire ? p->wire->name : NULL);
    td_json_put_u64(w, "ctx", td_target_n_ctx(s->target));
    td_json_put_u64(w, "parallel", p->n_parallel);
    td_json_end_object(w);
}

bool td_stats_write(const td_stats *s, const char *path, td_err *err)
{
    td_json_writer *w = td_json_writer_create(true, err);
    if (!w)
        return false;
    td_json_begin_object(w);
    td_json_put_string(w, "version", TD_VERSION);
    td_json_put_string(w, "model", td_model_name(s->model));
    td_json_put_string(w, "config_sha", s->identity->sha);
    td_json_put_string(w, "config_text", s->identity->text);
    if (s->date && s->date[0])
        td_json_put_string(w, "date", s->date);
    write_totals(w, s->totals);
    write_energy(w, s);
    const td_coordinator_stats *c = s->coordinator;
    td_json_write_key(w, "coordinator");
    td_json_begin_object(w);
    td_json_put_u64(w, "batches", c->n_batches);
    td_json_put_double(w, "loop_cpu_us_per_round", ratio(s->totals->loop_cpu_us, c->n_batches));
    td_json_put_u64(w, "rows", c->n_rows);
    td_json_put_u64(w, "groups", c->n_groups);
    td_json_put_double(w, "link_ms", c->link_us * 1e-3);
    td_json_put_u64(w, "cancelled_batches", c->n_cancelled);
    td_json_put_u64(w, "continued", c->n_continued);
    td_json_put_u64(w, "drafted_ahead", c->n_ahead);
    td_json_put_u64(w, "waited_for_memory", c->n_waits);
    td_json_put_u64(w, "draft_trials", c->n_trials);
    td_json_put_u64(w, "silent_batches", c->n_silent);
    td_json_put_double(w, "draft_saved_ms", (double)c->saved_us * 1e-3);
    td_json_put_u64(w, "replayed_positions", c->n_replayed);
    td_json_put_u64(w, "missed_deadlines", c->n_deadlines);
    td_json_put_u64(w, "late_drafts", c->n_late_drafts);
    td_json_put_u64(w, "stale_drafts", c->n_stale_drafts);
    td_json_put_u64(w, "bad_drafts", c->n_bad_drafts);
    td_json_end_object(w);
    write_stages(w, s);
    write_draft(w, s);
    if (s->prompts_kept)
        write_prefix_cache(w, s);
    write_config(w, s);
    td_json_end_object(w);
    const char *text;
    size_t n_bytes;
    bool is_ok =
        td_json_writer_end(w, &text, &n_bytes, err) && td_io_replace_file(path, text, n_bytes, err);
    td_json_writer_destroy(&w);
    return is_ok;
}
