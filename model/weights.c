/* Loading weights: what tensors.c wants is read in bounded pieces, repacked by the device and
 * dropped from the page cache. */
#include "model/tensors.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

#define CHUNK_BYTES (1u << 20)  /* read, repacked and dropped at a time */
#define AHEAD_BYTES (32u << 20) /* that the kernel reads while a chunk is repacked */

typedef struct {
    td_wanted wanted;
    const td_model *m; /* whose file has it */
    td_device *dev;
    td_weight **slot;
    float *factor;
} item;

/* State of a load: what there is to load, a bounded staging buffer and the progress so far. */
typedef struct {
    const td_weights_params *params;
    const td_gguf *gguf; /* of the item being loaded */
    item *items;         /* [n_items] in the order they are loaded */
    uint32_t n_items, capacity;
    uint32_t i_ahead; /* item up to which the kernel was told to read, and byte of it */
    uint64_t from_ahead;
    uint64_t ahead; /* bytes told and not yet read by us */
    uint8_t *staging;
    size_t staging_bytes;
    uint64_t done, total;
} loader;

/* Tells the kernel to read on, so that the disk works while this thread repacks. */
static void read_ahead(loader *l)
{
    while (l->ahead < AHEAD_BYTES && l->i_ahead < l->n_items) {
        const td_gguf_tensor *t = l->items[l->i_ahead].wanted.tensor;
        uint64_t n = t->n_bytes - l->from_ahead;
        n = n < CHUNK_BYTES ? n : CHUNK_BYTES;
        td_gguf_prefetch(l->items[l->i_ahead].m->gguf, t, l->from_ahead, n);
        l->ahead += n;
        l->from_ahead += n;
        if (l->from_ahead == t->n_bytes) {
            l->i_ahead++;
            l->from_ahead = 0;
        }
    }
}

static bool read_bytes(loader *l, const td_gguf_tensor *t, uint64_t from, uint64_t n, td_err *err)
{
    read_ahead(l);
    l->ahead -= n < l->ahead ? n : l->ahead;
    return td_gguf_read(l->gguf, t, from, n, l->staging, err);
}

static bool read_floats(loader *l, const td_gguf_tensor *t, uint64_t row, uint32_t n_rows,
                        float *out, td_err *err)
{
    size_t row_bytes = td_row_bytes(t->type, t->ne[0]);
    if (!read_bytes(l, t, row * row_bytes, n_rows * row_bytes, err))
        return false;
    t->type->dequantize(l->staging, out, (size_t)n_rows * t->ne[0]);
    return true;
}

/* out[c][r] = in[r][c] */
static void transpose(const float *in, uint32_t n_rows, uint32_t n_cols, float *out)
{
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t c = 0; c < n_cols; c++)
            out[(size_t)c * n_rows + r] = in[(size_t)r * n_cols + c];
}

/* Of a tensor's products: 1 without one. */
static bool read_factor(loader *l, const td_wanted *wanted, float *factor, td_err *err)
{
    *factor = 1.0f;
    if (!wanted->factor)
        return true;
    if (!td_gguf_read(l->gguf, wanted->factor, 0, sizeof *factor, factor, err))
        return false;
    return (isfinite(*factor) && *factor != 0) ||
           td_err_set(err, TD_E_DATA, "tensor %s is %g; allowed: finite numbers but 0",
                      wanted->factor->name, (double)*factor);
}

static bool load_vector(loader *l, td_weight *w, const td_wanted *wanted, float factor, td_err *err)
{
    const td_gguf_tensor *t = wanted->tensor;
    const uint8_t *from = l->staging + td_row_bytes(t->type, wanted->offset);
    uint32_t n = wanted->n_cols, n_taps = wanted->n_taps;
    float *values = td_alloc(n, 2 * sizeof *values, err);
    bool is_ok = values && read_bytes(l, t, 0, t->n_bytes, err);
    if (is_ok) {
        t->type->dequantize(from, values, n);
        for (uint32_t i = 0; factor != 1.0f && i < n; i++)
            values[i] /= factor; /* which the product will bring */
        if (n_taps)
            transpose(values, n / n_taps, n_taps, values + n);
        is_ok = td_weight_write(w, wanted->row0, 1, values + (n_taps ? n : 0), err);
    }
    td_free(values);
    return is_ok;
}

