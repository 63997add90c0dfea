/* The `messages` of a prompt line: [{"role": "user", "content": "..."}, ...], content being a text
 * or a list of {"type": "text", "text": "..."} parts, which are joined. Owns its texts. One thread.
 * Errors: TD_E_DATA with the place in the line, TD_E_NOMEM. */
#ifndef TD_RUN_CHAT_INPUT_H
#define TD_RUN_CHAT_INPUT_H

#include "base/json.h"
#include "base/sha256.h"
#include "model/chat.h"

typedef struct {
    td_chat_message *items; /* [n], texts owned */
    uint32_t n;             /* 0: none were given */
} td_chat_input;

/* The field of a line's schema. */
#define TD_CHAT_INPUT_FIELD                                                                        \
    {                                                                                              \
        .key = "messages", .type = TD_JSON_OBJECT_LIST, .n_max = TD_CHAT_MESSAGES_MAX              \
    }

/* Reads the field of a checked line; an empty list is an error. *m is freed by the caller, whatever
 * comes back. */
bool td_chat_input_read(td_chat_input *m, const td_json_object *line, td_err *err);
void td_chat_input_free(td_chat_input *m);

/* Adds all of it to a hash: no two different conversations look the same. */
void td_chat_input_hash(const td_chat_input *m, td_sha256 *s);

/* The ids of the conversation under a chat template, named or the file's own (chat.h). *ids is from
 * td_alloc. */
bool td_chat_input_tokenize(const td_chat_input *m, const td_gguf *g, const td_tokenizer *t,
                            const char *template_name, uint32_t **ids, size_t *n_ids, td_err *err);

#endif
