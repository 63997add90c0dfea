/* Stages that work on different micro-batches at once: a sequence has rows in several batches
 * before the first of them is answered, guesses fail, batches are cancelled, sequences end and
 * begin with another's positions, all while others are in the same batches. Every token is the one
 * that a single stage chooses, a row at a time; with models of every kind of cache. Of a split that
 * TD_TEST_DEVICES names, GPUs in it, every token is the one that it chooses a row at a time, with
 * no GPU that imports memory of the process: then the host copies activations once on their way
 * from stage to stage, else not at all. */
#include "tests/e2e_common.h"

#include "base/rng.h"
#include "target/target.h"

#include <poll.h>

#define N_SLOTS   3u
#define PREFIX    256u /* what all prompts begin with: a chunk of prefill, whole pages */
#define PROMPT(s) (PREFIX + 1 + 13 * (s))
#define N_TEXT    70u /* tokens after the prompt */
#define TEXT_MAX  (PROMPT(N_SLOTS) + N_TEXT)
#define N_BATCHES 8u /* in flight: two run, the others are still to be cancelled */

typedef struct {
    uint32_t truth[TEXT_MAX]; /* prompt and text */
    uint32_t known[TEXT_MAX]; /* what rows say: committed tokens, then guesses */
    uint32_t n_prompt, n_committed, n_sent, epoch;
    td_sampling_params sampling;
} sequence;

typedef struct {
    uint32_t slot, first, n, epoch;
} segment;

typedef struct {
    uint64_t id;
    uint32_t n;
    segment segments[N_SLOTS];
    bool is_cancelled;
} micro_batch;

typedef struct {
    const char *what;
    td_target *target;
    uint32_t n_vocab;
    sequence sequences[N_SLOTS];
    micro_batch flying[N_BATCHES]; /* a ring: ids first_id..next_id-1 */
    uint64_t first_id, next_id;
    uint32_t n_draws, n_dead_rows, n_cancelled, n_restarts, n_shared;
} world;

static uint32_t draw(world *w, uint32_t n) { return td_noise_bits(5, 1, w->n_draws++) % n; }

static td_target_result wait_for(td_target *t)
{
    td_target_result result;
    while (!td_target_poll(t, &result)) {
        struct pollfd p = {.fd = td_target_fd(t), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 60000), 1);
    }
    assert_int_equal(result.err.code, TD_OK);
    return result;
}

static td_target *create(const td_model *model, const char *const *specs, uint32_t n_specs)
{
    const td_type_info *f16 = td_type_find(TD_TYPE_F16);
    td_err err = {0};
    td_target *t = td_target_create(&(td_layout_params){.model = model,
                                                        .specs = specs,
                                                        .n_specs = n_specs,
                                                        .kv = {.k = f16, .v = f16},
                                                        .n_slots = N_SLOTS,
                                                        .n_ctx = TEXT_MAX},
                                    &err);
    if (!t)
        fail_msg("%s", err.message);
    return t;
}

/* -- the text of one stage, a row at a time ---------------------------------------------------- */

static uint32_t choose(td_target *t, bool is_prefill, uint32_t slot, const uint32_t *tokens,
                       uint32_t first, uint32_t n)
{
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (td_forward_row){.slot = slot,
                                   .position = first + i,
                                   .token = tokens[first + i],
                                   .is_output = i + 1 == n};
    td_target_forward(t, 0, is_prefill, rows, n);
    td_target_commit(t, slot, first + n);
    return wait_for(t).chosen[0];
}

/* What the host copied of the activations that went from stage to stage. */
static void check_copies(const td_target *t, uint32_t n_embd)
{
    td_stage_info stages[PLACEMENT_SPECS];
    bool is_shared = true;
    uint32_t n = td_target_n_stages(t);
    for (uint32_t i = 0; i < n; i++) {
        td_target_get_stage_info(t, i, &stages[i]);
        const td_device_info *device = stages[i].device;
        is_shared &= device->kind == TD_DEVICE_HOST || device->has_host_import;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t n_rows = i ? stages[i].n_verify_rows + stages[i].n_prefill_rows : 0;
        assert_int_equal(stages[i].n_copied_bytes, is_shared ? 0 : 4 * n_rows * n_embd);
        assert_true(!i || n_rows > 0);
    }
}

