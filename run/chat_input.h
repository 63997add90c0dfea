/* A conversation on a prompt line: `messages`, a list of objects with a `role` and what else the
 * template looks at (content, tool_calls, reasoning_content, name, ...), with `tools` and
 * `chat_template_kwargs` beside it. Kept as JSON texts, which the chat template is rendered with.
 * Owns its texts. One thread. Errors: TD_E_DATA with the place in the line, TD_E_NOMEM. */
#ifndef TD_RUN_CHAT_INPUT_H
#define TD_RUN_CHAT_INPUT_H

#include "base/json.h"
#include "base/sha256.h"
#include "model/chat.h"

#define TD_CHAT_MESSAGES_MAX 4096u
#define TD_CHAT_TOOLS_MAX    1024u

typedef struct {
    char *messages, *tools, *kwargs; /* JSON; NULL: not given */
} td_chat_input;

/* The fields of a line's schema. */
#define TD_CHAT_INPUT_FIELDS                                                                       \
    {.key = "messages", .type = TD_JSON_OBJECT_LIST, .n_max = TD_CHAT_MESSAGES_MAX},               \
        {.key = "tools",                                                                           \
         .type = TD_JSON_OBJECT_LIST,                                                              \
         .nullable = true,                                                                         \
         .n_max = TD_CHAT_TOOLS_MAX},                                                              \
    {                                                                                              \
        .key = "chat_template_kwargs", .type = TD_JSON_OBJECT, .nullable = true                    \
    }

/* Reads the fields of a checked line; an empty list of messages is an error, tools without messages
 * too. *m is freed by the caller, whatever comes back. */
bool td_chat_input_read(td_chat_input *m, const td_json_object *line, td_err *err);
void td_chat_input_free(td_chat_input *m);

/* Adds all of it to a hash: no two different conversations look the same. */
void td_chat_input_hash(const td_chat_input *m, td_sha256 *s);

/* The ids of the conversation under a chat template, on a day ("2026-11-28", else no day in
 * particular). *ids is from td_alloc. */
bool td_chat_input_tokenize(const td_chat_input *m, const td_chat *chat, const char *date,
                            const td_tokenizer *t, uint32_t **ids, size_t *n_ids, td_err *err);

#endif
