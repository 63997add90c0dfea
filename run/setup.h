/* What a run holds, and loading what lasts over the runs of a session. Private to run/. */
#ifndef TD_RUN_SETUP_H
#define TD_RUN_SETUP_H

#include "draft/ngram.h"
#include "run/draft_client.h"
#include "run/identity.h"
#include "run/input.h"
#include "run/run_placement.h"
#include "run/show.h"
#include "run/trace.h"
#include "target/target.h"

/* A prompt that is being worked on. */
typedef struct {
    td_prompt *prompt; /* NULL: free */
    uint32_t sequence;
    uint32_t slot; /* of the target, from TD_ACT_OPEN on; UINT32_MAX before */
    bool has_bad_logits, is_given_back;
    bool is_asked; /* a proposal, last of this epoch and position */
    uint32_t asked_epoch, asked_position;
} active;

typedef struct td_run_session {
    /* What lasts over the runs of a session. */
    td_run_params opened; /* as given to open, devices filled in */
    td_default_specs defaults;
    bool is_default;     /* the user named no devices: those in defaults */
    char draft_spec[32]; /* where the draft runs, if nobody said */
    td_clock clock;
    td_energy *energy; /* NULL: nobody wants to know */
    td_model *model;
    td_chat *chat;
    td_run_placement placing;
    td_target *target;
    td_prefix_store *prompts_kept; /* NULL: none are */
    bool has_said_unkept;          /* that a host has no folder for them */
    td_draft_client *drafting;
    const char *head;     /* that drafts: "" the target's own, or a file of it; NULL: none does */
    bool is_auto;         /* set before init: the texts, with the target's own if it can */
    td_model *head_file;  /* that file, opened */
    char head_spec[128];  /* its device */
    uint64_t draft_bytes; /* what a draft of this process takes on its device */
    td_ngram *ngram;      /* NULL: none */
    uint32_t prefill_rows;
    float verify_us[TD_VERIFY_ROWS_MAX + 1], draft_us; /* measured by the runs before */
    /* Of one run. */
    const td_run_params *params;
    td_run_totals *totals;
    td_coordinator *coordinator;
    td_worker *job;      /* NULL: none */
    td_json *job_config; /* what the stops of `opened` point into; NULL: no job */
    const char *job_date;
    uint64_t drain_at_us; /* when what is begun is given back to the job; 0: no signal yet */
    td_prompts *prompts;
    td_input *input;
    td_results *results;
    td_show *show;
    char placement[TD_PLACEMENT_BYTES];
    char date[TD_DATE_BYTES]; /* the day that chat templates are told; "": none asks */
    td_trace *trace;          /* NULL: none */
    active actives[TD_SEQUENCES_MAX];
    td_identity identity;
    bool is_input_done, is_draft_joined, has_said_who_waits;
    bool is_draft_silent;         /* joined, but a deadline has passed without a word */
    uint64_t heard_us, probe_us;  /* when it last answered; when a silent one is asked again */
    uint64_t n_missed;            /* deadlines so far */
    uint64_t n_committed_at_loss; /* tokens, when the target was lost last */
    bool is_token_due;            /* none was chosen since */
    uint32_t n_in_vain;           /* losses in a row with nothing committed between */
    td_proposal asks[TD_SEQUENCES_MAX]; /* of the target's head, not handed over yet, */
    uint32_t ask_slots[TD_SEQUENCES_MAX], ask_tokens[TD_SEQUENCES_MAX], n_asks;
    bool is_draft_due;  /* its link has something, or wants to say something */
    uint64_t rejoin_us; /* when to offer an unsendable draft again; 0: not waiting */
} session;

/* Does the target's head draft in this run? A session may have one that it does without. */
static inline bool td_setup_uses_head(const session *r)
{
    return r->head && (r->params == &r->opened || r->params->draft_path || r->params->draft_head);
}

/* Beside a draft model, both chosen from round by round? */
static inline bool td_setup_is_chain(const session *r)
{
    return td_setup_uses_head(r) && r->drafting;
}

/* Takes the params, with devices chosen where they were left open; what is said of a head is in
 * `head` then, as if there were no draft or the model beside it alone. */
void td_setup_init(session *r, const td_run_params *params);
/* Loads target and draft and connects them. Half loaded on failure: td_run_close takes that. */
bool td_setup_load(session *r, td_err *err);
/* The target's, as opened: devices, cache, sequences. */
td_layout_params td_setup_layout_params(const session *r);
/* The day that a run's chat templates are told: the one recorded in its results, else today. */
void td_setup_choose_date(session *r);
/* Has a target that was just loaded keep its prompts, where that is wanted. */
bool td_setup_keep_prompts(session *r, td_target *target, td_err *err);
/* On a terminal, before any text: what was chosen. */
void td_setup_show(const session *r);
/* Where the draft runs, as td_draft_client_device; of a head, the last stage's device; NULL: there
 * is none. */
const char *td_setup_draft_device(const session *r, char spec[128]);
/* Do draft and target take each other's time: one device, or more threads than CPUs? */
bool td_setup_is_one_unit(const session *r);
/* What a row costs the draft by what it costs the target, by their sizes; 0: not known. */
float td_setup_draft_share(const session *r);
/* Does the draft go on while the target verifies? Not where both would wait for one device. */
bool td_setup_drafts_ahead(const session *r);

#endif
