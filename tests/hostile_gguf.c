/* Bad GGUF files: each must give an error that says what is wrong, and never a crash, a hang or
 * memory by the gigabyte. A table of crafted files, a valid file cut at every byte and with every
 * bit of its metadata flipped, allocations that fail, and paths that are no files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/mem.h"
#include "gguf_writer.h"
#include "model/gguf.h"

#include <sys/resource.h>
#include <sys/stat.h>

#define RSS_MAX_KIB (64 << 10)

static gw_file file;

static const uint64_t one_dim[4] = {8, 1, 1, 1};

/* --- crafted files --- */

static void empty(gw *w) { w->n = 0; }
static void three_bytes(gw *w) { w->n = 3; }
static void header_cut(gw *w) { w->n = 23; }
static void bad_magic(gw *w) { gw_patch(w, 0, 0x46554748, 4); }
static void old_magic(gw *w) { gw_patch(w, 0, 0x67676d6c, 4); }
static void big_endian(gw *w) { gw_patch(w, 4, 0x03000000, 4); }
static void version_0(gw *w) { gw_patch(w, 4, 0, 4); }
static void version_1(gw *w) { gw_patch(w, 4, 1, 4); }
static void version_4(gw *w) { gw_patch(w, 4, 4, 4); }
static void keys_2_63(gw *w) { gw_patch(w, 16, 1ull << 63, 8); }
static void keys_max(gw *w) { gw_patch(w, 16, UINT64_MAX, 8); }
static void keys_2_31(gw *w) { gw_patch(w, 16, 1ull << 31, 8); }
static void keys_65536(gw *w) { gw_patch(w, 16, 65536, 8); }
static void keys_two_more(gw *w) { gw_patch(w, 16, w->n_keys + 2, 8); }
static void tensors_2_63(gw *w) { gw_patch(w, 8, 1ull << 63, 8); }
static void tensors_max(gw *w) { gw_patch(w, 8, UINT64_MAX, 8); }
static void tensors_2_31(gw *w) { gw_patch(w, 8, 1ull << 31, 8); }
static void tensors_65536(gw *w) { gw_patch(w, 8, 65536, 8); }

static void with_key_length(gw *w, uint64_t n)
{
    size_t at = w->n;
    gw_kv_u32(w, "key", 1);
    gw_patch(w, at, n, 8);
}
static void key_length_max(gw *w) { with_key_length(w, UINT64_MAX); }
static void key_length_2_63(gw *w) { with_key_length(w, 1ull << 63); }
static void key_length_beyond(gw *w) { with_key_length(w, 3 + 4 + 4 + 1); }
static void key_empty(gw *w) { gw_kv_u32(w, "", 1); }
static void key_too_long(gw *w)
{
    gw_str_n(w, NULL, 65536);
    memset(w->bytes + w->n - 65536, 'k', 65536);
    gw_u32(w, GW_U8);
    gw_uint(w, 0, 1);
    w->n_keys++;
}
static void key_of(gw *w, const char *bytes, size_t n)
{
    gw_str_n(w, bytes, n);
    gw_u32(w, GW_U8);
    gw_uint(w, 0, 1);
    w->n_keys++;
}
static void key_with_nul(gw *w) { key_of(w, "a\0b", 3); }
static void key_with_newline(gw *w) { key_of(w, "a\nb", 3); }
static void key_with_escape(gw *w) { key_of(w, "a\033[2Jb", 6); }
static void key_not_utf8(gw *w) { key_of(w, "a\xff", 2); }
static void key_cut_utf8(gw *w) { key_of(w, "a\xe2\x82", 3); }
static void key_overlong_utf8(gw *w) { key_of(w, "a\xc0\x80", 3); }

