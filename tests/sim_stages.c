/* Targets whose stages are on other machines, under faults, by seed. SIM_COUNT runs so many seeds
 * from SIM_SEED on (scripts/simulate.sh); a failure prints how to replay it.
 *
 * What is real: the whole program on every machine. A coordinator is td_run with its event loop,
 * its recovery and its results file (run/), its target and the remote half of it (target/); workers
 * are td_stage_worker_run; between them is the wire as it is (transport/). A tiny model with random
 * weights is computed as any other is, by the host's kernels, so that a row that was lost, doubled
 * or run on a wrong cache gives other tokens.
 *
 * What is not: threads, time, the network (sim_threads.h, sim_net.h), how long loading and
 * computing take, and the death of a process, which ends by itself behind a cut instead of at once.
 *
 * What must hold:
 * - every line's tokens are those of an undisturbed run on one machine;
 * - every stage performs the coordinator's jobs, each once, in their order, with nothing changed
 *   but rows that are dead; its cache holds what was committed by them, and no batch comes back
 *   before each stage has begun it, with all before it done (no token without its commit at every
 *   stage);
 * - a loss ends in progress, or in an error that says to try again, in time; once the faults are
 *   over, one that tries again gets all lines;
 * - a worker ends when it is told to and not before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sim_net.h"
#include "sim_stage_jobs.h"
#include "toy_model.h"

#include "run/run.h"
#include "target/kept.h"
#include "target/worker.h"
#include "transport/stage_wire.h"

#include <ftw.h>
#include <sys/stat.h>

#define N_SEEDS        1000u
#define N_SUFFERING    60u         /* messages, each in every way */
#define SUFFERING_SEED 1000000000u /* and on */
#define N_PROMPTS      24u         /* of which a run has some */
#define N_INCIDENTS    8u
#define N_RUNS_MAX     24u /* of a coordinator, until all lines are there */
#define ANSWER_MAX     4096u
#define FAR_US         (1ull << 60)
#define SILENT         "the coordinator is silent" /* what a worker says of one that is gone */

/* ---- what is to come out ---- */

static char folder[64], model_paths[2][96], in_path[96], out_path[96], trace_path[96];
/* Of an undisturbed run with each model: from "status" to "error". */
static char answers[2][N_PROMPTS][ANSWER_MAX];
static td_device_info host_info;

/* ---- a world ---- */

typedef enum {
    KILL,  /* and it is there again after a while, or is not */
    PAUSE, /* all of the machine */
    RESET, /* connections */
    PART,  /* the link is down, or one way of it: what is sent comes when it is up again */
    SLOW,  /* what is computed next takes long */
    LOSE,  /* a message */
    DOUBLE,
    OVERTAKE,
    N_INCIDENT_KINDS
} incident_kind;

typedef struct {
    incident_kind kind;
    uint64_t at_message;
    uint32_t machine;
    uint64_t us;
} incident;

static struct {
    uint32_t n_workers, n_parallel;
    const char *specs[4], *spares[2];
    uint32_t n_specs, n_spares;
    bool has_draft, is_draft_there, is_ngram, is_wide, is_lent, is_over; /* lent: models are sent */
    bool has_trace;
    bool is_garbled; /* single messages were lost, doubled or late */
    uint32_t draft_fixed, spoil_permille;
    uint64_t row_us, stage_us, load_us, draft_speed;
    incident incidents[N_INCIDENTS];
    uint32_t n_incidents, n_done; /* done: have come to pass */
    uint64_t n_messages, back_us[N_MACHINES], slow_us;
    /* The line from worker 1 to 2, the one back, or both go dead at a message, for so long. */
    uint64_t dead_at, dead_for_us, dead_from_us;
    bool is_dead_there, is_dead_back;
} w;

static struct {
    uint64_t n_losses, n_runs, n_failed, n_messages, n_incidents[N_INCIDENT_KINDS], n_replayed;
    uint64_t n_backs[3], n_accepted, n_fails, n_pieces, n_data, us;
} sums;

/* ---- how long things take ---- */

