/* Tasks of `tandem eval`: what a cache has to give back exactly, long after it was put in.
 *
 * A window is a stretch of the text with a passage at some depth, and the same passage again at its
 * end: the first tokens there are a cue, and the rest, the answer, is scored. The true tokens are
 * given as the window goes on, so a token that is right is one that greedy decoding would choose
 * after so many right ones.
 *
 *   copy    the passage is a part of the text itself; COPY_CUE tokens of COPY_TOKENS are the cue
 *   needle  the passage is a sentence that does not belong there, with a number for an answer */
#include "cli/eval.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"

#include <stdio.h>
#include <string.h>

#define COPY_TOKENS 32u
#define COPY_CUE    8u
#define DIGITS      6u
#define DRAWS_MAX   1000u /* of a number, until one takes as many tokens as the first */

static const char cue_text[] = "\nThe magic number is";

/* Where the passage lies, or is put: token 0 stays, and the end is the answer's. */
static uint32_t place_of(uint32_t i_window, uint32_t window, uint32_t n_passage)
{
    uint64_t room = window - 2 * n_passage - 1;
    return 1 + (uint32_t)(room * (i_window % EVAL_DEPTHS) / (EVAL_DEPTHS - 1));
}

static void make_copy(uint32_t *ids, uint32_t window, uint32_t i_window)
{
    memcpy(ids + window - COPY_TOKENS, ids + place_of(i_window, window, COPY_TOKENS),
           COPY_TOKENS * sizeof *ids);
}

/* The sentence with a number of its own, *ids by td_alloc. */
static bool draw_needle(const td_tokenizer *t, uint64_t stream, uint32_t i_draw, uint32_t **ids,
                        size_t *n, td_err *err)
{
    char text[sizeof cue_text + 2 * DIGITS];
    size_t n_text = (size_t)snprintf(text, sizeof text, "%s", cue_text);
    for (uint32_t i = 0; i < DIGITS; i++)
        n_text += (size_t)snprintf(text + n_text, sizeof text - n_text, " %u",
                                   td_noise_bits(stream, i_draw, i) % 10);
    return td_tokenize_rest(t, text, n_text, ids, n, err);
}

static void put_needle(uint32_t *ids, uint32_t window, uint32_t i_window, const uint32_t *needle,
                       uint32_t n)
{
    uint32_t at = place_of(i_window, window, n);
    memmove(ids + at + n, ids + at, (window - 2 * n - at) * sizeof *ids);
    memcpy(ids + at, needle, n * sizeof *ids);
    memcpy(ids + window - n, needle, n * sizeof *ids);
}

static bool make_needles(const td_tokenizer *t, uint32_t *ids, uint32_t window, uint32_t n_windows,
                         uint32_t n_needle, td_err *err)
{
    for (uint32_t w = 0; w < n_windows; w++) {
        uint32_t *needle = NULL;
        size_t n = 0;
        for (uint32_t i = 0; n != n_needle; i++) {
            td_free(needle);
            if (i == DRAWS_MAX)
                return td_err_set(err, TD_E_DATA,
                                  "--task needle: this vocabulary has no two numbers of %u tokens",
                                  n_needle);
            if (!draw_needle(t, w, i, &needle, &n, err))
                return false;
        }
        put_needle(ids + (size_t)w * window, window, w, needle, n_needle);
        td_free(needle);
    }
    return true;
}

/* The tokens of a needle and of its cue, which begins it. */
static bool measure_needle(const td_tokenizer *t, uint32_t *n_needle, uint32_t *n_cue, td_err *err)
{
    uint32_t *needle = NULL, *cue = NULL;
    size_t n = 0, n_begin = 0, n_same = 0;
    bool is_ok = draw_needle(t, 0, 0, &needle, &n, err) &&
                 td_tokenize_rest(t, cue_text, strlen(cue_text), &cue, &n_begin, err);
    while (is_ok && n_same < n_begin && n_same < n && needle[n_same] == cue[n_same])
        n_same++;
    td_free(needle);
    td_free(cue);
    *n_needle = (uint32_t)n;
    *n_cue = (uint32_t)n_same;
    return is_ok;
}

bool td_eval_make_task(const td_tokenizer *tokenizer, const char *task, uint32_t *ids,
                       uint32_t window, uint32_t n_windows, uint32_t *n_scored, td_err *err)
{
    bool is_copy = !strcmp(task, "copy");
    uint32_t n_passage = COPY_TOKENS, n_cue = COPY_CUE;
    if (!is_copy && strcmp(task, "needle") != 0)
        return td_err_set(err, TD_E_USAGE, "--task: \"%.64s\"; allowed: copy, needle", task);
    if (!is_copy && !measure_needle(tokenizer, &n_passage, &n_cue, err))
        return false;
    if (window < 4 * n_passage)
        return td_err_set(err, TD_E_USAGE, "--window: %u; allowed with --task %s: at least %u",
                          window, task, 4 * n_passage);
    *n_scored = n_passage - n_cue;
    for (uint32_t w = 0; is_copy && w < n_windows; w++)
        make_copy(ids + (size_t)w * window, window, w);
    return is_copy || make_needles(tokenizer, ids, window, n_windows, n_passage, err);
}