/* Of a bias that is the first of several: all of them, which are items of the same slot. */
static bool load_biases(loader *l, td_weight *w, const item *first, td_err *err)
{
    const td_wanted *dealt = first->wanted.seats ? &first->wanted : NULL;
    uint32_t n = first->wanted.n_joined, n_groups = td_max_u32(first->wanted.n_groups, 1);
    uint32_t n_of_file = dealt ? dealt->n_dealt : n_groups;
    size_t n_read = (size_t)n / n_groups * n_of_file; /* at most */
    float *values = td_alloc(n_read + n, sizeof *values, err);
    float *joined = values ? values + n_read : NULL;
    bool is_ok = values;
    for (const item *it = first; is_ok && it < l->items + l->n_items; it++) {
        const td_wanted *bias = &it->wanted;
        const td_gguf_tensor *t = bias->tensor;
        if (it->slot != first->slot)
            continue;
        is_ok = read_bytes(l, t, 0, t->n_bytes, err);
        if (is_ok)
            t->type->dequantize(l->staging + td_row_bytes(t->type, bias->offset), values,
                                bias->n_cols);
        uint32_t n_own = bias->n_cols / n_of_file;
        for (uint32_t g = 0, i = 0; is_ok && g < n_of_file; g++)
            if (!dealt || dealt->seats[g] == dealt->seat)
                memcpy(joined + i++ * (n / n_groups) + bias->row0, values + g * n_own,
                       n_own * sizeof *values);
    }
    is_ok = is_ok && td_weight_write(w, 0, 1, joined, err);
    td_free(values);
    return is_ok;
}

/* Group by group: rows of a tensor become the columns of a weight. */
static bool load_turned(loader *l, td_weight *w, const td_wanted *wanted, td_err *err)
{
    size_t n = (size_t)wanted->count * wanted->n_cols;
    float *values = td_alloc(n, 2 * sizeof *values, err);
    bool is_ok = values;
    for (uint32_t g = 0; is_ok && g < wanted->n_groups; g++) {
        is_ok = read_floats(l, wanted->tensor, (uint64_t)g * wanted->period + wanted->offset,
                            wanted->count, values, err);
        transpose(values, wanted->count, wanted->n_cols, values + n);
        is_ok = is_ok && td_weight_write(w, g * wanted->n_cols, wanted->n_cols, values + n, err);
    }
    td_free(values);
    return is_ok;
}

/* Where row i of a tensor goes in the weight. */
static uint32_t place_of(const td_wanted *wanted, uint32_t i)
{
    if (!wanted->n_groups)
        return wanted->row0 + i;
    uint32_t n = wanted->n_joined / wanted->n_groups;
    return i / wanted->count * n + wanted->row0 + i % wanted->count;
}

/* Runs of rows that stand together in the tensor and in the weight, as many at once as the staging
 * buffer holds. */
static bool load_rows(loader *l, td_weight *w, const td_wanted *wanted, td_err *err)
{
    const td_gguf_tensor *t = wanted->tensor;
    size_t row_bytes = td_row_bytes(t->type, wanted->n_cols);
    uint32_t n_at_once = td_max_u32(1, (uint32_t)(l->staging_bytes / row_bytes));
    for (uint32_t i = 0, n; i < wanted->n_rows; i += n) {
        uint32_t in_period = i % wanted->count;
        bool is_whole = wanted->count == wanted->period && wanted->n_joined == wanted->n_rows;
        uint32_t run = is_whole || (wanted->count == wanted->period && !wanted->n_groups)
                           ? wanted->n_rows - i
                           : wanted->count - in_period;
        uint64_t row = (uint64_t)(i / wanted->count) * wanted->period + wanted->offset + in_period;
        n = td_min_u32(n_at_once, run);
        if (!read_bytes(l, t, row * row_bytes, n * row_bytes, err) ||
            !td_weight_write(w, place_of(wanted, i), n, l->staging, err))
            return false;
        td_gguf_drop(l->gguf, t, row * row_bytes, n * row_bytes);
    }
    return true;
}

/* Of experts those of one seat: rows of each stand together. Of factors each has one; the last is
 * repeated where the weight has a row more. */
