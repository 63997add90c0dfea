/* The tensors of a model as one table: name, shape in terms of the hyper-parameters, and whether a
 * file must have it. The same rows check a file, count bytes for placement and load the weights,
 * so an architecture that brings a tensor brings a row. */
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "model/model_private.h"

#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES (8u << 20)  /* read, repacked and dropped at a time */
#define AHEAD_BYTES (32u << 20) /* that the kernel reads while a chunk is repacked */

typedef enum { D_ONE, D_EMBD, D_Q, D_K, D_V, D_HEADS_V, D_FF, D_HEAD_DIM, D_VOCAB } dim;
typedef enum { REQUIRED, OPTIONAL, QK_NORM } need;

typedef struct {
    const char *name;
    dim n_cols, n_rows; /* GGUF order: ne[0], ne[1]; a vector has n_rows D_ONE */
    need need;
} row;

static const row layer_rows[TD_W_LAYER_COUNT] = {
    [TD_W_ATTN_NORM] = {"attn_norm.weight", D_EMBD, D_ONE, REQUIRED},
    [TD_W_Q] = {"attn_q.weight", D_EMBD, D_Q, REQUIRED},
    [TD_W_K] = {"attn_k.weight", D_EMBD, D_K, REQUIRED},
    [TD_W_V] = {"attn_v.weight", D_EMBD, D_V, REQUIRED},
    [TD_W_O] = {"attn_output.weight", D_HEADS_V, D_EMBD, REQUIRED},
    [TD_W_BQ] = {"attn_q.bias", D_Q, D_ONE, OPTIONAL},
    [TD_W_BK] = {"attn_k.bias", D_K, D_ONE, OPTIONAL},
    [TD_W_BV] = {"attn_v.bias", D_V, D_ONE, OPTIONAL},
    [TD_W_BO] = {"attn_output.bias", D_EMBD, D_ONE, OPTIONAL},
    [TD_W_Q_NORM] = {"attn_q_norm.weight", D_HEAD_DIM, D_ONE, QK_NORM},
    [TD_W_K_NORM] = {"attn_k_norm.weight", D_HEAD_DIM, D_ONE, QK_NORM},
    [TD_W_FFN_NORM] = {"ffn_norm.weight", D_EMBD, D_ONE, REQUIRED},
    [TD_W_GATE] = {"ffn_gate.weight", D_EMBD, D_FF, REQUIRED},
    [TD_W_UP] = {"ffn_up.weight", D_EMBD, D_FF, REQUIRED},
    [TD_W_DOWN] = {"ffn_down.weight", D_FF, D_EMBD, REQUIRED},
    [TD_W_B_GATE] = {"ffn_gate.bias", D_FF, D_ONE, OPTIONAL},
    [TD_W_B_UP] = {"ffn_up.bias", D_FF, D_ONE, OPTIONAL},
    [TD_W_B_DOWN] = {"ffn_down.bias", D_EMBD, D_ONE, OPTIONAL},
};

static const row end_rows[TD_W_END_COUNT] = {
    [TD_W_EMBD] = {"token_embd.weight", D_EMBD, D_VOCAB, REQUIRED},
    [TD_W_OUT_NORM] = {"output_norm.weight", D_EMBD, D_ONE, REQUIRED},
    [TD_W_OUT] = {"output.weight", D_EMBD, D_VOCAB, OPTIONAL},
};

static uint32_t dim_of(const td_hparams *h, dim d)
{
    switch (d) {
    case D_ONE:
        return 1;
    case D_EMBD:
        return h->n_embd;
    case D_Q:
        return h->n_head * h->head_dim_k;
    case D_K:
        return h->n_head_kv * h->head_dim_k;
    case D_V:
        return h->n_head_kv * h->head_dim_v;
    case D_HEADS_V:
        return h->n_head * h->head_dim_v;
    case D_FF:
        return h->n_ff;
    case D_HEAD_DIM:
        return h->head_dim_k;
    case D_VOCAB:
        return h->n_vocab;
    }
    return 0;
}

static bool is_wanted(const td_model *m, const row *r)
{
    return r->need != QK_NORM || m->arch->has_qk_norm;
}

