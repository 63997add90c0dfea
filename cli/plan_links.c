/* tandem plan --hardware, of a file that says what to compare: published rows beside what is
 * predicted of them, models over all devices on one link and another, and what they ask of a link.
 * Lines are as docs/planning.md and docs/many-machines.md have them. */
#include "cli/plan.h"

#include "base/check.h"
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define CHUNK    512u  /* rows of a prefill pass of the programs that were measured */
#define LOSS     0.05  /* of a stream's speed, that a link may cost */
#define PROMPT   2048u /* positions */
#define ROWS_MAX 200u

static const char *const tests[] = {"decode", "prefill", NULL};
static const td_json_field row_fields[] = {
    {.key = "hardware", .type = TD_JSON_STRING, .required = true, .min = 1, .max = 64},
    {.key = "model", .type = TD_JSON_STRING, .required = true, .min = 1, .max = 63},
    {.key = "test", .type = TD_JSON_ENUM, .required = true, .names = tests},
    {.key = "value", .type = TD_JSON_FLOAT, .required = true, .f_min = 0.01, .f_max = 1e6},
    {.key = "layers",
     .type = TD_JSON_INT_LIST,
     .required = true,
     .max = TD_LAYERS_MAX,
     .n_max = TD_SPEED_DEVICES_MAX},
    {.key = "prompt", .type = TD_JSON_INT, .min = 1, .max = 1 << 20},
    {.key = "turns", .type = TD_JSON_INT, .required = true, .max = 100},
    {.key = "payload_kb", .type = TD_JSON_FLOAT, .required = true, .f_max = 1e5},
};
static const td_json_schema row_schema = {row_fields, TD_COUNT(row_fields), true};
static const td_json_field list_fields[] = {
    {.key = "rows", .type = TD_JSON_OBJECT_LIST, .required = true, .n_max = ROWS_MAX}};
static const td_json_schema list_schema = {list_fields, TD_COUNT(list_fields), false};

/* A row of this file that is over several devices. */
static bool print_published(td_hardware *h, const td_json_object *o, td_err *err)
{
    const td_hardware_model *m = td_hardware_find(h, td_json_get_string(o, "model", ""));
    uint32_t layers[TD_SPEED_DEVICES_MAX] = {0}, sum = 0, n_parts = 0;
    for (size_t i = 0; i < td_json_count(o, "layers"); i++) {
        layers[i] = (uint32_t)td_json_get_int_at(o, "layers", i);
        sum += layers[i];
        n_parts += layers[i] > 0;
    }
    if (!m || (n_parts && sum != m->n_layers) || td_json_count(o, "layers") > h->n_devices)
        return td_json_fail(o, "model", err,
                            "is no model of the list of models, or has other layers");
    if (n_parts < 2)
        return true;
    bool is_prefill = td_json_get_enum(o, "test", 0) == 1;
    uint32_t n_prompt = (uint32_t)td_json_get_int(o, "prompt", CHUNK);
    double n_rows = is_prefill ? CHUNK : 1, speeds[2];
    double theirs = 1e6 * n_rows /
                    td_hardware_turns_us(h, m, layers, n_rows, !is_prefill,
                                         (uint32_t)td_json_get_int(o, "turns", 0),
                                         1e3 * td_json_get_double(o, "payload_kb", 0));
    for (int is_half = 0; is_half < 2; is_half++) {
        td_speed_row row;
        h->is_half = is_half;
        if (!td_hardware_run(h, m, layers, 1, n_prompt, &row, err))
            return false;
        speeds[is_half] = is_prefill ? row.prefill_per_s : row.decode_per_s;
    }
    char what[32] = "decode";
    if (is_prefill)
        snprintf(what, sizeof what, "prompt of %u", n_prompt);
    printf("| %s | %s | %.2f | %.2f | %.2f | %.2f |\n", m->name, what,
           td_json_get_double(o, "value", 0), theirs, speeds[0], speeds[1]);
    return true;
}

static bool print_all_published(td_hardware *h, const char *name, td_err *err)
{
    td_json *doc = td_json_read_file(h->published, err);
    td_json_object root, o;
    bool is_ok = doc && td_json_read_root(doc, &list_schema, &root, err);
    printf("\nOver several machines, as published; predicted as that program goes; as tandem does, "
           "f32 "
           "and f16 between\nmachines:\n\n| model | what | published | its way | tandem | f16 "
           "|\n|---|---|---:|---:|---:|---:|\n");
    for (size_t i = 0; is_ok && i < td_json_count(&root, "rows"); i++) {
        is_ok = td_json_read_element(&root, "rows", i, &row_schema, &o, err);
        if (is_ok && !strcmp(td_json_get_string(&o, "hardware", ""), name))
            is_ok = print_published(h, &o, err);
    }
    td_json_destroy(&doc);
    return is_ok;
}

