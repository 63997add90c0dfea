/* The stage worker (`tandem stage`): holds layers of a target for one coordinator at a time, and is
 * free for the next when that leaves or is lost. It holds nothing that the coordinator cannot
 * rebuild.
 *
 * One thread owns the links and answers at once; another opens and loads; each stage computes in
 * its own (target.h). What a peer says is checked before it is used: stage_wire.h what a message
 * may hold, stage.c what a cache can do.
 *
 * Errors: what link.h lists, and TD_E_DEVICE_LOST, after which the process must be started anew. */
#ifndef TD_TARGET_WORKER_H
#define TD_TARGET_WORKER_H

#include "base/err.h"
#include "model/prefix_store.h"
#include "transport/link.h"

#include <stdint.h>

/* A coordinator asks for a check of a device: what is wanted, and how to tell how far it is (false:
 * nobody wants it any more). */
typedef struct {
    const char *spec, *other; /* of params.specs */
    const char *only;         /* a part, or NULL */
    bool is_quick, is_hop;    /* is_hop: no more than the time from spec to other */
    bool (*progress)(void *user, const char *op, const char *shape);
    void *user;
} td_stage_trial;

typedef struct {
    const char *const *specs; /* devices that coordinators may use, without layers */
    uint32_t n_specs;         /* 1..TD_STAGE_DEVICES_MAX */
    const char *models;       /* a folder of model files, or NULL */
    const char *model;        /* a model file, or NULL */
    uint64_t cache_bytes;     /* of weights that are sent, kept on the disk; 0: none are taken */
    td_prefix_store *prompts; /* where what was read of prompts is kept, or NULL */
    td_transport *transport;
    const char *endpoint; /* bound */
    int stop_fd;          /* readable: stop */
    /* Has a device tried, in a thread of its own, and writes what was found for whoever asked to
     * read. And whether a device is known to fail; then how. Either may be NULL. */
    bool (*check)(const td_stage_trial *trial, void *bytes, size_t capacity_bytes, size_t *n_bytes,
                  td_err *err);
    bool (*has_failed)(const char *spec, char *how, size_t n_how);
} td_stage_worker_params;

/* Serves until stop_fd is readable. */
bool td_stage_worker_run(const td_stage_worker_params *params, td_err *err);

#endif
