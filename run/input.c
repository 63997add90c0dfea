/* The reading thread goes from line to line: what the results say of it comes first, so that a
 * million lines that are done already cost no tokens. A ring of what is ready lies between it and
 * the event loop; the eventfd is set and cleared under the ring's lock, so it never lies. */
#include "run/input.h"

#include "base/mem.h"
#include "base/signals.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct td_input {
    td_input_params params;
    int ready_fd, stop_fd;
    pthread_t thread;
    bool is_running;
    pthread_mutex_t lock;
    pthread_cond_t has_room;
    /* Under the lock: */
    td_prompt *ready[TD_INPUT_AHEAD_MAX];
    uint32_t i_first, n_ready;
    size_t n_bytes; /* of what is ready */
    bool is_stopping, is_ended;
    td_err err;
    td_input_counts counts;
};

static void set(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one);
    (void)n; /* it can only be full, which is readable too */
}

/* -- the reading thread ------------------------------------------------------------------------ */

/* What the results file says about a prompt: wanted, not wanted, or (false) the end of the run. */
static bool claim(td_input *in, td_prompt *q, bool *is_wanted, td_err *err)
{
    const td_run_params *run = in->params.run;
    char why[900] = "";
    td_err failure = {0};
    td_result_state state = td_results_claim(in->params.results, q->id, q->input_sha,
                                             in->params.config_sha, why, sizeof why, &failure);
    if (state == TD_RESULT_TWICE) { /* an error, under the line's own name */
        td_err_set(&q->err, TD_E_DATA, "line %llu: the id %s is used by an earlier line",
                   (unsigned long long)q->line, q->id);
        memcpy(q->id, q->line_id, sizeof q->line_id);
        state = td_results_claim(in->params.results, q->id, q->input_sha, in->params.config_sha,
                                 why, sizeof why, &failure);
    }
    if (failure.code != TD_OK)
        return td_err_set(err, failure.code, "%s", failure.message);
    if (state == TD_RESULT_OTHER && !run->is_force)
        return td_err_set(err, TD_E_DATA, "%s: %s", run->out_path, why);
    *is_wanted = state == TD_RESULT_NONE || (state == TD_RESULT_ERROR && run->is_retry_errors);
    if (*is_wanted)
        return true;
    pthread_mutex_lock(&in->lock);
    in->counts.n_skipped++;
    in->counts.n_old_errors += state == TD_RESULT_ERROR;
    pthread_mutex_unlock(&in->lock);
    return true;
}

static void tokenize(const td_input *in, td_prompt *q)
{
    const td_tokenizer *t = td_model_tokenizer(in->params.model);
    bool is_ok = q->chat.messages
                     ? td_chat_input_tokenize(&q->chat, in->params.chat, in->params.date, t,
                                              &q->ids, &q->n_ids, &q->err)
                     : td_tokenize(t, q->text, q->n_text, TD_ADD_FOR_PROMPT, q->is_special, &q->ids,
                                   &q->n_ids, &q->err);
    if (is_ok && q->n_ids == 0)
        td_err_set(&q->err, TD_E_DATA, "the prompt is empty and the model has no BOS token");
}

static size_t bytes_of(const td_prompt *q) { return q->n_bytes + q->n_ids * sizeof *q->ids; }

/* Waits for room; false when nobody wants any more. Takes the prompt over on success. */
static bool hand_over(td_input *in, td_prompt *q)
{
    pthread_mutex_lock(&in->lock);
    while (!in->is_stopping && (in->n_ready == TD_INPUT_AHEAD_MAX ||
                                (in->n_ready && in->n_bytes >= TD_INPUT_AHEAD_BYTES)))
        pthread_cond_wait(&in->has_room, &in->lock);
    bool is_wanted = !in->is_stopping;
    if (is_wanted) {
        in->ready[(in->i_first + in->n_ready++) % TD_INPUT_AHEAD_MAX] = q;
        in->n_bytes += bytes_of(q);
        set(in->ready_fd);
    }
    pthread_mutex_unlock(&in->lock);
    return is_wanted;
}

