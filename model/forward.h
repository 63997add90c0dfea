/* One forward pass: layers first..last of a model on one device, with their cache, as two recorded
 * programs (verify and prefill) built of the same blocks. The first part of a model embeds tokens,
 * the last makes logits; parts in between take and give activations.
 *
 *     td_forward *f = td_forward_create(&params, &err);
 *     td_forward_run(f, TD_MODE_PREFILL, rows, n_rows, &err);   // chunk of one sequence
 *     const float *logits = td_forward_output(f);               // [n_out][n_vocab]
 *
 * Owns weights, cache, programs; borrows the model and the device. One thread at a time. Nothing
 * is allocated after create, but for what a device records on the first use of a row count.
 * Errors: TD_E_NOMEM, TD_E_DEVICE_LOST, TD_E_IO. */
#ifndef TD_MODEL_FORWARD_H
#define TD_MODEL_FORWARD_H

#include "model/cache.h"
#include "model/model.h"
#include "model/sampling.h"

typedef struct td_forward td_forward;

typedef struct {
    const td_model *model;
    td_device *dev;
    td_device *experts_dev; /* where the experts' weights are and their products are made; NULL:
                             * dev. Then td_forward_draft gives nothing */
    /* Experts dealt over devices, seats[0] being dev: each computes its own of all rows at the same
     * time, on a thread of its own; dev adds them up in each row's order, so that nothing depends
     * on who has which, where devices compute alike. Not with experts_dev; all layers are of the
     * part, and a head's experts are dev's; td_forward_draft gives nothing. NULL: not dealt. */
    const td_dealing *dealing;
    td_device *seats[TD_SEATS_MAX];
    uint32_t first, last; /* layers, inclusive */
    const td_model *head; /* whose head (td_model_check_head) the last part has too; NULL: none */
    td_cache_types kv;
    uint32_t n_slots, n_ctx;
    uint32_t n_pages;   /* td_cache_params; 0: enough for every slot's context */
    uint32_t n_flight;  /* td_cache_params; 0: TD_VERIFY_ROWS_MAX */
    bool is_all_logits; /* prefill chunks may ask for every row's logits */
    /* Tokens are wanted, not logits, which then stay on the device: rows say how to choose, and
     * td_forward_choose what was. n_steps_max above 0: td_forward_draft may be called. */
    bool is_choosing;
    uint32_t n_steps_max;
    /* Several caches over one load, to compare them: a part with a lender has its own cache and
     * programs, but the lender's weights and tensors, so that a run of one is over, and what it
     * gave read, before a run of the other. All else is as the lender's, which lives longer; no
     * n_steps_max. */
    td_forward *lender; /* NULL: none */
    /* Types of the caches of those it will lend to, for td_forward_bytes and td_forward_check. */
    const td_cache_types *beside;
    uint32_t n_beside;
    /* Of loading; may be NULL. False ends it (TD_E_AGAIN). */
    bool (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
} td_forward_params;

typedef struct {
    uint32_t slot, position;
    uint32_t sequence; /* whose row it is, to whoever made it; not read here */
    uint32_t token;    /* read by the first part only */
    bool is_output;    /* the last part makes logits of this row */
    /* Of outputs, where tokens are wanted: the sampler's settings, the sequence's stream, and all
     * its tokens up to and with this one. */
    const td_sampling_params *sampling;
    uint64_t stream;
    const uint32_t *history; /* [position + 1] */
    bool has_other_noise;    /* the sampler has ids of td_sampler_set_noise */
} td_forward_row;

/* A whole model as a drafter runs it (draft/drafter.h), so that what it takes can be counted before
 * it is loaded. */
#define TD_DRAFT_AHEAD_MAX 128u /* positions of own text past what is committed */
#define TD_DRAFT_STEPS     4u   /* of td_forward_draft: in one submission, which nothing cancels */
td_forward_params td_forward_drafting(const td_model *model, td_device *dev,
                                      const td_cache_types *kv, uint32_t n_slots, uint32_t n_ctx);

td_forward *td_forward_create(const td_forward_params *params, td_err *err);
void td_forward_destroy(td_forward **f);

/* Bytes on the device for such a part: weights, cache, activations; on experts_dev; and on the
 * device of a seat but 0. */
uint64_t td_forward_bytes(const td_forward_params *params);
uint64_t td_forward_experts_bytes(const td_forward_params *params);
uint64_t td_forward_seat_bytes(const td_forward_params *params, uint32_t seat);

/* Whether all that is one buffer is one that the devices take: TD_E_NOMEM says which is not. */
bool td_forward_check(const td_forward_params *params, td_err *err);

/* Of those, the cache of one layer, those beside it too. */
uint64_t td_forward_cache_bytes(const td_forward_params *params, uint32_t layer);

/* The part's weights: bytes in the file, and the time it took to have them on the device. */
void td_forward_get_load(const td_forward *f, uint64_t *n_file_bytes, uint64_t *us);

td_cache *td_forward_cache(td_forward *f);
bool td_forward_is_first(const td_forward *f);
bool td_forward_is_last(const td_forward *f);

/* Input activations of a part that is not the first, [n_rows][n_embd], to be filled before run. */
float *td_forward_input(td_forward *f);
/* Copies x[n_rows][n_embd] there. */
void td_forward_copy_input(td_forward *f, const float *x, uint32_t n_rows);

/* From the next run on a part that is not the first takes its input from `offset` of a home
 * (device.h), and one that is not the last leaves its output there; NULL: in memory of its own.
 * td_forward_input and td_forward_output say where. Both may be the same. */
void td_forward_place(td_forward *f, td_home *in, td_home *out, uint64_t offset);

/* Runs rows[n_rows] (verify: 1..64 of any sequences; prefill: 1..256 of one sequence). A sequence's
 * rows ascend in position and follow its cache's length; the cache grows by them. */
bool td_forward_run(td_forward *f, td_mode mode, const td_forward_row *rows, uint32_t n_rows,
                    td_err *err);

/* A hint: a run of so many rows, so many of them outputs, comes after the next one. Devices prepare
 * for it while they work on that (device.h). */
void td_forward_expect(td_forward *f, td_mode mode, uint32_t n_rows, uint32_t n_out);

/* The token after output i of the last run, whose row was `row`: what td_sample would choose of its
 * logits. Mostly the device has said enough to tell (shortlist.h); else the logits are read.
 * *is_finite (may be NULL): they all are. */
bool td_forward_choose(td_forward *f, uint32_t i, const td_forward_row *row, td_sampler *sampler,
                       uint32_t *token, bool *is_finite, td_err *err);

/* How many tokens took their logits. */
uint64_t td_forward_rows_read(const td_forward *f);

/* Runs rows[n_rows] of one sequence (verify mode, the last one the output), chooses a token, runs
 * it as the next row, and so on: n_steps tokens (1..n_steps_max) in one submission. Gives the first
 * *n_tokens of them that are certain, the same as step by step; fewer than n_steps, even none, when
 * the device could not tell one from the other, went on from another token or cannot do this. The
 * cache holds all but the last of them (or of the rows). The sequence must have room for rows and
 * tokens. */
bool td_forward_draft(td_forward *f, const td_forward_row *rows, uint32_t n_rows, uint32_t n_steps,
                      const td_sampler *sampler, uint32_t *tokens, uint32_t *n_tokens, td_err *err);

/* -- the head of a last part that has one -------------------------------------------------------
 * It guesses the token after a pair of a token and the hidden row of the position before it. A
 * pair has the position of its token, and its keys and values are one layer more of the cache. A
 * sequence's first pair has a row of zeros. */

/* After a run: row i after the final norm, of every row, [n_rows][n_embd]; until the next run. */
const float *td_forward_hidden(td_forward *f);
/* Runs pairs, n_rows as in td_forward_run: the tokens of rows, each with hidden[n_rows][n_embd].
 * The cache has their positions already (td_cache_reserve) and those of a sequence ascend; earlier
 * ones have been run. Outputs are as of td_forward_run, td_forward_choose too, but of a last run
 * what it gave is gone. */
bool td_forward_run_head(td_forward *f, td_mode mode, const td_forward_row *rows,
                         const float *hidden, uint32_t n_rows, td_err *err);
/* After that: its own rows after its final norm, of outputs, [n_out][n_embd]: the hidden rows that
 * a guess goes on with. */
const float *td_forward_head_hidden(td_forward *f);

/* device.h's profile, of both programs: op times are their sums. */
bool td_forward_profile(td_forward *f, bool is_on, td_err *err);
/* Adds to the n entries that out has (of max); returns the new n. */
uint32_t td_forward_op_times(const td_forward *f, td_op_time *out, uint32_t n, uint32_t max);
void td_forward_get_counts(const td_forward *f, td_program_counts *verify,
                           td_program_counts *prefill);

/* After a run of n_rows rows: how many experts the part's last layer of experts has asked; 0 where
 * no layer has any. */
bool td_forward_touched(td_forward *f, uint32_t n_rows, uint32_t *n_touched, td_err *err);

/* Of dealt experts: rows of all runs that asked each, [n_layer][n_expert]; else NULL. */
const uint64_t *td_forward_asked(const td_forward *f);
/* Likewise: pairs of a row and an expert that each device has computed, [n_seats]; else NULL. */
const uint64_t *td_forward_dealt(const td_forward *f);

/* After a run. Last part, unless it chooses: logits [n_out][n_vocab], in row order; else
 * activations [n_rows][n_embd]. */
const float *td_forward_output(td_forward *f);

#endif
