/* Whole programs in one thread under a simulated clock. What they ask of the system (threads,
 * locks, time, eventfds, randomness, signals) is answered here: the linker leads their calls of
 * these functions to the __wrap_ ones below (tests/CMakeLists.txt), so the programs are as shipped.
 *
 * A thread is a context that runs until it waits; who goes on then is drawn, and now and then one
 * that takes a lock lets others go first. Time stands still while anybody can go on and then jumps.
 * Threads belong to machines, of which each may stop for a while or be dead. A machine that is dead
 * has been told to stop and still runs, so that it frees what it has, but it is not to be heard.
 *
 * Include before other files of the simulation. One program includes it once. */
#ifndef TD_TESTS_SIM_THREADS_H
#define TD_TESTS_SIM_THREADS_H

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/signals.h"
#include "transport/link.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define N_MACHINES  5u
#define N_THREADS   64u
#define N_EVENT_FDS 256u
#define EVENT_FD    (1 << 20) /* above any that the system gives */
#define LAST_US     7200000000u
#define STEPS_MAX   20000000u

#ifdef __SANITIZE_ADDRESS__
#define STACK_BYTES (8u << 20) /* of more than 4 MiB it forgets nothing when contexts change */
void __sanitizer_start_switch_fiber(void **save, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *save, const void **bottom, size_t *size);
void __sanitizer_set_death_callback(void (*callback)(void));
#else
#define STACK_BYTES (1u << 20)
#endif

typedef enum { THREAD_NONE, THREAD_READY, THREAD_WAITS, THREAD_DONE } thread_state;

typedef struct {
    thread_state state;
    uint32_t machine;
    ucontext_t context;
    char *stack; /* kept for the next one */
    void *fake_stack;
    void *(*main)(void *arg);
    void *arg, *result;
    /* Of one that waits: for whoever names `on`, for links and descriptors, until a time. */
    const void *on;
    td_link_poll_item *items;
    size_t n_items;
    uint64_t until_us;
    bool is_working; /* what it waits for is its own work, which nobody needs when it is dead */
    bool was_woken;
    int saved_errno;
} thread;

typedef struct {
    bool is_dead;
    uint64_t paused_until_us;
    int stop_fd; /* readable: dead */
} machine;

static struct {
    uint64_t seed, random, n_steps, trace;
    bool is_loud; /* logs */
    td_clock clock;
    thread threads[N_THREADS];
    thread *running;
    uint32_t n_locked_out; /* that wait for a lock */
    ucontext_t scheduler;
    machine machines[N_MACHINES];
    struct {
        bool is_used;
        uint64_t count;
    } events[N_EVENT_FDS];
    /* What happens at times of its own. */
    uint64_t (*next_us)(void);
    void (*tick)(void);
} sim;

/* ---- failing ---- */

static void say_seed(void)
{
    fprintf(stderr, "replay: SIM_LOG=1 scripts/simulate.sh 1 %llu stages (at %.6f s)\n",
            (unsigned long long)sim.seed, (double)sim.clock.simulated_us * 1e-6);
}

static void on_abort(int number)
{
    say_seed();
    signal(number, SIG_DFL);
    raise(number);
}

#define CHECK(condition) CHECK_SAYING(condition, "%s", #condition)
#define CHECK_SAYING(condition, ...)                                                               \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
            say_seed();                                                                            \
            fflush(NULL);                                                                          \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

/* ---- chance and time ---- */

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t draw(void) { return mix(sim.random += 0x9e3779b97f4a7c15u); }
static uint32_t below(uint64_t n) { return (uint32_t)(draw() % n); }
static uint64_t now_us(void) { return sim.clock.simulated_us; }
static uint64_t earlier(uint64_t a, uint64_t b) { return a < b ? a : b; }
static machine *here(void) { return &sim.machines[sim.running->machine]; }

/* ---- events ---- */

static bool is_event_fd(int fd) { return fd >= EVENT_FD; }

