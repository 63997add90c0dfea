/* All that is held lies in one set of places: as a message that waits, a proposal under way, or an
 * answer; in lists of places by age. So the bound on one is the bound on all, and a proposal always
 * has room for its answer. */
#include "draft/requests.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

typedef struct {
    td_wire_msg msg;
    uint32_t sequence;
    bool is_overtaken; /* of a proposal */
    bool is_void;      /* of what is being worked on: a reset came */
    td_proposal proposal;
    uint32_t ids[TD_WIRE_IDS_MAX]; /* of a FEED */
} place;

/* Places, oldest first. */
typedef struct {
    uint32_t n;
    uint16_t at[TD_REQUESTS_MAX];
} list;

struct td_requests {
    place *places; /* [TD_REQUESTS_MAX] */
    list free, waiting, running, answers;
    bool is_reset_due;
    bool is_handed_out; /* between next and done; current is what */
    td_work_kind kind;
    uint16_t current; /* of MESSAGE and BEGIN */
};

static void list_add(list *l, uint16_t i)
{
    TD_ASSERT(l->n < TD_REQUESTS_MAX);
    l->at[l->n++] = i;
}

static void list_insert(list *l, uint32_t k, uint16_t i)
{
    TD_ASSERT(k <= l->n && l->n < TD_REQUESTS_MAX);
    memmove(l->at + k + 1, l->at + k, (l->n++ - k) * sizeof *l->at);
    l->at[k] = i;
}

/* Takes out the k-th; returns it. */
static uint16_t list_take(list *l, uint32_t k)
{
    TD_ASSERT(k < l->n);
    uint16_t i = l->at[k];
    memmove(l->at + k, l->at + k + 1, (--l->n - k) * sizeof *l->at);
    return i;
}

td_requests *td_requests_create(td_err *err)
{
    td_requests *in = td_alloc(1, sizeof *in, err);
    if (in)
        in->places = td_alloc(TD_REQUESTS_MAX, sizeof *in->places, err);
    if (!in || !in->places) {
        td_requests_destroy(&in);
        return NULL;
    }
    for (uint16_t i = 0; i < TD_REQUESTS_MAX; i++)
        list_add(&in->free, i);
    return in;
}

void td_requests_destroy(td_requests **in)
{
    if (!*in)
        return;
    td_free((*in)->places);
    td_free(*in);
    *in = NULL;
}

bool td_requests_has_room(const td_requests *in) { return in->free.n > 0; }

uint32_t td_requests_n_waiting(const td_requests *in)
{
    return in->waiting.n + in->running.n + in->is_reset_due;
}

/* The sequence that a message is about, and its epoch where it has one. */
static bool read_subject(const td_wire_msg *m, uint32_t *sequence, bool *has_epoch, uint32_t *epoch)
{
    *has_epoch = m->type == TD_WIRE_FEED || m->type == TD_WIRE_PROPOSE;
    *epoch = 0;
    switch (m->type) {
    case TD_WIRE_OPEN:
        *sequence = m->open.sequence;
        return true;
    case TD_WIRE_FEED:
        *sequence = m->feed.sequence;
        *epoch = m->feed.epoch;
        return true;
    case TD_WIRE_PROPOSE:
        *sequence = m->propose.sequence;
        *epoch = m->propose.epoch;
        return true;
    case TD_WIRE_CLOSE:
        *sequence = m->close.sequence;
        return true;
    default:
        return false;
    }
}

static void overtake(td_requests *in, const list *l, uint32_t sequence, bool has_epoch,
                     uint32_t epoch)
{
    for (uint32_t k = 0; k < l->n; k++) {
        place *p = &in->places[l->at[k]];
        if (p->msg.type == TD_WIRE_PROPOSE && p->sequence == sequence &&
            !(has_epoch && p->msg.propose.epoch == epoch))
            p->is_overtaken = true;
    }
}

