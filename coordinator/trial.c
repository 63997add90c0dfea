/* The account. It grows by ACCOUNT_SHARE of all time; while drafts are made, what a round saved
 * against plain decoding is added and what it lost is taken off. Of what was saved before, half may
 * be risked again. Where the account is empty the drafter falls silent. So whatever drafts cost,
 * and however often they are tried, a run loses that share of its time, and at most one round's
 * loss beyond; and a round waits for its draft no longer than the account affords.
 *
 * A trial begins when the account holds its price, some rounds' time. One that fails doubles the
 * price, up to PRICE_MAX: the trials of a useless draft become rare, but longer, so that noise
 * decides less. However full the account is, before it has paid it may lose STAKE times its price.
 * One that succeeds goes on for as long as a sliding window of rounds saves time.
 *
 * What plain decoding takes changes with the context, the machine and its other users. So a few
 * silent rounds are put between the others, often at first, the rarer the longer drafts have paid.
 *
 * Noise. Other programs steal time from rounds of both kinds alike. So both are measured by means
 * in which no sample counts for more than CLIP times the mean. What a round waited for its draft is
 * no noise: it counts in full.
 *
 * Reading. A drafter that shares the target's processing unit has to read the sequence at the
 * target's cost before it can guess: for that the account may be overdrawn by READ_SHARE of the
 * time, once a trial. One with a unit of its own reads for nothing, and may be tried earlier. */
#include "coordinator/trial.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

#define ACCOUNT_SHARE   0.01
#define READ_SHARE      0.003
#define PRICE_BASE      0.5  /* silent rounds, and the draft's share of one */
#define PRICE_FIRST     0.25 /* of the first trial where the drafter has a unit of its own */
#define PRICE_MAX       64.0
#define STAKE           2.0   /* what a trial may lose, by its price, however full the account is */
#define REST            8.0   /* silent rounds between trials, by the price, */
#define REST_RICH       100.0 /* and where savings fill the account, which else sees to it */
#define SHARE_UNKNOWN   0.5
#define CLIP            2.0
#define WAKE_SHARE      0.1 /* of a silent round: waits no longer than this are not for a draft */
#define MEAN_SAMPLES    32u
#define PLAIN_MIN       6u  /* silent rounds before the first trial */
#define INSIST_MIN      8u  /* rounds with drafts that a trial has if it can afford them */
#define PROVEN_MIN      16u /* rounds of a trial that may be enough */
#define PROVEN_MAX      64u /* rounds of a trial that must be enough */
#define IDLE_MAX        24u /* rounds for which no draft was wanted: then it is not needed */
#define IDLE_PROVEN_MAX 96u /* the same where drafts have paid: the text may change again */
#define WINDOW          48u
#define CHECK_ROUNDS    4u
#define CHECK_FIRST     24u
#define CHECK_EVERY_MAX 1024u

void td_trial_init(td_trial *t, double draft_share, bool is_one_unit)
{
    *t = (td_trial){.draft_share = draft_share > 0 ? fmin(draft_share, 1) : SHARE_UNKNOWN,
                    .is_one_unit = is_one_unit};
    t->price = is_one_unit ? PRICE_BASE + t->draft_share : PRICE_FIRST;
}

bool td_trial_is_drafting(const td_trial *t) { return t->phase == TD_TRIAL_DRAFTING; }

/* ---- what plain decoding takes ---- */

/* A round of so many sequences; where none was measured, from the nearest one that was. */
static double plain_us(const td_trial *t, uint32_t n_sequences)
{
    uint32_t n = td_min_u32(n_sequences, TD_TIMES_ROWS_MAX);
    for (uint32_t i = 0; i < TD_TIMES_ROWS_MAX; ++i) {
        if (n > i && t->n_plain_at[n - i] > 0)
            return (double)t->plain_us[n - i] * (9 + n) / (9 + n - i);
        if (n + i <= TD_TIMES_ROWS_MAX && t->n_plain_at[n + i] > 0)
            return (double)t->plain_us[n + i] * (9 + n) / (9 + n + i);
    }
    return 0;
}

static void add_plain(td_trial *t, uint32_t n_sequences, double us)
{
    uint32_t n = td_min_u32(n_sequences, TD_TIMES_ROWS_MAX), *count = &t->n_plain_at[n];
    float *mean = &t->plain_us[n], x = (float)us;
    ++t->n_plain;
    *count = td_min_u32(*count + 1, MEAN_SAMPLES);
    if (*count <= 3) /* one of the first may be far off */
        *mean = *count == 1 ? x : fminf(*mean, x);
    else
        *mean += (fminf(x, (float)CLIP * *mean) - *mean) / (float)*count;
}

/* ---- the account ---- */

static void add_to_account(td_trial *t, double us)
{
    double most_us = ACCOUNT_SHARE * t->elapsed_us + fmax(t->sum_saved_us, 0) / 2;
    t->account_us = fmin(t->account_us + us, most_us);
}

void td_trial_pass(td_trial *t, double us)
{
    t->elapsed_us += us;
    add_to_account(t, ACCOUNT_SHARE * us);
}

void td_trial_lose(td_trial *t, double us)
{
    if (t->n_trials == 0 || !t->is_one_unit)
        return;
    t->sum_saved_us -= us;
    t->saved_us[0] -= us;
    add_to_account(t, -us);
}

