/* What the GGUF reader gives for good files: values by key, tensors, data, split models; and the
 * errors of its getters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "gguf_writer.h"
#include "model/gguf.h"

#include <math.h>
#include <sys/stat.h>

static gw_file file;

static td_gguf *open_written(gw *w)
{
    td_err err = {0};
    gw_file_set(&file, w->bytes, w->n);
    td_gguf *g = td_gguf_open(file.path, &err);
    if (!g)
        fail_msg("%s", err.message);
    gw_free(w);
    return g;
}

/* Every value type, two tensors. */
static gw good_file(uint32_t version)
{
    gw w = gw_begin(version);
    gw_kv_str(&w, "general.architecture", "llama");
    gw_kv(&w, "u8", GW_U8, 200, 1);
    gw_kv(&w, "i8", GW_I8, (uint64_t)-5, 1);
    gw_kv(&w, "u16", GW_U16, 60000, 2);
    gw_kv(&w, "i16", GW_I16, (uint64_t)-300, 2);
    gw_kv_u32(&w, "u32", 4000000000u);
    gw_kv(&w, "i32", GW_I32, 7, 4);
    gw_kv_f32(&w, "f32", 1.5f);
    gw_kv(&w, "yes", GW_BOOL, 1, 1);
    gw_kv(&w, "no", GW_BOOL, 0, 1);
    gw_kv(&w, "u64", GW_U64, 1ull << 63, 8);
    gw_kv(&w, "i64", GW_I64, (uint64_t)-1, 8);
    double d = 0.25;
    gw_key(&w, "f64", GW_F64);
    gw_bytes(&w, &d, 8);
    gw_kv_array(&w, "strings", GW_STRING, 4);
    gw_str(&w, "one");
    gw_str(&w, "");
    gw_str_n(&w, "a\0b", 3);
    gw_str(&w, "four");
    gw_kv_array(&w, "no_strings", GW_STRING, 0);
    gw_kv_array(&w, "i32s", GW_I32, 3);
    gw_u32(&w, 1);
    gw_u32(&w, (uint32_t)-2);
    gw_u32(&w, 3);
    gw_kv_array(&w, "u64s", GW_U64, 1);
    gw_u64(&w, UINT64_MAX);
    gw_kv_array(&w, "f32s", GW_F32, 2);
    float f[2] = {0.5f, -2.0f};
    gw_bytes(&w, f, sizeof f);
    gw_kv_array(&w, "bools", GW_BOOL, 2);
    gw_uint(&w, 0x0100, 2);
    gw_kv_str(&w, "last", "end");
    gw_tensor(&w, "a.weight", 2, (const uint64_t[]){32, 3}, 8, 128); /* Q8_0: 102 bytes */
    gw_tensor(&w, "b.weight", 1, (const uint64_t[]){20}, 0, 0);      /* F32: 80 bytes */
    gw_end(&w, 32, 128 + 102);
    return w;
}

static void test_gives_values_by_key(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        gw w = good_file(version);
        td_gguf *g = open_written(&w);
        td_err err = {0};
        uint32_t u;
        uint64_t v;
        int64_t i;
        double d;
        float f;
        bool b;
        const char *s;
        size_t n;
        assert_int_equal(td_gguf_version(g), version);
        assert_int_equal(td_gguf_n_shards(g), 1);
        assert_int_equal(td_gguf_n_keys(g), 20);
        assert_string_equal(td_gguf_path(g), file.path);
        assert_true(td_gguf_get_str(g, "general.architecture", &s, &n, &err));
        assert_string_equal(s, "llama");
        assert_int_equal(n, 5);
        assert_true(td_gguf_get_str(g, "last", &s, NULL, &err));
        assert_string_equal(s, "end");
        assert_true(td_gguf_get_u32(g, "u8", &u, &err) && u == 200);
        assert_true(td_gguf_get_u32(g, "u16", &u, &err) && u == 60000);
        assert_true(td_gguf_get_u32(g, "u32", &u, &err) && u == 4000000000u);
        assert_true(td_gguf_get_u32(g, "i32", &u, &err) && u == 7);
        assert_true(td_gguf_get_u64(g, "u64", &v, &err) && v == 1ull << 63);
        assert_true(td_gguf_get_i64(g, "i8", &i, &err) && i == -5);
        assert_true(td_gguf_get_i64(g, "i16", &i, &err) && i == -300);
        assert_true(td_gguf_get_i64(g, "i64", &i, &err) && i == -1);
        assert_true(td_gguf_get_i64(g, "u32", &i, &err) && i == 4000000000);
        assert_true(td_gguf_get_f32(g, "f32", &f, &err) && f == 1.5f);
        assert_true(td_gguf_get_f32(g, "f64", &f, &err) && f == 0.25f);
        assert_true(td_gguf_get_f64(g, "f64", &d, &err) && d == 0.25);
        assert_true(td_gguf_get_bool(g, "yes", &b, &err) && b);
        assert_true(td_gguf_get_bool(g, "no", &b, &err) && !b);
        assert_int_equal(err.code, TD_OK);
        td_gguf_close(&g);
        assert_null(g);
    }
}