static uint64_t slow(uint64_t us)
{
    uint64_t more = w.slow_us;
    w.slow_us = 0;
    return us * (80 + below(41)) / 100 + more;
}

bool __real_td_forward_run(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                           td_err *err);
bool __wrap_td_forward_run(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                           td_err *err);
bool __wrap_td_forward_run(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                           td_err *err)
{
    bool is_ok = __real_td_forward_run(f, mode, rows, n_rows, err);
    work_for(is_stage(f) ? slow(w.stage_us + w.row_us * n_rows) : w.stage_us / w.draft_speed);
    return is_ok;
}

td_forward *__real_td_forward_create(const td_forward_params *params, td_err *err);
td_forward *__wrap_td_forward_create(const td_forward_params *params, td_err *err);
td_forward *__wrap_td_forward_create(const td_forward_params *params, td_err *err)
{
    work_for(slow(w.load_us));
    return __real_td_forward_create(params, err);
}

/* The same whenever it is asked. */
bool __real_td_device_find(const char *spec, td_device_info *out, td_err *err);
bool __wrap_td_device_find(const char *spec, td_device_info *out, td_err *err);
bool __wrap_td_device_find(const char *spec, td_device_info *out, td_err *err)
{
    if (strcmp(spec, "host:1") != 0)
        return __real_td_device_find(spec, out, err);
    if (!host_info.name[0])
        CHECK(__real_td_device_find(spec, &host_info, err));
    *out = host_info;
    return true;
}

/* ---- faults ---- */

/* Until it is over; at the end it may be too late for everybody. */
static uint64_t draw_duration(void)
{
    static const uint64_t most[] = {100000, 1500000, 5000000, 15000000};
    uint32_t i = below(TD_COUNT(most) + 1);
    return i < TD_COUNT(most) ? below(most[i]) : FAR_US;
}

static void do_incident(const incident *x, connection *c, td_link_fate *fate)
{
    uint32_t i = x->machine, other = c->machines[c->machines[0] == i];
    sums.n_incidents[x->kind]++;
    switch (x->kind) {
    case KILL:
        if (sim.machines[i].is_dead)
            break;
        w.back_us[i] = now_us() + x->us;
        kill_machine(i, x->us % 4 != 0);
        break;
    case PAUSE:
        sim.machines[i].paused_until_us = now_us() + td_min_u64(x->us, 20000000);
        break;
    case RESET:
        break_between(i, other);
        break;
    case PART:
        part(i, other, now_us() + td_min_u64(x->us, 60000000));
        if (x->us % 3)
            part(other, i, now_us() + td_min_u64(x->us, 60000000));
        if (x->us % 2) /* and what stands does not live to see the end */
            break_between(i, other);
        break;
    case SLOW:
        w.slow_us = td_min_u64(x->us, 400000000);
        break;
    case LOSE:
        w.is_garbled = true;
        fate->n_copies = 0;
        break;
    case DOUBLE:
        w.is_garbled = true;
        fate->n_copies = 2;
        break;
    case OVERTAKE:
        w.is_garbled = true;
        fate->is_overtaken = true;
        fate->delay_us += x->us % 100000;
        break;
    case N_INCIDENT_KINDS:
        break;
    }
}

static void kill_line(void)
{
    w.dead_from_us = now_us();
    if (w.is_dead_there)
        part(1, 2, now_us() + w.dead_for_us);
    if (w.is_dead_back)
        part(2, 1, now_us() + w.dead_for_us);
}

static void on_message(connection *c, int from_end, const uint8_t *bytes, size_t n_bytes,
                       td_link_fate *fate)
{
    td_stage_msg m = {0};
    (void)from_end;
    w.n_messages++;
    sums.n_messages++;
    if (w.n_messages == w.dead_at)
        kill_line();
    while (w.n_done < w.n_incidents && w.incidents[w.n_done].at_message <= w.n_messages)
        do_incident(&w.incidents[w.n_done++], c, fate);
    if (!w.is_garbled && td_stage_decode(bytes, n_bytes, &m, NULL) && m.type == TD_STAGE_FAIL) {
        sums.n_fails++;
        CHECK_SAYING(m.fail.code != TD_STAGE_FAIL_PROTOCOL || !strcmp(m.fail.reason, SILENT),
                     "a worker is told nonsense: %s", m.fail.reason);
    }
    sums.n_pieces += m.type == TD_STAGE_PIECE;
    sums.n_data += m.type == TD_STAGE_DATA;
}