static bool is_fd_readable(int fd)
{
    return is_event_fd(fd) ? sim.events[fd - EVENT_FD].count > 0 : fd >= 0;
}

int __wrap_eventfd(unsigned count, int flags);
int __wrap_eventfd(unsigned count, int flags)
{
    (void)flags; /* nobody reads one that may be empty and blocks */
    for (int i = 0; i < (int)N_EVENT_FDS; i++)
        if (!sim.events[i].is_used) {
            sim.events[i].is_used = true;
            sim.events[i].count = count;
            return EVENT_FD + i;
        }
    CHECK(!"descriptors enough");
    return -1;
}

ssize_t __real_read(int fd, void *bytes, size_t n);
ssize_t __wrap_read(int fd, void *bytes, size_t n);
ssize_t __wrap_read(int fd, void *bytes, size_t n)
{
    if (!is_event_fd(fd))
        return __real_read(fd, bytes, n);
    CHECK(sim.events[fd - EVENT_FD].is_used && n == sizeof(uint64_t));
    uint64_t *count = &sim.events[fd - EVENT_FD].count;
    if (!*count) {
        errno = EAGAIN;
        return -1;
    }
    memcpy(bytes, count, sizeof *count);
    *count = 0;
    return sizeof *count;
}

ssize_t __real_write(int fd, const void *bytes, size_t n);
ssize_t __wrap_write(int fd, const void *bytes, size_t n);
ssize_t __wrap_write(int fd, const void *bytes, size_t n)
{
    if (!is_event_fd(fd))
        return __real_write(fd, bytes, n);
    uint64_t more;
    CHECK(sim.events[fd - EVENT_FD].is_used && n == sizeof more);
    memcpy(&more, bytes, sizeof more);
    sim.events[fd - EVENT_FD].count += more;
    return sizeof more;
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    if (!is_event_fd(fd))
        return __real_close(fd);
    CHECK(sim.events[fd - EVENT_FD].is_used);
    sim.events[fd - EVENT_FD].is_used = false;
    return 0;
}

/* ---- who goes on ---- */

static bool is_link_readable(td_link *l);       /* sim_net.h; also lets it do its own work */
static uint64_t link_next_us(const td_link *l); /* when it may be */

static bool look(td_link_poll_item *items, size_t n)
{
    bool is_any = false;
    for (size_t i = 0; i < n; i++) {
        items[i].is_readable =
            items[i].link ? is_link_readable(items[i].link) : is_fd_readable(items[i].fd);
        is_any |= items[i].is_readable;
    }
    return is_any;
}

static bool can_go_on(thread *t)
{
    const machine *m = &sim.machines[t->machine];
    if (t->state != THREAD_READY && t->state != THREAD_WAITS)
        return false;
    if (m->paused_until_us > now_us() && !m->is_dead)
        return false;
    return t->state == THREAD_READY || t->until_us <= now_us() || (t->is_working && m->is_dead) ||
           (t->n_items && look(t->items, t->n_items));
}

/* When a thread that waits may go on. */
static uint64_t thread_next_us(const thread *t)
{
    const machine *m = &sim.machines[t->machine];
    if (t->state != THREAD_READY && t->state != THREAD_WAITS)
        return UINT64_MAX;
    if (m->paused_until_us > now_us())
        return m->paused_until_us;
    uint64_t next = t->until_us;
    for (size_t i = 0; i < t->n_items; i++)
        if (t->items[i].link)
            next = earlier(next, link_next_us(t->items[i].link));
    return next;
}

static void say_who_waits(void)
{
    for (uint32_t i = 0; i < N_THREADS; i++)
        if (sim.threads[i].state == THREAD_WAITS)
            fprintf(stderr, "thread %u of machine %u waits on %p, %zu items\n", i,
                    sim.threads[i].machine, sim.threads[i].on, sim.threads[i].n_items);
}

