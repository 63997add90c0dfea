/* Tensors, caches and recurrent states: buffers with a head. Their memory starts as zeros, so that
 * what was never written is the same on every run. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"
#include "kernels/vulkan/pack.h"

/* Layers read inputs over and over: of a card whose bus is between, a copy in its own memory. */
static bool stage_input(td_vk_device *d, td_vk_tensor *t, td_err *err)
{
    bool is_far = d->head.info.kind == TD_DEVICE_DISCRETE && !td_vk_buffer_is_local(d, &t->buffer);
    uint64_t n_bytes = t->buffer.n_bytes;
    if (!is_far && n_bytes <= d->physical.limits.direct_input_bytes)
        return true;
    t->staged = t->buffer;
    t->buffer = (td_vk_buffer){0};
    return td_vk_buffer_create(d, n_bytes, TD_VK_USE_DEVICE, t->head.params.name, &t->buffer,
                               err) &&
           td_vk_buffer_clear(d, &t->staged, err);
}

bool td_vk_tensor_init(td_tensor *tensor, td_err *err)
{
    td_vk_tensor *t = (td_vk_tensor *)tensor;
    td_vk_device *d = (td_vk_device *)tensor->dev;
    const td_tensor_params *p = &tensor->params;
    static const td_vk_use uses[] = {[TD_HOST_NONE] = TD_VK_USE_DEVICE,
                                     [TD_HOST_READS] = TD_VK_USE_HOST,
                                     [TD_HOST_WRITES] = TD_VK_USE_INPUT};
    if (!td_vk_buffer_create(d, 4ull * p->n_rows * p->n_cols, uses[p->host], p->name, &t->buffer,
                             err) ||
        (p->host == TD_HOST_WRITES && !stage_input(d, t, err)) ||
        !td_vk_buffer_clear(d, &t->buffer, err))
        return false;
    void *mapped = t->staged.handle ? t->staged.mapped : t->buffer.mapped;
    tensor->data = p->host != TD_HOST_NONE ? mapped : NULL;
    return true;
}

void td_vk_tensor_free(td_tensor *tensor)
{
    td_vk_tensor *t = (td_vk_tensor *)tensor;
    td_vk_buffer_destroy((td_vk_device *)tensor->dev, &t->buffer);
    td_vk_buffer_destroy((td_vk_device *)tensor->dev, &t->staged);
    for (uint32_t i = 0; i < TD_VK_SIDES_MAX; i++) {
        td_vk_buffer_destroy((td_vk_device *)tensor->dev, &t->int8[i]);
        td_vk_buffer_destroy((td_vk_device *)tensor->dev, &t->partials[i]);
        td_vk_buffer_destroy((td_vk_device *)tensor->dev, &t->lists[i]);
    }
}

const void *td_vk_tensor_read(td_tensor *tensor, uint32_t row0, uint32_t n_rows, td_err *err)
{
    td_vk_tensor *t = (td_vk_tensor *)tensor;
    td_vk_device *d = (td_vk_device *)tensor->dev;
    uint64_t row_bytes = 4ull * tensor->params.n_cols, n_bytes = n_rows * row_bytes;
    if (!td_vk_check(d, err))
        return NULL;
    if (d->readback.n_bytes < n_bytes) {
        td_vk_buffer_destroy(d, &d->readback);
        if (!td_vk_buffer_create(d, n_bytes, TD_VK_USE_HOST, "readback", &d->readback, err))
            return NULL;
    }
    if (!td_vk_once_begin(d, err))
        return NULL;
    vkCmdCopyBuffer(d->once, t->buffer.handle, d->readback.handle, 1,
                    &(VkBufferCopy){.srcOffset = row0 * row_bytes, .size = n_bytes});
    td_vk_barrier(d->once, VK_PIPELINE_STAGE_2_COPY_BIT, VK_ACCESS_2_TRANSFER_WRITE_BIT,
                  VK_PIPELINE_STAGE_2_HOST_BIT, VK_ACCESS_2_HOST_READ_BIT);
    return td_vk_submit_once(d, err) ? d->readback.mapped : NULL;
}

static uint64_t cache_bytes(const td_kv_params *p, const td_type_info *type, uint32_t head_dim)
{
    uint64_t cell = 4ull * td_vk_kv_row_words(type, head_dim) * TD_PAGE_POSITIONS;
    uint64_t n_bytes;
    if (!td_mul_u64(cell * p->n_head_kv, p->n_pages, &n_bytes))
        return UINT64_MAX / 4;
    return n_bytes;
}

