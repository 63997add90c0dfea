#include "planning/hardware.h"

#include "base/check.h"
#include "base/json.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FIXED_BYTES 1e9 /* scratch, and what else is on a device */

static const char *const kinds[] = {"dense", "experts", "hybrid", "hybrid_experts", NULL};

/* -- reading ----------------------------------------------------------------------------------- */

#define NUMBER(name, low, high)                                                                    \
    {                                                                                              \
        .key = name, .type = TD_JSON_FLOAT, .required = true, .f_min = low, .f_max = high          \
    }
#define COUNT(name, low, high)                                                                     \
    {                                                                                              \
        .key = name, .type = TD_JSON_INT, .required = true, .min = low, .max = high                \
    }
#define TEXT(name, most)                                                                           \
    {                                                                                              \
        .key = name, .type = TD_JSON_STRING, .required = true, .min = 1, .max = most               \
    }

static const td_json_field layer_fields[] = {NUMBER("dense", 0, 1e6), NUMBER("experts", 0, 1e6),
                                             NUMBER("hybrid", 0, 1e6),
                                             NUMBER("hybrid_experts", 0, 1e6)};
static const td_json_field device_fields[] = {
    TEXT("name", TD_HARDWARE_NAME_MAX - 1),
    NUMBER("bandwidth_gb_s", 0.1, 1e5),
    NUMBER("tflops", 0.001, 1e5),
    NUMBER("memory_gb", 0.1, 1e5),
    NUMBER("bandwidth_share", 0.01, 1),
    NUMBER("compute_share", 0.001, 1),
    {.key = "layer_us", .type = TD_JSON_OBJECT, .required = true},
    {.key = "machine", .type = TD_JSON_INT, .min = 0, .max = TD_SPEED_DEVICES_MAX - 1},
    TEXT("source", 1024)};
static const td_json_field named_link_fields[] = {TEXT("name", TD_HARDWARE_NAME_MAX - 1),
                                                  NUMBER("round_trip_us", 0, 1e7),
                                                  NUMBER("gb_s", 1e-4, 1e4), TEXT("source", 1024)};
static const td_json_field links_fields[] = {{.key = "links",
                                              .type = TD_JSON_OBJECT_LIST,
                                              .required = true,
                                              .n_max = TD_HARDWARE_LINKS_MAX}};
static const td_json_field link_fields[] = {NUMBER("round_trip_us", 0, 1e7),
                                            NUMBER("gb_s", 1e-4, 1e4), TEXT("source", 1024)};
static const td_json_field root_fields[] = {
    TEXT("about", TD_HARDWARE_ABOUT_MAX - 1),
    {.key = "models", .type = TD_JSON_PATH, .required = true},
    TEXT("draft", TD_HARDWARE_NAME_MAX - 1),
    {.key = "devices",
     .type = TD_JSON_OBJECT_LIST,
     .required = true,
     .n_max = TD_SPEED_DEVICES_MAX},
    {.key = "link", .type = TD_JSON_OBJECT, .required = true},
    {.key = "links", .type = TD_JSON_PATH},
    {.key = "published", .type = TD_JSON_PATH},
    {.key = "compare",
     .type = TD_JSON_STRING_LIST,
     .min = 1,
     .max = TD_HARDWARE_NAME_MAX - 1,
     .n_max = TD_HARDWARE_MODELS_MAX}};
static const td_json_field model_fields[] = {
    TEXT("name", TD_HARDWARE_NAME_MAX - 1),
    {.key = "kind", .type = TD_JSON_ENUM, .required = true, .names = kinds},
    COUNT("layers", 1, TD_LAYERS_MAX),
    COUNT("embd", 1, TD_EMBD_MAX),
    NUMBER("other_gb", 0.001, 1e5),
    NUMBER("experts_gb", 0, 1e5),
    COUNT("experts", 0, 65536),
    COUNT("experts_used", 0, 65536),
    NUMBER("output_gb", 0, 1e4),
    NUMBER("active_gparams", 0.001, 1e5),
    NUMBER("kv_kb", 0, 1e6),
    TEXT("source", 1024)};
static const td_json_field list_fields[] = {{.key = "models",
                                             .type = TD_JSON_OBJECT_LIST,
                                             .required = true,
                                             .n_max = TD_HARDWARE_MODELS_MAX}};
static const td_json_schema layer_schema = {layer_fields, TD_COUNT(layer_fields), false};
static const td_json_schema device_schema = {device_fields, TD_COUNT(device_fields), false};
static const td_json_schema named_link_schema = {named_link_fields, TD_COUNT(named_link_fields),
                                                 false};
