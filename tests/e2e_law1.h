/* Law 1, as two checks over any model, placement and cache type: logits of a row are the same bits
 * in every batch, and the lines of a run are the same with any draft, draft length, neighbours. */
#ifndef TD_TESTS_E2E_LAW1_H
#define TD_TESTS_E2E_LAW1_H

#include "tests/e2e_common.h"

#include "base/mem.h"
#include "base/rng.h"
#include "target/chain.h"

/* -- rows ------------------------------------------------------------------------------------ */

#define ROW_SLOTS   8u
#define ROW_DRAFTED 12u /* rows of a sequence after its prompt */

/* Prompt lengths at both sides of the page and chunk boundaries; in brief, of the page's. */
static const uint32_t row_prompts[ROW_SLOTS] = {1, 31, 63, 64, 100, 127, 255, 256};
static const uint32_t brief_prompts[ROW_SLOTS] = {1, 31, 63, 64, 17, 5, 52, 127};

static inline uint32_t row_token(uint32_t slot, uint32_t position, uint32_t n_vocab)
{
    return td_noise_bits(7, slot, position) % n_vocab;
}

typedef struct {
    const char *what;
    td_chain *chain;
    const uint32_t *prompts; /* [ROW_SLOTS] */
    uint32_t n_vocab;
    float *alone; /* [ROW_SLOTS][ROW_DRAFTED][n_vocab] logits of rows run one at a time */
} row_check;

static inline const float *row_alone(const row_check *r, uint32_t slot, uint32_t i)
{
    return r->alone + ((size_t)slot * ROW_DRAFTED + i) * r->n_vocab;
}

static inline void run_verify(const row_check *r, const td_forward_row *rows, uint32_t n)
{
    td_err err = {0};
    if (!td_chain_run(r->chain, TD_MODE_VERIFY, rows, n, &err))
        fail_msg("%s: %s", r->what, err.message);
}

static inline void run_alone(row_check *r)
{
    td_err err = {0};
    for (uint32_t slot = 0; slot < ROW_SLOTS; slot++) {
        td_forward_row prompt[TD_PREFILL_ROWS_MAX];
        for (uint32_t i = 0; i < r->prompts[slot]; i++)
            prompt[i] = (td_forward_row){
                .slot = slot, .position = i, .token = row_token(slot, i, r->n_vocab)};
        prompt[r->prompts[slot] - 1].is_output = true;
        if (!td_chain_run(r->chain, TD_MODE_PREFILL, prompt, r->prompts[slot], &err))
            fail_msg("%s: %s", r->what, err.message);
        for (uint32_t i = 0; i < ROW_DRAFTED; i++) {
            uint32_t position = r->prompts[slot] + i;
            td_forward_row row = {.slot = slot,
                                  .position = position,
                                  .token = row_token(slot, position, r->n_vocab),
                                  .is_output = true};
            run_verify(r, &row, 1);
            memcpy(r->alone + ((size_t)slot * ROW_DRAFTED + i) * r->n_vocab,
                   td_chain_logits(r->chain), r->n_vocab * sizeof(float));
        }
        td_chain_rewind(r->chain, slot, r->prompts[slot]);
    }
}

/* Puts the rows of a sequence together, in the order of the sequences' first rows. */
static inline void group_rows(td_forward_row *rows, uint32_t *index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = i + 1, to = i + 1; k < n; k++) {
            if (rows[k].slot != rows[i].slot)
                continue;
            td_forward_row row = rows[k];
            uint32_t at = index[k];
            memmove(rows + to + 1, rows + to, (k - to) * sizeof *rows);
            memmove(index + to + 1, index + to, (k - to) * sizeof *index);
            rows[to] = row;
            index[to++] = at;
        }
}

/* The logits of a batch's outputs; index: which of its sequence's rows after the prompt each is. */
static inline void compare_rows(const row_check *r, const td_forward_row *rows,
                                const uint32_t *index, uint32_t n)
{
    const float *logits = td_chain_logits(r->chain);
    for (uint32_t i = 0; i < n; i++) {
        if (!rows[i].is_output)
            continue;
        if (memcmp(logits, row_alone(r, rows[i].slot, index[i]), r->n_vocab * sizeof *logits))
            fail_msg("%s: row %u of a batch of %u (prompt %u, row %u of its draft): the logits are "
                     "not those of the row alone",
                     r->what, i, n, r->prompts[rows[i].slot], index[i]);
        logits += r->n_vocab;
    }
}