static uint64_t k_bytes(const td_kv_params *p) { return cache_bytes(p, p->type_k, p->head_dim_k); }

static uint64_t v_bytes(const td_kv_params *p)
{
    return p->is_latent ? 0 : cache_bytes(p, p->type_v, p->head_dim_v);
}

bool td_vk_kv_init(td_kv *cache, td_err *err)
{
    td_vk_kv *kv = (td_vk_kv *)cache;
    td_vk_device *d = (td_vk_device *)cache->dev;
    const td_kv_params *p = &cache->params;
    kv->k_words = td_vk_kv_row_words(p->type_k, p->head_dim_k);
    kv->v_words = p->is_latent ? kv->k_words : td_vk_kv_row_words(p->type_v, p->head_dim_v);
    if (!td_vk_buffer_create(d, k_bytes(p), TD_VK_USE_DEVICE, "cache k", &kv->k, err) ||
        !td_vk_buffer_clear(d, &kv->k, err))
        return false;
    return p->is_latent ||
           (td_vk_buffer_create(d, v_bytes(p), TD_VK_USE_DEVICE, "cache v", &kv->v, err) &&
            td_vk_buffer_clear(d, &kv->v, err));
}

void td_vk_kv_free(td_kv *cache)
{
    td_vk_kv *kv = (td_vk_kv *)cache;
    td_vk_buffer_destroy((td_vk_device *)cache->dev, &kv->k);
    td_vk_buffer_destroy((td_vk_device *)cache->dev, &kv->v);
}

uint64_t td_vk_kv_bytes(const td_device *dev, const td_kv_params *params)
{
    (void)dev;
    return k_bytes(params) + v_bytes(params);
}

uint64_t td_vk_kv_piece_bytes(const td_kv_params *p)
{
    uint64_t k = k_bytes(p), v = v_bytes(p);
    return k > v ? k : v;
}

/* Floats of a state's S, words of its counts, floats of its ring. */
static bool state_sizes(const td_state_params *p, uint64_t words[3])
{
    uint64_t heads = (uint64_t)p->n_slots * p->n_head_v, s = 0, ring = 0;
    bool fits = td_mul_u64(heads, (uint64_t)p->dim * p->dim, &s);
    fits &= td_mul_u64((uint64_t)p->n_slots * p->n_pending, td_state_cols(p), &ring);
    words[0] = s;
    words[1] = heads * td_div_up(p->dim, TD_VK_STATE_COLS);
    words[2] = ring;
    return fits && s < UINT64_MAX / 16 && ring < UINT64_MAX / 16;
}

bool td_vk_state_init(td_state *state, td_err *err)
{
    td_vk_state *s = (td_vk_state *)state;
    td_vk_device *d = (td_vk_device *)state->dev;
    td_vk_buffer *buffers[] = {&s->s, &s->counts, &s->ring};
    static const char *const names[] = {"state", "state counts", "state ring"};
    uint64_t words[3];
    if (state->params.dim > TD_VK_STATE_DIM_MAX)
        return td_err_set(err, TD_E_UNAVAILABLE, "%s: state heads of %u, more than %u",
                          d->head.info.spec, state->params.dim, TD_VK_STATE_DIM_MAX);
    if (!state_sizes(&state->params, words))
        return td_err_set(err, TD_E_NOMEM, "more bytes than can be counted");
    for (size_t i = 0; i < TD_COUNT(words); i++)
        if (!td_vk_buffer_create(d, 4 * words[i], TD_VK_USE_DEVICE, names[i], buffers[i], err) ||
            !td_vk_buffer_clear(d, buffers[i], err))
            return false;
    return true;
}

void td_vk_state_free(td_state *state)
{
    td_vk_state *s = (td_vk_state *)state;
    td_vk_buffer_destroy((td_vk_device *)state->dev, &s->s);
    td_vk_buffer_destroy((td_vk_device *)state->dev, &s->counts);
    td_vk_buffer_destroy((td_vk_device *)state->dev, &s->ring);
}

uint64_t td_vk_state_bytes(const td_device *dev, const td_state_params *params)
{
    (void)dev;
    uint64_t words[3];
    return state_sizes(params, words) ? 4 * (words[0] + words[1] + words[2]) : UINT64_MAX / 4;
}

uint64_t td_vk_state_piece_bytes(const td_state_params *params)
{
    uint64_t words[3], most = 0;
    if (!state_sizes(params, words))
        return UINT64_MAX / 4;
    for (size_t i = 0; i < TD_COUNT(words); i++)
        most = words[i] > most ? words[i] : most;
    return 4 * most;
}