static bool goes_on(const place *p, uint32_t sequence)
{
    return p->msg.type == TD_WIRE_PROPOSE && p->sequence == sequence && p->proposal.goes_on &&
           !p->is_overtaken;
}

/* Before the first that waits and goes on: what that will be about depends on what is told. */
static uint32_t place_of_feed(const td_requests *in, const place *feed)
{
    uint32_t k = 0;
    while (k < in->waiting.n && !goes_on(&in->places[in->waiting.at[k]], feed->sequence))
        k++;
    return k;
}

void td_requests_put(td_requests *in, const td_wire_msg *msg)
{
    uint32_t sequence, epoch;
    bool has_epoch;
    if (!read_subject(msg, &sequence, &has_epoch, &epoch))
        return;
    overtake(in, &in->waiting, sequence, has_epoch, epoch);
    overtake(in, &in->running, sequence, has_epoch, epoch);
    uint16_t i = list_take(&in->free, 0);
    place *p = &in->places[i];
    p->msg = *msg;
    p->sequence = sequence;
    p->is_overtaken = p->is_void = false;
    if (msg->type == TD_WIRE_FEED) {
        TD_ASSERT(msg->feed.n <= TD_WIRE_IDS_MAX);
        memcpy(p->ids, msg->feed.ids, msg->feed.n * sizeof *p->ids);
        p->msg.feed.ids = p->ids;
    }
    if (msg->type == TD_WIRE_PROPOSE)
        p->proposal = (td_proposal){.sequence = sequence,
                                    .epoch = epoch,
                                    .position = msg->propose.position,
                                    .k = td_min_u32(msg->propose.k, TD_WIRE_DRAFT_MAX),
                                    .goes_on = msg->propose.goes_on};
    list_insert(&in->waiting, msg->type == TD_WIRE_FEED ? place_of_feed(in, p) : in->waiting.n, i);
}

static bool is_in_hand(const td_requests *in, const list *l, uint16_t i)
{
    if (!in->is_handed_out)
        return false;
    return in->kind == TD_WORK_STEP ? l == &in->running
                                    : in->kind != TD_WORK_RESET && in->current == i;
}

/* What is being worked on goes when it is done. */
static void drop_all(td_requests *in, list *l)
{
    for (uint32_t k = l->n; k-- > 0;) {
        in->places[l->at[k]].is_void = true;
        if (!is_in_hand(in, l, l->at[k]))
            list_add(&in->free, list_take(l, k));
    }
}

void td_requests_reset(td_requests *in)
{
    drop_all(in, &in->waiting);
    drop_all(in, &in->running);
    drop_all(in, &in->answers);
    in->is_reset_due = true;
}

/* Has the sequence of the k-th message that waits anything before it? */
static bool is_blocked(const td_requests *in, uint32_t k)
{
    uint32_t sequence = in->places[in->waiting.at[k]].sequence;
    for (uint32_t i = 0; i < in->running.n; i++)
        if (in->places[in->running.at[i]].sequence == sequence)
            return true;
    for (uint32_t i = 0; i < k; i++)
        if (in->places[in->waiting.at[i]].sequence == sequence)
            return true;
    return false;
}

static void answer(td_requests *in, list *from, uint32_t k)
{
    list_add(&in->answers, list_take(from, k));
}

/* Does a FEED that waits say otherwise than what the proposal has found? The epoch stays when the
 * answer to a round's last row is another than its guess, which nobody but the draft knew yet. */
static bool is_contradicted(const td_requests *in, const td_proposal *p)
{
    for (uint32_t k = 0; k < in->waiting.n; k++) {
        const place *q = &in->places[in->waiting.at[k]];
        if (q->msg.type != TD_WIRE_FEED || q->sequence != p->sequence)
            continue;
        const td_wire_feed *f = &q->msg.feed;
        uint32_t first = td_max_u32(f->position, p->position);
        uint32_t end = td_min_u32(f->position + f->n, p->position + p->n);
        for (uint32_t i = first; i < end; i++)
            if (f->ids[i - f->position] != p->ids[i - p->position])
                return true;
    }
    return false;
}