static void find_truth(world *w, const td_model *model, const placement *p)
{
    static const char *const one[] = {"host:1"}; /* any cut of the host's layers gives its bits */
    setenv("TD_VK_LIMIT", "hostImport=0", 1);
    td_target *t = p->is_host ? create(model, one, 1) : create(model, p->specs, p->n_specs);
    unsetenv("TD_VK_LIMIT");
    for (uint32_t slot = 0; slot < N_SLOTS; slot++) {
        sequence *s = &w->sequences[slot];
        s->n_prompt = PROMPT(slot);
        /* Hot, so that a token hangs on all logits; one with a history, one with the argmax. */
        s->sampling = TD_SAMPLING_DEFAULTS;
        s->sampling.temperature = slot == 2 ? 0.0f : 1.5f;
        s->sampling.repeat_penalty = slot == 1 ? 3.0f : 1.0f;
        for (uint32_t i = 0; i < s->n_prompt; i++)
            s->truth[i] = td_noise_bits(7, i < PREFIX ? 9 : slot, i) % w->n_vocab;
        td_target_open_sequence(t, slot, slot, 0, slot + 1, &s->sampling);
        choose(t, true, slot, s->truth, 0, PREFIX);
        uint32_t end = s->n_prompt;
        s->truth[end] = choose(t, true, slot, s->truth, PREFIX, end - PREFIX);
        for (; end + 1 < s->n_prompt + N_TEXT; end++)
            s->truth[end + 1] = choose(t, false, slot, s->truth, end, 1);
    }
    check_copies(t, td_model_hparams(model)->n_embd);
    td_target_destroy(&t);
}

/* -- a pipeline -------------------------------------------------------------------------------- */

/* Guesses from a position on; one in four is wrong. */
static void guess(world *w, sequence *s, uint32_t from)
{
    for (uint32_t i = from; i < s->n_prompt + N_TEXT; i++)
        s->known[i] = draw(w, 4) ? s->truth[i] : (s->truth[i] + 1) % w->n_vocab;
}

static void prefill(world *w, uint32_t slot, uint32_t first, uint32_t n)
{
    const sequence *s = &w->sequences[slot];
    td_forward_row rows[TD_PREFILL_ROWS_MAX];
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (td_forward_row){.slot = slot,
                                   .position = first + i,
                                   .token = s->truth[first + i],
                                   .is_output = first + i + 1 == s->n_prompt};
    w->flying[w->next_id % N_BATCHES] =
        (micro_batch){.id = w->next_id, .n = 1, .segments = {{slot, first, n, s->epoch}}};
    td_target_forward(w->target, w->next_id++, true, rows, n);
    td_target_commit(w->target, slot, first + n);
}

/* Cancels what is dead as a whole. */
static void cancel_dead(world *w)
{
    for (uint64_t id = w->first_id; id < w->next_id; id++) {
        micro_batch *b = &w->flying[id % N_BATCHES];
        bool is_dead = true;
        for (uint32_t i = 0; i < b->n; i++)
            is_dead &= b->segments[i].epoch != w->sequences[b->segments[i].slot].epoch;
        if (is_dead && !b->is_cancelled)
            td_target_cancel(w->target, id);
        b->is_cancelled = is_dead;
    }
}

static bool has_room(const world *w, uint32_t n)
{
    return w->next_id - w->first_id + n <= N_BATCHES;
}