static void test_gives_arrays(void **state)
{
    (void)state;
    gw w = good_file(3);
    td_gguf *g = open_written(&w);
    td_err err = {0};
    td_gguf_array a;
    size_t n;
    assert_true(td_gguf_get_array(g, "strings", TD_GGUF_STRING, &a, &err));
    assert_int_equal(a.n, 4);
    static const char *const texts[] = {"one", "", "a", "four"};
    static const size_t lengths[] = {3, 0, 3, 4};
    for (uint32_t i = 0; i < 4; i++) {
        assert_string_equal(td_gguf_array_str(&a, i, &n), texts[i]);
        assert_int_equal(n, lengths[i]);
    }
    assert_memory_equal(td_gguf_array_str(&a, 2, NULL), "a\0b", 4);
    assert_true(td_gguf_get_any_array(g, "no_strings", &a, &err));
    assert_true(a.n == 0 && a.type == TD_GGUF_STRING);
    assert_true(td_gguf_get_int_array(g, "i32s", &a, &err));
    assert_int_equal(a.n, 3);
    assert_true(td_gguf_array_int(&a, 0) == 1 && td_gguf_array_int(&a, 1) == -2);
    assert_true(td_gguf_get_int_array(g, "u64s", &a, &err));
    assert_true(td_gguf_array_int(&a, 0) == INT64_MAX);
    assert_true(td_gguf_get_array(g, "f32s", TD_GGUF_F32, &a, &err));
    assert_true(td_gguf_array_f32(&a, 0) == 0.5f && td_gguf_array_f32(&a, 1) == -2.0f);
    assert_int_equal(err.code, TD_OK);
    td_gguf_close(&g);
}

static void test_lists_keys_in_file_order(void **state)
{
    (void)state;
    gw w = good_file(3);
    td_gguf *g = open_written(&w);
    td_gguf_value_type type;
    assert_string_equal(td_gguf_key_at(g, 0, &type), "general.architecture");
    assert_int_equal(type, TD_GGUF_STRING);
    assert_string_equal(td_gguf_key_at(g, 13, &type), "strings");
    assert_int_equal(type, TD_GGUF_ARRAY);
    assert_true(td_gguf_has(g, "last"));
    assert_false(td_gguf_has(g, "las"));
    assert_string_equal(td_gguf_value_name(TD_GGUF_F64), "F64");
    assert_string_equal(td_gguf_value_name(99), "?");
    td_gguf_close(&g);
}

/* The error must be TD_E_DATA and hold both texts; the out value must be untouched. */
#define ASSERT_REFUSED(call, text_a, text_b)                                                       \
    do {                                                                                           \
        td_err err = {0};                                                                          \
        assert_false(call);                                                                        \
        assert_int_equal(err.code, TD_E_DATA);                                                     \
        if (!strstr(err.message, text_a) || !strstr(err.message, text_b))                          \
            fail_msg("'%s' holds not both '%s' and '%s'", err.message, text_a, text_b);            \
    } while (0)

