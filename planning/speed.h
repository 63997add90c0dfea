/* What a placement would do: tokens a second predicted from what the layers cost (costs.h), and the
 * search for the cut that does most. Pure arithmetic; any thread; nothing is allocated but in
 * td_speed_search.
 *
 * One sequence: a token passes all stages in turn, tv(n) = the sum of their times for n rows and of
 * the hops. With a draft of k tokens, each right with probability a, a round gives
 * E = (1 - a^(k+1)) / (1 - a) tokens. On a device that also verifies the draft takes its time, and
 * a round takes k td + tv(k+1). On another it goes on drafting while the target verifies: with
 * h = a^(k+1) the guess behind the round was right and its drafts are there, so a round takes
 * h max((k+1) td, tv) + (1 - h) (k td + link + tv).
 * n sequences over S stages: they make G = min(n, S) groups, each stage works on another one, and a
 * round of all takes max(G times the slowest stage, one group's way through all of them). Drafts of
 * a group are one more stage, or more work for the stage on their device. Prompts are chunks that
 * follow each other: the slowest stage's time for one, and once the way through all of them. */
#ifndef TD_PLANNING_SPEED_H
#define TD_PLANNING_SPEED_H

#include "planning/costs.h"
#include "planning/placement.h"

#define TD_SPEED_DEVICES_MAX 16u
#define TD_SPEED_ROWS_MAX    32u
#define TD_SPEED_DRAFT_MAX   16u  /* longest draft that is tried */
#define TD_SPEED_ACCEPTANCE  0.7  /* where nothing is known */
#define TD_SPEED_ERROR       0.05 /* predictions nearer to each other than this say the same */

typedef enum { TD_FOR_STREAM, TD_FOR_BATCH } td_use;

typedef struct {
    const td_costs *costs;        /* borrowed */
    const td_place_device *place; /* bytes; pins are not looked at */
    uint32_t memory;              /* devices with the same number share the sum of their budgets;
                                   * what of it is the system's (placement.h) all share */
    uint32_t unit;                /* devices with the same number take turns */
    bool is_host;
    uint32_t machine; /* 0: here; from one to another it is the slower link's way, unless known: */
    double way_us;    /* of few bytes, one way; more of */
    double row_us;    /* each row's activations */
} td_speed_device;

/* From one other machine to another, which may be nearer than either is to here, or farther. */
typedef struct {
    uint32_t from, to;
    double way_us, row_us;
} td_speed_hop;

typedef struct {
    td_cost step;     /* of the whole draft model, by rows (one for each sequence) */
    uint32_t unit;    /* as above; a number that no device has: it waits for nobody */
    int32_t device;   /* index of the target's device whose memory it takes; -1: none */
    double link_us;   /* to it and back; 0: that of the use */
    uint64_t n_bytes; /* there; or, with -1, of the system's memory, 0: of none that counts */
} td_speed_draft;

typedef struct {
    td_use use;
    uint32_t n_sequences;         /* batch: at once */
    uint32_t n_prompt, n_predict; /* tokens of a sequence, read and generated; >= 1 */
    double hop_us;                /* from stage to stage, and from the last one back */
    double link_us;               /* to the draft and back */
    double round_us;              /* of a round, where some stage is on another machine */
    double acceptance;
    /* [TD_SPEED_DRAFT_MAX + 1] or NULL: measured, the probability that tokens 0..i of a draft are
     * all right, in place of powers of acceptance; borrowed. */
    const double *survival;
    uint32_t draft_max;       /* tokens of a draft at most */
    bool is_draft_fixed;      /* always so many */
    uint32_t n_stages_min;    /* fewer only where all layers are on one device; 0: any number */
    const td_speed_hop *hops; /* [n_hops] that are known; borrowed */
    uint32_t n_hops;
} td_speed_use;

typedef struct {
    uint32_t n_stages;
    struct {
        uint32_t device, first, last;
    } stages[TD_SPEED_DEVICES_MAX];
    int32_t i_draft;     /* of the drafts given to the search; -1: none */
    uint32_t k;          /* tokens of a draft that do best; 0: it does not pay */
    bool takes_turns;    /* the draft's device verifies too */
    double tokens_per_s; /* generated, of all the time with the prompts' */
    double decode_per_s, prefill_per_s;
    double verify_us; /* one row through all stages */
    double busiest;   /* of the stages' work, the busiest unit's share: 1 / stages is balanced */
} td_speed_row;

/* E(a, k), as above. */
double td_speed_expected(double a, uint32_t k);

/* Microseconds of n_rows rows of a verification through all of a row's stages. */
double td_speed_verify_us(const td_speed_device *devices, const td_speed_use *use,
                          const td_speed_row *row, uint32_t n_rows);

/* Fills in the figures of a row whose stages are given. draft: NULL for none. */
void td_speed_predict(const td_speed_device *devices, const td_speed_draft *draft,
                      const td_speed_use *use, td_speed_row *row);

/* Whether the stages and the draft fit in their devices' memory, which those that are used share
 * evenly, and together in the system's. */
bool td_speed_fits(const td_speed_device *devices, uint32_t n_devices, const td_speed_draft *draft,
                   const td_speed_row *row);

/* Looks for the best placements of n_layers layers over some of the devices, in their order, with
 * the draft in each of the places given (drafts[0..n_drafts), none: no draft). Always among them:
 * all layers on one device, for each that has room. rows[TD_SPEED_ROWS_MAX], the best first; *n may
 * be 0: nothing fits. TD_E_NOMEM. */
bool td_speed_search(const td_speed_device *devices, uint32_t n_devices,
                     const td_speed_draft *drafts, uint32_t n_drafts, uint32_t n_layers,
                     const td_speed_use *use, td_speed_row *rows, uint32_t *n, td_err *err);

/* Which of the rows to take: the fastest of those with n_stages_min stages (none: of all), and of
 * those with the same devices and draft that are as fast within TD_SPEED_ERROR the one whose work
 * is shared most evenly, since that also does well in what was not foreseen. n >= 1. */
uint32_t td_speed_choose(const td_speed_row *rows, uint32_t n, uint32_t n_stages_min);

#endif