static const td_json_schema links_schema = {links_fields, TD_COUNT(links_fields), false};
static const td_json_schema link_schema = {link_fields, TD_COUNT(link_fields), false};
static const td_json_schema root_schema = {root_fields, TD_COUNT(root_fields), false};
static const td_json_schema model_schema = {model_fields, TD_COUNT(model_fields), false};
static const td_json_schema list_schema = {list_fields, TD_COUNT(list_fields), false};

static void copy_text(const td_json_object *o, const char *key, char *out, size_t n_bytes)
{
    snprintf(out, n_bytes, "%s", td_json_get_string(o, key, ""));
}

static bool read_model(const td_json_object *o, td_hardware_model *m, td_err *err)
{
    copy_text(o, "name", m->name, sizeof m->name);
    m->kind = (td_hardware_kind)td_json_get_enum(o, "kind", 0);
    m->n_layers = (uint32_t)td_json_get_int(o, "layers", 0);
    m->n_embd = (uint32_t)td_json_get_int(o, "embd", 0);
    m->n_experts = (uint32_t)td_json_get_int(o, "experts", 0);
    m->n_used = (uint32_t)td_json_get_int(o, "experts_used", 0);
    m->other_bytes = 1e9 * td_json_get_double(o, "other_gb", 0);
    m->experts_bytes = 1e9 * td_json_get_double(o, "experts_gb", 0);
    m->output_bytes = 1e9 * td_json_get_double(o, "output_gb", 0);
    m->n_active = 1e9 * td_json_get_double(o, "active_gparams", 0);
    m->kv_bytes = 1e3 * td_json_get_double(o, "kv_kb", 0);
    bool has_experts = m->kind == TD_HARDWARE_EXPERTS || m->kind == TD_HARDWARE_HYBRID_EXPERTS;
    if (has_experts != (m->n_experts > 0))
        return td_json_fail(o, "experts", err, "%u; \"%s\" models have %s", m->n_experts,
                            kinds[m->kind], has_experts ? "some" : "none");
    if (m->n_used > m->n_experts || (has_experts && !m->n_used))
        return td_json_fail(o, "experts_used", err, "%u of %u; allowed: %s%u", m->n_used,
                            m->n_experts, has_experts ? "1.." : "", m->n_experts);
    return true;
}

static bool read_models(const char *path, td_hardware *h, td_err *err)
{
    td_json *doc = td_json_read_file(path, err);
    td_json_object root, o;
    bool is_ok = doc && td_json_read_root(doc, &list_schema, &root, err);
    uint32_t n = is_ok ? (uint32_t)td_json_count(&root, "models") : 0;
    for (; is_ok && h->n_models < n; h->n_models++)
        is_ok = td_json_read_element(&root, "models", h->n_models, &model_schema, &o, err) &&
                read_model(&o, &h->models[h->n_models], err);
    if (is_ok && !n)
        is_ok = td_json_fail(&root, "models", err, "is empty");
    td_json_destroy(&doc);
    return is_ok;
}

static bool read_device(const td_json_object *o, td_hardware_device *d, td_err *err)
{
    td_json_object layers;
    if (!td_json_read_member(o, "layer_us", &layer_schema, &layers, err))
        return false;
    copy_text(o, "name", d->name, sizeof d->name);
    d->bytes_per_s = 1e9 * td_json_get_double(o, "bandwidth_gb_s", 0);
    d->flops_per_s = 1e12 * td_json_get_double(o, "tflops", 0);
    d->memory_bytes = 1e9 * td_json_get_double(o, "memory_gb", 0);
    d->bandwidth_share = td_json_get_double(o, "bandwidth_share", 0);
    d->compute_share = td_json_get_double(o, "compute_share", 0);
    d->machine = (uint32_t)td_json_get_int(o, "machine", 0);
    for (uint32_t i = 0; i < TD_HARDWARE_KIND_COUNT; i++)
        d->layer_us[i] = td_json_get_double(&layers, kinds[i], 0);
    return true;
}

static bool read_links(const char *path, td_hardware *h, td_err *err)
{
    td_json *doc = td_json_read_file(path, err);
    td_json_object root, o;
    bool is_ok = doc && td_json_read_root(doc, &links_schema, &root, err);
    uint32_t n = is_ok ? (uint32_t)td_json_count(&root, "links") : 0;
    for (; is_ok && h->n_links < n; h->n_links++) {
        td_hardware_link *l = &h->links[h->n_links];
        is_ok = td_json_read_element(&root, "links", h->n_links, &named_link_schema, &o, err);
        if (!is_ok)
            break;
        copy_text(&o, "name", l->name, sizeof l->name);
        l->round_trip_us = td_json_get_double(&o, "round_trip_us", 0);
        l->bytes_per_s = 1e9 * td_json_get_double(&o, "gb_s", 1);
    }
    td_json_destroy(&doc);
    return is_ok;
}