static bool load_dealt(loader *l, td_weight *w, const td_wanted *wanted, td_err *err)
{
    const td_gguf_tensor *t = wanted->tensor;
    size_t row_bytes = td_row_bytes(t->type, wanted->n_cols);
    uint32_t n_at_once = td_max_u32(1, (uint32_t)(l->staging_bytes / row_bytes));
    bool is_matrix = wanted->n_groups;
    uint32_t n_each = is_matrix ? wanted->count : 1, period = is_matrix ? wanted->period : 1;
    uint32_t stride = is_matrix ? wanted->n_joined / wanted->n_groups : 1, i = 0;
    for (uint32_t e = 0; e < wanted->n_dealt; e++) {
        if (wanted->seats[e] != wanted->seat)
            continue;
        for (uint32_t r = 0, n; r < n_each; r += n) {
            uint64_t row = (uint64_t)e * period + wanted->offset + r;
            n = td_min_u32(n_at_once, n_each - r);
            if (!read_bytes(l, t, row * row_bytes, n * row_bytes, err) ||
                !td_weight_write(w, i * stride + wanted->row0 + r, n, l->staging, err))
                return false;
            td_gguf_drop(l->gguf, t, row * row_bytes, n * row_bytes);
        }
        i++;
    }
    for (; !is_matrix && i < wanted->n_joined; i++)
        if (!td_weight_write(w, i, 1, l->staging, err))
            return false;
    return true;
}

/* Bytes of the file that an item reads. */
static uint64_t item_bytes(const td_wanted *w)
{
    if (w->seats && !w->is_vector)
        return w->n_rows * (uint64_t)td_row_bytes(w->tensor->type, w->n_cols);
    return w->is_vector ? w->tensor->n_bytes : w->tensor->n_bytes / w->period * w->count;
}

/* Of a tensor whose rest somebody else reads, that rest was told for them. */
static void forget_rest(loader *l, const td_wanted *w)
{
    uint64_t rest = w->tensor->n_bytes - item_bytes(w);
    if (w->seats)
        l->ahead -= rest < l->ahead ? rest : l->ahead;
}

static td_weight *load_one(loader *l, const item *it, td_err *err)
{
    const td_wanted *wanted = &it->wanted;
    td_weight_params params = td_wanted_params(wanted);
    l->gguf = it->m->gguf;
    td_weight *w = wanted->row0 ? *it->slot : td_weight_create(it->dev, &params, err);
    if (!w)
        return NULL;
    bool is_ok = read_factor(l, wanted, it->factor, err);
    is_ok = is_ok && (wanted->is_bias     ? wanted->row0 || load_biases(l, w, it, err)
                      : wanted->is_vector ? load_vector(l, w, wanted, *it->factor, err)
                      : wanted->is_turned ? load_turned(l, w, wanted, err)
                      : wanted->seats     ? load_dealt(l, w, wanted, err)
                                          : load_rows(l, w, wanted, err));
    forget_rest(l, wanted);
    if (is_ok) {
        l->done += item_bytes(wanted);
        if (!l->params->progress || l->params->progress(l->params->user, l->done, l->total))
            return w;
        td_err_set(err, TD_E_AGAIN, "loading was stopped");
    }
    td_weight_destroy(&w);
    return NULL;
}

/* Whether the file's head has a tensor of its own. */
static bool has_own(const td_model *head, uint32_t slot)
{
    td_wanted wanted[TD_WANTED_MAX];
    uint32_t n = td_tensors_wanted(head, head->hparams.n_layer, wanted);
    for (uint32_t i = 0; i < n; i++)
        if (wanted[i].slot == slot)
            return true;
    return false;
}

static bool needs_end(const td_model *m, const td_model *head, uint32_t end, uint32_t first,
                      uint32_t last)
{
    bool is_last = last + 1 == m->hparams.n_layer;
    if (end == TD_W_EMBD)
        return first == 0 ||
               (is_last && (m->hparams.is_tied || (head && !has_own(head, TD_W_HEAD_EMBD))));
    return is_last;
}

/* Staging that any item needs at least. */
static size_t staging_of(const td_wanted *w)
{
    size_t row_bytes = td_row_bytes(w->tensor->type, w->tensor->ne[0]);
    return w->is_vector ? w->tensor->n_bytes : w->is_turned ? w->count * row_bytes : row_bytes;
}

static void add_item(loader *l, const td_model *m, const td_wanted *wanted, td_device *dev,
                     td_weight **slot, float *factor)
{
    if (l->items) {
        TD_ASSERT(l->n_items < l->capacity);
        l->items[l->n_items++] = (item){*wanted, m, dev, slot, factor};
        return;
    }
    l->capacity++;
    l->total += item_bytes(wanted);
    if (staging_of(wanted) > l->staging_bytes)
        l->staging_bytes = staging_of(wanted);
}