/* Rounds as a run has them: of the rows of each sequence some are committed, the others dropped. */
static inline void run_rounds(const row_check *r)
{
    uint32_t done[ROW_SLOTS] = {0};
    for (uint32_t round = 0, n = 1; n; round++) {
        td_forward_row rows[TD_VERIFY_ROWS_MAX];
        uint32_t index[TD_VERIFY_ROWS_MAX], taken[ROW_SLOTS] = {0};
        n = 0;
        for (uint32_t slot = 0; slot < ROW_SLOTS; slot++) {
            uint32_t wanted = td_noise_bits(11, round, slot) % 8;
            for (; taken[slot] < wanted && done[slot] + taken[slot] < ROW_DRAFTED; n++) {
                index[n] = done[slot] + taken[slot]++;
                uint32_t position = r->prompts[slot] + index[n];
                rows[n] = (td_forward_row){.slot = slot,
                                           .position = position,
                                           .token = row_token(slot, position, r->n_vocab),
                                           .is_output = true};
            }
        }
        if (n) {
            run_verify(r, rows, n);
            compare_rows(r, rows, index, n);
        }
        for (uint32_t slot = 0; slot < ROW_SLOTS; slot++) {
            done[slot] += taken[slot] ? td_noise_bits(12, round, slot) % (taken[slot] + 1) : 0;
            n += done[slot] < ROW_DRAFTED;
            td_chain_commit(r->chain, slot, r->prompts[slot] + done[slot]);
            td_chain_rewind(r->chain, slot, r->prompts[slot] + done[slot]);
        }
    }
}

/* n rows: the sequences' next rows in a drawn mixture, some without an output; draw 0: sequence
 * after sequence, as a run has them. */
static inline void run_mixture(const row_check *r, uint32_t n, uint32_t draw)
{
    td_forward_row rows[TD_VERIFY_ROWS_MAX];
    uint32_t taken[ROW_SLOTS] = {0}, index[TD_VERIFY_ROWS_MAX];
    for (uint32_t i = 0, at = 0; i < n; at++) {
        uint32_t slot = (draw ? td_noise_bits(draw, n, 2 * at) : at / 8) % ROW_SLOTS;
        if (taken[slot] == ROW_DRAFTED)
            continue;
        uint32_t position = r->prompts[slot] + taken[slot];
        index[i] = taken[slot]++;
        rows[i++] = (td_forward_row){.slot = slot,
                                     .position = position,
                                     .token = row_token(slot, position, r->n_vocab),
                                     .is_output = !draw || td_noise_bits(draw, n, 2 * at + 1) % 8};
    }
    rows[n - 1].is_output = true;
    if (td_chain_forgets(r->chain))
        group_rows(rows, index, n);
    run_verify(r, rows, n);
    compare_rows(r, rows, index, n);
    for (uint32_t slot = 0; slot < ROW_SLOTS; slot++)
        td_chain_rewind(r->chain, slot, r->prompts[slot]);
}

