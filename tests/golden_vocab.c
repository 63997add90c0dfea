/* Every case of golden/vocab: token ids of texts, with and without specials, and the bytes of
 * single tokens, equal to the reference's. A folder whose pre-tokenizer is not supported is named
 * and skipped. */
#include "base/err.h"
#include "base/mem.h"
#include "model/gguf.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"

#include <dirent.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FOLDERS_MAX 64

static const char *golden(void)
{
    const char *path = getenv("TD_GOLDEN");
    return path != NULL ? path : "../shared/golden";
}

static void explain(const char *folder, const char *text, size_t n_bytes, const uint32_t *ids,
                    size_t n_ids, const json_t *expected)
{
    print_message("%s: text of %zu bytes:", folder, n_bytes);
    for (size_t i = 0; i < n_bytes; i++)
        print_message(" %02x", (unsigned char)text[i]);
    print_message("\n  got     ");
    for (size_t i = 0; i < n_ids; i++)
        print_message(" %u", ids[i]);
    print_message("\n  expected");
    for (size_t i = 0; i < json_array_size(expected); i++)
        print_message(" %lld", (long long)json_integer_value(json_array_get(expected, i)));
    print_message("\n");
}

/* True if the case's text gives the case's tokens. */
static bool check_case(const char *folder, const td_tokenizer *t, const json_t *c)
{
    const json_t *text = json_object_get(c, "text"), *expected = json_object_get(c, "tokens");
    assert_true(json_is_string(text) && json_is_array(expected));
    size_t n_bytes = json_string_length(text), n_ids;
    uint32_t *ids;
    td_err err = {0};
    if (!td_tokenize(t, json_string_value(text), n_bytes,
                     json_is_true(json_object_get(c, "add_special")) ? TD_ADD_AS_FILE
                                                                     : TD_ADD_NOTHING,
                     json_is_true(json_object_get(c, "parse_special")), &ids, &n_ids, &err))
        fail_msg("%s: %s", folder, err.message);
    bool same = n_ids == json_array_size(expected);
    for (size_t i = 0; same && i < n_ids; i++)
        same = ids[i] == (uint32_t)json_integer_value(json_array_get(expected, i));
    if (!same)
        explain(folder, json_string_value(text), n_bytes, ids, n_ids, expected);
    td_free(ids);
    return same;
}

static bool check_piece(const char *folder, const td_tokenizer *t, const json_t *p)
{
    uint32_t id = (uint32_t)json_integer_value(json_object_get(p, "id"));
    const char *hex = json_string_value(json_object_get(p, "bytes_hex"));
    assert_non_null(hex);
    size_t n, n_hex = strlen(hex);
    const char *bytes = td_token_bytes(t, id, true, &n);
    bool same = n_hex == 2 * n;
    for (size_t i = 0; same && i < n; i++) {
        char two[3];
        snprintf(two, sizeof two, "%02x", (unsigned char)bytes[i]);
        same = memcmp(two, hex + 2 * i, 2) == 0;
    }
    if (!same)
        print_message("%s: token %u: piece of %zu bytes, expected %s\n", folder, id, n, hex);
    return same;
}

/* Returns the number of cases run, 0 if the folder was skipped. */
static size_t check_folder(const char *folder)
{
    char path[1024];
    td_err err = {0};
    json_error_t json_err;
    snprintf(path, sizeof path, "%s/vocab/%s/cases.json", golden(), folder);
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &json_err);
    if (root == NULL)
        fail_msg("%s: %s", path, json_err.text);
    const char *pre = json_string_value(json_object_get(root, "override_pre"));
    if (pre != NULL && td_pretokenize_find(pre) == NULL) {
        print_message("skipped %s: pre-tokenizer %s is not supported\n", folder, pre);
        json_decref(root);
        return 0;
    }
    snprintf(path, sizeof path, "%s/vocab/%s/%s", golden(), folder,
             json_string_value(json_object_get(root, "vocab")));
    td_gguf *g = td_gguf_open(path, &err);
    td_tokenizer *t = g != NULL ? td_tokenizer_create(g, pre, &err) : NULL;
    if (t == NULL)
        fail_msg("%s: %s", path, err.message);
    td_gguf_close(&g);

    size_t n = 0, n_bad = 0, i;
    const json_t *c;
    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        n_bad += !check_case(folder, t, c);
        n++;
    }
    json_array_foreach(json_object_get(root, "special_cases"), i, c)
    {
        n_bad += !check_case(folder, t, c);
        n++;
    }
    json_array_foreach(json_object_get(root, "pieces"), i, c)
    {
        n_bad += !check_piece(folder, t, c);
        n++;
    }
    print_message("%s (%s): %zu cases, %zu wrong\n", folder, td_tokenizer_get_info(t)->pre, n,
                  n_bad);
    assert_true(n > 0);
    assert_int_equal(n_bad, 0);
    td_tokenizer_destroy(&t);
    json_decref(root);
    return n;
}

static int by_name(const void *a, const void *b) { return strcmp(a, b); }

static char folders[FOLDERS_MAX][256];
static size_t n_folders;

static void find_folders(void)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/vocab", golden());
    DIR *dir = opendir(path);
    if (dir == NULL)
        return;
    const struct dirent *entry;
    while ((entry = readdir(dir)) != NULL && n_folders < FOLDERS_MAX) {
        if (entry->d_name[0] != '.' && strchr(entry->d_name, '.') == NULL)
            snprintf(folders[n_folders++], sizeof folders[0], "%.255s", entry->d_name);
    }
    closedir(dir);
    qsort(folders, n_folders, sizeof folders[0], by_name);
}

static void test_vocab_cases_equal_the_reference(void **state)
{
    (void)state;
    size_t n = 0;
    for (size_t i = 0; i < n_folders; i++)
        n += check_folder(folders[i]);
    assert_true(n > 0);
}

int main(void)
{
    find_folders();
    if (n_folders == 0) {
        printf("skipped: no vocabularies in %s/vocab (set TD_GOLDEN)\n", golden());
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vocab_cases_equal_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
