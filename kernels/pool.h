/* A persistent pool of exactly n threads, the caller included, for work made of phases that are
 * each cut into n parts.
 *
 *     td_pool_run(pool, n_phases, work, arg);   // work(arg, phase, part), part = 0..n-1
 *
 * A phase begins when all parts of the one before are done. Thread t takes part t if it comes in
 * time (the data of the last round may still be in its cache) and any other part that nobody has
 * begun. So on a machine with fewer free CPUs than the pool has threads, a thread that does not
 * run holds nothing up, and td_pool_run does not wait for it to wake.
 *
 * A thread that waits spins for some tens of microseconds and then sleeps on a futex. Nothing is
 * allocated and no lock is taken after creation. One thread at a time may call td_pool_run; pools
 * are independent of each other. Errors: TD_E_NOMEM (threads, memory). */
#ifndef TD_KERNELS_POOL_H
#define TD_KERNELS_POOL_H

#include "base/err.h"

#include <stdint.h>

typedef struct td_pool td_pool;
typedef void td_pool_work(void *arg, uint32_t phase, uint32_t part);

td_pool *td_pool_create(uint32_t n_threads, td_err *err);
void td_pool_destroy(td_pool **pool);
uint32_t td_pool_count(const td_pool *pool); /* threads, and parts of a phase */

/* Thread t runs on cpus[t] alone from now on; the caller of td_pool_run, which is thread 0, once it
 * has called td_pool_pin_caller. `cpus` has as many as the pool threads, all of them ones the
 * process may use. */
void td_pool_pin(td_pool *pool, const uint32_t *cpus);
void td_pool_pin_caller(const td_pool *pool);

void td_pool_run(td_pool *pool, uint32_t n_phases, td_pool_work *work, void *arg);

#endif