/* What a round saved against plain decoding. */
static double add_saved(td_trial *t, const td_trial_round *r, bool is_loss_only)
{
    double silent_us = plain_us(t, r->n_sequences);
    double ratio = fmin((r->us - r->wait_us) / silent_us, CLIP * t->draft_scale);
    t->draft_scale += (ratio - t->draft_scale) / MEAN_SAMPLES;
    double us = ((double)r->n_tokens / r->n_sequences - ratio) * silent_us - r->wait_us;
    us = is_loss_only ? fmin(us, 0) : us;
    /* With a unit of its own the drafter took nothing from a round that it gave nothing to, but
     * what was waited. That threads take their time to wake is no such wait: else what rounds
     * differ by counts, and ends a trial before its first draft is there. */
    if (!t->is_one_unit && !r->has_drafts && r->wait_us <= WAKE_SHARE * silent_us)
        us = -r->wait_us;
    t->sum_saved_us += us;
    add_to_account(t, us);
    return us;
}

/* ---- phases ---- */

static void enter(td_trial *t, td_trial_phase phase)
{
    t->phase = phase;
    t->n_rounds = 0;
    t->was_quiet = false;
}

static void begin_trial(td_trial *t, double price_us, double read_us)
{
    t->stake_us = STAKE * price_us + read_us;
    enter(t, TD_TRIAL_DRAFTING);
    memset(t->saved_us, 0, sizeof t->saved_us);
    memset(t->n_tokens, 0, sizeof t->n_tokens);
    t->is_proven = false;
    t->n_drafting = t->n_drafted = t->n_idle = t->n_window = 0;
    t->n_until_check = CHECK_FIRST;
    t->draft_scale = 1.5;
    t->floor_us = -fmin(read_us, READ_SHARE * t->elapsed_us);
    ++t->n_trials;
}

static void give_up(td_trial *t)
{
    double base = PRICE_BASE + t->draft_share;
    t->price = t->is_proven ? base : fmin(fmax(2 * t->price, base), PRICE_MAX);
    enter(t, TD_TRIAL_SILENT);
}

static void add_silent(td_trial *t, const td_trial_round *r)
{
    bool is_sample = r->is_quiet && t->was_quiet && !r->has_drafts;
    t->was_quiet = r->is_quiet;
    ++t->n_silent;
    /* Where texts are looked up a silent round may commit more than a token of each sequence. */
    if (is_sample)
        add_plain(t, r->n_sequences, r->us * r->n_sequences / r->n_tokens);
    else if (t->n_trials > 0) /* the drafter still had something to do */
        add_saved(t, r, true);
    double price_us = t->price * plain_us(t, r->n_sequences);
    double read_us = t->is_one_unit ? r->read_us : 0;
    double rest = t->sum_saved_us > 0 ? REST_RICH : REST;
    if (t->phase == TD_TRIAL_CHECKING && t->n_rounds >= CHECK_ROUNDS)
        enter(t, TD_TRIAL_DRAFTING);
    else if (t->phase == TD_TRIAL_SILENT && t->n_plain >= PLAIN_MIN &&
             t->n_rounds >= rest * t->price && t->account_us >= price_us &&
             t->account_us + READ_SHARE * t->elapsed_us >= price_us + read_us)
        begin_trial(t, price_us, read_us);
}

static void add_to_window(td_trial *t, double saved_us, uint32_t n_tokens)
{
    if (t->n_window == WINDOW) {
        t->saved_us[1] = t->saved_us[0];
        t->n_tokens[1] = t->n_tokens[0];
        t->saved_us[0] = t->n_tokens[0] = t->n_window = 0;
    }
    ++t->n_window;
    t->saved_us[0] += saved_us;
    t->n_tokens[0] += n_tokens;
}

static void add_drafting(td_trial *t, const td_trial_round *r)
{
    add_to_window(t, add_saved(t, r, false), r->n_tokens);
    ++t->n_drafting;
    t->n_drafted += r->has_drafts;
    t->n_idle = r->has_drafts ? 0 : t->n_idle + 1;
    double saved_us = t->saved_us[0] + t->saved_us[1];
    bool is_paying = saved_us > 0;
    if (is_paying && !t->is_proven && t->n_drafting >= PROVEN_MIN)
        t->is_proven = true;
    bool is_lost = saved_us <= -t->stake_us || t->n_drafting >= PROVEN_MAX;
    bool is_over = !is_paying && (t->is_proven || is_lost);
    if (t->account_us <= t->floor_us || t->n_idle >= (t->is_proven ? IDLE_PROVEN_MAX : IDLE_MAX) ||
        is_over) {
        give_up(t);
    } else if (t->n_rounds >= t->n_until_check) {
        t->n_until_check = td_min_u32(2 * t->n_until_check, CHECK_EVERY_MAX);
        ++t->n_checks;
        enter(t, TD_TRIAL_CHECKING);
    }
}

void td_trial_add_round(td_trial *t, const td_trial_round *r)
{
    TD_ASSERT(r->n_sequences > 0);
    td_trial_pass(t, r->us);
    if (r->n_tokens == 0 || !(r->us > 0))
        return;
    ++t->n_rounds;
    if (td_trial_is_drafting(t))
        add_drafting(t, r);
    else
        add_silent(t, r);
}

bool td_trial_insists(const td_trial *t)
{
    return td_trial_is_drafting(t) && !t->is_proven && t->n_drafted < INSIST_MIN;
}

uint64_t td_trial_patience_us(const td_trial *t)
{
    return (uint64_t)fmax(t->account_us - t->floor_us, 0);
}

bool td_trial_affords(const td_trial *t, double read_us, uint32_t n_left)
{
    if (!t->is_one_unit || read_us <= t->account_us - t->floor_us)
        return true;
    double n_tokens = t->n_tokens[0] + t->n_tokens[1];
    double saved_us = n_tokens > 0 ? (t->saved_us[0] + t->saved_us[1]) / n_tokens : 0;
    return t->is_proven && saved_us * n_left > read_us;
}