/* The tensor as the part that is loaded has it; false where it has none of it. */
static bool take(const td_weights_params *p, const td_model *of, uint32_t layer, td_wanted *w)
{
    bool is_of_experts = layer != TD_ENDS && td_wanted_is_of_experts(w);
    if (layer == TD_ENDS && !needs_end(p->model, p->head, w->slot, p->first, p->last))
        return false;
    if (p->share != TD_SHARE_ALL && is_of_experts != (p->share == TD_SHARE_EXPERTS))
        return false;
    if (is_of_experts && p->dealing && of == p->model && layer < p->dealing->n_layer)
        td_wanted_deal(w, td_dealing_layer(p->dealing, layer), p->dealing->n_expert, p->seat);
    return true;
}

/* Counts what a part needs, or lists it once there is room for it. */
static void add_items(loader *l, td_weights *w)
{
    const td_weights_params *p = l->params;
    const td_model *m = p->model;
    td_wanted wanted[TD_WANTED_MAX];
    uint32_t n = td_tensors_wanted(m, TD_ENDS, wanted);
    for (uint32_t i = 0; i < n; i++)
        if (take(p, m, TD_ENDS, &wanted[i]))
            add_item(l, m, &wanted[i], p->dev, &w->ends[wanted[i].slot],
                     &w->end_factors[wanted[i].slot]);
    for (uint32_t k = 0; k < w->n_layers; k++) {
        bool is_head = w->first + k > w->last;
        const td_model *of = is_head ? p->head : m;
        uint32_t layer = is_head ? of->hparams.n_layer : w->first + k;
        n = td_tensors_wanted(of, layer, wanted);
        for (uint32_t i = 0; i < n; i++)
            if (take(p, of, layer, &wanted[i]))
                add_item(l, of, &wanted[i],
                         td_wanted_is_of_experts(&wanted[i]) && p->experts_dev ? p->experts_dev
                                                                               : p->dev,
                         l->items ? &w->layers[k][wanted[i].into] : NULL,
                         l->items ? &w->factors[k][wanted[i].slot] : NULL);
    }
}

static bool load_all(loader *l, td_err *err)
{
    for (uint32_t i = 0; i < l->n_items; i++) {
        const item *it = &l->items[i];
        *it->slot = load_one(l, it, err);
        if (!*it->slot)
            return false;
    }
    return true;
}

/* Loads of a second and more are news. */
static void log_load(const td_weights *w, const char *spec)
{
    double s = (double)(w->load_us ? w->load_us : 1) * 1e-6, gb = (double)w->n_file_bytes * 1e-9;
    td_log_write(s >= 1 ? TD_LOG_INFO : TD_LOG_DEBUG,
                 "%s: layers %u..%u, %.2f GB loaded in %.1f s, %.2f GB/s", spec, w->first, w->last,
                 gb, s, gb / s);
}

td_weights *td_weights_load(const td_weights_params *params, td_err *err)
{
    const td_model *m = params->model;
    uint32_t first = params->first, last = params->last;
    TD_ASSERT(first <= last && last < m->hparams.n_layer);
    const td_model *head = params->head;
    TD_ASSERT(!head || last + 1 == m->hparams.n_layer);
    loader l = {.params = params, .staging_bytes = CHUNK_BYTES};
    td_weights *w = td_alloc(1, sizeof *w, err);
    if (!w)
        return NULL;
    w->first = first;
    w->last = last;
    w->n_layers = last - first + (head ? 2 : 1);
    add_items(&l, w);
    w->layers = td_alloc(w->n_layers, sizeof *w->layers, err);
    w->factors = td_alloc(w->n_layers, sizeof *w->factors, err);
    l.staging = td_alloc(l.staging_bytes, 1, err);
    l.items = td_alloc(l.capacity, sizeof *l.items, err);
    const td_clock clock = td_clock_real();
    uint64_t start_us = td_clock_now_us(&clock);
    bool is_ok = w->layers && w->factors && l.staging && l.items;
    if (is_ok)
        add_items(&l, w);
    if (!is_ok || !load_all(&l, err)) {
        td_err_prepend(err, "%s on %s", m->path, td_device_get_info(params->dev)->spec);
        td_weights_destroy(&w);
    }
    td_free(l.items);
    td_free(l.staging);
    if (w) {
        w->n_file_bytes = l.total;
        w->load_us = td_clock_now_us(&clock) - start_us;
        log_load(w, td_device_get_info(params->dev)->spec);
    }
    return w;
}

