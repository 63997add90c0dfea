/* Law 1 on the host: a small model block, every op in it, gives the same bits on the scalar
 * device and on the host device at every SIMD level, with 1, 2 and 3 threads, for any number of
 * rows and at any place in the batch. The ops are chained as a model chains them, so that the way
 * the host gathers them into phases and reuses quantized inputs is on trial too. */
#include "op_common.h"

#include "base/mem.h"

#define N_EMBD    256u
#define N_HEAD    6u
#define N_HEAD_KV 2u
#define N_FFN     256u
#define N_VOCAB   77u
#define N_PAGES   12u
#define N_SLOTS   2u
#define ROWS_MAX  64u
#define N_PAST    70u /* positions stored before the batch under test */

typedef struct {
    const char *weight_type, *k_type, *v_type;
    uint32_t head_dim_k, head_dim_v;
    td_rope_kind rope;
    uint32_t window;
    float softcap;
    float odd_weight; /* put into the first norm; 0: nothing */
    bool rotates_k, rotates_v;
} block_case;

typedef struct {
    bench b;
    td_batch_tensors batch;
    td_tensor *ids, *cos_sin, *out_rows;
    td_tensor *x, *qkv, *mixed, *mid, *gate_up, *last, *logits;
} block;

static uint64_t seed;

static td_weight *matrix(block *m, const char *type_name, uint32_t n_out, uint32_t n_in)
{
    const td_type_info *type = td_type_find_name(type_name);
    unsigned char *rows = new_random_rows(type, n_out, n_in, ++seed);
    td_weight *w = bench_weight(&m->b, type, n_out, n_in, rows);
    free(rows);
    return w;
}

static td_weight *vector(block *m, uint32_t n, float odd)
{
    float *values = new_random(n, ++seed);
    if (odd != 0)
        values[n / 2] = odd;
    td_weight *w = bench_vector(&m->b, values, n);
    free(values);
    return w;
}

static void make_tensors(block *m, const block_case *c)
{
    bench *b = &m->b;
    uint32_t n_q = N_HEAD * c->head_dim_k, n_k = N_HEAD_KV * c->head_dim_k;
    m->ids = bench_tensor(b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1);
    m->batch.positions = bench_tensor(b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1);
    m->batch.slots = bench_tensor(b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1);
    m->batch.pages = bench_tensor(b, TD_ELEM_I32, TD_ROWS_FIXED, N_SLOTS, N_PAGES / N_SLOTS);
    m->cos_sin = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, 32);
    m->out_rows = bench_tensor(b, TD_ELEM_I32, TD_ROWS_OUT, ROWS_MAX, 1);
    m->x = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, N_EMBD);
    m->qkv = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX,
                          n_q + n_k + N_HEAD_KV * c->head_dim_v);
    m->mixed = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, N_HEAD * c->head_dim_v);
    m->mid = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, N_EMBD);
    m->gate_up = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, 2 * N_FFN);
    m->last = bench_tensor(b, TD_ELEM_F32, TD_ROWS_OUT, ROWS_MAX, N_EMBD);
    m->logits = bench_tensor(b, TD_ELEM_F32, TD_ROWS_OUT, ROWS_MAX, N_VOCAB);
}

static void record_attention(block *m, const block_case *c)
{
    td_program *p = m->b.p;
    uint32_t n_q = N_HEAD * c->head_dim_k, n_k = N_HEAD_KV * c->head_dim_k;
    uint32_t n_v = N_HEAD_KV * c->head_dim_v;
    td_kv *kv =
        bench_kv(&m->b, &(td_kv_params){td_type_find_name(c->k_type), td_type_find_name(c->v_type),
                                        N_HEAD_KV, c->head_dim_k, c->head_dim_v, N_PAGES, false,
                                        c->rotates_k, c->rotates_v});
    td_view q = td_columns(m->qkv, 0, n_q), k = td_columns(m->qkv, n_q, n_k);
    td_view v = td_columns(m->qkv, n_q + n_k, n_v);
    td_op_rms_norm(p, td_all(m->x), vector(m, N_EMBD, c->odd_weight), 1, 1e-5f, td_all(m->mid));
    td_op_mat_mul(p, matrix(m, c->weight_type, n_q, N_EMBD), vector(m, n_q, 0), td_all(m->mid), q);
    td_op_mat_mul(p, matrix(m, c->weight_type, n_k, N_EMBD), NULL, td_all(m->mid), k);
    td_op_mat_mul(p, matrix(m, c->weight_type, n_v, N_EMBD), NULL, td_all(m->mid), v);
    td_op_rms_norm(p, q, vector(m, c->head_dim_k, 0), N_HEAD, 1e-6f, q);
    td_op_rope(p, q, td_all(m->cos_sin), c->rope, c->head_dim_k, 0);
    td_op_rope(p, k, td_all(m->cos_sin), c->rope, c->head_dim_k, 0);
    td_op_kv_store(p, kv, k, v, &m->batch);
    td_attention_params params = {
        .n_head = N_HEAD, .scale = 0.2f, .window = c->window, .softcap = c->softcap};
    td_op_attention(p, kv, q, td_all(m->mixed), &params, &m->batch);
}

