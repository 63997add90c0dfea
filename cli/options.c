#include "cli/options.h"

#include "base/check.h"
#include "base/files.h"
#include "base/text.h"
#include "cli/cache_options.h"
#include "kernels/types.h"
#include "transport/link.h"

#include <stdio.h>
#include <string.h>

#define SECTIONS_MAX   8u
#define FIELDS_MAX     64u
#define PATH_MAX_BYTES 4095

#define HELP_COLUMN     29   /* where the help of an option begins, */
#define HELP_COLUMNS    100  /* and where a line of it ends at most */
#define RANGE_SHOWN_MAX 1e15 /* a larger one tells nobody anything */

static void *field_of(const option *o, void *fields) { return (char *)fields + o->offset; }

static bool set_number(const option *o, void *fields, const char *text, td_err *err)
{
    double value = 0;
    uint64_t whole = 0;
    bool is_ok;
    if (o->kind == OPT_FLOAT) {
        is_ok = td_text_read_double(text, &value) && value >= o->min && value <= o->max;
        if (is_ok)
            *(float *)field_of(o, fields) = (float)value;
    } else {
        is_ok =
            td_text_read_u64(text, &whole) && (double)whole >= o->min && (double)whole <= o->max;
        if (is_ok && o->kind == OPT_U32)
            *(uint32_t *)field_of(o, fields) = (uint32_t)whole;
        else if (is_ok)
            *(uint64_t *)field_of(o, fields) = whole;
    }
    return is_ok || td_err_set(err, TD_E_USAGE, "%s: %s; allowed: %s %.15g..%.15g", o->flag,
                               td_text_quote(text, strlen(text)).text,
                               o->kind == OPT_FLOAT ? "a number" : "an integer", o->min, o->max);
}

/* Of those a wire has the first two. */
static const char *const cache_types[] = {"f32",  "f16",  "bf16", "q8_0",   "q6_0", "q5_1",
                                          "q5_0", "q4_1", "q4_0", "iq4_nl", NULL};
static const char *const wire_types[] = {"f32", "f16", NULL};

static bool read_type(const char *flag, const char *text, bool is_wire, const td_type_info **out,
                      td_err *err)
{
    const td_type_info *type = td_type_find_name(text);
    if (!type || !type->is_cache_type || (is_wire && type->id > TD_TYPE_F16))
        return td_err_set(err, TD_E_USAGE, "%s: %s; allowed: %s", flag,
                          td_text_quote(text, strlen(text)).text,
                          is_wire ? "f32, f16" : TD_OPTIONS_CACHE_TYPES);
    *out = type;
    return true;
}

bool td_options_read_cache_type(const char *flag, const char *text, const td_type_info **out,
                                td_err *err)
{
    return read_type(flag, text, false, out, err);
}

static bool set_type(const option *o, void *fields, const char *text, td_err *err)
{
    return read_type(o->flag, text, o->kind == OPT_WIRE_TYPE, field_of(o, fields), err);
}

static bool add_to_list(const option *o, void *fields, const char *text, td_err *err)
{
    option_list *list = field_of(o, fields);
    if (list->n == TD_OPTION_LIST_MAX)
        return td_err_set(err, TD_E_USAGE, "%s: more than %u of them", o->flag, TD_OPTION_LIST_MAX);
    list->items[list->n++] = text;
    return true;
}

static bool add_host(const option *o, void *fields, const char *text, td_err *err)
{
    option_hosts *hosts = field_of(o, fields);
    if (hosts->n == TD_OPTION_LIST_MAX || strlen(text) >= TD_OPTION_HOST_BYTES)
        return td_err_set(err, TD_E_USAGE, "%s: more than %u of them, or one of %u bytes", o->flag,
                          TD_OPTION_LIST_MAX, TD_OPTION_HOST_BYTES);
    strcpy(hosts->items[hosts->n++], text);
    return true;
}

