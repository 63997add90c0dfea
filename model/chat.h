/* Chat templates: the text that a model was trained to see around the messages of a conversation.
 *
 * Files carry their template as a program (Jinja, tokenizer.chat_template). It is never executed:
 * the templates of the known families are rows of a table here, and the file's text only serves to
 * recognise which one is meant, by what is characteristic in it.
 *
 *     const td_chat_template *t = td_chat_choose(gguf, NULL, err);
 *     td_chat_apply(t, messages, n, &segments, &n_segments, err);
 *     td_tokenize_segments(tokenizer, segments, n_segments, true, &ids, &n_ids, err);
 *
 * What the template writes is special text, what the messages say is not: a user who writes
 * "<|im_end|>" says these ten characters. Reasoning and tool calls inside a message are its text.
 * Every template ends with the opening of the assistant's next turn. BOS is the tokenizer's.
 *
 * The table is immutable; any thread. Segments borrow from it and from the messages. */
#ifndef TD_MODEL_CHAT_H
#define TD_MODEL_CHAT_H

#include "base/err.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

#define TD_CHAT_MESSAGES_MAX 4096u

typedef enum {
    TD_CHAT_SYSTEM,
    TD_CHAT_USER,
    TD_CHAT_ASSISTANT,
    TD_CHAT_TOOL,
    TD_CHAT_ROLE_COUNT
} td_chat_role;

/* "system", "user", "assistant", "tool", NULL; by td_chat_role. */
extern const char *const td_chat_role_names[TD_CHAT_ROLE_COUNT + 1];

typedef struct {
    td_chat_role role;
    const char *text;
    size_t n_text; /* bytes */
} td_chat_message;

typedef struct td_chat_template td_chat_template;

/* The template of that name, or NULL. */
const td_chat_template *td_chat_find(const char *name);
/* The name of the i-th template, NULL after the last. */
const char *td_chat_name_at(size_t i);
const char *td_chat_name(const td_chat_template *t);

/* The template that a file's template text means, or NULL. */
const td_chat_template *td_chat_recognise(const char *text, size_t n_text);

/* By `name` if that is given, else by the file's tokenizer.chat_template. NULL with TD_E_USAGE for
 * an unknown name, TD_E_DATA for a template that is absent or not recognised; both list the names.
 * td_chat_check_name is the first half alone, for before a file is opened. */
const td_chat_template *td_chat_choose(const td_gguf *g, const char *name, td_err *err);
bool td_chat_check_name(const char *name, td_err *err);

/* The conversation as segments, in order; *segments is from td_alloc. TD_E_DATA for no messages,
 * for a role that the template has no place for, and for one in a wrong place. */
bool td_chat_apply(const td_chat_template *t, const td_chat_message *messages, size_t n_messages,
                   td_text_segment **segments, size_t *n_segments, td_err *err);

#endif