/* Rows of sequence `slot` at positions first.. in batch rows row0... */
static void set_rows(block *m, uint32_t row0, uint32_t n, uint32_t slot, uint32_t first)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t row = row0 + i, position = first + i;
        i32_data(m->ids)[row] = (int32_t)((position * 31 + slot * 17) % N_VOCAB);
        i32_data(m->batch.positions)[row] = (int32_t)position;
        i32_data(m->batch.slots)[row] = (int32_t)slot;
        i32_data(m->out_rows)[row] = (int32_t)row;
        for (uint32_t j = 0; j < 32; j += 2) {
            double angle = position / pow(1e4, j / 32.0);
            f32_data(m->cos_sin)[row * 32 + j] = (float)cos(angle);
            f32_data(m->cos_sin)[row * 32 + j + 1] = (float)sin(angle);
        }
    }
}

static block begin_block(td_device *dev, const block_case *c)
{
    block m = {.b = bench_begin(dev, TD_MODE_VERIFY, ROWS_MAX, ROWS_MAX)};
    seed = 1;
    make_tensors(&m, c);
    td_program *p = m.b.p;
    uint32_t n_mixed = N_HEAD * c->head_dim_v;
    td_view gate = td_columns(m.gate_up, 0, N_FFN), up = td_columns(m.gate_up, N_FFN, N_FFN);
    td_weight *embd = matrix(&m, c->weight_type, N_VOCAB, N_EMBD);
    td_op_embed(p, embd, td_all(m.ids), td_all(m.x));
    record_attention(&m, c);
    /* A quantized type needs a width of whole blocks; Q8_0 stands in for the larger ones. */
    const td_type_info *type = td_type_find_name(c->weight_type);
    const char *out_type = n_mixed % type->block_elements ? "Q8_0" : c->weight_type;
    td_op_mat_mul(p, matrix(&m, out_type, N_EMBD, n_mixed), NULL, td_all(m.mixed), td_all(m.mid));
    td_op_add(p, td_all(m.x), td_all(m.mid), td_all(m.x));
    td_op_rms_norm(p, td_all(m.x), NULL, 1, 1e-5f, td_all(m.mid));
    td_op_mat_mul(p, matrix(&m, c->weight_type, N_FFN, N_EMBD), NULL, td_all(m.mid), gate);
    td_op_mat_mul(p, matrix(&m, c->weight_type, N_FFN, N_EMBD), NULL, td_all(m.mid), up);
    td_op_glu(p, TD_GLU_SILU, gate, up, NULL, gate);
    td_op_mat_mul(p, matrix(&m, c->weight_type, N_EMBD, N_FFN), NULL, gate, td_all(m.mid));
    td_op_add(p, td_all(m.x), td_all(m.mid), td_all(m.x));
    td_op_gather(p, td_all(m.x), m.out_rows, td_all(m.last));
    td_op_rms_norm(p, td_all(m.last), vector(&m, N_EMBD, 0), 1, 1e-5f, td_all(m.last));
    td_op_mat_mul(p, embd, NULL, td_all(m.last), td_all(m.logits));
    bench_end(&m.b);
    int32_t *pages = i32_data(m.batch.pages);
    for (uint32_t i = 0; i < N_PAGES; i++)
        pages[i] = (int32_t)(i * 5 % N_PAGES);
    for (uint32_t at = 0; at < N_PAST; at += N_PAST / 2) {
        set_rows(&m, 0, N_PAST / 2, 0, at);
        bench_run(&m.b, N_PAST / 2, 0);
    }
    return m;
}