/* A proposal that goes on makes way for tokens that are told, and begins again behind them: what it
 * has found is there at once if it still holds. */
static void make_way(td_requests *in)
{
    for (uint32_t k = in->running.n; k-- > 0;) {
        place *p = &in->places[in->running.at[k]];
        uint32_t first = 0;
        while (first < in->waiting.n && in->places[in->waiting.at[first]].sequence != p->sequence)
            first++;
        if (!goes_on(p, p->sequence) || first == in->waiting.n ||
            in->places[in->waiting.at[first]].msg.type != TD_WIRE_FEED)
            continue;
        while (first < in->waiting.n &&
               (in->places[in->waiting.at[first]].sequence != p->sequence ||
                in->places[in->waiting.at[first]].msg.type == TD_WIRE_FEED))
            first++;
        p->proposal.k = td_min_u32(p->msg.propose.k, TD_WIRE_DRAFT_MAX);
        p->proposal.n = 0;
        list_insert(&in->waiting, first, list_take(&in->running, k));
    }
}

/* Answers what is overtaken and has nothing before it. */
static void answer_overtaken(td_requests *in)
{
    for (uint32_t k = 0; k < in->running.n;)
        if (in->places[in->running.at[k]].is_overtaken ||
            is_contradicted(in, &in->places[in->running.at[k]].proposal))
            answer(in, &in->running, k);
        else
            k++;
    for (uint32_t k = 0; k < in->waiting.n;)
        if (in->places[in->waiting.at[k]].is_overtaken && !is_blocked(in, k))
            answer(in, &in->waiting, k);
        else
            k++;
}

static bool hand_out(td_requests *in, td_work *work, td_work_kind kind)
{
    work->kind = in->kind = kind;
    in->is_handed_out = true;
    return true;
}

bool td_requests_next(td_requests *in, td_work *work)
{
    TD_ASSERT(!in->is_handed_out);
    *work = (td_work){0};
    if (in->is_reset_due) {
        in->is_reset_due = false;
        return hand_out(in, work, TD_WORK_RESET);
    }
    make_way(in);
    answer_overtaken(in);
    for (uint32_t k = 0; k < in->waiting.n; k++) {
        if (is_blocked(in, k))
            continue;
        in->current = in->waiting.at[k];
        place *p = &in->places[in->current];
        work->message = &p->msg;
        if (p->msg.type != TD_WIRE_PROPOSE)
            return hand_out(in, work, TD_WORK_MESSAGE);
        list_add(&in->running, list_take(&in->waiting, k));
        work->jobs[work->n_jobs++] = &p->proposal;
        return hand_out(in, work, TD_WORK_BEGIN);
    }
    for (uint32_t k = 0; k < in->running.n; k++)
        work->jobs[work->n_jobs++] = &in->places[in->running.at[k]].proposal;
    return work->n_jobs && hand_out(in, work, TD_WORK_STEP);
}

/* Of one list: what was in hand and is void or was a message goes, what is done is answered. */
static void settle(td_requests *in, list *l)
{
    for (uint32_t k = 0; k < l->n;) {
        const place *p = &in->places[l->at[k]];
        bool is_message = p->msg.type != TD_WIRE_PROPOSE;
        if (!is_in_hand(in, l, l->at[k]))
            k++;
        else if (p->is_void || is_message)
            list_add(&in->free, list_take(l, k));
        else if (p->proposal.is_done)
            answer(in, l, k);
        else
            k++;
    }
}

void td_requests_done(td_requests *in)
{
    TD_ASSERT(in->is_handed_out);
    settle(in, &in->waiting);
    settle(in, &in->running);
    in->is_handed_out = false;
}

const td_proposal *td_requests_answer(const td_requests *in)
{
    return in->answers.n ? &in->places[in->answers.at[0]].proposal : NULL;
}

void td_requests_pop(td_requests *in) { list_add(&in->free, list_take(&in->answers, 0)); }