static void value_type_13(gw *w) { gw_kv(w, "x", 13, 0, 8); }
static void value_type_max(gw *w) { gw_kv(w, "x", UINT32_MAX, 0, 8); }
static void value_bool_2(gw *w) { gw_kv(w, "x", GW_BOOL, 2, 1); }
static void value_bools_2(gw *w)
{
    gw_kv_array(w, "x", GW_BOOL, 3);
    gw_uint(w, 0x000201, 3);
}
static void string_length_max(gw *w)
{
    gw_key(w, "x", GW_STRING);
    gw_u64(w, UINT64_MAX);
}
static void string_length_beyond(gw *w)
{
    gw_key(w, "x", GW_STRING);
    gw_u64(w, 1000);
    gw_bytes(w, "hello", 5);
}
static void array_of_arrays(gw *w)
{
    gw_kv_array(w, "x", GW_ARRAY, 1);
    gw_u32(w, GW_U8);
    gw_u64(w, 0);
}
static void array_depth_million(gw *w)
{
    gw_key(w, "x", GW_ARRAY);
    for (int i = 0; i < 1000000; i++) {
        gw_u32(w, GW_ARRAY);
        gw_u64(w, 1);
    }
}
static void array_of_type_13(gw *w) { gw_kv_array(w, "x", 13, 1ull << 60); }
static void array_2_61_u64(gw *w) { gw_kv_array(w, "x", GW_U64, 1ull << 61); }
static void array_2_61_strings(gw *w) { gw_kv_array(w, "x", GW_STRING, 1ull << 61); }
static void array_max_bytes(gw *w) { gw_kv_array(w, "x", GW_U8, UINT64_MAX); }
static void array_beyond(gw *w) { gw_kv_array(w, "x", GW_U32, 100); }
static void array_over_limit(gw *w)
{
    gw_kv_array(w, "x", GW_U8, TD_GGUF_MAX_ARRAY + 1);
    gw_bytes(w, NULL, TD_GGUF_MAX_ARRAY + 1);
}
static void array_string_beyond(gw *w)
{
    gw_kv_array(w, "x", GW_STRING, 2);
    gw_str(w, "fits");
    gw_u64(w, 1000);
}
static void key_twice(gw *w)
{
    gw_kv_u32(w, "x", 1);
    gw_kv_u32(w, "y", 1);
    gw_kv_u32(w, "x", 2);
}

static void alignment_0(gw *w) { gw_kv_u32(w, "general.alignment", 0); }
static void alignment_3(gw *w) { gw_kv_u32(w, "general.alignment", 3); }
static void alignment_4(gw *w) { gw_kv_u32(w, "general.alignment", 4); }
static void alignment_2_21(gw *w) { gw_kv_u32(w, "general.alignment", 1u << 21); }
static void alignment_2_31(gw *w) { gw_kv_u32(w, "general.alignment", 1u << 31); }
static void alignment_i32(gw *w) { gw_kv(w, "general.alignment", GW_I32, 32, 4); }
static void alignment_str(gw *w) { gw_kv_str(w, "general.alignment", "32"); }

static void dims_0(gw *w) { gw_tensor(w, "t", 0, one_dim, 0, 0); }
static void dims_5(gw *w) { gw_tensor(w, "t", 5, (const uint64_t[5]){1, 1, 1, 1, 1}, 0, 0); }
static void dims_max(gw *w)
{
    gw_tensor(w, "t", 1, one_dim, 0, 0);
    gw_patch(w, w->n - 24, UINT32_MAX, 4);
}
static void tensor_of(gw *w, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint32_t type)
{
    gw_tensor(w, "t", 4, (const uint64_t[]){a, b, c, d}, type, 0);
}
static void dim_0(gw *w) { tensor_of(w, 0, 1, 1, 1, 0); }
static void dim_last_0(gw *w) { tensor_of(w, 1, 1, 1, 0, 0); }
static void dim_2_63(gw *w) { tensor_of(w, 1ull << 63, 1, 1, 1, 0); }
static void dim_2_42(gw *w) { tensor_of(w, (1ull << 42) + 1, 1, 1, 1, 0); }
static void dim_product_2_64(gw *w) { tensor_of(w, 1ull << 32, 1ull << 32, 1, 1, 0); }
static void dim_product_bytes(gw *w) { tensor_of(w, 1ull << 31, 1ull << 31, 1, 1, 0); }
static void tensor_over_limit(gw *w) { tensor_of(w, 1ull << 30, 512, 1, 1, 0); }
static void dim_no_block(gw *w) { tensor_of(w, 33, 32, 1, 1, 8); }
static void dim_below_block(gw *w) { tensor_of(w, 32, 8, 1, 1, 12); }
static void type_4(gw *w) { tensor_of(w, 32, 1, 1, 1, 4); }
static void type_5(gw *w) { tensor_of(w, 32, 1, 1, 1, 5); }
static void type_36(gw *w) { tensor_of(w, 32, 1, 1, 1, 36); }
static void type_count(gw *w) { tensor_of(w, 32, 1, 1, 1, 43); }
static void type_max(gw *w) { tensor_of(w, 32, 1, 1, 1, UINT32_MAX); }