/* The tensor of a row, by full name. NULL when the file has none. */
static const td_gguf_tensor *find(const td_model *m, const row *r, int layer,
                                  char name[TD_NAME_MAX])
{
    if (layer >= 0)
        snprintf(name, TD_NAME_MAX, "blk.%d.%s", layer, r->name);
    else
        snprintf(name, TD_NAME_MAX, "%s", r->name);
    return td_gguf_find_tensor(m->gguf, name);
}

static bool check_row(const td_model *m, const row *r, int layer, uint32_t *n_found, td_err *err)
{
    char name[TD_NAME_MAX];
    const td_gguf_tensor *t = find(m, r, layer, name);
    if (!t)
        return r->need == OPTIONAL || td_err_set(err, TD_E_DATA, "tensor %s is missing", name);
    ++*n_found;
    uint32_t n_cols = dim_of(&m->hparams, r->n_cols), n_rows = dim_of(&m->hparams, r->n_rows);
    if (t->ne[0] != n_cols || t->ne[1] != n_rows || t->ne[2] != 1 || t->ne[3] != 1)
        return td_err_set(err, TD_E_DATA, "tensor %s is %llu x %llu x %llu; expected: %u x %u",
                          name, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                          (unsigned long long)t->ne[2], n_cols, n_rows);
    if (!t->type)
        return td_err_set(err, TD_E_DATA,
                          "tensor %s has a type that is not supported yet; allowed: %s", name,
                          td_type_names());
    if (r->n_rows == D_ONE && t->type->block_elements != 1)
        return td_err_set(err, TD_E_DATA, "tensor %s has type %s; allowed for a vector: F32, F16",
                          name, t->type->name);
    return true;
}

/* Tensors that no row names are no error (files carry extra heads), but are said once. */
static void log_extra(const td_model *m, uint32_t n_found)
{
    uint32_t n_extra = td_gguf_n_tensors(m->gguf) - n_found;
    if (td_gguf_find_tensor(m->gguf, "rope_freqs.weight"))
        n_extra--;
    if (!n_extra)
        return;
    for (uint32_t i = 0; i < td_gguf_n_tensors(m->gguf); i++) {
        const char *name = td_gguf_tensor_at(m->gguf, i)->name;
        unsigned layer = 0;
        int at = 0;
        bool is_known = !strcmp(name, "rope_freqs.weight");
        if (sscanf(name, "blk.%3u.%n", &layer, &at) == 1 && at > 0 && layer < m->hparams.n_layer) {
            for (int k = 0; k < TD_W_LAYER_COUNT && !is_known; k++) {
                char known[TD_NAME_MAX]; /* "blk.01." and "blk.+1." are no layers */
                snprintf(known, sizeof known, "blk.%u.%s", layer, layer_rows[k].name);
                is_known = is_wanted(m, &layer_rows[k]) && !strcmp(name, known);
            }
        } else {
            for (int k = 0; k < TD_W_END_COUNT; k++)
                is_known |= !strcmp(name, end_rows[k].name);
        }
        if (!is_known) {
            td_log_warn("%s: %u tensors are not used, the first is %s", m->path, n_extra, name);
            return;
        }
    }
}

bool td_weights_check(const td_model *m, td_err *err)
{
    uint32_t n_found = 0;
    for (int i = 0; i < TD_W_END_COUNT; i++)
        if (!check_row(m, &end_rows[i], -1, &n_found, err))
            return false;
    for (uint32_t layer = 0; layer < m->hparams.n_layer; layer++)
        for (int i = 0; i < TD_W_LAYER_COUNT; i++)
            if (is_wanted(m, &layer_rows[i]) &&
                !check_row(m, &layer_rows[i], (int)layer, &n_found, err))
                return false;
    log_extra(m, n_found);
    return true;
}

/* Parameters of a weight on a device. Vectors are kept as F32 whatever the file says. */
static td_weight_params params_of(const td_model *m, const row *r, const td_gguf_tensor *t)
{
    bool is_vector = r->n_rows == D_ONE;
    return (td_weight_params){
        .name = t->name,
        .type = is_vector ? td_type_find(TD_TYPE_F32) : t->type,
        .n_rows = dim_of(&m->hparams, r->n_rows),
        .n_cols = dim_of(&m->hparams, r->n_cols),
    };
}