static void share_evenly(const td_hardware *h, const td_hardware_model *m, uint32_t *layers)
{
    for (uint32_t i = 0; i < h->n_devices; i++)
        layers[i] = (i + 1) * m->n_layers / h->n_devices - i * m->n_layers / h->n_devices;
}

/* A stream and a batch, a prompt of its own and many of them; activations f32 or f16. */
typedef struct {
    td_speed_row stream, batch;
} run;

static bool predict(td_hardware *h, const td_hardware_model *m, const td_hardware_link *link,
                    bool is_half, run *out, td_err *err)
{
    uint32_t layers[TD_SPEED_DEVICES_MAX] = {0};
    share_evenly(h, m, layers);
    h->round_trip_us = link->round_trip_us;
    h->link_bytes_per_s = link->bytes_per_s;
    h->is_half = is_half;
    return td_hardware_run(h, m, layers, 1, PROMPT, &out->stream, err) &&
           td_hardware_run(h, m, layers, TD_HARDWARE_SEQUENCES, PROMPT, &out->batch, err);
}

static bool print_links(td_hardware *h, td_err *err)
{
    printf(
        "\nAll machines with as many layers each, by link, tokens/s:\n\n| model | link | a stream "
        "| f16 | %u streams | f16 | a prompt of %u | f16 |\n|---|---|---:|---:|---:|---:|---:|---:"
        "|\n",
        TD_HARDWARE_SEQUENCES, PROMPT);
    for (uint32_t i = 0; i < h->n_compared; i++)
        for (uint32_t k = 0; k < h->n_links; k++) {
            run f32, f16;
            if (!predict(h, h->compared[i], &h->links[k], false, &f32, err) ||
                !predict(h, h->compared[i], &h->links[k], true, &f16, err))
                return false;
            printf("| %s | %s | %.1f | %.1f | %.1f | %.1f | %.0f | %.0f |\n", h->compared[i]->name,
                   h->links[k].name, f32.stream.decode_per_s, f16.stream.decode_per_s,
                   f32.batch.decode_per_s, f16.batch.decode_per_s, f32.stream.prefill_per_s,
                   f16.stream.prefill_per_s);
        }
    return true;
}

/* The round trip at which a stream has lost LOSS of what it is without a link, in ms; the token's
 * bytes on the way are part of it. */
static double most_trip_ms(const td_hardware *h, const td_hardware_model *m, double stream_us,
                           double bytes_per_s)
{
    double n_ways = h->n_devices, left_us = stream_us * LOSS / (1 - LOSS);
    left_us -= (n_ways - 1) * 1e6 * TD_WIRE_ON_LINK * td_hardware_row_bytes(m, false) / bytes_per_s;
    return fmax(0, 2 * left_us / n_ways) * 1e-3;
}

static bool print_needs(td_hardware *h, td_err *err)
{
    static const td_hardware_link none = {.name = "none", .bytes_per_s = 1e15};
    printf(
        "\nWhat a link must bring: bytes of a token and hop; Mb/s a hop of %u streams and of "
        "prompts, as fast as the\nmachines are; the round trip that costs a stream a twentieth, "
        "ms:\n\n| model | `n_embd` | bytes a token | f16 | %u streams, Mb/s | prompts, Mb/s | at 1 "
        "Gb/s, ms | at 10 Gb/s |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
        TD_HARDWARE_SEQUENCES, TD_HARDWARE_SEQUENCES);
    for (uint32_t i = 0; i < h->n_compared; i++) {
        const td_hardware_model *m = h->compared[i];
        run r;
        if (!predict(h, m, &none, false, &r, err))
            return false;
        double bytes = td_hardware_row_bytes(m, false), us = 1e6 / r.stream.decode_per_s;
        double megabits = 8e-6 * TD_WIRE_ON_LINK * bytes;
        printf("| %s | %u | %.0f | %.0f | %.0f | %.0f | %.2f | %.2f |\n", m->name, m->n_embd, bytes,
               td_hardware_row_bytes(m, true), megabits * r.batch.decode_per_s,
               megabits * r.batch.prefill_per_s, most_trip_ms(h, m, us, 125e6),
               most_trip_ms(h, m, us, 1250e6));
    }
    return true;
}

bool td_plan_links(td_hardware *h, const char *path, td_err *err)
{
    const char *slash = strrchr(path, '/');
    char name[TD_HARDWARE_NAME_MAX];
    snprintf(name, sizeof name, "%s", slash ? slash + 1 : path);
    name[strcspn(name, ".")] = 0;
    return (!h->published[0] || print_all_published(h, name, err)) &&
           (!h->n_links || !h->n_compared || (print_links(h, err) && print_needs(h, err)));
}