static void *read_main(void *arg)
{
    td_input *in = arg;
    td_err err = {0};
    bool is_ok = true;
    while (is_ok) {
        td_prompt *q = td_prompts_next(in->params.prompts, &err);
        bool is_wanted = false;
        if (!q)
            break;
        is_ok = claim(in, q, &is_wanted, &err);
        if (is_ok && is_wanted && q->err.code == TD_OK)
            tokenize(in, q);
        if (is_ok && is_wanted && (is_ok = hand_over(in, q)))
            q = NULL;
        td_prompt_destroy(&q);
    }
    pthread_mutex_lock(&in->lock);
    if (!td_signals_pending()) /* else the reading was interrupted, as it should be */
        in->err = err;
    in->is_ended = true;
    set(in->ready_fd);
    pthread_mutex_unlock(&in->lock);
    return NULL;
}

/* -- the event loop's side --------------------------------------------------------------------- */

td_input *td_input_create(const td_input_params *params, td_err *err)
{
    td_input *in = td_alloc(1, sizeof *in, err);
    if (!in)
        return NULL;
    in->params = *params;
    pthread_mutex_init(&in->lock, NULL);
    pthread_cond_init(&in->has_room, NULL);
    in->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    in->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (in->ready_fd < 0 || in->stop_fd < 0) {
        td_err_set(err, TD_E_IO, "input: eventfd: %s", strerror(errno));
        td_input_destroy(&in);
        return NULL;
    }
    td_prompts_stop_at(params->prompts, in->stop_fd);
    in->is_running = !pthread_create(&in->thread, NULL, read_main, in);
    if (!in->is_running) {
        td_err_set(err, TD_E_NOMEM, "input: no thread");
        td_input_destroy(&in);
    }
    return in;
}

void td_input_destroy(td_input **input)
{
    td_input *in = *input;
    if (!in)
        return;
    if (in->is_running) {
        set(in->stop_fd);
        pthread_mutex_lock(&in->lock);
        in->is_stopping = true;
        pthread_cond_signal(&in->has_room);
        pthread_mutex_unlock(&in->lock);
        pthread_join(in->thread, NULL);
    }
    for (; in->n_ready; in->n_ready--)
        td_prompt_destroy(&in->ready[in->i_first++ % TD_INPUT_AHEAD_MAX]);
    if (in->ready_fd >= 0)
        close(in->ready_fd);
    if (in->stop_fd >= 0)
        close(in->stop_fd);
    pthread_cond_destroy(&in->has_room);
    pthread_mutex_destroy(&in->lock);
    td_free(in);
    *input = NULL;
}

int td_input_fd(const td_input *in) { return in->ready_fd; }

bool td_input_take(td_input *in, td_prompt **prompt)
{
    pthread_mutex_lock(&in->lock);
    bool has_one = in->n_ready > 0;
    if (has_one) {
        *prompt = in->ready[in->i_first];
        in->i_first = (in->i_first + 1) % TD_INPUT_AHEAD_MAX;
        in->n_ready--;
        in->n_bytes -= bytes_of(*prompt);
        pthread_cond_signal(&in->has_room);
    } else {
        uint64_t count;
        ssize_t n = read(in->ready_fd, &count, sizeof count);
        (void)n; /* not blocking: nothing to read is fine */
    }
    pthread_mutex_unlock(&in->lock);
    return has_one;
}

bool td_input_is_done(td_input *in, td_err *err)
{
    pthread_mutex_lock(&in->lock);
    bool is_done = in->is_ended && in->n_ready == 0;
    if (is_done && in->err.code != TD_OK)
        td_err_set(err, in->err.code, "%s", in->err.message);
    pthread_mutex_unlock(&in->lock);
    return is_done;
}

td_input_counts td_input_get_counts(td_input *in)
{
    pthread_mutex_lock(&in->lock);
    td_input_counts counts = in->counts;
    pthread_mutex_unlock(&in->lock);
    return counts;
}
