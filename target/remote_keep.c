/* Chunks of prompts that workers keep on their disks: which of them all have. */
#include "target/remote_impl.h"

#define KEEP_US 60000000u /* to make room for chunks on their way */
#define FIND_US 10000000u /* to read one from a disk */

/* Under the lock: sends the same to all that are not lost. */
static void ask_all(td_remotes *r, const td_stage_msg *m)
{
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        session *s = &r->sessions[i];
        bool is_there = s->state != SESSION_LOST;
        if (is_there)
            s->due = *m;
        s->is_due = is_there;
        s->is_keep_asked = is_there && m->type == TD_STAGE_KEEP;
        s->is_find_asked = is_there && m->type == TD_STAGE_FIND;
        s->found = (td_stage_found){.batch = m->type == TD_STAGE_FIND ? m->find.batch : 0};
    }
    td_remotes_wake(r);
}

/* Under the lock: waits for all answers; the one that has not given its own in time, or NULL. */
static session *wait_for_all(td_remotes *r, uint64_t most_us)
{
    uint64_t end_us = td_remote_now_us(r) + most_us;
    while (true) {
        session *open = NULL;
        for (uint32_t i = 0; i < r->n_sessions; i++) {
            session *s = &r->sessions[i];
            if (s->state != SESSION_LOST && (s->is_keep_asked || s->is_find_asked))
                open = s;
        }
        uint64_t now_us = td_remote_now_us(r);
        if (!open || now_us >= end_us)
            return open;
        td_remote_wait(r, end_us - now_us);
    }
}

void td_remote_take_kept(td_remotes *r, session *s, bool is_kept)
{
    if (!s->is_keep_asked) {
        td_remote_lose(r, s, "it answers what was not asked");
        return;
    }
    s->is_keep_asked = false;
    s->is_kept = is_kept;
    pthread_cond_broadcast(&r->changed);
}

/* One for which nobody waits any more is passed over. */
void td_remote_take_found(td_remotes *r, session *s, const td_stage_found *found)
{
    if (!s->is_kept) {
        td_remote_lose(r, s, "it answers what was not asked");
        return;
    }
    if (!s->is_find_asked || found->batch != s->found.batch)
        return;
    s->is_find_asked = false;
    s->found = *found;
    pthread_cond_broadcast(&r->changed);
}

bool td_remotes_keep(td_remotes *r, uint32_t chunk_rows, const char **without, td_err *err)
{
    *without = NULL;
    pthread_mutex_lock(&r->lock);
    ask_all(r, &(td_stage_msg){.type = TD_STAGE_KEEP, .keep = (uint16_t)chunk_rows});
    session *late = wait_for_all(r, KEEP_US);
    if (late)
        td_remote_lose(r, late, "it does not say whether it keeps prompts");
    bool is_ok = r->err.code == TD_OK || td_err_set(err, r->err.code, "%s", r->err.message);
    for (uint32_t i = 0; i < r->n_sessions; i++)
        if (!r->sessions[i].is_kept)
            *without = r->sessions[i].name;
    pthread_mutex_unlock(&r->lock);
    return is_ok;
}

void td_remotes_find_chunk(td_remotes *r, const td_stage_find *find)
{
    pthread_mutex_lock(&r->lock);
    ask_all(r, &(td_stage_msg){.type = TD_STAGE_FIND, .find = *find});
    pthread_mutex_unlock(&r->lock);
}

bool td_remotes_found_chunk(td_remotes *r, const char **damaged, const char **late)
{
    *damaged = *late = NULL;
    pthread_mutex_lock(&r->lock);
    const session *slow = wait_for_all(r, FIND_US);
    bool is_there = !slow;
    *late = slow ? slow->name : NULL;
    for (uint32_t i = 0; i < r->n_sessions; i++) {
        session *s = &r->sessions[i];
        is_there &= s->state != SESSION_LOST && s->found.what == TD_STAGE_THERE;
        if (s->found.what == TD_STAGE_DAMAGED)
            *damaged = s->name;
        s->is_find_asked = s->is_due = false;
    }
    pthread_mutex_unlock(&r->lock);
    return is_there;
}