/* Logits [n_rows][N_VOCAB] of sequence 0's positions N_PAST.., the batch cut into pieces of
 * `width`; each piece has rows of sequence 1 before and behind when is_mixed. */
static float *new_logits(block *m, uint32_t n_rows, uint32_t width, bool is_mixed)
{
    float *out = test_alloc((size_t)n_rows * N_VOCAB, sizeof(float));
    for (uint32_t at = 0; at < n_rows; at += width) {
        uint32_t n = td_min_u32(width, n_rows - at), n_before = 0, n_behind = 0;
        if (is_mixed && n + 3 <= ROWS_MAX) {
            n_before = 1;
            n_behind = 2;
        }
        set_rows(m, 0, n_before, 1, 0);
        set_rows(m, n_before, n, 0, N_PAST + at);
        set_rows(m, n_before + n, n_behind, 1, 1);
        uint32_t n_all = n_before + n + n_behind;
        bench_run(&m->b, n_all, n_all);
        memcpy(out + (size_t)at * N_VOCAB, f32_data(m->logits) + n_before * N_VOCAB,
               (size_t)n * N_VOCAB * sizeof(float));
    }
    return out;
}

/* The same bits, or both NaN: which NaN is not part of the claim. */
static void check_same(const float *got, const float *want, size_t n, const td_device *dev)
{
    for (size_t i = 0; i < n; i++)
        if (!is_same_bits(&got[i], &want[i], 1) && !(isnan(got[i]) && isnan(want[i])))
            fail_msg("%s, %s: row %zu, logit %zu is %a, expected %a", device_spec(dev),
                     td_device_get_info(dev)->driver, i / N_VOCAB, i % N_VOCAB, (double)got[i],
                     (double)want[i]);
}

/* Every width with two threads, some with the others; in brief, some. */
static void check_device(td_device *dev, const block_case *c, const float *want, uint32_t n_rows)
{
    static const uint32_t widths[] = {5, 64, 1, 33, 2, 17, 16};
    bool is_all = td_device_get_info(dev)->n_threads == 2 && !wants_brief();
    size_t n_widths = is_all ? TD_COUNT(widths) : 2;
    block m = begin_block(dev, c);
    for (size_t i = 0; i < n_widths; i++) {
        uint64_t n_allocations = td_alloc_count();
        float *got = new_logits(&m, n_rows, widths[i], i % 2 == 0);
        assert_int_equal(td_alloc_count(), n_allocations);
        check_same(got, want, (size_t)n_rows * N_VOCAB, dev);
        free(got);
    }
    bench_destroy(&m.b);
}

static void check_levels(const block_case *c)
{
    static const char *const levels[] = {"generic", "avx2", "avxvnni", "avx512"};
    const uint32_t n_rows = wants_brief() ? 34 : 64;
    td_err err = {0};
    td_device *scalar = td_device_create("scalar", &err);
    must(scalar != NULL, &err);
    block m = begin_block(scalar, c);
    float *want = new_logits(&m, n_rows, n_rows, false);
    float *singly = new_logits(&m, n_rows, 1, true);
    check_same(singly, want, (size_t)n_rows * N_VOCAB, scalar);
    if (c->odd_weight == 0)
        for (size_t i = 0; i < (size_t)n_rows * N_VOCAB; i++)
            assert_true(isfinite(want[i]));
    bench_destroy(&m.b);
    td_device_destroy(&scalar);
    for (size_t l = 0; l < TD_COUNT(levels); l++)
        for (uint32_t n = 1; n <= 3; n++) {
            if (n != 2 && (l == 0 || wants_brief())) /* slow */
                continue;
            td_device *dev = open_level(levels[l], n);
            if (!dev)
                break;
            check_device(dev, c, want, n_rows);
            td_device_destroy(&dev);
        }
    free(singly);
    free(want);
}

