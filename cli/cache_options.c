#include "cli/cache_options.h"

#include "base/check.h"
#include "base/json.h"
#include "base/text.h"
#include "cli/options.h"

#include <stdio.h>
#include <string.h>

static const char *const modes[] = {
    [TD_ROTATE_AUTO] = "auto", [TD_ROTATE_OFF] = "off", [TD_ROTATE_ON] = "on"};

const char *td_cache_options_mode_name(td_rotate rotate) { return modes[rotate]; }

bool td_cache_options_mode(const char *flag, const char *text, size_t n_bytes, td_rotate *out,
                           td_err *err)
{
    for (size_t i = 0; i < TD_COUNT(modes); i++)
        if (strlen(modes[i]) == n_bytes && !memcmp(modes[i], text, n_bytes)) {
            *out = (td_rotate)i;
            return true;
        }
    return td_err_set(err, TD_E_USAGE, "%s: %s; allowed: auto, on, off, or k=on,v=off", flag,
                      td_text_quote(text, n_bytes).text);
}

bool td_cache_options_rotate(const char *flag, const char *text, td_cache_types *out, td_err *err)
{
    td_rotate both;
    if (!strchr(text, '=')) {
        if (!td_cache_options_mode(flag, text, strlen(text), &both, err))
            return false;
        out->rotate_k = out->rotate_v = both;
        return true;
    }
    bool is_set[2] = {false, false};
    for (const char *p = text, *end; p; p = *end ? end + 1 : NULL) {
        end = p + strcspn(p, ",");
        bool is_v = !strncmp(p, "v=", 2), is_ok = is_v || !strncmp(p, "k=", 2);
        if (is_ok && is_set[is_v])
            return td_err_set(err, TD_E_USAGE, "%s: %s twice in \"%.96s\"; allowed: k=on,v=off",
                              flag, is_v ? "v" : "k", text);
        if (!td_cache_options_mode(flag, is_ok ? p + 2 : p, (size_t)(end - p) - (is_ok ? 2 : 0),
                                   is_v ? &out->rotate_v : &out->rotate_k, err))
            return false;
        is_set[is_v] = true;
    }
    return true;
}

/* -- layers with types of their own ------------------------------------------------------------ */

/* "first", "last", "7" or "4-7". */
static bool read_layers(const char *text, size_t n_bytes, td_cache_rule *out)
{
    static const struct {
        const char *name;
        uint16_t layer;
    } names[] = {{"first", TD_CACHE_LAYER_FIRST}, {"last", TD_CACHE_LAYER_LAST}};
    char number[16];
    uint64_t ends[2];
    const char *dash = memchr(text, '-', n_bytes);
    for (size_t i = 0; i < TD_COUNT(names); i++)
        if (strlen(names[i].name) == n_bytes && !memcmp(text, names[i].name, n_bytes)) {
            out->first = out->last = names[i].layer;
            return true;
        }
    const char *parts[2] = {text, dash ? dash + 1 : text};
    for (size_t i = 0; i < 2; i++) {
        size_t n = i || !dash ? (size_t)(text + n_bytes - parts[i]) : (size_t)(dash - text);
        snprintf(number, sizeof number, "%.*s", (int)td_min_u32((uint32_t)n, 15), parts[i]);
        if (n > 5 || !td_text_read_u64(number, &ends[i]) || ends[i] >= TD_CACHE_LAYER_FIRST)
            return false;
    }
    out->first = (uint16_t)ends[0];
    out->last = (uint16_t)ends[1];
    return ends[0] <= ends[1];
}

static bool add_rule(const char *flag, const td_cache_rule *rule, td_cache_types *out, td_err *err)
{
    if (out->n_rules == TD_CACHE_RULES_MAX)
        return td_err_set(err, TD_E_USAGE, "%s: more layers or runs of layers than %u", flag,
                          TD_CACHE_RULES_MAX);
    out->rules[out->n_rules++] = *rule;
    return true;
}

/* "q8_0", "-" */
static bool read_kept(const char *flag, const char *text, size_t n_bytes, const td_type_info **out,
                      td_err *err)
{
    char name[16];
    *out = NULL;
    if (n_bytes == 1 && *text == '-')
        return true;
    snprintf(name, sizeof name, "%.*s", (int)td_min_u32((uint32_t)n_bytes, 15), text);
    return td_options_read_cache_type(flag, name, out, err);
}