/* ---- machines ---- */

/* What is sent to a machine it keeps in a folder of its own. */
bool __wrap_td_io_cache_path(const char *prefix, uint64_t hash, const char *suffix, char *path,
                             size_t n_bytes);
bool __wrap_td_io_cache_path(const char *prefix, uint64_t hash, const char *suffix, char *path,
                             size_t n_bytes)
{
    uint32_t i = sim.running->machine;
    if (!w.is_lent || strcmp(prefix, TD_KEPT_PREFIX) != 0)
        return false;
    snprintf(path, n_bytes, "%s/%c", folder, 'a' + (int)i);
    mkdir(path, 0700);
    snprintf(path, n_bytes, "%s/%c/%s-%016llx%s", folder, 'a' + (int)i, prefix,
             (unsigned long long)hash, suffix);
    return true;
}

static int remove_one(const char *path, const struct stat *st, int what, struct FTW *at)
{
    (void)st;
    (void)what;
    (void)at;
    return remove(path);
}

static void forget_what_was_sent(void)
{
    char path[96];
    for (uint32_t i = 0; i < N_MACHINES; i++) {
        snprintf(path, sizeof path, "%s/%c", folder, 'a' + (int)i);
        nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    }
}

static const char *endpoint_of(uint32_t i)
{
    static char texts[N_MACHINES][32];
    snprintf(texts[i], sizeof texts[i], "tcp://127.0.0.1:%u", 7000 + i);
    return texts[i];
}

static void *work(void *arg)
{
    const uint32_t i = (uint32_t)(uintptr_t)arg;
    static const char *const specs[] = {"host:1"};
    while (!w.is_over) {
        if (sim.machines[i].is_dead && w.back_us[i] > now_us()) {
            sleep_until(earlier(w.back_us[i], now_us() + 50000));
            continue;
        }
        revive(i);
        td_err err = {0};
        const td_stage_worker_params params = {.specs = specs,
                                               .n_specs = 1,
                                               .model = w.is_lent ? NULL : model_paths[w.is_wide],
                                               .cache_bytes = w.is_lent ? 16u << 20 : 0,
                                               .endpoint = endpoint_of(i),
                                               .stop_fd = sim.machines[i].stop_fd};
        bool is_ok = td_stage_worker_run(&params, &err);
        CHECK_SAYING(is_ok, "worker %u failed: %s", i, err.message);
        CHECK(sim.machines[i].is_dead);
    }
    return NULL;
}

static void spoil(void *user, const char *id, uint32_t i_token, uint32_t *ids, uint32_t n_ids)
{
    (void)user;
    (void)id;
    (void)i_token;
    for (uint32_t i = 0; i < n_ids; i++)
        if (below(1000) < w.spoil_permille)
            ids[i] = below(TOY_VOCAB);
}