static void test_q8_0_block(void **state)
{
    (void)state;
    check_levels(&(block_case){"Q8_0", "F16", "F16", 64, 64, TD_ROPE_NORM, 0, 0, 0, false, false});
}

static void test_q4_0_block_with_quantized_cache(void **state)
{
    (void)state;
    check_levels(&(block_case){"Q4_0", "Q8_0", "Q4_0", 64, 32, TD_ROPE_NEOX, 0, 0, 0, false, true});
}

static void test_q4_k_block_with_window(void **state)
{
    (void)state;
    check_levels(&(block_case){"Q4_K", "Q4_1", "Q5_0", 40, 48, TD_ROPE_NEOX, 37, 0, 0, true, true});
}

static void test_q6_k_block_with_softcap(void **state)
{
    (void)state;
    check_levels(
        &(block_case){"Q6_K", "F32", "F16", 36, 16, TD_ROPE_NORM, 0, 5.0f, 0, false, false});
    check_levels(&(block_case){"BF16", "BF16", "Q5_1", 70, 33, TD_ROPE_NEOX, 0, 0, 0, true, false});
}

static void test_f16_block_with_odd_heads(void **state)
{
    (void)state;
    check_levels(&(block_case){"F16", "F16", "F32", 33, 19, TD_ROPE_NORM, 65, 0, 0, true, true});
}

static void test_f32_block(void **state)
{
    (void)state;
    check_levels(&(block_case){"F32", "Q6_0", "BF16", 35, 8, TD_ROPE_NEOX, 0, 0, 0, false, false});
}

/* Not finite in, not finite out, the same everywhere, and no trap on the way. */
static void test_non_finite_weights_go_through(void **state)
{
    (void)state;
    check_levels(
        &(block_case){"Q4_K", "Q5_0", "Q4_1", 64, 64, TD_ROPE_NORM, 0, 0, INFINITY, false, false});
    check_levels(
        &(block_case){"F16", "F16", "F16", 64, 64, TD_ROPE_NORM, 0, 3.0f, NAN, false, false});
    check_levels(
        &(block_case){"Q6_K", "Q4_0", "Q8_0", 32, 32, TD_ROPE_NEOX, 9, 0, 1e38f, false, false});
}

/* -- attention alone -------------------------------------------------------------------------- */

#define DEEP_PAGES 5u /* of each sequence */
#define DEEP_SLOTS 3u

typedef struct {
    const char *k_type, *v_type;
    uint32_t n_head_kv, group, dim_k, dim_v, window, chunk;
    float softcap;
    bool rotates_k, rotates_v;
} deep_case;

typedef struct {
    bench b;
    td_batch_tensors batch;
    td_tensor *q, *k, *v, *y;
} deep;

static deep begin_deep(td_device *dev, const deep_case *c)
{
    deep m = {.b = bench_begin(dev, TD_MODE_VERIFY, ROWS_MAX, 0)};
    bench *b = &m.b;
    uint32_t n_head = c->n_head_kv * c->group, n_pages = DEEP_SLOTS * DEEP_PAGES;
    m.q = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, n_head * c->dim_k);
    m.k = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, c->n_head_kv * c->dim_k);
    m.v = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, c->n_head_kv * c->dim_v);
    m.y = bench_tensor(b, TD_ELEM_F32, TD_ROWS_BATCH, ROWS_MAX, n_head * c->dim_v);
    m.batch.positions = bench_tensor(b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1);
    m.batch.slots = bench_tensor(b, TD_ELEM_I32, TD_ROWS_BATCH, ROWS_MAX, 1);
    m.batch.pages = bench_tensor(b, TD_ELEM_I32, TD_ROWS_FIXED, DEEP_SLOTS, DEEP_PAGES);
    for (uint32_t i = 0; i < n_pages; i++)
        i32_data(m.batch.pages)[i] = (int32_t)(i * 7 % n_pages);
    td_kv *kv = bench_kv(b, &(td_kv_params){td_type_find_name(c->k_type),
                                            td_type_find_name(c->v_type), c->n_head_kv, c->dim_k,
                                            c->dim_v, n_pages, false, c->rotates_k, c->rotates_v});
    td_attention_params params = {.n_head = n_head,
                                  .scale = 0.3f,
                                  .window = c->window,
                                  .chunk = c->chunk,
                                  .softcap = c->softcap};
    td_op_kv_store(b->p, kv, td_all(m.k), td_all(m.v), &m.batch);
    td_op_attention(b->p, kv, td_all(m.q), td_all(m.y), &params, &m.batch);
    bench_end(b);
    return m;
}