static bool read_compared(const td_json_object *root, td_hardware *h, td_err *err)
{
    uint32_t n = (uint32_t)td_json_count(root, "compare");
    for (; h->n_compared < n; h->n_compared++) {
        const char *name = td_json_get_string_at(root, "compare", h->n_compared);
        if (!(h->compared[h->n_compared] = td_hardware_find(h, name)))
            return td_json_fail(root, "compare", err, "\"%s\" is no model of the list of models",
                                name);
    }
    return true;
}

static bool read_hardware(const td_json_object *root, td_hardware *h, td_err *err)
{
    td_json_object o;
    uint32_t n = (uint32_t)td_json_count(root, "devices");
    copy_text(root, "about", h->about, sizeof h->about);
    if (!n)
        return td_json_fail(root, "devices", err, "is empty");
    for (; h->n_devices < n; h->n_devices++) {
        h->devices[h->n_devices].unit = h->n_devices;
        if (!td_json_read_element(root, "devices", h->n_devices, &device_schema, &o, err) ||
            !read_device(&o, &h->devices[h->n_devices], err))
            return false;
    }
    h->scratch_bytes = FIXED_BYTES;
    if (!td_json_read_member(root, "link", &link_schema, &o, err))
        return false;
    h->round_trip_us = td_json_get_double(&o, "round_trip_us", 0);
    h->link_bytes_per_s = 1e9 * td_json_get_double(&o, "gb_s", 1);
    if (!read_models(td_json_get_string(root, "models", ""), h, err))
        return false;
    const char *links = td_json_get_string(root, "links", "");
    copy_text(root, "published", h->published, sizeof h->published);
    if ((links[0] && !read_links(links, h, err)) || !read_compared(root, h, err))
        return false;
    h->draft = td_hardware_find(h, td_json_get_string(root, "draft", ""));
    return h->draft || td_json_fail(root, "draft", err, "is no model of the list of models");
}

td_hardware *td_hardware_open(const char *path, td_err *err)
{
    td_hardware *h = td_alloc(1, sizeof *h, err);
    td_json *doc = h ? td_json_read_file(path, err) : NULL;
    td_json_object root;
    if (!doc || !td_json_read_root(doc, &root_schema, &root, err) || !read_hardware(&root, h, err))
        td_hardware_close(&h);
    td_json_destroy(&doc);
    return h;
}

td_hardware *td_hardware_create(const char *models_path, td_err *err)
{
    td_hardware *h = td_alloc(1, sizeof *h, err);
    if (h && !read_models(models_path, h, err))
        td_hardware_close(&h);
    return h;
}

void td_hardware_close(td_hardware **h)
{
    td_free(*h);
    *h = NULL;
}

const td_hardware_model *td_hardware_find(const td_hardware *h, const char *name)
{
    for (uint32_t i = 0; i < h->n_models; i++)
        if (!strcmp(h->models[i].name, name))
            return &h->models[i];
    return NULL;
}

/* -- predicting -------------------------------------------------------------------------------- */

/* The share of all experts that n rows ask together, if each asks its own. */
static double share_touched(const td_hardware_model *m, double n_rows)
{
    return m->n_experts ? 1 - pow(1 - m->n_used / (double)m->n_experts, n_rows) : 0;
}

double td_hardware_pass_us(const td_hardware_device *d, const td_hardware_model *m,
                           uint32_t n_layers, double n_rows, bool has_output)
{
    double share = n_layers / (double)m->n_layers;
    double bytes = share * (m->other_bytes + m->experts_bytes * share_touched(m, n_rows)) +
                   (has_output ? m->output_bytes : 0);
    double flops = 2 * m->n_active * share * (n_rows - 1);
    return 1e6 * bytes / (d->bytes_per_s * d->bandwidth_share) +
           1e6 * flops / (d->flops_per_s * d->compute_share) + n_layers * d->layer_us[m->kind];
}

