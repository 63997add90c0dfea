#include "run/chat_input.h"

#include "base/check.h"
#include "base/jsonl.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>

#define PARTS_MAX 1024u

static const char *const part_types[] = {"text", NULL};
static const td_json_field part_fields[] = {
    {.key = "type", .type = TD_JSON_ENUM, .required = true, .names = part_types},
    {.key = "text", .type = TD_JSON_STRING, .required = true, .min = 0, .max = TD_JSONL_LINE_MAX},
};
static const td_json_schema part_schema = {part_fields, TD_COUNT(part_fields), false};

/* A table has one type for a key, so there are two: content is a text, or it is a list. */
static const td_json_field text_fields[] = {
    {.key = "role", .type = TD_JSON_ENUM, .required = true, .names = td_chat_role_names},
    {.key = "content",
     .type = TD_JSON_STRING,
     .required = true,
     .min = 0,
     .max = TD_JSONL_LINE_MAX},
};
static const td_json_schema text_schema = {text_fields, TD_COUNT(text_fields), false};
static const td_json_field list_fields[] = {
    {.key = "role", .type = TD_JSON_ENUM, .required = true, .names = td_chat_role_names},
    {.key = "content", .type = TD_JSON_OBJECT_LIST, .required = true, .n_max = PARTS_MAX},
};
static const td_json_schema list_schema = {list_fields, TD_COUNT(list_fields), false};
/* Is content a list? */
static const td_json_schema probe_schema = {list_fields + 1, 1, true};

static bool join_parts(const td_json_object *o, td_chat_message *message, td_err *err)
{
    td_json_object part;
    size_t n_parts = td_json_count(o, "content"), n = 0;
    for (size_t i = 0; i < n_parts; i++) {
        if (!td_json_read_element(o, "content", i, &part_schema, &part, err))
            return false;
        n += strlen(td_json_get_string(&part, "text", ""));
    }
    char *text = td_alloc(n + 1, 1, err);
    message->text = text;
    message->n_text = n;
    for (size_t i = 0; text != NULL && i < n_parts; i++) {
        if (!td_json_read_element(o, "content", i, &part_schema, &part, err))
            return false;
        const char *from = td_json_get_string(&part, "text", "");
        size_t n_from = strlen(from);
        memcpy(text, from, n_from);
        text += n_from;
    }
    return message->text != NULL;
}

static bool read_message(const td_json_object *line, size_t i, td_chat_message *message,
                         td_err *err)
{
    td_json_object o;
    if (td_json_read_element(line, "messages", i, &probe_schema, &o, NULL)) {
        if (!td_json_read_element(line, "messages", i, &list_schema, &o, err))
            return false;
        message->role = (td_chat_role)td_json_get_enum(&o, "role", 0);
        return join_parts(&o, message, err);
    }
    if (!td_json_read_element(line, "messages", i, &text_schema, &o, err))
        return false;
    const char *text = td_json_get_string(&o, "content", "");
    message->role = (td_chat_role)td_json_get_enum(&o, "role", 0);
    message->n_text = strlen(text);
    message->text = td_strndup(text, message->n_text, err);
    return message->text != NULL;
}

bool td_chat_input_read(td_chat_input *m, const td_json_object *line, td_err *err)
{
    size_t n = td_json_count(line, "messages");
    *m = (td_chat_input){0};
    if (n == 0)
        return td_json_fail(line, "messages", err, "an empty list; allowed: 1..%u messages",
                            TD_CHAT_MESSAGES_MAX);
    m->items = td_alloc(n, sizeof m->items[0], err);
    bool is_ok = m->items != NULL;
    for (size_t i = 0; is_ok && i < n; i++) {
        is_ok = read_message(line, i, &m->items[i], err);
        m->n++;
    }
    return is_ok;
}

void td_chat_input_free(td_chat_input *m)
{
    for (uint32_t i = 0; i < m->n; i++)
        td_free((char *)(uintptr_t)m->items[i].text);
    td_free(m->items);
    *m = (td_chat_input){0};
}

void td_chat_input_hash(const td_chat_input *m, td_sha256 *s)
{
    for (uint32_t i = 0; i < m->n; i++) {
        char head[64];
        int n = snprintf(head, sizeof head, "%s %zu\n", td_chat_role_names[m->items[i].role],
                         m->items[i].n_text);
        td_sha256_add(s, head, (size_t)n);
        td_sha256_add(s, m->items[i].text, m->items[i].n_text);
    }
}

bool td_chat_input_tokenize(const td_chat_input *m, const td_gguf *g, const td_tokenizer *t,
                            const char *template_name, uint32_t **ids, size_t *n_ids, td_err *err)
{
    td_text_segment *segments = NULL;
    size_t n_segments;
    const td_chat_template *chat = td_chat_choose(g, template_name, err);
    *ids = NULL;
    *n_ids = 0;
    bool is_ok = chat != NULL && td_chat_apply(chat, m->items, m->n, &segments, &n_segments, err) &&
                 td_tokenize_segments(t, segments, n_segments, TD_ADD_FOR_PROMPT, ids, n_ids, err);
    td_free(segments);
    return is_ok;
}
