/* The figures of a run as JSON (--stats): totals, acceptance by position in the draft, time by
 * phase and device, placement, and the configuration in effect. Format: docs/stats.md. */
#ifndef TD_RUN_STATS_H
#define TD_RUN_STATS_H

#include "run/draft_client.h"
#include "run/identity.h"
#include "target/target.h"

typedef struct {
    const td_run_params *params;
    const td_run_totals *totals;
    const td_energy *energy; /* the sources of totals->joules */
    const td_coordinator_stats *coordinator;
    const td_target *target;
    const td_model *model;
    const char *head_name;    /* of a head that drafts, or NULL */
    const char *draft_device; /* "" or NULL when elsewhere or none */
    uint64_t draft_bytes;
    const td_device_info *draft_info;
    const td_drafter_stats *draft;        /* both NULL when elsewhere or none */
    const td_prefix_counts *prompts_kept; /* NULL: none are */
    const td_identity *identity;
    const char *date; /* that chat templates were told; "": none asked */
} td_stats;

/* CPU time so far of the calling thread, of ZeroMQ's threads, and of the one that holds the link's
 * other end when the draft is in this process (drafting may be NULL): coordinator and transport,
 * reading and writing included; what computes is other threads'. */
uint64_t td_stats_cpu_us(const td_draft_client *drafting);

/* Replaces the file as a whole. */
bool td_stats_write(const td_stats *stats, const char *path, td_err *err);

#endif