/* The sequence begins (again), mostly with another's prefix. Needs room for two batches. */
static void begin(world *w, uint32_t slot)
{
    sequence *s = &w->sequences[slot];
    s->epoch++;
    cancel_dead(w);
    /* At first from slot 0: the others have not seen the prefix. */
    uint32_t from = s->epoch > 1 ? draw(w, N_SLOTS) : 0, length = 0;
    if (!td_target_forgets(w->target) && w->sequences[from].n_committed > PREFIX)
        length = PREFIX;
    if (draw(w, 2) && from != slot)
        td_target_close_sequence(w->target, slot);
    td_target_open_sequence(w->target, slot, length ? from : slot, length, slot + 1, &s->sampling);
    if (!length)
        prefill(w, slot, 0, PREFIX);
    prefill(w, slot, PREFIX, s->n_prompt - PREFIX);
    w->n_shared += length > 0;
    w->n_restarts++;
    s->n_committed = s->n_sent = s->n_prompt;
    memcpy(s->known, s->truth, s->n_prompt * sizeof *s->known);
    guess(w, s, s->n_prompt);
}

/* Rows of some sequences that may have more in flight. */
static void submit(world *w)
{
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    micro_batch *b = &w->flying[w->next_id % N_BATCHES];
    uint32_t n_rows = 0;
    *b = (micro_batch){.id = w->next_id};
    for (uint32_t slot = 0; slot < N_SLOTS; slot++) {
        sequence *s = &w->sequences[slot];
        uint32_t end =
            td_min_u32(s->n_prompt + N_TEXT - 1, s->n_committed - 1 + TD_TARGET_FLIGHT_MAX);
        uint32_t n = end > s->n_sent ? td_min_u32(1 + draw(w, 9), end - s->n_sent) : 0;
        if (!n || draw(w, 3) == 0)
            continue;
        for (uint32_t i = 0; i < n; i++)
            rows[n_rows++] = (td_forward_row){.slot = slot,
                                              .position = s->n_sent + i,
                                              .token = s->known[s->n_sent + i],
                                              .is_output = true};
        b->segments[b->n++] = (segment){slot, s->n_sent, n, s->epoch};
        s->n_sent += n;
    }
    if (n_rows)
        td_target_forward(w->target, w->next_id++, false, rows, n_rows);
}

/* The answers of a segment, which are the truth as far as its rows are. */
static void take_segment(world *w, const segment *g, const uint32_t *chosen)
{
    sequence *s = &w->sequences[g->slot];
    for (uint32_t i = g->first; i < g->first + g->n; i++) {
        uint32_t token = chosen[i - g->first];
        if (i + 1 < s->n_prompt)
            continue; /* of a prefill: no output */
        if (i + 1 < s->n_prompt + N_TEXT && token != s->truth[i + 1])
            fail_msg("%s: slot %u, position %u: %u, but one at a time %u", w->what, g->slot, i + 1,
                     token, s->truth[i + 1]);
        s->n_committed = i + 2;
        if (i + 1 == s->n_prompt + N_TEXT || s->known[i + 1] == token)
            continue;
        s->known[i + 1] = token;
        guess(w, s, i + 2);
        s->epoch++;
        s->n_sent = i + 1;
        cancel_dead(w);
        td_target_truncate(w->target, g->slot, i + 1);
        break;
    }
    if (s->n_committed > s->n_prompt)
        td_target_commit(w->target, g->slot, s->n_committed - 1);
}

