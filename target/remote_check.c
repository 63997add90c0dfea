#include "target/remote_check.h"

#include "base/check.h"
#include "base/mem.h"
#include "target/remote_impl.h"
#include "target/split.h"

#include <stdio.h>
#include <string.h>

struct td_remote_check {
    td_host host;
    td_remotes *remotes;
};

td_remote_check *td_remote_check_open(const td_host *host, const char *key, td_err *err)
{
    td_remote_check *c = td_alloc(1, sizeof *c, err);
    if (!c)
        return NULL;
    c->host = *host;
    c->remotes = td_remotes_create(host, 1, key, err);
    if (!c->remotes || !td_remotes_join(c->remotes, err))
        td_remote_check_close(&c);
    return c;
}

void td_remote_check_close(td_remote_check **check)
{
    if (*check)
        td_remotes_destroy(&(*check)->remotes);
    td_free(*check);
    *check = NULL;
}

void td_remote_check_list(const td_remote_check *c, const char **specs, uint32_t n_max, uint32_t *n)
{
    const td_stage_hello_ok *hello = td_remotes_hello(c->remotes, 0);
    for (*n = 0; *n < hello->n_devices && *n < n_max; ++*n)
        specs[*n] = hello->devices[*n].spec;
}

/* A failed device is what a check is for. */
static bool find(const td_remote_check *c, const char *spec, uint8_t *out, td_err *err)
{
    td_device_info info;
    return td_split_find_device(c->host.name, spec, td_remotes_hello(c->remotes, 0), true, &info,
                                out, err);
}

static bool tell(void *user, const session *s)
{
    const td_remote_check_params *p = user;
    if (p->progress && s->checking[0])
        p->progress(p->user, s->checking);
    return true;
}

bool td_remote_check_run(td_remote_check *c, const td_remote_check_params *params,
                         const void **bytes, size_t *n_bytes, td_err *err)
{
    td_remotes *r = c->remotes;
    session *s = &r->sessions[0];
    td_remote_check_params copy = *params;
    td_stage_check what = {.is_quick = params->is_quick, .is_hop = params->is_hop};
    if (!find(c, params->spec, &what.device, err) ||
        !find(c, params->other ? params->other : params->spec, &what.other, err))
        return false;
    if (params->only && strlen(params->only) >= sizeof what.only)
        return td_err_set(err, TD_E_USAGE, "--only: %.64s has more than %zu bytes", params->only,
                          sizeof what.only - 1);
    if (params->only)
        memcpy(what.only, params->only, strlen(params->only));
    pthread_mutex_lock(&r->lock);
    s->checking[0] = 0;
    s->due = (td_stage_msg){.type = TD_STAGE_CHECK, .check = what};
    s->is_due = true;
    if (s->state != SESSION_LOST)
        s->state = SESSION_CHECKING;
    td_remotes_wake(r);
    bool is_ok = td_remote_wait_idle(r, tell, &copy, err);
    pthread_mutex_unlock(&r->lock);
    *bytes = s->report.bytes; /* none comes that was not asked for */
    *n_bytes = is_ok ? s->report.n_bytes : 0;
    return is_ok;
}
