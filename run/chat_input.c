#include "run/chat_input.h"

#include "base/check.h"
#include "base/json_writer.h"
#include "base/jsonl.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define PARTS_MAX 1024u
#define CALLS_MAX 1024u

/* What is looked at of a message here: the rest is between the line and the template. A table has
 * one type for a key, so there are two: content is a text, or it is a list of texts. */
#define ROLE_AND_CALLS                                                                             \
    {.key = "role", .type = TD_JSON_STRING, .required = true, .min = 1, .max = TD_JSONL_LINE_MAX}, \
    {                                                                                              \
        .key = "tool_calls", .type = TD_JSON_OBJECT_LIST, .nullable = true, .n_max = CALLS_MAX     \
    }
static const td_json_field text_fields[] = {
    {.key = "content",
     .type = TD_JSON_STRING,
     .nullable = true,
     .min = 0,
     .max = TD_JSONL_LINE_MAX},
    ROLE_AND_CALLS,
};
static const td_json_schema text_schema = {text_fields, TD_COUNT(text_fields), true};
static const td_json_field list_fields[] = {
    {.key = "content", .type = TD_JSON_OBJECT_LIST, .required = true, .n_max = PARTS_MAX},
    ROLE_AND_CALLS,
};
static const td_json_schema list_schema = {list_fields, TD_COUNT(list_fields), true};
/* Is content a list? */
static const td_json_schema probe_schema = {list_fields, 1, true};
/* Of a list. An image would be a word of the template's that stands for nothing. */
static const char *const part_types[] = {"text", NULL};
static const td_json_field part_fields[] = {
    {.key = "type", .type = TD_JSON_ENUM, .required = true, .names = part_types},
    {.key = "text", .type = TD_JSON_STRING, .required = true, .min = 0, .max = TD_JSONL_LINE_MAX},
};
static const td_json_schema part_schema = {part_fields, TD_COUNT(part_fields), true};

/* Variables that are the line's own business. */
static const td_json_field kwargs_fields[] = {
    {.key = "messages", .type = TD_JSON_IGNORED},
    {.key = "tools", .type = TD_JSON_IGNORED},
};
static const td_json_schema kwargs_schema = {kwargs_fields, TD_COUNT(kwargs_fields), true};

static bool copy_field(const td_json_object *line, const char *key, td_json_writer *w, char **text,
                       td_err *err)
{
    const char *json;
    size_t n;
    if (!td_json_has(line, key))
        return true;
    td_json_copy(line, key, w);
    if (!td_json_writer_end(w, &json, &n, err))
        return false;
    *text = td_strndup(json, n, err);
    return *text != NULL;
}

static bool check_message(const td_json_object *line, size_t i, td_err *err)
{
    td_json_object o, part;
    if (!td_json_read_element(line, "messages", i, &probe_schema, &o, NULL)) {
        if (!td_json_read_element(line, "messages", i, &text_schema, &o, err))
            return false;
        return td_json_has(&o, "content") || td_json_has(&o, "tool_calls") ||
               td_json_fail(&o, NULL, err, "the key \"content\" is missing");
    }
    if (!td_json_read_element(line, "messages", i, &list_schema, &o, err))
        return false;
    for (size_t k = 0; k < td_json_count(&o, "content"); k++)
        if (!td_json_read_element(&o, "content", k, &part_schema, &part, err))
            return false;
    return true;
}

static bool check_messages(const td_json_object *line, td_err *err)
{
    td_json_object o;
    size_t n = td_json_count(line, "messages");
    if (n == 0)
        return td_json_fail(line, "messages", err, "an empty list; allowed: 1..%u messages",
                            TD_CHAT_MESSAGES_MAX);
    for (size_t i = 0; i < n; i++)
        if (!check_message(line, i, err))
            return false;
    if (!td_json_has(line, "chat_template_kwargs"))
        return true;
    if (!td_json_read_member(line, "chat_template_kwargs", &kwargs_schema, &o, err))
        return false;
    for (size_t i = 0; i < TD_COUNT(kwargs_fields); i++)
        if (td_json_has(&o, kwargs_fields[i].key))
            return td_json_fail(&o, kwargs_fields[i].key, err, "it stands beside, in the line");
    return true;
}

bool td_chat_input_read(td_chat_input *m, const td_json_object *line, td_err *err)
{
    *m = (td_chat_input){0};
    if (!td_json_has(line, "messages")) {
        const char *key = td_json_has(line, "tools")                  ? "tools"
                          : td_json_has(line, "chat_template_kwargs") ? "chat_template_kwargs"
                                                                      : NULL;
        return !key || td_json_fail(line, key, err, "without \"messages\"");
    }
    if (!check_messages(line, err))
        return false;
    td_json_writer *w = td_json_writer_create(false, err);
    bool is_ok = w && copy_field(line, "messages", w, &m->messages, err) &&
                 copy_field(line, "tools", w, &m->tools, err) &&
                 copy_field(line, "chat_template_kwargs", w, &m->kwargs, err);
    if (w)
        td_json_writer_destroy(&w);
    return is_ok;
}

void td_chat_input_free(td_chat_input *m)
{
    td_free(m->messages);
    td_free(m->tools);
    td_free(m->kwargs);
    *m = (td_chat_input){0};
}

void td_chat_input_hash(const td_chat_input *m, td_sha256 *s)
{
    const char *const texts[] = {m->messages, m->tools, m->kwargs};
    for (size_t i = 0; i < TD_COUNT(texts); i++) {
        char head[32];
        size_t n = texts[i] ? strlen(texts[i]) : 0;
        int n_head = snprintf(head, sizeof head, "%zu\n", n);
        td_sha256_add(s, head, (size_t)n_head);
        td_sha256_add(s, texts[i] ? texts[i] : "", n);
    }
}

/* Midnight of a day, with all that follows from it. */
static struct tm read_date(const char *date)
{
    struct tm day = {.tm_year = 70, .tm_mday = 1};
    if (sscanf(date, "%d-%d-%d", &day.tm_year, &day.tm_mon, &day.tm_mday) == 3) {
        day.tm_year -= 1900;
        day.tm_mon -= 1;
    }
    time_t t = timegm(&day);
    gmtime_r(&t, &day);
    return day;
}

bool td_chat_input_tokenize(const td_chat_input *m, const td_chat *chat, const char *date,
                            const td_tokenizer *t, uint32_t **ids, size_t *n_ids, td_err *err)
{
    td_jinja_output out;
    const td_chat_turns turns = {m->messages, m->tools, m->kwargs};
    const struct tm day = read_date(date);
    *ids = NULL;
    *n_ids = 0;
    bool is_ok =
        td_chat_render(chat, &turns, &day, &out, err) &&
        td_tokenize_segments(t, out.segments, out.n_segments, TD_ADD_FOR_PROMPT, ids, n_ids, err);
    td_jinja_output_free(&out);
    return is_ok;
}