static bool set_option(const option *o, void *fields, const char *text, td_err *err)
{
    switch (o->kind) {
    case OPT_FLAG:
        *(bool *)field_of(o, fields) = true;
        return true;
    case OPT_U32:
    case OPT_U64:
    case OPT_FLOAT:
        return set_number(o, fields, text, err);
    case OPT_TEXT:
    case OPT_READ:
    case OPT_WRITE:
        *(const char **)field_of(o, fields) = text;
        return true;
    case OPT_LIST:
        return add_to_list(o, fields, text, err);
    case OPT_HOSTS:
        return add_host(o, fields, text, err);
    case OPT_ROTATE:
        return td_cache_options_rotate(o->flag, text, field_of(o, fields), err);
    case OPT_KEEP:
        return td_cache_options_keep(o->flag, text, strlen(text), ",=", field_of(o, fields), err);
    case OPT_KEEP_FILE:
        return td_cache_options_layers(text, field_of(o, fields), err);
    case OPT_CACHE_TYPE:
    case OPT_WIRE_TYPE:
        return set_type(o, fields, text, err);
    }
    return false;
}

static const option *find_flag(const command_help *help, const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < help->n_options; i++)
        if (strlen(help->options[i].flag) == n_bytes &&
            !memcmp(help->options[i].flag, text, n_bytes))
            return &help->options[i];
    return NULL;
}

static bool unknown_flag(const command_help *help, const char *text, td_err *err)
{
    const char *names[FIELDS_MAX];
    size_t n = 0;
    for (size_t i = 0; i < help->n_options && n < FIELDS_MAX; i++)
        names[n++] = help->options[i].flag;
    const char *equals = strchr(text, '=');
    char name[64];
    snprintf(name, sizeof name, "%.*s",
             equals ? (int)td_min_u32((uint32_t)(equals - text), 63) : 63, text);
    const char *nearest = td_text_find_nearest(name, names, n);
    return td_err_set(
        err, TD_E_USAGE, "%s is no option of `tandem %s`%s%s%s; see `tandem %s --help`",
        td_text_quote(text, strlen(text)).text, help->name, nearest ? " (did you mean " : "",
        nearest ? nearest : "", nearest ? "?)" : "", help->name);
}

/* The option that argv[i] names, or NULL. *value is what stands after '=', or NULL. */
static const option *find_option(const command_help *help, const char *text, const char **value)
{
    const char *equals = !strncmp(text, "--", 2) ? strchr(text, '=') : NULL;
    *value = equals ? equals + 1 : NULL;
    return find_flag(help, text, equals ? (size_t)(equals - text) : strlen(text));
}

const char *td_options_find_config(const command_help *help, int argc, char **argv)
{
    const char *config = NULL;
    for (int i = 0; i < argc; i++) {
        const char *value;
        const option *o = find_option(help, argv[i], &value);
        if (o && o->kind != OPT_FLAG && !value && i + 1 < argc)
            value = argv[++i]; /* may look like a flag, and is none */
        if (o && !strcmp(o->flag, "--config"))
            config = value;
    }
    return config;
}

bool td_options_parse(const command_help *help, int argc, char **argv, void *fields, bool *is_help,
                      td_err *err)
{
    bool is_list_begun[FIELDS_MAX] = {false}, is_keep_begun = false;
    TD_ASSERT(help->n_options <= FIELDS_MAX);
    *is_help = false;
    for (int i = 0; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            *is_help = true;
            return true;
        }
        const char *value;
        const option *o = find_option(help, argv[i], &value);
        if (!o)
            return unknown_flag(help, argv[i], err);
        if (o->kind == OPT_FLAG && value)
            return td_err_set(err, TD_E_USAGE, "%s takes no value", o->flag);
        if (o->kind != OPT_FLAG && !value) {
            if (i + 1 == argc)
                return td_err_set(err, TD_E_USAGE, "%s needs a value: %s", o->flag, o->argument);
            value = argv[++i];
        }
        /* Flags win over the file: the first of a list replaces what came from there. */
        size_t index = (size_t)(o - help->options);
        if (o->kind == OPT_LIST && !is_list_begun[index])
            ((option_list *)field_of(o, fields))->n = 0;
        if (o->kind == OPT_HOSTS && !is_list_begun[index])
            ((option_hosts *)field_of(o, fields))->n = 0;
        if ((o->kind == OPT_KEEP || o->kind == OPT_KEEP_FILE) && !is_keep_begun) {
            ((td_cache_types *)field_of(o, fields))->n_rules = 0;
            is_keep_begun = true;
        }
        is_list_begun[index] = true;
        if (!set_option(o, fields, value, err))
            return false;
    }
    return true;
}