static void test_numbers_of_another_type_are_taken_where_they_fit(void **state)
{
    (void)state;
    gw w = gw_begin(3);
    double whole = 300.0, tenth = 0.1;
    gw_key(&w, "f64", GW_F64);
    gw_bytes(&w, &whole, 8);
    gw_key(&w, "tenth", GW_F64);
    gw_bytes(&w, &tenth, 8);
    gw_kv_f32(&w, "minus", -7.0f);
    gw_kv(&w, "u8", GW_U8, 1, 1);
    gw_kv(&w, "i64", GW_I64, 1ull << 53, 8);
    gw_kv_array(&w, "bools", GW_BOOL, 3);
    gw_uint(&w, 0x010001, 3);
    gw_kv_array(&w, "i16s", GW_I16, 2);
    gw_uint(&w, 0xfffe0005, 4);
    gw_end(&w, 32, 0);
    td_gguf *g = open_written(&w);
    td_err err = {0};
    uint32_t u;
    int64_t i;
    float f;
    double d;
    bool b = false;
    td_gguf_array a;
    assert_true(td_gguf_get_u32(g, "f64", &u, &err) && u == 300);
    assert_true(td_gguf_get_i64(g, "minus", &i, &err) && i == -7);
    assert_true(td_gguf_get_f32(g, "tenth", &f, &err) && f == 0.1f);
    assert_true(td_gguf_get_f64(g, "i64", &d, &err) && d == 9007199254740992.0);
    assert_true(td_gguf_get_f32(g, "u8", &f, &err) && f == 1);
    assert_true(td_gguf_get_bool(g, "u8", &b, &err) && b);
    assert_true(td_gguf_get_number_array(g, "bools", &a, &err) && a.n == 3);
    assert_true(td_gguf_array_number(&a, 0) == 1 && td_gguf_array_number(&a, 1) == 0);
    assert_true(td_gguf_get_number_array(g, "i16s", &a, &err) && a.n == 2);
    assert_true(td_gguf_array_number(&a, 0) == 5 && td_gguf_array_number(&a, 1) == -2);
    td_gguf_close(&g);
}

static void test_getters_refuse_what_does_not_fit(void **state)
{
    (void)state;
    gw w = gw_begin(3);
    gw_kv(&w, "i8", GW_I8, (uint64_t)-5, 1);
    gw_kv(&w, "u64", GW_U64, 1ull << 63, 8);
    gw_kv_f32(&w, "nan", NAN);
    double big = 1e300;
    gw_key(&w, "f64", GW_F64);
    gw_bytes(&w, &big, 8);
    gw_kv_str(&w, "str", "x");
    gw_kv_array(&w, "floats", GW_F32, 0);
    gw_kv(&w, "bool", GW_BOOL, 1, 1);
    gw_kv_f32(&w, "half", 0.5f);
    gw_end(&w, 32, 0);
    td_gguf *g = open_written(&w);
    uint32_t u = 42;
    uint64_t v = 42;
    int64_t i = 42;
    float f = 42;
    bool b = true;
    const char *s = NULL;
    td_gguf_array a = {.n = 42};
    ASSERT_REFUSED(td_gguf_get_u32(g, "none", &u, &err), "'none'", "missing");
    ASSERT_REFUSED(td_gguf_get_u32(g, "i8", &u, &err), "'i8'", "-5");
    ASSERT_REFUSED(td_gguf_get_u64(g, "i8", &v, &err), "'i8'", "-5");
    ASSERT_REFUSED(td_gguf_get_u32(g, "u64", &u, &err), "9223372036854775808", "4294967295");
    ASSERT_REFUSED(td_gguf_get_i64(g, "u64", &i, &err), "9223372036854775808", "at most");
    ASSERT_REFUSED(td_gguf_get_u32(g, "str", &u, &err), "STRING", "integer");
    ASSERT_REFUSED(td_gguf_get_u32(g, "bool", &u, &err), "BOOL", "integer");
    ASSERT_REFUSED(td_gguf_get_u32(g, "floats", &u, &err), "ARRAY of F32", "integer");
    ASSERT_REFUSED(td_gguf_get_f32(g, "nan", &f, &err), "'nan'", "finite");
    ASSERT_REFUSED(td_gguf_get_f32(g, "f64", &f, &err), "1e+300", "too large");
    ASSERT_REFUSED(td_gguf_get_f32(g, "u64", &f, &err), "9.22337e+18", "2^53");
    ASSERT_REFUSED(td_gguf_get_f32(g, "str", &f, &err), "STRING", "number");
    ASSERT_REFUSED(td_gguf_get_u32(g, "half", &u, &err), "0.5", "integer");
    ASSERT_REFUSED(td_gguf_get_number_array(g, "str", &a, &err), "STRING", "ARRAY of numbers");
    ASSERT_REFUSED(td_gguf_get_bool(g, "i8", &b, &err), "I8", "BOOL");
    ASSERT_REFUSED(td_gguf_get_str(g, "i8", &s, NULL, &err), "I8", "STRING");
    ASSERT_REFUSED(td_gguf_get_array(g, "floats", TD_GGUF_I32, &a, &err), "F32", "ARRAY of I32");
    ASSERT_REFUSED(td_gguf_get_array(g, "str", TD_GGUF_STRING, &a, &err), "STRING", "ARRAY");
    ASSERT_REFUSED(td_gguf_get_int_array(g, "floats", &a, &err), "F32", "integers");
    ASSERT_REFUSED(td_gguf_get_int_array(g, "i8", &a, &err), "I8", "integers");
    ASSERT_REFUSED(td_gguf_get_any_array(g, "str", &a, &err), "STRING", "ARRAY");
    assert_true(u == 42 && v == 42 && i == 42 && f == 42 && b && !s && a.n == 42);
    assert_false(td_gguf_get_u32(g, "none", &u, NULL)); /* err may be NULL */
    td_gguf_close(&g);
}