static td_run_params run_params(void)
{
    static char names[N_MACHINES][4];
    td_run_params p = {.target_path = model_paths[w.is_wide],
                       .draft_path = w.has_draft ? model_paths[w.is_wide] : NULL,
                       .draft_spec = w.is_draft_there ? "a/host:1"
                                     : w.has_draft    ? "host:1"
                                                      : NULL,
                       .draft_max = w.has_draft || w.is_ngram ? 8 : 0,
                       .draft_fixed = w.draft_fixed,
                       .is_ngram = w.is_ngram,
                       .n_specs = w.n_specs,
                       .n_spares = w.n_spares,
                       .measure = TD_MEASURE_NEVER,
                       .in_path = in_path,
                       .out_path = out_path,
                       .trace_path = w.has_trace ? trace_path : NULL,
                       .n_predict = 16,
                       .sampling = TD_SAMPLING_DEFAULTS,
                       .seed = 42,
                       .kv = {.k = td_type_find(TD_TYPE_F16), .v = td_type_find(TD_TYPE_F16)},
                       .n_ctx = 256,
                       .n_parallel = w.n_parallel,
                       .is_trusting = true,
                       .is_quiet = true,
                       .on_draft = w.has_draft ? spoil : NULL};
    memcpy(p.specs, w.specs, sizeof w.specs);
    memcpy(p.spares, w.spares, sizeof w.spares);
    for (uint32_t i = 1; i <= w.n_workers; i++) {
        snprintf(names[i], sizeof names[i], "%c", 'a' + (int)i - 1);
        snprintf(p.hosts[p.n_hosts].name, sizeof p.hosts[0].name, "%s", names[i]);
        p.hosts[p.n_hosts++].endpoint = endpoint_of(i);
    }
    return p;
}

/* ---- lines ---- */

static void write_prompts(uint32_t first, uint32_t n)
{
    FILE *f = fopen(in_path, "w");
    CHECK(f);
    for (uint32_t i = first; i < first + n; i++) {
        uint32_t k = i % N_PROMPTS, n_words = (uint32_t)(mix(k + 1) % 5 ? mix(k) % 8 : mix(k) % 40);
        fprintf(f, "{\"id\":\"p%u\",\"n\":%u,\"temp\":%s,\"seed\":%u,\"prompt\":\"", k,
                4 + (uint32_t)(mix(k + 99) % 20), k % 3 ? "0" : "0.8", k);
        /* Some begin alike, so that caches are shared. */
        for (uint32_t j = 0; j < n_words + 1; j++)
            fprintf(f, "%c%llu ", 'a' + (char)(j % 26),
                    (unsigned long long)(mix(j < 30 && k % 2 ? j : k * 100 + j) % 10));
        fprintf(f, "\"}\n");
    }
    CHECK(!fclose(f));
}

/* What the line of a prompt says that does not depend on time or place. */
static bool read_line(FILE *f, uint32_t *k, char out[ANSWER_MAX])
{
    static char line[1 << 16];
    if (!fgets(line, sizeof line, f))
        return false;
    const char *from = strstr(line, "\"status\""), *to = strstr(line, ",\"error\"");
    CHECK_SAYING(sscanf(line, "{\"id\":\"p%u\"", k) == 1 && from && to && *k < N_PROMPTS &&
                     to - from < (int)ANSWER_MAX,
                 "a result: %s", line);
    snprintf(out, ANSWER_MAX, "%.*s", (int)(to - from), from);
    return true;
}

static void check_results(uint32_t first, uint32_t n)
{
    char line[ANSWER_MAX];
    bool is_there[N_PROMPTS] = {0};
    uint32_t k, n_there = 0;
    FILE *f = fopen(out_path, "r");
    CHECK(f);
    for (; read_line(f, &k, line); n_there++) {
        CHECK(!is_there[k] && (k + N_PROMPTS - first % N_PROMPTS) % N_PROMPTS < n);
        is_there[k] = true;
        CHECK_SAYING(!strcmp(line, answers[w.is_wide][k]), "prompt %u: %s\nwanted: %s", k, line,
                     answers[w.is_wide][k]);
    }
    CHECK_SAYING(n_there == n, "%u lines of %u", n_there, n);
    fclose(f);
}

/* ---- a run ---- */

static td_run_totals totals_before; /* of the last run */

static void note_totals(const td_run_totals *t)
{
    totals_before = *t;
    sums.n_losses += t->n_target_losses;
    for (uint32_t i = 0; i < TD_RUN_LOSSES_MAX && i < t->n_target_losses; i++) {
        sums.n_backs[t->losses[i].back]++;
        sums.n_replayed += t->losses[i].n_replayed;
    }
    sums.n_accepted += t->n_accepted;
}

/* Whether what happened can be overcome. */
static bool is_mild(void)
{
    bool is_so = w.n_done <= 3;
    for (uint32_t i = 0; i < w.n_done; i++)
        is_so &= w.incidents[i].kind >= LOSE || w.incidents[i].us < 1000000;
    return is_so;
}