/* The row of a sequence's position, in batch row r. */
static void set_deep(deep *m, uint32_t r, uint32_t slot, uint32_t position)
{
    td_tensor *const of[] = {m->q, m->k, m->v};
    i32_data(m->batch.positions)[r] = (int32_t)position;
    i32_data(m->batch.slots)[r] = (int32_t)slot;
    for (uint32_t i = 0; i < TD_COUNT(of); i++) {
        uint32_t n = td_tensor_get_params(of[i])->n_cols;
        fill_random(view_row(td_all(of[i]), r), n, (position * DEEP_SLOTS + slot) * 8 + i);
        for (uint32_t j = 0; i == 0 && j < n; j++)
            view_row(td_all(of[i]), r)[j] *= 4;
    }
}

/* y of the rows of `n` positions from `first` on of each sequence (sequence s has 40 s more in its
 * past), fed `width` of a sequence at a time, all sequences in one batch. */
static float *new_deep(td_device *dev, const deep_case *c, uint32_t first, uint32_t n,
                       uint32_t width)
{
    deep m = begin_deep(dev, c);
    size_t n_y = td_tensor_get_params(m.y)->n_cols;
    float *out = test_alloc(DEEP_SLOTS * n * n_y, sizeof *out);
    for (uint32_t slot = 0; slot < DEEP_SLOTS; slot++)
        for (uint32_t at = 0; at < first + slot * 40; at++) {
            set_deep(&m, at % ROWS_MAX, slot, at);
            if ((at + 1) % ROWS_MAX == 0 || at + 1 == first + slot * 40)
                bench_run(&m.b, at % ROWS_MAX + 1, 0);
        }
    for (uint32_t at = 0; at < n; at += width) {
        uint32_t n_now = td_min_u32(width, n - at);
        for (uint32_t r = 0; r < n_now * DEEP_SLOTS; r++)
            set_deep(&m, r, r / n_now, first + r / n_now * 40 + at + r % n_now);
        bench_run(&m.b, n_now * DEEP_SLOTS, 0);
        for (uint32_t r = 0; r < n_now * DEEP_SLOTS; r++)
            memcpy(out + (r / n_now * n + at + r % n_now) * n_y, view_row(td_all(m.y), r),
                   n_y * sizeof *out);
    }
    bench_destroy(&m.b);
    return out;
}

/* Rows of several sequences of unlike length, many of each: tiles of every size, pages that some of
 * a tile's queries see in part, windows and chunks whose ends lie within it. */
static void test_queries_that_share_keys_keep_their_bits(void **state)
{
    (void)state;
    static const deep_case cases[] = {
        {"F16", "F16", 2, 4, 64, 64, 0, 0, 0, false, false},
        {"Q8_0", "Q8_0", 1, 5, 128, 96, 0, 0, 0, true, true},
        {"Q5_1", "Q4_1", 3, 1, 72, 40, 70, 0, 0, true, true},
        {"F32", "Q6_0", 1, 7, 33, 130, 3, 0, 0, false, true},
        {"IQ4_NL", "F32", 2, 2, 70, 5, 0, 50, 2.0f, true, false},
        {"BF16", "IQ4_NL", 1, 16, 96, 64, 100, 70, 0, false, false},
    };
    static const char *const levels[] = {"generic", "avx2", "avxvnni", "avx512"};
    static const uint32_t widths[] = {20, 7, 3, 2, 1};
    const uint32_t first = 117, n = 20;
    td_err err = {0};
    td_device *scalar = td_device_create("scalar", &err);
    must(scalar != NULL, &err);
    for (size_t i = 0; i < TD_COUNT(cases); i += wants_brief() ? 2 : 1) {
        const deep_case *c = &cases[i];
        size_t n_y = (size_t)DEEP_SLOTS * n * c->n_head_kv * c->group * c->dim_v;
        float *want = new_deep(scalar, c, first, n, 1);
        for (size_t l = 0; l < TD_COUNT(levels); l++)
            for (size_t w = 0; w < (l && !wants_brief() ? TD_COUNT(widths) : 1); w++) {
                td_device *dev = open_level(levels[l], 1 + (uint32_t)w);
                if (!dev)
                    break;
                float *got = new_deep(dev, c, first, n, widths[w]);
                check_same_bits(got, want, n_y, levels[l], dev);
                free(got);
                td_device_destroy(&dev);
            }
        free(want);
    }
    td_device_destroy(&scalar);
}