double td_hardware_turns_us(const td_hardware *h, const td_hardware_model *m,
                            const uint32_t *layers, double n_rows, bool has_output,
                            uint32_t n_turns, double payload_bytes)
{
    double sum = 0, activations = 4.0 * m->n_embd * n_rows;
    uint32_t left = m->n_layers, n_used = 0;
    for (uint32_t i = 0; i < h->n_devices; i++) {
        if (!layers[i])
            continue;
        left -= td_min_u32(left, layers[i]);
        sum += td_hardware_pass_us(&h->devices[i], m, layers[i], n_rows, has_output && !left);
        if (n_used++)
            sum += n_turns * h->round_trip_us +
                   1e6 * (payload_bytes + activations) / h->link_bytes_per_s;
    }
    return sum;
}

/* What td_speed_search wants to know of the devices and of a draft on each of them. */
typedef struct {
    td_speed_draft drafts[TD_SPEED_DEVICES_MAX];
    td_costs costs[TD_SPEED_DEVICES_MAX];
    td_cost layers[TD_SPEED_DEVICES_MAX][TD_LAYERS_MAX];
    uint64_t layer_bytes[TD_LAYERS_MAX];
    td_place_device places[TD_SPEED_DEVICES_MAX];
    td_speed_device devices[TD_SPEED_DEVICES_MAX];
} description;

static td_speed_draft describe_draft(const td_hardware *h, uint32_t device, double n_positions)
{
    const td_hardware_model *m = h->draft;
    td_speed_draft d = {.unit = h->devices[device].unit,
                        .device = (int32_t)device,
                        .n_bytes = (uint64_t)(m->other_bytes + m->experts_bytes +
                                              2 * m->output_bytes + m->kv_bytes * n_positions)};
    for (uint32_t w = 0; w < TD_COST_WIDTHS; w++)
        d.step.verify_us[w] =
            td_hardware_pass_us(&h->devices[device], m, m->n_layers, td_cost_widths[w], true);
    return d;
}

double td_hardware_row_bytes(const td_hardware_model *m, bool is_half)
{
    return (is_half ? 2.0 : 4.0) * m->n_embd + TD_WIRE_TOKEN_BYTES;
}

static double row_us(const td_hardware *h, const td_hardware_model *m)
{
    return 1e6 * TD_WIRE_ON_LINK * td_hardware_row_bytes(m, h->is_half) / h->link_bytes_per_s;
}

static bool is_over_machines(const td_hardware *h, const td_speed_row *row)
{
    bool is_so = false;
    for (uint32_t i = 0; i < row->n_stages; i++)
        is_so |= h->devices[row->stages[i].device].machine != 0;
    return is_so;
}

/* With keys, where there are machines to keep them from. */
static void add_keys(const td_hardware *h, td_speed_row *row)
{
    double share = is_over_machines(h, row) ? TD_WIRE_KEYS_SHARE : 1;
    row->decode_per_s *= share;
    row->prefill_per_s *= share;
    row->tokens_per_s *= share;
}

static td_speed_use make_use(const td_hardware *h, const td_hardware_model *m)
{
    bool has_machines = false;
    for (uint32_t i = 0; i < h->n_devices; i++)
        has_machines |= h->devices[i].machine != 0;
    double hop_us = h->round_trip_us / 2 + 4e6 * m->n_embd / h->link_bytes_per_s;
    double far = fmin(1, h->round_trip_us / TD_WIRE_FAR_US);
    return (td_speed_use){.use = TD_FOR_STREAM,
                          .n_sequences = 1,
                          .n_prompt = 1024,
                          .n_predict = 1024,
                          .hop_us = h->n_devices > 1 && !has_machines ? hop_us : 0,
                          .link_us = h->round_trip_us,
                          .round_us =
                              TD_WIRE_ROUND_US + far * (TD_WIRE_ROUND_FAR_US - TD_WIRE_ROUND_US),
                          .acceptance = TD_SPEED_ACCEPTANCE,
                          .draft_max = 8};
}