static void go_on_in_time(void)
{
    uint64_t next = sim.next_us ? sim.next_us() : UINT64_MAX;
    for (uint32_t i = 0; i < N_THREADS; i++)
        next = earlier(next, thread_next_us(&sim.threads[i]));
    if (next == UINT64_MAX || next > LAST_US) {
        say_who_waits();
        CHECK_SAYING(next <= LAST_US, next == UINT64_MAX ? "nothing will happen any more"
                                                         : "it has not come to an end");
    }
    if (next > now_us())
        td_clock_advance(&sim.clock, next - now_us());
}

static void switch_to(thread *t)
{
    sim.running = t;
    t->state = THREAD_READY;
    t->n_items = 0;
    errno = t->saved_errno;
#ifdef __SANITIZE_ADDRESS__
    void *fake;
    __sanitizer_start_switch_fiber(&fake, t->stack, STACK_BYTES);
#endif
    swapcontext(&sim.scheduler, &t->context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
    t->saved_errno = errno;
    sim.running = NULL;
}

/* Runs until it is done. */
static void sim_run(bool (*is_done)(void))
{
    while (!is_done()) {
        thread *ready[N_THREADS];
        uint32_t n = 0;
        if (sim.tick)
            sim.tick();
        for (uint32_t i = 0; i < N_THREADS; i++)
            if (can_go_on(&sim.threads[i]))
                ready[n++] = &sim.threads[i];
        if (!n) {
            go_on_in_time();
            continue;
        }
        CHECK_SAYING(++sim.n_steps < STEPS_MAX, "it goes round in circles");
        thread *t = ready[n > 1 ? below(n) : 0];
        sim.trace = mix(sim.trace ^ now_us() << 8 ^ (uint64_t)(t - sim.threads));
        switch_to(t);
    }
}

static void leave(bool is_last)
{
    thread *t = sim.running;
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t n_bytes;
    (void)bottom;
    (void)n_bytes;
    __sanitizer_start_switch_fiber(is_last ? NULL : &t->fake_stack, NULL, 0);
#endif
    swapcontext(&t->context, &sim.scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(t->fake_stack, NULL, NULL);
#endif
    (void)is_last;
}

/* Waits until somebody wakes those on `on`; false when the time came first. */
static bool wait_on(const void *on, uint64_t until_us)
{
    thread *t = sim.running;
    t->state = THREAD_WAITS;
    t->on = on;
    t->until_us = until_us;
    t->was_woken = false;
    leave(false);
    t->on = NULL;
    return t->was_woken;
}

static void wake_thread(thread *t)
{
    t->state = THREAD_READY;
    t->was_woken = true;
    t->on = NULL;
}

static void wake(const void *on, bool is_all)
{
    thread *waiting[N_THREADS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < N_THREADS; i++)
        if (sim.threads[i].state == THREAD_WAITS && sim.threads[i].on == on)
            waiting[n++] = &sim.threads[i];
    if (n && !is_all)
        wake_thread(waiting[below(n)]);
    for (uint32_t i = 0; i < n && is_all; i++)
        wake_thread(waiting[i]);
}

static void yield_now(void)
{
    sim.running->state = THREAD_READY;
    leave(false);
}

static void sleep_until(uint64_t us)
{
    static const char nobody;
    while (now_us() < us)
        wait_on(&nobody, us);
}

/* Work that takes so long. */
static void work_for(uint64_t us)
{
    static const char nobody;
    sim.running->is_working = true;
    wait_on(&nobody, now_us() + us);
    sim.running->is_working = false;
}

static bool wait_for_items(td_link_poll_item *items, size_t n, int64_t timeout_us)
{
    thread *t = sim.running;
    if (!look(items, n) && timeout_us != 0) {
        t->items = items;
        t->n_items = n;
        wait_on(items, timeout_us < 0 ? UINT64_MAX : now_us() + (uint64_t)timeout_us);
        look(items, n);
    }
    return true;
}

bool __wrap_td_link_poll(td_link_poll_item *items, size_t n, int64_t timeout_us, td_err *err);
bool __wrap_td_link_poll(td_link_poll_item *items, size_t n, int64_t timeout_us, td_err *err)
{
    (void)err;
    return wait_for_items(items, n, timeout_us);
}

int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
    td_link_poll_item items[8];
    int n_ready = 0;
    CHECK(n <= TD_COUNT(items));
    for (nfds_t i = 0; i < n; i++)
        items[i] = (td_link_poll_item){.fd = fds[i].fd};
    wait_for_items(items, n, timeout_ms < 0 ? -1 : timeout_ms * 1000);
    for (nfds_t i = 0; i < n; i++) {
        fds[i].revents = items[i].is_readable ? POLLIN : 0;
        n_ready += items[i].is_readable;
    }
    return n_ready;
}

int __wrap_nanosleep(const struct timespec *t, struct timespec *left);
int __wrap_nanosleep(const struct timespec *t, struct timespec *left)
{
    (void)left;
    sleep_until(now_us() + (uint64_t)t->tv_sec * 1000000 + (uint64_t)t->tv_nsec / 1000);
    return 0;
}

/* ---- threads ---- */

static void thread_main(void)
{
    thread *t = sim.running;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    t->result = t->main(t->arg);
    t->state = THREAD_DONE;
    wake(t, true);
    leave(true);
}

static void prepare(ucontext_t *context, char *stack)
{
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK_BYTES;
    makecontext(context, thread_main, 0);
}

static thread *start_thread(uint32_t i_machine, void *(*main)(void *), void *arg)
{
    thread *t = sim.threads;
    while (t->state != THREAD_NONE)
        CHECK(++t < sim.threads + N_THREADS);
    char *stack = t->stack;
    if (!stack) {
        stack = mmap(NULL, STACK_BYTES + 4096, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        CHECK(stack != MAP_FAILED && !mprotect(stack, 4096, PROT_NONE));
        stack += 4096;
    }
    *t = (thread){
        .state = THREAD_READY, .machine = i_machine, .stack = stack, .main = main, .arg = arg};
    prepare(&t->context, stack);
    return t;
}

int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*main)(void *),
                          void *arg);