static void tensor_twice(gw *w)
{
    gw_tensor(w, "t", 1, one_dim, 0, 0);
    gw_tensor(w, "t", 1, one_dim, 0, 32);
}
static void tensor_named(gw *w, size_t n)
{
    char *name = calloc(1, n + 1);
    assert_non_null(name);
    memset(name, 'n', n);
    gw_tensor(w, name, 1, one_dim, 0, 0);
    free(name);
}
static void name_empty(gw *w) { tensor_named(w, 0); }
static void name_64(gw *w) { tensor_named(w, 64); }
static void name_65536(gw *w) { tensor_named(w, 65536); }
static void name_not_utf8(gw *w) { gw_tensor(w, "\xff\xfe", 1, one_dim, 0, 0); }

static void offset_unaligned(gw *w) { gw_tensor(w, "t", 1, one_dim, 0, 16); }
static void offset_beyond(gw *w) { gw_tensor(w, "t", 1, one_dim, 0, 1024); }
static void offset_end_beyond(gw *w) { gw_tensor(w, "t", 1, (const uint64_t[]){41}, 0, 96); }
static void offset_2_63(gw *w) { gw_tensor(w, "t", 1, one_dim, 0, 1ull << 63); }
static void offset_wraps(gw *w) { gw_tensor(w, "t", 1, one_dim, 0, UINT64_MAX - 31); }
static void offset_size_wraps(gw *w)
{
    gw_tensor(w, "t", 1, (const uint64_t[]){1ull << 38}, 0, UINT64_MAX - (1ull << 39) - 31);
}
static void tensors_overlap(gw *w)
{
    gw_tensor(w, "t", 1, (const uint64_t[]){16}, 0, 0);
    gw_tensor(w, "u", 1, one_dim, 0, 32);
}
static void tensors_same_place(gw *w)
{
    gw_tensor(w, "t", 1, one_dim, 0, 64);
    gw_tensor(w, "u", 1, one_dim, 0, 64);
}
static void split_no_string(gw *w) { gw_kv_str(w, "split.no", "0"); }
static void split_count_negative(gw *w) { gw_kv(w, "split.count", GW_I32, UINT32_MAX, 4); }
static void split_count_huge(gw *w) { gw_kv(w, "split.count", GW_U64, UINT64_MAX, 8); }

typedef struct {
    const char *name;
    void (*write)(gw *w); /* before the counts and 256 bytes of data are added, if not raw */
    const char *expected; /* in the message */
    bool is_raw;          /* after all is there: patches, cuts */
} row;