static void test_gives_tensors_and_their_data(void **state)
{
    (void)state;
    gw w = good_file(3);
    size_t start = (w.n_metadata + 31) / 32 * 32;
    td_gguf *g = open_written(&w);
    td_err err = {0};
    assert_int_equal(td_gguf_n_tensors(g), 2);
    assert_int_equal(td_gguf_n_bytes(g), start + 230);
    const td_gguf_tensor *t = td_gguf_tensor_at(g, 0);
    assert_string_equal(t->name, "a.weight");
    assert_int_equal(t->type_id, TD_TYPE_Q8_0);
    assert_ptr_equal(t->type, td_type_find(TD_TYPE_Q8_0));
    assert_int_equal(t->n_dims, 2);
    assert_true(t->ne[0] == 32 && t->ne[1] == 3 && t->ne[2] == 1 && t->ne[3] == 1);
    assert_int_equal(t->n_bytes, 102);
    assert_int_equal(t->offset, start + 128);
    assert_ptr_equal(td_gguf_find_tensor(g, "a.weight"), t);
    assert_ptr_equal(td_gguf_find_tensor(g, "b.weight"), td_gguf_tensor_at(g, 1));
    assert_null(td_gguf_find_tensor(g, "c.weight"));
    uint8_t data[102];
    assert_true(td_gguf_read(g, t, 0, 102, data, &err));
    for (size_t i = 0; i < 102; i++)
        assert_int_equal(data[i], (128 + i) % 251);
    assert_true(td_gguf_read(g, t, 100, 2, data, &err));
    assert_int_equal(data[1], (128 + 101) % 251);
    assert_true(td_gguf_read(g, t, 102, 0, data, &err));
    td_gguf_drop(g, t, 0, 102);
    assert_true(td_gguf_read(g, t, 0, 1, data, &err));
    td_gguf_close(&g);
}

static void test_keeps_known_types_it_cannot_compute_with(void **state)
{
    (void)state;
    gw w = gw_begin(3);
    gw_tensor(&w, "x", 2, (const uint64_t[]){64, 2}, 9, 0); /* Q8_1: 36 bytes per 32 */
    gw_end(&w, 32, 144);
    td_gguf *g = open_written(&w);
    const td_gguf_tensor *t = td_gguf_tensor_at(g, 0);
    assert_null(t->type);
    assert_string_equal(td_type_format_name(t->type_id), "Q8_1");
    assert_int_equal(t->n_bytes, 144);
    td_gguf_close(&g);
}

static void test_takes_the_alignment_of_the_file(void **state)
{
    (void)state;
    gw w = gw_begin(3);
    gw_kv_u32(&w, "general.alignment", 256);
    gw_tensor(&w, "x", 1, (const uint64_t[]){1}, 0, 256);
    gw_end(&w, 256, 260);
    size_t start = (w.n_metadata + 255) / 256 * 256;
    td_gguf *g = open_written(&w);
    assert_int_equal(td_gguf_tensor_at(g, 0)->offset, start + 256);
    td_gguf_close(&g);
}