/* One that ends with an error has met a fault, and says that another try may do. */
static bool run_once(td_err *err)
{
    td_run_params params = run_params();
    td_run_totals totals;
    int signal;
    uint64_t start_us = now_us();
    bool is_ok = td_run(&params, &totals, &signal, err);
    sums.n_runs++;
    sums.n_failed += !is_ok;
    note_totals(&totals);
    if (here()->is_dead)
        return false;
    bool has_begun = totals.start_us > 0;
    int code = td_err_exit_code(err->code);
    CHECK_SAYING(is_ok || !is_mild(), "the run failed though little happened: %s", err->message);
    CHECK_SAYING(is_ok || (w.n_done > 0 && (code == 75 || (code == 69 && !has_begun))),
                 "the run failed: %s", err->message);
    CHECK(now_us() - start_us < 900000000);
    return is_ok;
}

static void stop_workers(void)
{
    w.is_over = true;
    for (uint32_t i = 1; i <= w.n_workers; i++)
        tell_to_stop(i);
}

/* Coordinates until all lines are there: a dead one is started anew, one that failed tries again
 * when all machines are there and nothing is to happen any more. */
static void *coordinate(void *arg)
{
    (void)arg;
    for (uint32_t n = 0; n < N_RUNS_MAX; n++) {
        td_err err = {0};
        if (run_once(&err))
            break;
        CHECK_SAYING(n + 1 < N_RUNS_MAX, "it fails again and again: %s", err.message);
        if (here()->is_dead) {
            sleep_until(earlier(w.back_us[0], now_us() + 5000000));
            revive(0);
            continue;
        }
        if (n > 1)
            w.n_incidents = w.n_done;
        for (uint32_t i = 1; i <= w.n_workers; i++)
            w.back_us[i] = earlier(w.back_us[i], now_us() + 100000);
        sleep_until(now_us() + 61000000);
    }
    stop_workers();
    return NULL;
}

static bool are_all_done(void)
{
    bool is_so = true;
    for (uint32_t i = 0; i < N_THREADS; i++)
        is_so &= sim.threads[i].state == THREAD_NONE || sim.threads[i].state == THREAD_DONE;
    return is_so;
}

/* Where stages are; a spare is the last machine. */
static void choose_split(void)
{
    static const struct {
        uint32_t n_workers, n;
        const char *specs[4];
    } splits[] = {{2, 2, {"a/host:1", "b/host:1"}},
                  {2, 3, {"host:1", "a/host:1", "b/host:1"}},
                  {2, 3, {"a/host:1", "host:1", "b/host:1"}},
                  {2, 3, {"a/host:1", "b/host:1", "host:1"}},
                  {3, 3, {"a/host:1", "b/host:1", "c/host:1"}},
                  {1, 2, {"host:1", "a/host:1"}},
                  {2, 3, {"a/host:1", "a/host:1", "b/host:1"}}};
    uint32_t i = below(TD_COUNT(splits));
    static char spare[16];
    w.n_workers = splits[i].n_workers;
    w.n_specs = splits[i].n;
    memcpy(w.specs, splits[i].specs, sizeof w.specs);
    if (below(3) == 0) {
        snprintf(spare, sizeof spare, "%c/host:1", 'a' + (int)w.n_workers++);
        w.spares[w.n_spares++] = spare;
    }
}

static void choose_faults(void)
{
    net.faults.delay_max_us = below(3) ? below(3) ? 1 + below(2000) : 1 + below(30000) : 0;
    net.faults.delay_min_us = net.faults.delay_max_us / (1 + below(4));
    net.room = below(3) ? 16 : 2 + below(16);
    net.keepalive_us = below(2) ? 11000000 : FAR_US;
    w.n_incidents = below(20) ? 1 + below(below(3) ? 3 : N_INCIDENTS) : 0;
    uint64_t at = 0;
    for (uint32_t i = 0; i < w.n_incidents; i++) {
        at += below(4) ? 1 + below(below(2) ? 40 : 200) : 0; /* or at once */
        w.incidents[i] = (incident){.kind = below(N_INCIDENT_KINDS),
                                    .at_message = at,
                                    .machine = below(w.n_workers + 1),
                                    .us = draw_duration()};
    }
}