bool td_options_read_hosts(const option_hosts *texts, const char *key,
                           td_host hosts[TD_OPTION_LIST_MAX], td_err *err)
{
    for (uint32_t i = 0; i < texts->n; i++) {
        if (!td_host_parse(texts->items[i], &hosts[i], err) ||
            !td_link_check(hosts[i].endpoint, TD_LINK_CONNECT, key, err))
            return td_err_prepend(err, "--host");
        for (uint32_t k = 0; k < i; k++)
            if (!strcmp(hosts[k].name, hosts[i].name))
                return td_err_set(err, TD_E_USAGE, "--host: %s is both %s and %s", hosts[i].name,
                                  hosts[k].endpoint, hosts[i].endpoint);
    }
    return true;
}

/* -- configuration files ------------------------------------------------------------------- */

typedef struct {
    char name[32];
    td_json_field fields[FIELDS_MAX];
    const option *options[FIELDS_MAX];
    size_t n_fields;
    td_json_schema schema;
} section;

static td_json_field json_field(const option *o, const char *key)
{
    td_json_field f = {.key = key};
    switch (o->kind) {
    case OPT_FLAG:
        f.type = TD_JSON_BOOL;
        break;
    case OPT_U32:
    case OPT_U64:
        f.type = TD_JSON_INT;
        f.min = (int64_t)o->min;
        f.max = o->max >= 9223372036854775808.0 ? INT64_MAX : (int64_t)o->max;
        break;
    case OPT_FLOAT:
        f.type = TD_JSON_FLOAT;
        f.f_min = o->min;
        f.f_max = o->max;
        break;
    case OPT_TEXT:
    case OPT_READ:
    case OPT_WRITE:
    case OPT_ROTATE:
    case OPT_KEEP_FILE:
        f.type = TD_JSON_STRING;
        f.min = 1;
        f.max = PATH_MAX_BYTES;
        break;
    case OPT_LIST:
    case OPT_KEEP:
        f.type = TD_JSON_STRING_OR_LIST;
        f.min = 1;
        f.max = PATH_MAX_BYTES;
        f.n_max = TD_OPTION_LIST_MAX;
        break;
    case OPT_HOSTS: /* read_hosts */
        f.type = TD_JSON_OBJECT;
        break;
    case OPT_CACHE_TYPE:
        f.type = TD_JSON_ENUM;
        f.names = cache_types;
        break;
    case OPT_WIRE_TYPE:
        f.type = TD_JSON_ENUM;
        f.names = wire_types;
        break;
    }
    return f;
}

/* Sorts the table's rows into the sections of a file. */
static size_t build_sections(const command_help *help, section sections[SECTIONS_MAX])
{
    size_t n = 0;
    for (size_t i = 0; i < help->n_options; i++) {
        const option *o = &help->options[i];
        const char *dot = o->config ? strchr(o->config, '.') : NULL;
        if (!dot)
            continue;
        size_t k = 0, n_name = (size_t)(dot - o->config);
        while (k < n &&
               (strlen(sections[k].name) != n_name || memcmp(sections[k].name, o->config, n_name)))
            k++;
        if (k == n) {
            TD_ASSERT(n < SECTIONS_MAX && n_name < sizeof sections[k].name);
            sections[n] = (section){0};
            memcpy(sections[n++].name, o->config, n_name);
        }
        section *s = &sections[k];
        TD_ASSERT(s->n_fields < FIELDS_MAX);
        s->options[s->n_fields] = o;
        s->fields[s->n_fields++] = json_field(o, dot + 1);
    }
    return n;
}