int __wrap_pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*main)(void *),
                          void *arg)
{
    (void)attr;
    *id = (pthread_t)start_thread(sim.running->machine, main, arg);
    return 0;
}

int __wrap_pthread_join(pthread_t id, void **result);
int __wrap_pthread_join(pthread_t id, void **result)
{
    thread *t = (thread *)id;
    while (t->state != THREAD_DONE)
        wait_on(t, UINT64_MAX);
    if (result)
        *result = t->result;
    t->state = THREAD_NONE;
    return 0;
}

int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before);
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before)
{
    (void)how;
    (void)set;
    (void)before;
    return 0;
}

int __wrap_pthread_getcpuclockid(pthread_t id, clockid_t *clock);
int __wrap_pthread_getcpuclockid(pthread_t id, clockid_t *clock)
{
    (void)id;
    (void)clock;
    return ENOSYS;
}

int __real_pthread_mutex_lock(pthread_mutex_t *m);
int __wrap_pthread_mutex_lock(pthread_mutex_t *m);
int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
    if (!sim.running)
        return __real_pthread_mutex_lock(m);
    if (below(16) == 0)
        yield_now();
    while (pthread_mutex_trylock(m)) {
        sim.n_locked_out++;
        wait_on(m, UINT64_MAX);
        sim.n_locked_out--;
    }
    return 0;
}

int __real_pthread_mutex_unlock(pthread_mutex_t *m);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *m);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
    __real_pthread_mutex_unlock(m);
    if (sim.n_locked_out)
        wake(m, true);
    return 0;
}