static void begin(uint64_t seed)
{
    sim_begin(seed);
    net_begin();
    memset(&w, 0, sizeof w);
    net.room = 16;
    w.n_parallel = 4;
    w.stage_us = w.row_us = 100;
    w.draft_speed = 1;
}

/* All machines, until all is done; the first does what `main` says. */
static void run_world(void *(*main_of_first)(void *), uint32_t first, uint32_t n)
{
    net.on_message = on_message;
    write_prompts(first, n);
    unlink(out_path);
    start_thread(0, main_of_first, NULL);
    for (uint32_t i = 1; i <= w.n_workers; i++)
        start_thread(i, work, (void *)(uintptr_t)i);
    sim_run(are_all_done);
    check_results(first, n);
    if (w.is_lent)
        forget_what_was_sent();
    sums.us += now_us();
    end_lives();
}

/* One message suffers, from the first greeting on, where a spare is looked for and a draft is there
 * beside layers. Nothing of it is enough to end the run, but the last: a machine that is away for
 * longer than anybody waits for it. */
static const struct {
    incident_kind kind;
    uint64_t us;
} sufferings[] = {{LOSE, 0}, {DOUBLE, 0}, {KILL, 300000}, {KILL, 14000001}};

static void run_suffering(uint64_t seed)
{
    uint64_t i = seed - SUFFERING_SEED;
    begin(seed);
    w.n_workers = 3;
    w.n_specs = 2;
    w.specs[0] = "a/host:1";
    w.specs[1] = "b/host:1";
    w.spares[w.n_spares++] = "c/host:1";
    w.has_draft = w.is_draft_there = true;
    w.load_us = 1000;
    net.faults.delay_min_us = net.faults.delay_max_us = 100;
    w.incidents[w.n_incidents++] = (incident){.kind = sufferings[i % TD_COUNT(sufferings)].kind,
                                              .at_message = 1 + i / TD_COUNT(sufferings),
                                              .machine = 1 + (uint32_t)(mix(i) & 1),
                                              .us = sufferings[i % TD_COUNT(sufferings)].us};
    run_world(coordinate, 1, 2);
}

static void run_seed(uint64_t seed)
{
    if (seed >= SUFFERING_SEED) {
        run_suffering(seed);
        return;
    }
    begin(seed);
    choose_split();
    choose_faults();
    w.n_parallel = 1 + below(4);
    w.stage_us = 50 + below(3000);
    w.row_us = below(200);
    w.load_us = below(3) ? below(20000) : below(1000000);
    w.is_wide = below(16) == 0;
    w.is_lent = !w.is_wide && below(16) == 0;
    w.has_trace = below(4) == 0;
    w.has_draft = below(2) == 0;
    w.draft_speed = 1 + below(30);
    w.is_draft_there = w.has_draft && below(2);
    w.is_ngram = below(3) == 0;
    w.draft_fixed = below(2) && (w.has_draft || w.is_ngram) ? 1 + below(6) : 0;
    w.spoil_permille = below(2) ? 0 : below(500);
    uint32_t first = below(N_PROMPTS), n = 1 + below(5);
    run_world(coordinate, first, n);
}

static void *run_alone(void *arg)
{
    (void)arg;
    td_err err = {0};
    CHECK_SAYING(run_once(&err), "%s", err.message);
    return NULL;
}

static void find_answers(bool is_wide)
{
    begin(0);
    w.is_wide = is_wide;
    unlink(out_path);
    w.n_specs = 1;
    w.specs[0] = "host:1";
    write_prompts(0, N_PROMPTS);
    start_thread(0, run_alone, NULL);
    sim_run(are_all_done);
    end_lives();
    FILE *f = fopen(out_path, "r");
    CHECK(f);
    char line[ANSWER_MAX];
    for (uint32_t k, i = 0; i < N_PROMPTS; i++) {
        CHECK(read_line(f, &k, line));
        memcpy(answers[is_wide][k], line, sizeof line);
    }
    fclose(f);
}

