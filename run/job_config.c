#include "run/job_config.h"

#include "base/check.h"
#include "base/json_writer.h"
#include "base/mem.h"
#include "run/results.h"

#include <string.h>

static const td_json_field fields[] = {
    {.key = "n", .type = TD_JSON_INT, .required = true, .min = 1, .max = 1 << 24},
    {.key = "temp", .type = TD_JSON_FLOAT, .required = true, .f_min = 0, .f_max = 100},
    {.key = "top_k", .type = TD_JSON_INT, .required = true, .min = 0, .max = 1 << 20},
    {.key = "top_p", .type = TD_JSON_FLOAT, .required = true, .f_min = 0, .f_max = 1},
    {.key = "min_p", .type = TD_JSON_FLOAT, .required = true, .f_min = 0, .f_max = 1},
    {.key = "repeat_penalty", .type = TD_JSON_FLOAT, .required = true, .f_min = 0.01, .f_max = 100},
    {.key = "seed", .type = TD_JSON_INT, .required = true, .min = 0, .max = INT64_MAX},
    {.key = "ignore_eos", .type = TD_JSON_BOOL, .required = true},
    {.key = "date",
     .type = TD_JSON_STRING,
     .required = true,
     .min = TD_DATE_BYTES - 1,
     .max = TD_DATE_BYTES - 1},
    {.key = "stop",
     .type = TD_JSON_STRING_LIST,
     .required = true,
     .min = 1,
     .max = TD_STOP_BYTES_MAX,
     .n_max = TD_STOPS_MAX},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), false};

bool td_job_config_write(const td_run_params *p, const char *date, char **text, td_err *err)
{
    td_json_writer *w = td_json_writer_create(false, err);
    const char *json;
    size_t n_bytes;
    if (!w)
        return false;
    td_json_begin_object(w);
    td_json_put_u64(w, "n", p->n_predict);
    td_json_put_double(w, "temp", (double)p->sampling.temperature);
    td_json_put_u64(w, "top_k", p->sampling.top_k);
    td_json_put_double(w, "top_p", (double)p->sampling.top_p);
    td_json_put_double(w, "min_p", (double)p->sampling.min_p);
    td_json_put_double(w, "repeat_penalty", (double)p->sampling.repeat_penalty);
    td_json_put_u64(w, "seed", p->seed);
    td_json_put_bool(w, "ignore_eos", p->ignore_eos);
    td_json_put_string(w, "date", date);
    td_json_write_key(w, "stop");
    td_json_begin_array(w);
    for (uint32_t i = 0; i < p->n_stops; i++)
        td_json_write_string(w, p->stops[i]);
    td_json_end_array(w);
    td_json_end_object(w);
    *text = td_json_writer_end(w, &json, &n_bytes, err) ? td_strndup(json, n_bytes, err) : NULL;
    td_json_writer_destroy(&w);
    return *text;
}

/* A worker that was told otherwise would not be doing what its user thinks. */
static bool take(td_run_params *p, const td_run_params *job, td_err *err)
{
    const td_sampling_params *s = &p->sampling, *j = &job->sampling, d = TD_SAMPLING_DEFAULTS;
    const struct {
        const char *flag;
        double here, usual, there;
    } rows[] = {
        {"-n", p->n_predict, TD_N_PREDICT_DEFAULT, job->n_predict},
        {"--temp", (double)s->temperature, (double)d.temperature, (double)j->temperature},
        {"--top-k", s->top_k, d.top_k, j->top_k},
        {"--top-p", (double)s->top_p, (double)d.top_p, (double)j->top_p},
        {"--min-p", (double)s->min_p, (double)d.min_p, (double)j->min_p},
        {"--repeat-penalty", (double)s->repeat_penalty, (double)d.repeat_penalty,
         (double)j->repeat_penalty},
        {"--seed", (double)p->seed, 0, (double)job->seed},
        {"--ignore-eos", p->ignore_eos, 0, job->ignore_eos},
        {"--stop", p->n_stops, 0, job->n_stops},
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++)
        if (rows[i].here != rows[i].usual && rows[i].here != rows[i].there)
            return td_err_set(err, TD_E_USAGE,
                              "%s: %g; the job says %g for all its lines (`tandem job create`)",
                              rows[i].flag, rows[i].here, rows[i].there);
    p->n_predict = job->n_predict;
    p->sampling = job->sampling;
    p->seed = job->seed;
    p->ignore_eos = job->ignore_eos;
    p->n_stops = job->n_stops;
    memcpy(p->stops, job->stops, sizeof p->stops);
    return true;
}

bool td_job_config_read(const char *text, td_run_params *params, const char **date,
                        td_json **document, td_err *err)
{
    td_json_object o;
    td_run_params job = {.sampling = TD_SAMPLING_DEFAULTS};
    *document = td_json_parse(text, strlen(text), "the job's settings", err);
    if (!*document || !td_json_read_root(*document, &schema, &o, err))
        return false;
    job.n_predict = (uint32_t)td_json_get_int(&o, "n", 0);
    job.sampling.temperature = (float)td_json_get_double(&o, "temp", 0);
    job.sampling.top_k = (uint32_t)td_json_get_int(&o, "top_k", 0);
    job.sampling.top_p = (float)td_json_get_double(&o, "top_p", 0);
    job.sampling.min_p = (float)td_json_get_double(&o, "min_p", 0);
    job.sampling.repeat_penalty = (float)td_json_get_double(&o, "repeat_penalty", 0);
    job.seed = (uint64_t)td_json_get_int(&o, "seed", 0);
    job.ignore_eos = td_json_get_bool(&o, "ignore_eos", false);
    job.n_stops = (uint32_t)td_json_count(&o, "stop");
    for (uint32_t i = 0; i < job.n_stops; i++)
        job.stops[i] = td_json_get_string_at(&o, "stop", i);
    *date = td_json_get_string(&o, "date", "");
    td_err why = {0};
    if (!td_sampling_check(&job.sampling, &why))
        return td_err_set(err, TD_E_DATA, "the job's settings: %s", why.message);
    return take(params, &job, err);
}