bool td_cache_options_keep(const char *flag, const char *text, size_t n_bytes,
                           const char separators[2], td_cache_types *out, td_err *err)
{
    const char *end = text + n_bytes, *equals = memchr(text, separators[1], n_bytes);
    if (!equals)
        return td_err_set(err, TD_E_USAGE,
                          "%s: %s; allowed: LAYERS%cTYPE, as first%clast%cf16 or 0%c4-7%cq8_0/q5_0",
                          flag, td_text_quote(text, n_bytes).text, separators[1], separators[0],
                          separators[1], separators[0], separators[1]);
    td_cache_rule rule = {.first = 0};
    const char *k = equals + 1, *slash = memchr(k, '/', (size_t)(end - k));
    const char *v = slash ? slash + 1 : k;
    if (!read_kept(flag, k, (size_t)((slash ? slash : end) - k), &rule.k, err) ||
        !read_kept(flag, v, (size_t)(end - v), &rule.v, err))
        return false;
    for (const char *p = text; p <= equals;) {
        const char *stop = memchr(p, separators[0], (size_t)(equals - p));
        stop = stop ? stop : equals;
        if (!read_layers(p, (size_t)(stop - p), &rule))
            return td_err_set(
                err, TD_E_USAGE,
                "%s: layers %s in %s; allowed: a layer from 0, a range as 4-7, first, "
                "last",
                flag, td_text_quote(p, (size_t)(stop - p)).text, td_text_quote(text, n_bytes).text);
        if (!add_rule(flag, &rule, out, err))
            return false;
        p = stop + 1;
    }
    return true;
}

/* One member of the file's object. */
static bool add_member(const td_json_object *root, const char *layers, const char *path,
                       td_cache_types *out, td_err *err)
{
    static const td_json_field fields[] = {
        {.key = "k", .type = TD_JSON_STRING, .min = 1, .max = 15},
        {.key = "v", .type = TD_JSON_STRING, .min = 1, .max = 15},
    };
    static const td_json_schema schema = {fields, TD_COUNT(fields), false};
    td_json_object object;
    td_cache_rule rule = {.first = 0};
    char where[TD_JSON_WHERE_MAX];
    if (!td_json_read_member(root, layers, &schema, &object, err))
        return false;
    for (size_t i = 0; i < TD_COUNT(fields); i++) {
        const char *name = td_json_get_string(&object, fields[i].key, NULL);
        snprintf(where, sizeof where, "%.80s: %.40s.%s", path, layers, fields[i].key);
        if (name && !td_options_read_cache_type(where, name, i ? &rule.v : &rule.k, err))
            return false;
    }
    if (!read_layers(layers, strlen(layers), &rule))
        return td_err_set(err, TD_E_DATA,
                          "%s: layers %s; allowed: a layer from \"0\", a range as \"4-7\", "
                          "\"first\", \"last\"",
                          path, td_text_quote(layers, strlen(layers)).text);
    return add_rule(path, &rule, out, err);
}

bool td_cache_options_layers(const char *path, td_cache_types *out, td_err *err)
{
    const td_json_schema any = {NULL, 0, true};
    const char *names[TD_CACHE_RULES_MAX + 1];
    td_json_field members[TD_CACHE_RULES_MAX + 1];
    td_json_object root;
    td_json *document = td_json_read_file(path, err);
    bool is_ok = document && td_json_read_root(document, &any, &root, err);
    size_t n = is_ok ? td_json_list_keys(&root, names, TD_COUNT(names)) : 0;
    if (n > TD_CACHE_RULES_MAX)
        is_ok = td_err_set(err, TD_E_DATA, "%s: %zu or more runs of layers; allowed: %u", path, n,
                           TD_CACHE_RULES_MAX);
    for (size_t i = 0; is_ok && i < n; i++)
        members[i] = (td_json_field){.key = names[i], .type = TD_JSON_OBJECT};
    const td_json_schema named = {members, n, false};
    is_ok = is_ok && td_json_read_root(document, &named, &root, err);
    for (size_t i = 0; is_ok && i < n; i++)
        is_ok = add_member(&root, names[i], path, out, err);
    td_json_destroy(&document);
    return is_ok || td_err_prepend(err, "--kv-layers");
}