static uint64_t read_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static void test_losses_of_machines_never_change_a_text(void **state)
{
    (void)state;
    uint64_t first = read_number("SIM_SEED", 1), n = read_number("SIM_COUNT", N_SEEDS);
    memset(&sums, 0, sizeof sums);
    told_of.n_jobs = told_of.n_cancelled = 0;
    for (uint64_t seed = first; seed < first + n; seed++) {
        run_seed(seed);
        if ((seed - first + 1) % 10000 == 0) {
            printf("%llu seeds\n", (unsigned long long)(seed - first + 1));
            fflush(stdout);
        }
    }
    static const char *const names[] = {"killed", "paused", "reset",   "parted",
                                        "slow",   "lost",   "doubled", "late"};
    const struct {
        const char *what;
        uint64_t n;
    } all[] = {{"seeds", n},
               {"runs", sums.n_runs},
               {"failed runs", sums.n_failed},
               {"seconds", sums.us / 1000000},
               {"messages", sums.n_messages},
               {"pieces", sums.n_pieces},
               {"DATA", sums.n_data},
               {"FAILs", sums.n_fails},
               {"jobs of stages", told_of.n_jobs},
               {"batches cancelled", told_of.n_cancelled},
               {"drafted tokens accepted", sums.n_accepted},
               {"losses", sums.n_losses},
               {"positions again", sums.n_replayed},
               {"back by the same", sums.n_backs[TD_BACK_SAME]},
               {"by a spare", sums.n_backs[TD_BACK_SPARE]},
               {"on the rest", sums.n_backs[TD_BACK_REST]}};
    for (size_t i = 0; i < TD_COUNT(all); i++)
        printf("%s%llu %s", i ? ", " : "", (unsigned long long)all[i].n, all[i].what);
    printf(";");
    for (uint32_t i = 0; i < N_INCIDENT_KINDS; i++)
        printf(" %s %llu", names[i], (unsigned long long)sums.n_incidents[i]);
    printf("\n");
    if (n < N_SEEDS)
        return;
    /* All of it was tried. */
    for (uint32_t i = 0; i < N_INCIDENT_KINDS; i++)
        assert_true(sums.n_incidents[i] > n / 10);
    assert_true(sums.n_losses > n / 5 && sums.n_replayed > 10 * n && sums.n_failed > n / 20);
    assert_true(sums.n_backs[TD_BACK_SPARE] > n / 200 && sums.n_backs[TD_BACK_REST] > n / 100);
    assert_true(told_of.n_cancelled > n / 50 && sums.n_pieces > n / 50 && sums.n_data > n / 10);
}

/* What they found is mended; they may find something else, for what is drawn changes with the
 * program. */
static void test_seeds_that_once_failed(void **state)
{
    (void)state;
    static const uint64_t seeds[] = {171922};
    for (size_t i = 0; i < TD_COUNT(seeds); i++)
        run_seed(seeds[i]);
}

static void test_any_one_message_may_suffer(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < TD_COUNT(sufferings) * N_SUFFERING; i++) {
        run_seed(SUFFERING_SEED + i);
        assert_int_equal(w.n_done, 1);
    }
}

static void *coordinate_once(void *arg)
{
    (void)arg;
    td_err err = {0};
    CHECK_SAYING(run_once(&err), "%s", err.message);
    CHECK(totals_before.n_target_losses > 0);
    uint64_t at_us = totals_before.start_us + totals_before.losses[0].at_us;
    CHECK_SAYING(w.dead_from_us && at_us - w.dead_from_us < 6500000, "noticed after %.1f s: %s",
                 (double)(at_us - w.dead_from_us) * 1e-6, totals_before.losses[0].reason);
    CHECK_SAYING(strstr(totals_before.losses[0].reason, "no word from the"), "%s",
                 totals_before.losses[0].reason);
    stop_workers();
    return NULL;
}