static void describe(const td_hardware *h, const td_hardware_model *m, double cache_bytes,
                     description *out)
{
    double all = m->other_bytes + m->experts_bytes + cache_bytes;
    for (uint32_t i = 0; i < m->n_layers; i++)
        out->layer_bytes[i] = (uint64_t)(all / m->n_layers);
    for (uint32_t d = 0; d < h->n_devices; d++) {
        const td_hardware_device *dev = &h->devices[d];
        td_cost layer, last = {.prefill_us = 0};
        for (uint32_t w = 0; w < TD_COST_WIDTHS; w++) {
            double n = td_cost_widths[w];
            layer.verify_us[w] = td_hardware_pass_us(dev, m, 1, n, false);
            last.verify_us[w] = td_hardware_pass_us(dev, m, 1, n, true) - layer.verify_us[w];
        }
        layer.prefill_us = td_hardware_pass_us(dev, m, 1, TD_PREFILL_ROWS_MAX, false);
        layer.chunk_us = td_hardware_pass_us(dev, m, 1, TD_HOST_CHUNK_ROWS, false);
        for (uint32_t i = 0; i < m->n_layers; i++)
            out->layers[d][i] = layer;
        out->costs[d] = (td_costs){.last = last, .n_layers = m->n_layers, .layers = out->layers[d]};
        out->places[d] = (td_place_device){.budget_bytes = (uint64_t)dev->memory_bytes,
                                           .shared_bytes = (uint64_t)dev->shared_bytes,
                                           .system_bytes = (uint64_t)h->system_bytes,
                                           .fixed_bytes = (uint64_t)h->scratch_bytes,
                                           .first_bytes = (uint64_t)m->output_bytes,
                                           .last_bytes = (uint64_t)m->output_bytes,
                                           .layer_bytes = out->layer_bytes};
        out->devices[d] = (td_speed_device){.costs = &out->costs[d],
                                            .place = &out->places[d],
                                            .memory = d,
                                            .unit = dev->unit,
                                            .machine = dev->machine,
                                            .way_us = dev->machine ? h->round_trip_us / 2 : 0,
                                            .row_us = row_us(h, m)};
    }
}

/* The best row; *n 0 where nothing fits. */
static bool find_best(const td_hardware *h, const td_hardware_model *m, const td_speed_use *use,
                      bool is_drafted, td_speed_row *best, uint32_t *n, td_err *err)
{
    td_speed_row rows[TD_SPEED_ROWS_MAX];
    description *d = td_alloc(1, sizeof *d, err);
    if (!d)
        return false;
    double n_positions = (double)TD_HARDWARE_CTX * use->n_sequences;
    describe(h, m, m->kv_bytes * n_positions, d);
    for (uint32_t i = 0; i < h->n_devices; i++)
        d->drafts[i] = describe_draft(h, i, n_positions);
    bool is_ok = td_speed_search(d->devices, h->n_devices, d->drafts, is_drafted ? h->n_devices : 0,
                                 m->n_layers, use, rows, n, err);
    if (is_ok && *n) {
        *best = rows[0];
        add_keys(h, best);
    }
    td_free(d);
    return is_ok;
}

bool td_hardware_run(const td_hardware *h, const td_hardware_model *m, const uint32_t *layers,
                     uint32_t n_sequences, uint32_t n_prompt, td_speed_row *out, td_err *err)
{
    description *d = td_alloc(1, sizeof *d, err);
    if (!d)
        return false;
    td_speed_use use = make_use(h, m);
    use.use = n_sequences > 1 ? TD_FOR_BATCH : TD_FOR_STREAM;
    use.n_sequences = n_sequences;
    use.n_prompt = use.n_predict = n_prompt;
    describe(h, m, m->kv_bytes * TD_HARDWARE_CTX * n_sequences, d);
    *out = (td_speed_row){.i_draft = -1};
    uint32_t n = 0;
    for (uint32_t i = 0; i < h->n_devices && n < m->n_layers; i++)
        if (layers[i]) {
            out->stages[out->n_stages].device = i;
            out->stages[out->n_stages].first = n;
            n += layers[i];
            out->stages[out->n_stages++].last = n - 1;
        }
    TD_ASSERT(n == m->n_layers);
    td_speed_predict(d->devices, NULL, &use, out);
    add_keys(h, out);
    td_free(d);
    return true;
}

bool td_hardware_look(const td_hardware *h, const td_hardware_model *m, td_hardware_outlook *out,
                      td_err *err)
{
    td_speed_use use = make_use(h, m);
    td_speed_row drafted = {0};
    uint32_t n, n_drafted, n_batch;
    *out = (td_hardware_outlook){0};
    if (!find_best(h, m, &use, false, &out->stream, &n, err) ||
        !find_best(h, m, &use, true, &drafted, &n_drafted, err))
        return false;
    use.use = TD_FOR_BATCH;
    use.n_sequences = TD_HARDWARE_SEQUENCES;
    if (!find_best(h, m, &use, false, &out->batch, &n_batch, err))
        return false;
    out->fits_stream = n > 0;
    out->fits = n && n_batch;
    out->drafted =
        n_drafted && drafted.decode_per_s > out->stream.decode_per_s ? drafted : out->stream;
    return true;
}