typedef struct {
    const row *row;
    const td_gguf_tensor *tensor;
    td_weight **slot;
} item;

/* State of a load: what there is to load, a bounded staging buffer and the progress so far. */
typedef struct {
    const td_model *m;
    td_device *dev;
    item *items; /* [n_items] in the order they are loaded */
    uint32_t n_items, capacity;
    uint32_t i_ahead; /* item up to which the kernel was told to read, and byte of it */
    uint64_t from_ahead;
    uint64_t ahead; /* bytes told and not yet read by us */
    uint8_t *staging;
    size_t staging_bytes;
    uint64_t done, total;
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
} loader;

/* Tells the kernel to read on, so that the disk works while this thread repacks. */
static void read_ahead(loader *l)
{
    while (l->ahead < AHEAD_BYTES && l->i_ahead < l->n_items) {
        const td_gguf_tensor *t = l->items[l->i_ahead].tensor;
        uint64_t n = t->n_bytes - l->from_ahead;
        n = n < CHUNK_BYTES ? n : CHUNK_BYTES;
        td_gguf_prefetch(l->m->gguf, t, l->from_ahead, n);
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
    return td_gguf_read(l->m->gguf, t, from, n, l->staging, err);
}

static bool load_vector(loader *l, td_weight *w, const td_gguf_tensor *t, td_err *err)
{
    size_t n = t->ne[0];
    float *values = td_alloc(n, sizeof *values, err);
    bool is_ok = values && read_bytes(l, t, 0, t->n_bytes, err);
    if (is_ok) {
        t->type->dequantize(l->staging, values, n);
        is_ok = td_weight_write(w, 0, 1, values, err);
    }
    td_free(values);
    return is_ok;
}

static td_weight *load_one(loader *l, const row *r, const td_gguf_tensor *t, td_err *err)
{
    td_weight_params params = params_of(l->m, r, t);
    td_weight *w = td_weight_create(l->dev, &params, err);
    if (!w)
        return NULL;
    if (r->n_rows == D_ONE) {
        if (!load_vector(l, w, t, err))
            goto fail;
    } else {
        size_t row_bytes = td_row_bytes(t->type, params.n_cols);
        uint32_t n_at_once = td_max_u32(1, (uint32_t)(l->staging_bytes / row_bytes));
        for (uint32_t i = 0; i < params.n_rows; i += n_at_once) {
            uint32_t n = td_min_u32(n_at_once, params.n_rows - i);
            if (!read_bytes(l, t, i * row_bytes, n * row_bytes, err) ||
                !td_weight_write(w, i, n, l->staging, err))
                goto fail;
            td_gguf_drop(l->m->gguf, t, i * row_bytes, n * row_bytes);
        }
    }
    l->done += t->n_bytes;
    if (l->progress)
        l->progress(l->user, l->done, l->total);
    return w;
fail:
    td_weight_destroy(&w);
    return NULL;
}

static bool needs_end(const td_model *m, int end, uint32_t first, uint32_t last)
{
    bool is_last = last + 1 == m->hparams.n_layer;
    if (end == TD_W_EMBD)
        return first == 0 || (is_last && m->hparams.is_tied);
    return is_last;
}

/* Calls f for every tensor a part needs. */
static bool each_tensor(const td_model *m, uint32_t first, uint32_t last,
                        bool (*f)(void *user, const row *r, const td_gguf_tensor *t,
                                  td_weight **slot, td_err *err),
                        void *user, td_weights *w, td_err *err)
{
    char name[TD_NAME_MAX];
    for (int i = 0; i < TD_W_END_COUNT; i++) {
        const td_gguf_tensor *t = find(m, &end_rows[i], -1, name);
        if (t && needs_end(m, i, first, last) &&
            !f(user, &end_rows[i], t, w ? &w->ends[i] : NULL, err))
            return false;
    }
    for (uint32_t layer = first; layer <= last; layer++)
        for (int i = 0; i < TD_W_LAYER_COUNT; i++) {
            const td_gguf_tensor *t = find(m, &layer_rows[i], (int)layer, name);
            if (t && is_wanted(m, &layer_rows[i]) &&
                !f(user, &layer_rows[i], t, w ? &w->layers[layer - first][i] : NULL, err))
                return false;
        }
    return true;
}

static bool add_size(void *user, const row *r, const td_gguf_tensor *t, td_weight **slot,
                     td_err *err)
{
    (void)slot, (void)err;
    loader *l = user;
    l->capacity++;
    l->total += t->n_bytes;
    size_t at_least = r->n_rows == D_ONE ? t->n_bytes : td_row_bytes(t->type, t->ne[0]);
    if (at_least > l->staging_bytes)
        l->staging_bytes = at_least;
    return true;
}

static bool add_item(void *user, const row *r, const td_gguf_tensor *t, td_weight **slot,
                     td_err *err)
{
    (void)err;
    loader *l = user;
    TD_ASSERT(l->n_items < l->capacity);
    l->items[l->n_items++] = (item){r, t, slot};
    return true;
}

static bool load_all(loader *l, td_err *err)
{
    for (uint32_t i = 0; i < l->n_items; i++) {
        const item *it = &l->items[i];
        *it->slot = load_one(l, it->row, it->tensor, err);
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

td_weights *td_weights_load(const td_model *m, td_device *dev, uint32_t first, uint32_t last,
                            void (*progress)(void *user, uint64_t done, uint64_t total), void *user,
                            td_err *err)
{
    TD_ASSERT(first <= last && last < m->hparams.n_layer);
    loader l = {
        .m = m, .dev = dev, .staging_bytes = CHUNK_BYTES, .progress = progress, .user = user};
    td_weights *w = td_alloc(1, sizeof *w, err);
    if (!w)
        return NULL;
    w->first = first;
    w->last = last;
    each_tensor(m, first, last, add_size, &l, NULL, NULL);
    w->layers = td_alloc(last - first + 1, sizeof *w->layers, err);
    l.staging = td_alloc(l.staging_bytes, 1, err);
    l.items = td_alloc(l.capacity, sizeof *l.items, err);
    const td_clock clock = td_clock_real();
    uint64_t start_us = td_clock_now_us(&clock);
    if (!w->layers || !l.staging || !l.items ||
        !each_tensor(m, first, last, add_item, &l, w, err) || !load_all(&l, err)) {
        td_err_prepend(err, "%s on %s", m->path, td_device_get_info(dev)->spec);
        td_weights_destroy(&w);
    }
    td_free(l.items);
    td_free(l.staging);
    if (w) {
        w->n_file_bytes = l.total;
        w->load_us = td_clock_now_us(&clock) - start_us;
        log_load(w, td_device_get_info(dev)->spec);
    }
    return w;
}

void td_weights_destroy(td_weights **w)
{
    if (!*w)
        return;
    if ((*w)->layers)
        for (uint32_t i = 0; i <= (*w)->last - (*w)->first; i++)
            for (int k = 0; k < TD_W_LAYER_COUNT; k++)
                td_weight_destroy(&(*w)->layers[i][k]);
    for (int i = 0; i < TD_W_END_COUNT; i++)
        td_weight_destroy(&(*w)->ends[i]);
    td_free((*w)->layers);
    td_free(*w);
    *w = NULL;
}

uint64_t td_weights_layer_bytes(const td_model *m, const td_device *dev, uint32_t layer)
{
    uint64_t n = 0;
    char name[TD_NAME_MAX];
    for (int i = 0; i < TD_W_LAYER_COUNT; i++) {
        const td_gguf_tensor *t = find(m, &layer_rows[i], (int)layer, name);
        if (t && is_wanted(m, &layer_rows[i])) {
            td_weight_params params = params_of(m, &layer_rows[i], t);
            n += td_weight_bytes(dev, &params);
        }
    }
    return n;
}

uint64_t td_weights_end_bytes(const td_model *m, const td_device *dev, uint32_t first,
                              uint32_t last)
{
    uint64_t n = 0;
    char name[TD_NAME_MAX];
    for (int i = 0; i < TD_W_END_COUNT; i++) {
        const td_gguf_tensor *t = find(m, &end_rows[i], -1, name);
        if (t && needs_end(m, i, first, last)) {
            td_weight_params params = params_of(m, &end_rows[i], t);
            n += td_weight_bytes(dev, &params);
        }
    }
    return n;
}