static void test_opens_a_vocabulary_of_150000_strings(void **state)
{
    (void)state;
    enum { N = 150000 };
    gw w = gw_begin(3);
    char text[32];
    gw_kv_array(&w, "tokens", GW_STRING, N);
    for (int i = 0; i < N; i++) {
        snprintf(text, sizeof text, "token %d", i);
        gw_str(&w, text);
    }
    gw_end(&w, 32, 0);
    uint64_t n_allocations = td_alloc_count();
    td_gguf *g = open_written(&w);
    assert_true(td_alloc_count() - n_allocations < 100); /* not one per string */
    td_gguf_array a;
    assert_true(td_gguf_get_array(g, "tokens", TD_GGUF_STRING, &a, NULL));
    assert_int_equal(a.n, N);
    for (uint32_t i = 0; i < N; i += 999) {
        snprintf(text, sizeof text, "token %u", i);
        assert_string_equal(td_gguf_array_str(&a, i, NULL), text);
    }
    td_gguf_close(&g);
}

static uint64_t hash_of(gw *w)
{
    td_gguf *g = open_written(w);
    uint64_t hash = td_gguf_hash(g);
    td_gguf_close(&g);
    return hash;
}

static void test_hash_covers_metadata_and_directory(void **state)
{
    (void)state;
    gw w = good_file(3);
    size_t n_metadata = w.n_metadata;
    uint64_t hash = hash_of(&w);
    w = good_file(3);
    assert_true(hash_of(&w) == hash);
    w = good_file(3);
    w.bytes[w.n - 1] ^= 1; /* tensor data is not covered */
    assert_true(hash_of(&w) == hash);
    w = good_file(3);
    gw_bytes(&w, "", 1); /* the size of the file is */
    assert_true(hash_of(&w) != hash);
    w = good_file(3);
    gw_patch(&w, n_metadata - 32, 'c', 1); /* the name b.weight */
    assert_true(hash_of(&w) != hash);
    w = good_file(2);
    assert_true(hash_of(&w) != hash);
}

/* --- split models --- */

static char dir[] = "/tmp/unit_gguf_XXXXXX";

typedef struct {
    uint64_t no, count, n_tensors;
    const char *tensor;
} shard_params;

static void save_shard(const char *name, const shard_params *p)
{
    char path[128];
    gw w = gw_begin(3);
    if (p->no == 0)
        gw_kv_str(&w, "general.architecture", "llama");
    gw_kv(&w, "split.no", GW_U16, p->no, 2);
    gw_kv(&w, "split.count", GW_U16, p->count, 2);
    if (p->n_tensors != 99)
        gw_kv(&w, "split.tensors.count", GW_I32, p->n_tensors, 4);
    gw_tensor(&w, p->tensor, 1, (const uint64_t[]){8}, 0, 0);
    gw_end(&w, 32, 32);
    w.bytes[w.n - 32] = (uint8_t)(100 + p->no);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    gw_save(&w, path);
    gw_free(&w);
}

static td_gguf *open_in_dir(const char *name, td_err *err)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return td_gguf_open(path, err);
}