/* Which only they can see: the coordinator hears both. */
static void test_a_dead_line_between_workers_is_noticed_as_others_are(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 60; i++) {
        begin(2000000000 + i);
        w.n_workers = w.n_specs = 2;
        w.specs[0] = "a/host:1";
        w.specs[1] = "b/host:1";
        w.load_us = 1000;
        w.stage_us = 300000; /* it goes on for longer than it takes */
        net.faults.delay_min_us = net.faults.delay_max_us = 100;
        w.is_dead_there = i % 3 != 1;
        w.is_dead_back = i % 3 > 0;
        w.dead_at = 40 + 2 * i;
        w.dead_for_us = 8000000;
        run_world(coordinate_once, 0, 5);
    }
}

static void *coordinate_thrice(void *arg)
{
    (void)arg;
    td_err errs[3] = {0};
    CHECK(!run_once(&errs[0]) && here()->is_dead);
    sleep_until(w.back_us[0]);
    revive(0);
    CHECK(!run_once(&errs[1]));
    CHECK_SAYING(strstr(errs[1].message, "it is still loading") &&
                     strstr(errs[1].message, "not free within 12 s"),
                 "%s", errs[1].message);
    sleep_until(now_us() + 61000000);
    CHECK_SAYING(run_once(&errs[2]), "%s", errs[2].message);
    stop_workers();
    return NULL;
}

/* Nobody is served, and who greets is told what it waits for. */
static void test_a_worker_that_hangs_while_it_loads_says_so(void **state)
{
    (void)state;
    begin(3000000000);
    w.n_workers = w.n_specs = 1;
    w.specs[0] = "a/host:1";
    w.load_us = 40000000;
    w.incidents[w.n_incidents++] =
        (incident){.kind = KILL, .at_message = 20, .machine = 0, .us = 1000001};
    run_world(coordinate_thrice, 0, 2);
}

/* What is drawn is drawn from the seed. */
static void test_a_seed_replays(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        run_seed(seed);
        uint64_t trace = sim.trace, n_steps = sim.n_steps;
        run_seed(seed);
        assert_true(sim.trace == trace && sim.n_steps == n_steps);
    }
}

/* The wide one's chunks of a prompt take more than one message. */
static void write_model(bool is_wide)
{
    const toy_shape shape = {.n_embd = is_wide ? 288 : 64,
                             .n_head = 4,
                             .n_head_kv = 2,
                             .head_dim = is_wide ? 32 : 16,
                             .n_layer = 4,
                             .n_ff = 96,
                             .n_ctx = 256,
                             .is_untied = true};
    toy t = toy_begin("llama", shape);
    gw bytes = toy_write(&t);
    gw_save(&bytes, model_paths[is_wide]);
    gw_free(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_losses_of_machines_never_change_a_text),
        cmocka_unit_test(test_seeds_that_once_failed),
        cmocka_unit_test(test_any_one_message_may_suffer),
        cmocka_unit_test(test_a_dead_line_between_workers_is_noticed_as_others_are),
        cmocka_unit_test(test_a_worker_that_hangs_while_it_loads_says_so),
        cmocka_unit_test(test_a_seed_replays),
    };
    sim.is_loud = getenv("SIM_LOG") != NULL;
    snprintf(folder, sizeof folder, "/tmp/sim_stages_XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(in_path, sizeof in_path, "%s/in.jsonl", folder);
    snprintf(out_path, sizeof out_path, "%s/out.jsonl", folder);
    snprintf(trace_path, sizeof trace_path, "%s/trace.json", folder);
    signal(SIGABRT, on_abort);
    for (int i = 0; i < 2; i++) {
        snprintf(model_paths[i], sizeof model_paths[i], "%s/%s.gguf", folder, i ? "wide" : "small");
        write_model(i);
        find_answers(i);
    }
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(model_paths[0]);
    unlink(model_paths[1]);
    unlink(in_path);
    unlink(out_path);
    unlink(trace_path);
    rmdir(folder);
    return n_failed;
}
