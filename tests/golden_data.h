/* Files of a golden case: objects, tokens, floats. One that is missing fails its test. */
#ifndef TD_TESTS_GOLDEN_DATA_H
#define TD_TESTS_GOLDEN_DATA_H

#include "tests/e2e_common.h"

static inline json_t *load_json(const char *path)
{
    json_error_t error;
    json_t *document = json_load_file(path, 0, &error);
    if (!document)
        fail_msg("%s: %s", path, error.text);
    return document;
}

/* To be freed. */
static inline uint32_t *load_ids(const json_t *list, uint32_t *n)
{
    *n = (uint32_t)json_array_size(list);
    uint32_t *ids = calloc(*n + 1u, sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < *n; i++)
        ids[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    return ids;
}

/* All of a file, which holds n floats and nothing else; to be freed. */
static inline float *load_floats(const char *path, size_t n)
{
    float *floats = calloc(n, sizeof *floats);
    FILE *f = fopen(path, "re");
    assert_non_null(floats);
    if (!f || fread(floats, sizeof *floats, n, f) != n || fgetc(f) != EOF)
        fail_msg("%s: not %zu floats", path, n);
    fclose(f);
    return floats;
}

#endif