static int wait_cond(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_us)
{
    __wrap_pthread_mutex_unlock(m);
    bool was_woken = wait_on(c, until_us);
    __wrap_pthread_mutex_lock(m);
    return was_woken ? 0 : ETIMEDOUT;
}

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m);
int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    return wait_cond(c, m, UINT64_MAX);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *t);
int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *t)
{
    return wait_cond(c, m, (uint64_t)t->tv_sec * 1000000 + (uint64_t)t->tv_nsec / 1000);
}

int __wrap_pthread_cond_signal(pthread_cond_t *c);
int __wrap_pthread_cond_signal(pthread_cond_t *c)
{
    wake(c, false);
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c);
int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
    wake(c, true);
    return 0;
}

/* ---- the rest of the system ---- */

int __wrap_clock_gettime(clockid_t clock, struct timespec *t);
int __wrap_clock_gettime(clockid_t clock, struct timespec *t)
{
    (void)clock; /* all tell the same */
    t->tv_sec = (time_t)(now_us() / 1000000);
    t->tv_nsec = (long)(now_us() % 1000000 * 1000);
    return 0;
}

/* One CPU: nobody spins, to see what another one does meanwhile. */
int __wrap_sched_getaffinity(pid_t pid, size_t n_bytes, cpu_set_t *set);
int __wrap_sched_getaffinity(pid_t pid, size_t n_bytes, cpu_set_t *set)
{
    (void)pid;
    memset(set, 0, n_bytes);
    CPU_SET_S(0, n_bytes, set);
    return 0;
}

ssize_t __wrap_getrandom(void *bytes, size_t n, unsigned flags);
ssize_t __wrap_getrandom(void *bytes, size_t n, unsigned flags)
{
    (void)flags;
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)bytes)[i] = (uint8_t)draw();
    return (ssize_t)n;
}

int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    (void)fd;
    return 0;
}

/* Does not lock, so that a run that is looked at goes as it does else. */
void __wrap_td_log_write(td_log_level level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void __wrap_td_log_write(td_log_level level, const char *format, ...)
{
    if (!sim.is_loud)
        return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%12.6f %c %d: ", (double)now_us() * 1e-6,
            sim.running ? 'a' + (int)sim.running->machine : '-', (int)level);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

int __wrap_fsync(int fd);
int __wrap_fsync(int fd) { return __wrap_fdatasync(fd); }

int __wrap_td_signals_pending(void);
int __wrap_td_signals_pending(void) { return here()->is_dead ? SIGTERM : 0; }

int __wrap_td_signals_fd(void);
int __wrap_td_signals_fd(void) { return here()->stop_fd; }

/* ---- machines ---- */

static void tell_to_stop(uint32_t i)
{
    sim.machines[i].is_dead = true;
    sim.events[sim.machines[i].stop_fd - EVENT_FD].count = 1;
}

static void revive(uint32_t i)
{
    sim.machines[i].is_dead = false;
    sim.machines[i].paused_until_us = 0;
    sim.events[sim.machines[i].stop_fd - EVENT_FD].count = 0;
}

static void sim_begin(uint64_t seed)
{
    for (uint32_t i = 0; i < N_THREADS; i++)
        CHECK(sim.threads[i].state == THREAD_NONE || sim.threads[i].state == THREAD_DONE);
    for (uint32_t i = 0; i < N_THREADS; i++)
        sim.threads[i].state = THREAD_NONE;
    for (uint32_t i = 0; i < N_EVENT_FDS; i++) /* but for the signals' and the machines' */
        CHECK(!sim.events[i].is_used || i < 1 + N_MACHINES);
    sim.seed = seed;
    sim.random = mix(seed + 1);
    sim.clock = td_clock_simulated(1000000);
    sim.n_steps = sim.trace = sim.n_locked_out = 0;
    td_err err = {0};
    CHECK(td_signals_open(&err));
    for (uint32_t i = 0; i < N_MACHINES; i++) {
        if (!sim.machines[i].stop_fd)
            sim.machines[i].stop_fd = __wrap_eventfd(0, 0);
        revive(i);
    }
}

#endif