static const row rows[] = {
    {"empty file", empty, "0 bytes are too few", true},
    {"3 bytes", three_bytes, "3 bytes are too few", true},
    {"23 bytes", header_cut, "23 bytes are too few", true},
    {"magic", bad_magic, "begins with 48 47 55 46", true},
    {"magic of ggml", old_magic, "is no GGUF file", true},
    {"big endian", big_endian, "big-endian", true},
    {"version 0", version_0, "version 0; 2 and 3 are read", true},
    {"version 1", version_1, "version 1; 2 and 3 are read", true},
    {"version 4", version_4, "version 4; 2 and 3 are read", true},
    {"2^63 keys", keys_2_63, "9223372036854775808 metadata entries", true},
    {"2^64-1 keys", keys_max, "18446744073709551615 metadata entries", true},
    {"2^31 keys", keys_2_31, "2147483648 metadata entries", true},
    {"65536 keys in a small file", keys_65536, "65536 metadata entries", true},
    {"two keys too many", keys_two_more, "metadata entry", true},
    {"2^63 tensors", tensors_2_63, "9223372036854775808 tensors", true},
    {"2^64-1 tensors", tensors_max, "18446744073709551615 tensors", true},
    {"2^31 tensors", tensors_2_31, "2147483648 tensors", true},
    {"65536 tensors in a small file", tensors_65536, "65536 tensors", true},
    {"key length 2^64-1", key_length_max, "needs 18446744073709551615 bytes", false},
    {"key length 2^63", key_length_2_63, "needs 9223372036854775808 bytes", false},
    {"key length beyond", key_length_beyond, "control character", false},
    {"empty key", key_empty, "is empty", false},
    {"key of 65536 bytes", key_too_long, "at most 65535", false},
    {"key with NUL", key_with_nul, "\"a\\x00b\"", false},
    {"key with newline", key_with_newline, "byte 1 is 0x0a", false},
    {"key with terminal escape", key_with_escape, "\"a\\x1b[2Jb\"", false},
    {"key not UTF-8", key_not_utf8, "byte 1 is 0xff", false},
    {"key ends inside a character", key_cut_utf8, "byte 1 is 0xe2", false},
    {"key with overlong UTF-8", key_overlong_utf8, "byte 1 is 0xc0", false},
    {"value type 13", value_type_13, "value type 13", false},
    {"value type 2^32-1", value_type_max, "value type 4294967295", false},
    {"bool 2", value_bool_2, "a BOOL at byte", false},
    {"bool array with 2", value_bools_2, "a BOOL at byte", false},
    {"string length 2^64-1", string_length_max, "needs 18446744073709551615 bytes", false},
    {"string longer than the file", string_length_beyond, "needs 1000 bytes", false},
    {"array of arrays", array_of_arrays, "element type 9", false},
    {"arrays a million deep", array_depth_million, "element type 9", false},
    {"array of type 13", array_of_type_13, "element type 13", false},
    {"array of 2^61 U64", array_2_61_u64, "2305843009213693952 U64", false},
    {"array of 2^61 strings", array_2_61_strings, "2305843009213693952 STRING", false},
    {"array of 2^64-1 bytes", array_max_bytes, "18446744073709551615 U8", false},
    {"array longer than the file", array_beyond, "100 U32 needs more", false},
    {"array of 2^24+1", array_over_limit, "at most 16777216", false},
    {"array with a long string", array_string_beyond, "element 1: a string", false},
    {"key twice", key_twice, "key \"x\" is there twice", false},
    {"alignment 0", alignment_0, "alignment is 0", false},
    {"alignment 3", alignment_3, "alignment is 3", false},
    {"alignment 4", alignment_4, "alignment is 4", false},
    {"alignment 2^21", alignment_2_21, "alignment is 2097152", false},
    {"alignment 2^31", alignment_2_31, "alignment is 2147483648", false},
    {"alignment I32", alignment_i32, "of type I32", false},
    {"alignment string", alignment_str, "of type STRING", false},
    {"0 dims", dims_0, "0 dimensions", false},
    {"5 dims", dims_5, "5 dimensions", false},
    {"2^32-1 dims", dims_max, "4294967295 dimensions", false},
    {"dim 0", dim_0, "dimension 0 is 0", false},
    {"last dim 0", dim_last_0, "dimension 3 is 0", false},
    {"dim 2^63", dim_2_63, "dimension 0 is 9223372036854775808", false},
    {"dim 2^42+1", dim_2_42, "dimension 0 is 4398046511105", false},
    {"product 2^64", dim_product_2_64, "overflows", false},
    {"product 2^62 of F32", dim_product_bytes, "are more than", false},
    {"tensor of 2 TiB", tensor_over_limit, "are more than 1099511627776 bytes", false},
    {"dim no multiple of Q8_0", dim_no_block, "dimension 0 is 33; Q8_0", false},
    {"dim below block of Q4_K", dim_below_block, "dimension 0 is 32; Q4_K", false},
    {"type 4", type_4, "tensor type 4 ", false},
    {"type 5", type_5, "tensor type 5 ", false},
    {"type 36", type_36, "tensor type 36 ", false},
    {"type 43", type_count, "tensor type 43 ", false},
    {"type -1", type_max, "tensor type 4294967295 ", false},
    {"tensor twice", tensor_twice, "tensor \"t\" is there twice", false},
    {"tensor name empty", name_empty, "is empty", false},
    {"tensor name of 64", name_64, "64 bytes; at most 63", false},
    {"tensor name of 65536", name_65536, "65536 bytes; at most 63", false},
    {"tensor name not UTF-8", name_not_utf8, "must be UTF-8", false},
    {"offset unaligned", offset_unaligned, "no multiple of the alignment, 32", false},
    {"offset beyond", offset_beyond, "beyond the end of the file", false},
    {"end beyond", offset_end_beyond, "beyond the end of the file", false},
    {"offset 2^63", offset_2_63, "beyond the end of the file", false},
    {"offset wraps", offset_wraps, "beyond the end of the file", false},
    {"offset and size wrap", offset_size_wraps, "beyond the end of the file", false},
    {"tensors overlap", tensors_overlap, "tensor 'u'", false},
    {"tensors in one place", tensors_same_place, "overlaps tensor", false},
    {"split.no a string", split_no_string, "'split.no' is of type STRING", false},
    {"split.count negative", split_count_negative, "must not be negative", false},
    {"split.count 2^64-1", split_count_huge, "at most 1024", false},
};