static void take_result(world *w)
{
    td_target_result result = wait_for(w->target);
    const micro_batch b = w->flying[w->first_id % N_BATCHES];
    assert_int_equal(result.batch, w->first_id++);
    assert_int_equal(result.n_bad, 0);
    assert_true(!result.is_cancelled || b.is_cancelled);
    assert_true(result.max_us <= result.sum_us);
    w->n_cancelled += result.is_cancelled;
    const uint32_t *chosen = result.chosen;
    for (uint32_t i = 0; i < b.n; i++) {
        const segment *g = &b.segments[i];
        bool is_prefill = g->first < w->sequences[g->slot].n_prompt;
        uint32_t n_out = !is_prefill ? g->n : g->first > 0;
        if (g->epoch == w->sequences[g->slot].epoch) {
            segment answered = *g;
            if (is_prefill) /* at most its last row is an output */
                answered = (segment){g->slot, g->first + g->n - 1, 1, g->epoch};
            take_segment(w, &answered, chosen);
        } else {
            w->n_dead_rows += n_out;
            for (uint32_t k = 0; result.is_cancelled && k < n_out; k++)
                assert_int_equal(chosen[k], 0);
        }
        chosen += n_out;
    }
    assert_int_equal(chosen - result.chosen, result.n_out);
}

static void run_pipeline(world *w, const td_model *model, const placement *p)
{
    w->target = create(model, p->specs, p->n_specs);
    for (uint32_t slot = 0; slot < N_SLOTS; slot++)
        begin(w, slot);
    uint32_t n_rounds = p->is_host ? 1500 : 150, a_restart = p->is_host ? 30 : 3;
    for (uint32_t round = 0; round < n_rounds; round++) {
        uint32_t slot = draw(w, N_SLOTS);
        const sequence *s = &w->sequences[slot];
        bool is_done = s->n_committed >= s->n_prompt + N_TEXT;
        /* Its prompt has been answered, so that it is there and can be another's prefix. */
        bool is_cut = draw(w, a_restart) == 0 && s->n_committed > s->n_prompt;
        if ((is_done || is_cut) && has_room(w, 2))
            begin(w, slot); /* whatever of it is in flight */
        while (has_room(w, 1) && draw(w, 8))
            submit(w);
        if (w->first_id < w->next_id)
            take_result(w);
    }
    while (w->first_id < w->next_id)
        take_result(w);
    check_copies(w->target, td_model_hparams(model)->n_embd);
    td_target_destroy(&w->target);
}

static void test_a_pipeline_gives_the_tokens_of_one_row_at_a_time(void **state)
{
    static const char *const names[] = {"llama-q8_0", "deepseek2", "gemma3",   "gpt-oss",
                                        "llama4",     "qwen35moe", "qwen3next"};
    static world w;
    (void)state;
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        char path[640];
        td_err err = {0};
        snprintf(path, sizeof path, "%s/models/%s/model.gguf", golden_dir(), names[i]);
        if (access(path, R_OK))
            snprintf(path, sizeof path, "tests/data/golden/models/%s/model.gguf", names[i]);
        if (!is_chosen_model(names[i]))
            continue;
        if (access(path, R_OK)) {
            printf("skipped: %s: this set of data lacks it\n", names[i]);
            continue;
        }
        td_model *model = td_model_open(path, &err);
        if (!model)
            fail_msg("%s", err.message);
        for (size_t k = 0; k < n_placements; k++) {
            w = (world){.what = names[i], .n_vocab = td_model_hparams(model)->n_vocab};
            find_truth(&w, model, &placements[k]);
            run_pipeline(&w, model, &placements[k]);
            printf("%s on %s: %u batches, %u cancelled in time, %u dead rows, %u sequences, %u of "
                   "them with another's prefix: the same tokens\n",
                   names[i], placements[k].name, (unsigned)w.next_id, w.n_cancelled, w.n_dead_rows,
                   w.n_restarts, w.n_shared);
            assert_true(w.n_cancelled > 0 && w.n_dead_rows > 0 && w.n_restarts > N_SLOTS);
        }
        td_model_close(&model);
    }
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    td_log_set_level(TD_LOG_ERROR);
    const char *named = getenv("TD_TEST_DEVICES");
    if (!named || !strchr(named, '+'))
        setenv("TD_TEST_DEVICES", "host:1+host:1", 1);
    find_placements(NULL);
    if (!n_placements)
        return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_pipeline_gives_the_tokens_of_one_row_at_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