static void remove_in_dir(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

#define FIRST  "m-00001-of-00003.gguf"
#define SECOND "m-00002-of-00003.gguf"
#define THIRD  "m-00003-of-00003.gguf"

static void save_good_shards(void)
{
    save_shard(FIRST, &(shard_params){0, 3, 3, "a"});
    save_shard(SECOND, &(shard_params){1, 3, 3, "b"});
    save_shard(THIRD, &(shard_params){2, 3, 3, "c"});
}

static void test_opens_a_split_model(void **state)
{
    (void)state;
    save_good_shards();
    td_err err = {0};
    td_gguf *g = open_in_dir(FIRST, &err);
    if (!g)
        fail_msg("%s", err.message);
    assert_int_equal(td_gguf_n_shards(g), 3);
    assert_int_equal(td_gguf_n_tensors(g), 3);
    assert_true(td_gguf_has(g, "general.architecture"));
    uint8_t byte;
    for (uint32_t i = 0; i < 3; i++) {
        const char name[] = {(char)('a' + i), 0};
        const td_gguf_tensor *t = td_gguf_find_tensor(g, name);
        assert_int_equal(t->shard, i);
        assert_true(td_gguf_read(g, t, 0, 1, &byte, &err));
        assert_int_equal(byte, 100 + i);
    }
    td_gguf_close(&g);
    save_shard("one.gguf", &(shard_params){0, 1, 1, "a"}); /* "split" into one, or merged again */
    assert_non_null(g = open_in_dir("one.gguf", &err));
    td_gguf_close(&g);
    save_shard("one.gguf", &(shard_params){0, 0, 1, "a"});
    assert_non_null(g = open_in_dir("one.gguf", &err));
    td_gguf_close(&g);
    remove_in_dir("one.gguf");
}

static void expect_split_error(const char *name, td_err_code code, const char *text)
{
    td_err err = {0};
    assert_null(open_in_dir(name, &err));
    if (err.code != code || !strstr(err.message, text))
        fail_msg("code %s, message '%s', expected '%s'", td_err_code_name(err.code), err.message,
                 text);
}

static void test_refuses_bad_splits(void **state)
{
    (void)state;
    save_good_shards();
    expect_split_error(SECOND, TD_E_DATA, "open the first, named *-00001-of-00003.gguf");
    remove_in_dir(THIRD);
    expect_split_error(FIRST, TD_E_IO, THIRD);
    save_shard(THIRD, &(shard_params){1, 3, 3, "b"}); /* repeated */
    expect_split_error(FIRST, TD_E_DATA, "is not file 3 of 3");
    save_shard(THIRD, &(shard_params){2, 3, 3, "b"}); /* repeated in disguise */
    expect_split_error(FIRST, TD_E_DATA, "tensor \"b\" is there twice");
    save_shard(THIRD, &(shard_params){2, 4, 3, "c"}); /* foreign */
    expect_split_error(FIRST, TD_E_DATA, "is not file 3 of 3");
    save_shard(THIRD, &(shard_params){2, 3, 7, "c"});
    expect_split_error(FIRST, TD_E_DATA, "split.tensors.count 7");
    gw w = good_file(3);
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, THIRD);
    gw_save(&w, path);
    gw_free(&w);
    expect_split_error(FIRST, TD_E_DATA, "is not file 3 of 3");
    save_good_shards();
    save_shard(FIRST, &(shard_params){0, 3, 4, "a"});
    save_shard(SECOND, &(shard_params){1, 3, 4, "b"});
    save_shard(THIRD, &(shard_params){2, 3, 4, "c"});
    expect_split_error(FIRST, TD_E_DATA, "hold 3 tensors, but split.tensors.count is 4");
    save_shard(FIRST, &(shard_params){0, 3, 99, "a"});
    expect_split_error(FIRST, TD_E_DATA, "needs the key split.tensors.count");
    save_shard(FIRST, &(shard_params){5, 3, 3, "a"});
    expect_split_error(FIRST, TD_E_DATA, "split.no is 5");
    save_shard(FIRST, &(shard_params){0, 2000, 3, "a"});
    expect_split_error(FIRST, TD_E_DATA, "at most 1024");
    save_shard("m.gguf", &(shard_params){0, 3, 3, "a"});
    expect_split_error("m.gguf", TD_E_DATA, "must end in -00001-of-00003.gguf");
    remove_in_dir("m.gguf");
    remove_in_dir(FIRST);
    remove_in_dir(SECOND);
    remove_in_dir(THIRD);
}

static int set_up(void **state)
{
    (void)state;
    file = gw_file_create();
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    close(file.fd);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gives_values_by_key),
        cmocka_unit_test(test_gives_arrays),
        cmocka_unit_test(test_lists_keys_in_file_order),
        cmocka_unit_test(test_numbers_of_another_type_are_taken_where_they_fit),
        cmocka_unit_test(test_getters_refuse_what_does_not_fit),
        cmocka_unit_test(test_gives_tensors_and_their_data),
        cmocka_unit_test(test_keeps_known_types_it_cannot_compute_with),
        cmocka_unit_test(test_takes_the_alignment_of_the_file),
        cmocka_unit_test(test_opens_a_vocabulary_of_150000_strings),
        cmocka_unit_test(test_hash_covers_metadata_and_directory),
        cmocka_unit_test(test_opens_a_split_model),
        cmocka_unit_test(test_refuses_bad_splits),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