static void test_refuses_every_crafted_file(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        gw w = gw_begin(3);
        gw_kv_str(&w, "general.architecture", "llama");
        if (!rows[i].is_raw)
            rows[i].write(&w);
        gw_end(&w, 32, 256);
        if (rows[i].is_raw)
            rows[i].write(&w);
        gw_file_set(&file, w.bytes, w.n);
        gw_free(&w);
        td_err err = {0};
        td_gguf *g = td_gguf_open(file.path, &err);
        if (g)
            fail_msg("%s: was opened", rows[i].name);
        if (err.code != TD_E_DATA || !strstr(err.message, rows[i].expected) ||
            !strstr(err.message, file.path))
            fail_msg("%s: code %s, message '%s', expected '%s'", rows[i].name,
                     td_err_code_name(err.code), err.message, rows[i].expected);
    }
}

/* --- a valid file, damaged --- */

/* About 4 KiB; every value type, tensors of four types, data to the last byte. */
static gw valid_file(void)
{
    gw w = gw_begin(3);
    gw_kv_str(&w, "general.architecture", "llama");
    gw_kv_u32(&w, "general.alignment", 64);
    gw_kv_f32(&w, "f32", 0.5f);
    gw_kv(&w, "bool", GW_BOOL, 1, 1);
    gw_kv(&w, "u8", GW_U8, 1, 1);
    gw_kv(&w, "i16", GW_I16, 0xffff, 2);
    gw_kv(&w, "u64", GW_U64, 1, 8);
    gw_kv(&w, "f64", GW_F64, 0, 8);
    gw_kv_array(&w, "strings", GW_STRING, 3);
    gw_str(&w, "one");
    gw_str(&w, "");
    gw_str(&w, "three");
    gw_kv_array(&w, "i32s", GW_I32, 4);
    gw_bytes(&w, NULL, 16);
    gw_kv_array(&w, "bools", GW_BOOL, 3);
    gw_bytes(&w, NULL, 3);
    gw_tensor(&w, "a", 2, (const uint64_t[]){256, 2}, 12, 0);     /* Q4_K: 288 bytes */
    gw_tensor(&w, "b", 1, (const uint64_t[]){32}, 0, 320);        /* F32: 128 */
    gw_tensor(&w, "c", 3, (const uint64_t[]){64, 2, 3}, 39, 448); /* MXFP4: 204 */
    gw_tensor(&w, "d", 2, (const uint64_t[]){512, 2}, 1, 704);    /* F16: 2048 */
    gw_end(&w, 64, 704 + 2048);
    return w;
}