static bool apply_field(const option *o, const char *key, const td_json_object *object,
                        void *fields, td_err *err)
{
    if (!td_json_has(object, key))
        return true;
    switch (o->kind) {
    case OPT_FLAG:
        *(bool *)field_of(o, fields) = td_json_get_bool(object, key, false);
        return true;
    case OPT_U32:
        *(uint32_t *)field_of(o, fields) = (uint32_t)td_json_get_int(object, key, 0);
        return true;
    case OPT_U64:
        *(uint64_t *)field_of(o, fields) = (uint64_t)td_json_get_int(object, key, 0);
        return true;
    case OPT_FLOAT:
        *(float *)field_of(o, fields) = (float)td_json_get_double(object, key, 0);
        return true;
    case OPT_TEXT:
    case OPT_READ:
    case OPT_WRITE:
        *(const char **)field_of(o, fields) = td_json_get_string(object, key, NULL);
        return true;
    case OPT_LIST:
        ((option_list *)field_of(o, fields))->n = 0;
        for (size_t i = 0; i < td_json_count(object, key); i++)
            if (!add_to_list(o, fields, td_json_get_string_at(object, key, i), err))
                return false;
        return true;
    case OPT_HOSTS:
        return true; /* read_hosts */
    case OPT_KEEP:
        for (size_t i = 0; i < td_json_count(object, key); i++)
            if (!set_option(o, fields, td_json_get_string_at(object, key, i), err))
                return false;
        return true;
    case OPT_ROTATE:
    case OPT_KEEP_FILE:
        return set_option(o, fields, td_json_get_string(object, key, NULL), err);
    case OPT_CACHE_TYPE:
    case OPT_WIRE_TYPE:
        return set_type(o, fields, cache_types[td_json_get_enum(object, key, 1)], err);
    }
    return false;
}

/* {"strix2": {"endpoint": "tcp://10.0.0.2:5556", "key": "strix2"}, ...} */
static bool read_hosts(const option *o, const td_json_object *root, void *fields, td_err *err)
{
    static const td_json_field host_fields[] = {
        {.key = "endpoint", .type = TD_JSON_STRING, .required = true, .min = 1, .max = 319},
        {.key = "key", .type = TD_JSON_STRING, .min = 1, .max = 100},
    };
    static const td_json_schema host_schema = {host_fields, TD_COUNT(host_fields), false};
    const td_json_schema any = {NULL, 0, true};
    const char *names[TD_OPTION_LIST_MAX + 1];
    td_json_field members[TD_OPTION_LIST_MAX + 1];
    td_json_object hosts, host;
    if (!td_json_read_member(root, o->config, &any, &hosts, err))
        return false;
    size_t n = td_json_list_keys(&hosts, names, TD_COUNT(names));
    for (size_t i = 0; i < n; i++)
        members[i] = (td_json_field){.key = names[i], .type = TD_JSON_OBJECT};
    const td_json_schema named = {members, n, false};
    if (!td_json_read_member(root, o->config, &named, &hosts, err))
        return false;
    for (size_t i = 0; i < n; i++) {
        char text[2 * TD_OPTION_HOST_BYTES];
        if (!td_json_read_member(&hosts, names[i], &host_schema, &host, err))
            return false;
        const char *key = td_json_get_string(&host, "key", NULL);
        snprintf(text, sizeof text, "%.100s=%s%s%s", names[i],
                 td_json_get_string(&host, "endpoint", ""), key ? "," : "", key ? key : "");
        if (!add_host(o, fields, text, err))
            return false;
    }
    return true;
}

bool td_options_read_config(const command_help *help, const char *path, void *fields,
                            td_json **document, td_err *err)
{
    section sections[SECTIONS_MAX];
    td_json_field roots[SECTIONS_MAX + 1];
    size_t n = build_sections(help, sections);
    for (size_t i = 0; i < n; i++) {
        sections[i].schema = (td_json_schema){sections[i].fields, sections[i].n_fields, false};
        roots[i] = (td_json_field){.key = sections[i].name, .type = TD_JSON_OBJECT};
    }
    const option *hosts = NULL;
    for (size_t i = 0; i < help->n_options; i++)
        hosts = help->options[i].kind == OPT_HOSTS ? &help->options[i] : hosts;
    size_t n_roots = n;
    if (hosts && hosts->config)
        roots[n_roots++] = (td_json_field){.key = hosts->config, .type = TD_JSON_OBJECT};
    td_json_schema root_schema = {roots, n_roots, false};
    td_json_object root, object;
    *document = td_json_read_file(path, err);
    if (!*document || !td_json_read_root(*document, &root_schema, &root, err))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!td_json_has(&root, sections[i].name))
            continue;
        if (!td_json_read_member(&root, sections[i].name, &sections[i].schema, &object, err))
            return false;
        for (size_t k = 0; k < sections[i].n_fields; k++) {
            td_err why = {0};
            if (!apply_field(sections[i].options[k], sections[i].fields[k].key, &object, fields,
                             &why))
                return td_err_set(err, why.code == TD_E_USAGE ? TD_E_DATA : why.code, "%s: %s: %s",
                                  path, sections[i].options[k]->config, why.message);
        }
    }
    if (n_roots > n && td_json_has(&root, hosts->config))
        return read_hosts(hosts, &root, fields, err);
    return true;
}