static void test_an_unknown_level_is_refused(void **state)
{
    (void)state;
    td_err err = {0};
    setenv("TD_HOST_ISA", "avx1024", 1);
    assert_null(td_device_create("host", &err));
    td_device_info info = {0};
    td_device_list(&info, 1);
    unsetenv("TD_HOST_ISA");
    assert_int_equal(err.code, TD_E_USAGE);
    assert_non_null(strstr(err.message, "avx1024"));
    assert_non_null(strstr(err.message, "allowed: generic, avx2, avxvnni, avx512"));
    assert_false(info.is_usable);
}

static void test_the_host_describes_itself(void **state)
{
    (void)state;
    td_device_info info = {0};
    assert_true(td_device_list(&info, 1) == 1);
    assert_string_equal(info.spec, "host");
    assert_true(info.is_usable && info.kind == TD_DEVICE_HOST);
    assert_true(info.name[0] && info.driver[0] && info.n_threads >= 1);
    assert_int_equal(info.memory.n_heaps, 1);
    assert_true(info.capacity.usable_bytes > 0);
    assert_true(info.capacity.usable_bytes < info.capacity.total_bytes);
}

static void test_memory_is_counted_and_limited(void **state)
{
    (void)state;
    td_err err = {0};
    td_device *dev = td_device_create("host:1", &err);
    must(dev != NULL, &err);
    uint64_t before, used, budget;
    td_device_memory(dev, &before, &budget);
    td_weight_params params = {"w", td_type_find(TD_TYPE_Q8_0), 33, 64, 0};
    td_weight *w = td_weight_create(dev, &params, &err);
    must(w != NULL, &err);
    td_device_memory(dev, &used, &budget);
    assert_int_equal(used - before, td_weight_bytes(dev, &params));
    td_weight_destroy(&w);
    td_device_memory(dev, &used, &budget);
    assert_int_equal(used, before);
    params = (td_weight_params){"huge", td_type_find(TD_TYPE_F32), UINT32_MAX, 1u << 20, 0};
    assert_null(td_weight_create(dev, &params, &err));
    assert_int_equal(err.code, TD_E_NOMEM);
    td_device_memory(dev, &used, &budget);
    assert_int_equal(used, before);
    td_device_destroy(&dev);
}

/* Packed weights of every type take about what the file takes. */
static void test_packed_weights_stay_small(void **state)
{
    (void)state;
    td_err err = {0};
    td_device *dev = td_device_create("host:1", &err);
    must(dev != NULL, &err);
    for (size_t i = 0; i < TD_COUNT(weight_types); i++) {
        td_weight_params params = {"w", td_type_find_name(weight_types[i]), 1024, 2048, 0};
        uint64_t file = 1024 * (uint64_t)td_row_bytes(params.type, 2048);
        assert_true(td_weight_bytes(dev, &params) <= file + file / 32);
    }
    td_device_destroy(&dev);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q8_0_block),
        cmocka_unit_test(test_q4_0_block_with_quantized_cache),
        cmocka_unit_test(test_q4_k_block_with_window),
        cmocka_unit_test(test_q6_k_block_with_softcap),
        cmocka_unit_test(test_f16_block_with_odd_heads),
        cmocka_unit_test(test_f32_block),
        cmocka_unit_test(test_non_finite_weights_go_through),
        cmocka_unit_test(test_queries_that_share_keys_keep_their_bits),
        cmocka_unit_test(test_an_unknown_level_is_refused),
        cmocka_unit_test(test_the_host_describes_itself),
        cmocka_unit_test(test_memory_is_counted_and_limited),
        cmocka_unit_test(test_packed_weights_stay_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