/* Uses all that an opened file gives, so that a bad offset is seen by the sanitizer. */
static void walk(td_gguf *g)
{
    uint64_t sum = td_gguf_hash(g);
    for (uint32_t i = 0; i < td_gguf_n_keys(g); i++) {
        td_gguf_value_type type;
        const char *key = td_gguf_key_at(g, i, &type), *text;
        td_gguf_array a;
        size_t n;
        uint64_t v = 0;
        float f;
        bool b;
        sum += strlen(key);
        if (td_gguf_get_any_array(g, key, &a, NULL)) {
            for (uint32_t k = 0; k < a.n; k++) {
                if (a.type == TD_GGUF_STRING) {
                    text = td_gguf_array_str(&a, k, &n);
                    sum += n + (uint8_t)text[n];
                    assert_int_equal(text[n], 0);
                } else if (a.type == TD_GGUF_F32) {
                    sum += td_gguf_array_f32(&a, k) > 0;
                } else if (td_gguf_get_int_array(g, key, &a, NULL)) {
                    sum += (uint64_t)td_gguf_array_int(&a, k);
                }
            }
        }
        if (td_gguf_get_str(g, key, &text, &n, NULL))
            assert_int_equal(text[n], 0);
        if (td_gguf_get_u64(g, key, &v, NULL) || td_gguf_get_f32(g, key, &f, NULL) ||
            td_gguf_get_bool(g, key, &b, NULL))
            sum += v;
    }
    for (uint32_t i = 0; i < td_gguf_n_tensors(g); i++) {
        const td_gguf_tensor *t = td_gguf_tensor_at(g, i);
        uint8_t data[4096];
        assert_true(t->n_bytes <= sizeof data); /* no file here has more */
        assert_true(td_gguf_read(g, t, 0, t->n_bytes, data, NULL));
        assert_ptr_equal(td_gguf_find_tensor(g, t->name), t);
        sum += data[t->n_bytes - 1];
    }
    assert_true(sum != 0);
}

static void test_refuses_a_file_cut_at_any_byte(void **state)
{
    (void)state;
    gw w = valid_file();
    gw_file_set(&file, w.bytes, w.n);
    td_err err = {0};
    td_gguf *g = td_gguf_open(file.path, &err);
    if (!g)
        fail_msg("%s", err.message);
    walk(g);
    td_gguf_close(&g);
    for (size_t n = w.n; n-- > 0;) {
        if (ftruncate(file.fd, (off_t)n) != 0)
            fail();
        td_err_clear(&err);
        g = td_gguf_open(file.path, &err);
        if (g || err.code != TD_E_DATA)
            fail_msg("%zu of %zu bytes: code %s, %s", n, w.n, td_err_code_name(err.code),
                     err.message);
    }
    gw_free(&w);
}

static void test_survives_any_flipped_bit(void **state)
{
    (void)state;
    gw w = valid_file();
    gw_file_set(&file, w.bytes, w.n);
    size_t n_opened = 0, n_refused = 0;
    for (size_t bit = 0; bit < 8 * w.n_metadata; bit++) {
        uint8_t byte = (uint8_t)(w.bytes[bit / 8] ^ 1u << bit % 8);
        assert_int_equal(pwrite(file.fd, &byte, 1, (off_t)(bit / 8)), 1);
        td_err err = {0};
        td_gguf *g = td_gguf_open(file.path, &err);
        if (g) {
            walk(g);
            n_opened++;
        } else {
            assert_int_equal(err.code, TD_E_DATA);
            n_refused++;
        }
        td_gguf_close(&g);
        assert_int_equal(pwrite(file.fd, &w.bytes[bit / 8], 1, (off_t)(bit / 8)), 1);
    }
    assert_true(n_opened > 100 && n_refused > 1000); /* values may change, structure may not */
    gw_free(&w);
}

static void test_fails_cleanly_at_every_allocation(void **state)
{
    (void)state;
    gw w = valid_file();
    gw_file_set(&file, w.bytes, w.n);
    gw_free(&w);
    uint64_t n = 1;
    for (;; n++) {
        td_err err = {0};
        td_alloc_fail_at(n);
        td_gguf *g = td_gguf_open(file.path, &err);
        td_alloc_fail_at(0);
        if (g) {
            td_gguf_close(&g);
            break;
        }
        assert_int_equal(err.code, TD_E_NOMEM);
        assert_true(n < 1000);
    }
    assert_true(n > 5);
}