static inline void check_rows(const char *name, const td_model *model, const placement *p,
                              const uint32_t kv[2], uint32_t n_draws, bool is_brief)
{
    static const uint32_t widths[] = {1, 2, 3, 5, 8, 9, 16, 17, 33, 64};
    char what[256];
    td_err err = {0};
    const td_type_info *k = td_type_find(kv[0]), *v = td_type_find(kv[1]);
    snprintf(what, sizeof what, "%s on %s, %s/%s cache", name, p->name, k->name, v->name);
    /* Both where a type has less than 8 bits, values alone of one that has them, else neither. */
    td_rotate rotate = kv[1] == TD_TYPE_Q8_0 ? TD_ROTATE_ON : TD_ROTATE_AUTO;
    row_check r = {.what = what,
                   .prompts = is_brief ? brief_prompts : row_prompts,
                   .n_vocab = td_model_hparams(model)->n_vocab};
    r.chain = td_chain_create(&(td_layout_params){.model = model,
                                                  .specs = p->specs,
                                                  .n_specs = p->n_specs,
                                                  .kv = {.k = k, .v = v, .rotate_v = rotate},
                                                  .n_slots = ROW_SLOTS,
                                                  .n_ctx = 256 + ROW_DRAFTED},
                              &err);
    if (!r.chain)
        fail_msg("%s: %s", what, err.message);
    r.alone = calloc((size_t)ROW_SLOTS * ROW_DRAFTED * r.n_vocab, sizeof *r.alone);
    assert_non_null(r.alone);
    run_alone(&r);
    for (size_t i = is_brief ? 2 : 0; i < TD_COUNT(widths); i += is_brief ? 5 : 1)
        for (uint32_t draw = 0; draw < n_draws; draw++)
            run_mixture(&r, widths[i], draw);
    run_rounds(&r);
    printf("%s: rows are the same bits in batches of 1..64\n", what);
    free(r.alone);
    td_chain_destroy(&r.chain);
}

/* -- runs ------------------------------------------------------------------------------------ */

typedef struct {
    const char *id, *prompt;
    double temp;
    int top_k;
    double top_p, min_p, penalty;
    int seed, n;
    const char *stop;
} law1_line;

/* Prompts under every kind of sampler and stop rule. long_prompt crosses a prefill chunk. */
static inline void write_law1_prompts(const char *path, const char *long_prompt, int n_max)
{
    const law1_line lines[] = {
        {"greedy", "Once upon a time there was a king who", 0, 0, 1, 0, 1, 1, 48, NULL},
        {"seed-1", "The old woman said to the fox", 0.8, 0, 1, 0, 1, 1, 48, NULL},
        {"seed-2", "The old woman said to the fox", 0.8, 0, 1, 0, 1, 2, 48, NULL},
        {"hot", "In the forest", 1.3, 0, 1, 0, 1, 3, 40, NULL},
        {"chain", "There was once a little girl", 0.9, 40, 0.95, 0.05, 1.2, 4, 48, NULL},
        {"penalty", "Once upon a time there was a king who", 0, 0, 1, 0, 1.3, 5, 40, NULL},
        {"long", long_prompt, 0.7, 0, 0.9, 0, 1, 6, 33, NULL},
        {"stop", "And then", 0.8, 0, 1, 0, 1, 7, 60, " the"},
        {"one", "And", 0.8, 0, 1, 0, 1, 8, 1, NULL},
        {"two", "A", 0, 0, 1, 0, 1, 9, 2, NULL},
    };
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    for (size_t i = 0; i < TD_COUNT(lines); i++) {
        const law1_line *l = &lines[i];
        json_t *o = json_pack("{s:s, s:s, s:f, s:i, s:f, s:f, s:f, s:i, s:i}", "id", l->id,
                              "prompt", l->prompt, "temp", l->temp, "top_k", l->top_k, "top_p",
                              l->top_p, "min_p", l->min_p, "repeat_penalty", l->penalty, "seed",
                              l->seed, "n", l->n < n_max ? l->n : n_max);
        assert_non_null(o);
        if (l->stop)
            json_object_set_new(o, "stop", json_string(l->stop));
        assert_int_equal(json_dumpf(o, f, JSON_COMPACT), 0);
        fputc('\n', f);
        json_decref(o);
    }
    assert_int_equal(fclose(f), 0);
}

/* A text of n words for the long prompt; to be freed. */
static inline char *many_words(uint32_t n)
{
    static const char *const words[] = {"the ",   "king ",  "and ",   "his ", "three ",
                                        "sons ",  "went ",  "into ",  "a ",   "dark ",
                                        "wood, ", "where ", "there ", "was "};
    char *text = calloc(n, 8);
    assert_non_null(text);
    for (uint32_t i = 0; i < n; i++)
        strcat(text, words[td_noise_bits(11, 0, i) % TD_COUNT(words)]);
    return text;
}

#endif
