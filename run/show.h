/* What a person sees of a run: the text of a single prompt as it grows, with drafted tokens marked
 * on a terminal, and a progress line with rate and time left for a batch. One thread. */
#ifndef TD_RUN_SHOW_H
#define TD_RUN_SHOW_H

#include "base/clock.h"
#include "model/tokenizer.h"
#include "run/run.h"

typedef struct td_show td_show;

td_show *td_show_create(const td_run_params *params, const td_tokenizer *tokenizer,
                        uint64_t n_lines, td_err *err);
void td_show_destroy(td_show **s);

void td_show_begin(td_show *s, const char *prompt);
void td_show_tokens(td_show *s, const uint32_t *ids, const bool *is_draft, uint32_t n);
void td_show_finish(td_show *s, const td_sequence_info *info);
void td_show_error(td_show *s, const char *id, const char *message);
void td_show_progress(td_show *s, const td_run_totals *totals, uint64_t now_us);
void td_show_end(td_show *s);

/* Of loading, as td_layout_params.progress: how much, how fast, how long yet. Start: now. */
typedef struct {
    td_clock clock;
    uint64_t start_us, drawn_us;
} td_loading;
bool td_show_loading(void *loading, uint64_t done, uint64_t total);

#endif