void td_weights_destroy(td_weights **w)
{
    if (!*w)
        return;
    if ((*w)->layers)
        for (uint32_t i = 0; i < (*w)->n_layers; i++)
            for (int k = 0; k < TD_W_LAYER_COUNT; k++)
                td_weight_destroy(&(*w)->layers[i][k]);
    for (int i = 0; i < TD_W_END_COUNT; i++)
        td_weight_destroy(&(*w)->ends[i]);
    td_free((*w)->layers);
    td_free((*w)->factors);
    td_free(*w);
    *w = NULL;
}

uint64_t td_weights_bytes_of(const td_weights_params *p, const td_model *of, uint32_t layer)
{
    uint64_t n_bytes = 0;
    td_wanted wanted[TD_WANTED_MAX];
    uint32_t n = td_tensors_wanted(of, layer, wanted);
    for (uint32_t i = 0; i < n; i++) {
        if (wanted[i].row0 || !take(p, of, layer, &wanted[i]))
            continue;
        td_weight_params params = td_wanted_params(&wanted[i]);
        n_bytes += td_weight_bytes(p->dev, &params);
    }
    return n_bytes;
}

uint64_t td_weights_layer_bytes(const td_model *m, td_device *dev, uint32_t layer,
                                td_weight_share share)
{
    const td_weights_params params = {.model = m, .dev = dev, .share = share};
    return td_weights_bytes_of(&params, m, layer);
}

uint64_t td_weights_end_bytes(const td_model *m, const td_model *head, const td_device *dev,
                              uint32_t first, uint32_t last)
{
    uint64_t n_bytes = 0;
    td_wanted wanted[TD_WANTED_MAX];
    uint32_t n = td_tensors_wanted(m, TD_ENDS, wanted);
    for (uint32_t i = 0; i < n; i++)
        if (needs_end(m, head, wanted[i].slot, first, last)) {
            td_weight_params params = td_wanted_params(&wanted[i]);
            n_bytes += td_weight_bytes(dev, &params);
        }
    return n_bytes;
}

bool td_weights_check_pieces(const td_model *m, const td_model *head, const td_device *dev,
                             const td_device *experts_dev, uint32_t first, uint32_t last,
                             td_err *err)
{
    td_wanted wanted[TD_WANTED_MAX];
    for (uint32_t layer = first; layer <= last + (head ? 2 : 1); layer++) {
        bool is_end = layer == last + 1, is_head = layer == last + 2;
        uint32_t n = td_tensors_wanted(is_head ? head : m,
                                       is_end    ? TD_ENDS
                                       : is_head ? head->hparams.n_layer
                                                 : layer,
                                       wanted);
        for (uint32_t i = 0; i < n; i++) {
            if (wanted[i].row0)
                continue;
            const td_device *on =
                !is_end && td_wanted_is_of_experts(&wanted[i]) ? experts_dev : dev;
            td_weight_params params = td_wanted_params(&wanted[i]);
            uint64_t piece = td_weight_piece_bytes(on, &params);
            uint64_t most = td_device_get_info(on)->max_buffer_bytes;
            if ((!is_end || needs_end(m, head, wanted[i].slot, first, last)) && most &&
                piece > most)
                return td_err_set(err, TD_E_NOMEM,
                                  "%.100s has pieces of %llu bytes, above the largest buffer of "
                                  "%s, %llu",
                                  params.name, (unsigned long long)piece,
                                  td_device_get_info(on)->spec, (unsigned long long)most);
        }
    }
    return true;
}

static void mark(const td_model *m, const td_gguf_tensor *t, bool *is_read)
{
    if (t)
        is_read[t - td_gguf_tensor_at(m->gguf, 0)] = true;
}

void td_weights_mark_read(const td_model *m, const td_model *head, uint32_t first, uint32_t last,
                          bool *is_read)
{
    td_wanted wanted[TD_WANTED_MAX];
    TD_ASSERT(!head || (head == m && last + 1 == m->hparams.n_layer));
    for (uint32_t k = first; k <= last + (head ? 2 : 1); k++) { /* the ends; and the head */
        bool is_end = k == last + 1;
        uint32_t layer = is_end ? TD_ENDS : k == last + 2 ? m->hparams.n_layer : k;
        uint32_t n = td_tensors_wanted(m, layer, wanted);
        for (uint32_t i = 0; i < n; i++) {
            if (is_end && !needs_end(m, head, wanted[i].slot, first, last))
                continue;
            mark(m, wanted[i].tensor, is_read);
            mark(m, wanted[i].factor, is_read);
        }
    }
}
