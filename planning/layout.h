/* A model laid over devices, nothing loaded: opens the devices, asks what layers take there, and
 * places them with as much context and as many cache pages as fit.
 *
 * Memory that devices share is counted once: that of two SPECs of one GPU, and the system's, on
 * which draw (capacity.h) the host, integrated GPUs, software drivers, and experts and a draft on
 * any of them.
 *
 * Owns the devices; borrows the model. Errors: as placement.h; TD_E_NOMEM says what is missing
 * where. One thread. */
#ifndef TD_PLANNING_LAYOUT_H
#define TD_PLANNING_LAYOUT_H

#include "base/err.h"
#include "model/forward.h"
#include "planning/dealing.h"
#include "planning/placement.h"

#define TD_STAGES_MAX 16u

typedef struct td_layout td_layout;

/* What something else will take of a device here, by the context: a draft of another process's. */
typedef struct {
    const char *spec; /* NULL: nothing */
    uint64_t n_bytes, position_bytes;
    uint32_t n_ctx; /* at most so many positions, whatever the context */
} td_layout_guest;

typedef struct {
    const td_model *model;
    const td_model *head;     /* td_forward_params: of the last part; NULL: none */
    const char *const *specs; /* SPEC[@a-b], in order */
    uint32_t n_specs;
    /* "experts=SPEC": the experts' weights on that device. Or they are dealt (dealing.h) over the
     * devices of specs, the first of which has all else. NULL: neither. */
    const char *place;
    const char *expert_stats; /* dealing.h; NULL: none */
    /* Other machines that specs may name, for target/ alone: a layout is of this one. Our own pair
     * of keys, shown there; NULL: the only one. And the type of activations between machines, F32
     * or F16; NULL: F32. */
    const td_host *hosts;
    uint32_t n_hosts;
    const char *host_key;
    const td_type_info *wire;
    bool is_trusting; /* devices there that have failed a check are taken all the same */
    /* Other layers are on other machines: specs are pinned and may leave gaps. The first stage here
     * is so many-th of the target. */
    bool is_partial;
    uint32_t first_stage;
    /* Nothing is placed: only what devices have, and what layers take with n_ctx positions. */
    bool is_unplaced;
    td_cache_types kv;
    uint32_t n_slots;
    uint32_t n_ctx;                  /* 0: the smaller of the model's and what fits */
    bool is_all_logits, is_choosing; /* forward.h, */
    const td_cache_types *beside;    /* and caches that room is kept for */
    uint32_t n_beside;
    /* A draft that will be loaded too (forward.h, td_forward_drafting, with the same slots and
     * context, and types of its own; NULL: the same) on device draft_spec, for which room is kept;
     * NULL: none. */
    const td_model *draft;
    const td_cache_types *draft_kv;
    const char *draft_spec;
    td_layout_guest guest; /* else, whose model is not here */
    /* Of loading; may be NULL. False ends it (TD_E_AGAIN). */
    bool (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
    /* To load (target/chain.h): what td_layout_create gave for the same params before other things
     * were loaded, which is taken from there; NULL: it is made now. */
    td_layout **made;
} td_layout_params;

/* How a cache of `model` is kept: the target's or the draft's. */
static inline const td_cache_types *td_layout_kv(const td_layout_params *p, const td_model *model)
{
    return p->draft_kv && model != p->model ? p->draft_kv : &p->kv;
}

typedef struct {
    char spec[128]; /* "host:1", without the range */
    td_device *dev;
    td_device *experts_dev; /* or NULL */
    uint32_t first, last;
    uint64_t n_bytes;       /* weights, cache and activations */
    uint64_t experts_bytes; /* on experts_dev */
    uint64_t budget_bytes;  /* what was there for the part; of what is the system's memory all may
                             * be named that others may have instead */
} td_layout_part;

/* Experts dealt over devices. Seat 0 is the only part's, which has its device and its bytes. */
typedef struct {
    td_dealing *dealing;       /* NULL: they are not */
    char text[TD_PLACE_BYTES]; /* deals them the same */
    struct {
        char spec[128];
        td_device *dev;
        uint64_t n_bytes; /* of others than seat 0 */
    } seats[TD_SEATS_MAX];
} td_layout_deal;

struct td_layout {
    uint32_t n_parts, n_ctx;
    td_layout_deal deal;
    /* Cache pages of all sequences together, where not all can have a full context at once (then at
     * least one can); 0: enough for all. */
    uint32_t n_pages;
    uint64_t draft_bytes;  /* for which room was kept */
    uint64_t system_bytes; /* of the system's memory, for all parts that draw on it together */
    td_layout_part parts[TD_STAGES_MAX];
    td_place_device places[TD_STAGES_MAX]; /* of the parts: what was placed by */
    uint64_t *layer_bytes;                 /* what they point to */
};

td_layout *td_layout_create(const td_layout_params *params, td_err *err);
void td_layout_destroy(td_layout **layout);
/* How to load part i. */
td_forward_params td_layout_forward_params(const td_layout *l, const td_layout_params *params,
                                           uint32_t i);

typedef struct {
    uint32_t n;                       /* >= 1 */
    const char *specs[TD_STAGES_MAX]; /* point into texts: not to be copied */
    char texts[TD_STAGES_MAX][32];
} td_default_specs;

/* The devices to use when none are given: each usable GPU once, by the driver that is preferred,
 * discrete ones first; else the host. */
void td_layout_default_specs(td_default_specs *out);

#endif