/* --- files that are none, or not for long --- */

static void expect_error(const char *path, td_err_code code, const char *text)
{
    td_err err = {0};
    assert_null(td_gguf_open(path, &err));
    if (err.code != code || !strstr(err.message, text) || !strstr(err.message, path))
        fail_msg("code %s, message '%s', expected '%s'", td_err_code_name(err.code), err.message,
                 text);
}

static void test_refuses_what_is_no_file(void **state)
{
    (void)state;
    char dir[] = "/tmp/hostile_gguf_XXXXXX", fifo[64];
    assert_non_null(mkdtemp(dir));
    snprintf(fifo, sizeof fifo, "%s/fifo", dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    expect_error(fifo, TD_E_DATA, "a FIFO");
    expect_error(dir, TD_E_DATA, "a directory");
    expect_error("/dev/zero", TD_E_DATA, "a device");
    unlink(fifo);
    expect_error(fifo, TD_E_IO, "No such file");
    rmdir(dir);
    char *path = calloc(1, 5000);
    assert_non_null(path);
    memset(path, 'x', 4999);
    td_err err = {0};
    assert_null(td_gguf_open(path, &err));
    assert_int_equal(err.code, TD_E_IO);
    free(path);
}

static void test_a_file_that_shrinks_gives_an_error(void **state)
{
    (void)state;
    gw w = valid_file();
    gw_file_set(&file, w.bytes, w.n);
    td_err err = {0};
    td_gguf *g = td_gguf_open(file.path, &err);
    assert_non_null(g);
    const td_gguf_tensor *t = td_gguf_find_tensor(g, "d");
    uint8_t data[2048];
    assert_int_equal(ftruncate(file.fd, (off_t)w.n - 1), 0);
    assert_false(td_gguf_read(g, t, 0, 2048, data, &err));
    assert_int_equal(err.code, TD_E_IO);
    assert_non_null(strstr(err.message, "tensor 'd': the file ends at byte"));
    td_err_clear(&err);
    assert_true(td_gguf_read(g, t, 0, 2047, data, &err));
    td_gguf_close(&g);
    gw_free(&w);
}

static void test_a_huge_sparse_file_costs_little_memory(void **state)
{
    (void)state;
    gw w = gw_begin(3);
    gw_patch(&w, 16, 65536, 8);
    gw_patch(&w, 8, 65536, 8);
    gw_file_set(&file, w.bytes, w.n);
    gw_free(&w);
    assert_int_equal(ftruncate(file.fd, 1ll << 40), 0);
    expect_error(file.path, TD_E_DATA, "a key at byte 24 is empty");
    w = gw_begin(3);
    gw_key(&w, "x", GW_STRING);
    gw_u64(&w, 1ull << 39);
    gw_patch(&w, 16, 1, 8);
    gw_file_set(&file, w.bytes, w.n);
    gw_free(&w);
    assert_int_equal(ftruncate(file.fd, 1ll << 40), 0);
    expect_error(file.path, TD_E_DATA, "at most 536870912 in all");
    assert_int_equal(ftruncate(file.fd, 0), 0);
#ifndef __SANITIZE_ADDRESS__ /* whose own memory is larger */
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_SELF, &usage), 0);
    if (usage.ru_maxrss > RSS_MAX_KIB)
        fail_msg("%ld KiB of memory were used; at most %d are allowed", usage.ru_maxrss,
                 RSS_MAX_KIB);
#endif
}

static int set_up(void **state)
{
    (void)state;
    file = gw_file_create();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return close(file.fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_every_crafted_file),
        cmocka_unit_test(test_refuses_a_file_cut_at_any_byte),
        cmocka_unit_test(test_survives_any_flipped_bit),
        cmocka_unit_test(test_fails_cleanly_at_every_allocation),
        cmocka_unit_test(test_refuses_what_is_no_file),
        cmocka_unit_test(test_a_file_that_shrinks_gives_an_error),
        cmocka_unit_test(test_a_huge_sparse_file_costs_little_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
