/* How many micro-batches fill the target's stages and the links between them, by measured times.
 * With stages on this machine alone there are as many as stages; a link that takes long asks for
 * more, so that its latency hides behind work as a stage's does.
 *
 *     td_pipeline_init(&p, n_stages, n_max);                                       one per target
 *     td_pipeline_add(&p, &sample); td_pipeline_choose(&p, n_sequences, rows_each, rows_max);
 *     p.n_groups; td_pipeline_depth(&p, true);
 *
 * What is chosen here decides when tokens come, never which (law 1). No memory of its own: the
 * caller holds the struct. No errors, one thread. */
#ifndef TD_COORDINATOR_PIPELINE_H
#define TD_COORDINATOR_PIPELINE_H

#include "coordinator/times.h"

#define TD_PIPELINE_LINKS 8u

/* Of verify batches, and of chunks of prompts. */
typedef struct {
    double sum_us, max_us; /* of all stages, of the slowest: decayed means */
    /* What the last batches took beside the stages' work and waiting for it. */
    double link_us[TD_PIPELINE_LINKS];
    uint32_t n_links;
} td_pipeline_kind;

typedef struct {
    uint32_t n_stages, n_max; /* batches in flight at least and at most; equal: nothing is chosen */
    uint32_t n_groups;        /* of sequences that are verified at the same time */
    bool is_news;             /* since it was chosen */
    td_times pace;            /* the slowest stage's time of a verify batch by its rows */
    td_pipeline_kind kinds[2];
} td_pipeline;

/* A batch that was answered. */
typedef struct {
    bool is_prefill;
    uint32_t n_rows;
    double us; /* from when it was sent; of them in its stages, behind those before it, */
    double waited_us;
    double sum_us, max_us; /* and their work: of all, of the slowest */
} td_pipeline_sample;

void td_pipeline_init(td_pipeline *p, uint32_t n_stages, uint32_t n_max);
void td_pipeline_add(td_pipeline *p, const td_pipeline_sample *sample);
/* Sets n_groups: sequences have rows_each rows, mean, a batch rows_max at most. */
void td_pipeline_choose(td_pipeline *p, uint32_t n_sequences, double rows_each, double rows_max);
/* Batches of a kind that are in flight when no stage waits. */
uint32_t td_pipeline_depth(const td_pipeline *p, bool is_prefill);
/* Until an answer is here, beside the stages' work; 0 while it is not known. */
double td_pipeline_link_us(const td_pipeline *p, bool is_prefill);

#endif