bool td_options_check_files(const command_help *help, void *fields, const char *also_read,
                            bool is_printing, td_err *err)
{
    td_file_use uses[FIELDS_MAX + 2];
    size_t n = 0;
    for (size_t i = 0; i < help->n_options; i++) {
        const option *o = &help->options[i];
        if (o->kind == OPT_READ || o->kind == OPT_WRITE)
            uses[n++] = (td_file_use){.name = o->flag,
                                      .path = *(const char **)field_of(o, fields),
                                      .is_written = o->kind == OPT_WRITE};
    }
    uses[n++] = (td_file_use){.name = "the file", .path = also_read};
    if (is_printing)
        uses[n++] = (td_file_use){.name = "standard output", .path = "-", .is_written = true};
    bool is_ok = td_files_check(uses, n, err);
    for (size_t i = 0; is_ok && i < n; i++)
        is_ok = !uses[i].is_written || !uses[i].path || td_files_check_writable(uses[i].path, err);
    return is_ok;
}

/* Writes the help of an option with its range, which the table alone knows: at the end, before the
 * default in parentheses where there is one. */
static void write_help(const option *o, char *out, size_t n_out)
{
    const char *end = o->help + strlen(o->help), *tail = strstr(o->help, "(default: ");
    bool has_range = (o->kind == OPT_U32 || o->kind == OPT_U64 || o->kind == OPT_FLOAT) &&
                     o->max < RANGE_SHOWN_MAX;
    if (!has_range)
        snprintf(out, n_out, "%s", o->help);
    else if (tail)
        snprintf(out, n_out, "%.*s(%.10g..%.10g; %s", (int)(tail - o->help), o->help, o->min,
                 o->max, tail + 1);
    else
        snprintf(out, n_out, "%.*s (%.10g..%.10g)", (int)(end - o->help), o->help, o->min, o->max);
}

/* A text behind HELP_COLUMN, broken between words where a line would be too long. */
static void print_wrapped(const char *text)
{
    size_t column = HELP_COLUMN;
    while (*text) {
        size_t n = strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + n > HELP_COLUMNS) {
            printf("\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        column += (size_t)printf("%s%.*s", column > HELP_COLUMN ? " " : "", (int)n, text);
        text += n + strspn(text + n, " ");
    }
    putchar('\n');
}

static void print_option(const option *o)
{
    char left[64], help[512];
    snprintf(left, sizeof left, "  %s%s%s", o->flag, o->argument ? " " : "",
             o->argument ? o->argument : "");
    printf("%-*s ", HELP_COLUMN - 1, left);
    write_help(o, help, sizeof help);
    print_wrapped(help);
}

void td_options_print_help(const command_help *help)
{
    printf("usage: %s\n\n%s\n\n", help->usage, help->summary);
    for (size_t i = 0; i < help->n_options; i++)
        print_option(&help->options[i]);
    printf("  %-26s %s\n", "-h, --help", "this text");
    bool has_config = false;
    for (size_t i = 0; i < help->n_options; i++)
        has_config |= help->options[i].config != NULL;
    if (!has_config)
        return;
    printf("\nKeys of a --config file (JSON; flags win over it):\n");
    for (size_t i = 0; i < help->n_options; i++)
        if (help->options[i].config)
            printf("  %-26s %s\n", help->options[i].config, help->options[i].flag);
}
