/* Which stages of a target are here and which on other machines, and what all of them together have
 * room for. Private to target/. Errors: as layout.h and remote.h. */
#ifndef TD_TARGET_SPLIT_H
#define TD_TARGET_SPLIT_H

#include "planning/layout.h"
#include "target/remote.h"

typedef struct {
    bool is_remote;
    uint32_t local;       /* of a stage here: which of those; */
    uint32_t run, worker; /* of others: in which run of neighbours, of which worker, */
    uint8_t device;       /* which of its devices, */
    td_device_info device_info;
    uint64_t n_bytes, n_usable_bytes, n_experts_bytes;
    td_device_spec spec; /* pinned once it is laid out */
} td_split_stage;

typedef struct {
    uint32_t first_worker, n_workers, end_stage; /* the stage behind it */
} td_split_run;

typedef struct {
    uint32_t n_stages, n_workers, n_runs;
    td_split_stage stages[TD_STAGES_MAX];
    td_split_run runs[TD_STAGES_MAX];
    struct {
        td_host host;
        uint32_t first_stage, n_stages;
    } workers[TD_STAGES_MAX];
    char texts[TD_STAGES_MAX][192]; /* pinned SPECs of the stages here */
    uint8_t model_id[TD_STAGE_HASH_BYTES];
} td_split;

/* *out stays NULL where all SPECs are of this machine. */
bool td_split_create(const td_layout_params *params, td_split **out, td_err *err);
void td_split_destroy(td_split **split);
uint32_t td_split_stage_of(const td_split *split, uint32_t local);

typedef struct {
    td_layout *layout; /* of the stages here; NULL: none is */
    uint32_t n_ctx, n_pages;
} td_split_plan;

/* The host of that name among those of params. */
bool td_split_find_host(const td_layout_params *params, const char *name, td_host *out,
                        td_err *err);
/* The device that a SPEC without host and layers means, of those that a worker has. One that is
 * known to fail there is an error (TD_E_UNAVAILABLE), but for who is trusting. */
bool td_split_find_device(const char *host, const char *spec, const td_stage_hello_ok *hello,
                          bool is_trusting, td_device_info *info, uint8_t *out, td_err *err);

/* Gives every stage its device and layers, here and at the workers. */
bool td_split_lay_out(td_split *split, const td_layout_params *params, td_remotes *remotes,
                      td_split_plan *out, td_err *err);

#endif
