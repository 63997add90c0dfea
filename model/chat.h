/* Chat templates: the text that a model was trained to see around the messages of a conversation.
 *
 * Files carry theirs as a program (tokenizer.chat_template); it is executed by model/chat/jinja.h,
 * with the variables that publishers' own loaders give it:
 *
 *     td_chat *c = td_chat_open(gguf, tokenizer, NULL, err);
 *     td_jinja_output out;
 *     if (td_chat_render(c, &input, &now, &out, err))
 *         td_tokenize_segments(tokenizer, out.segments, out.n_segments, ..., &ids, &n_ids, err);
 *     td_jinja_output_free(&out);
 *
 * What the template writes is special text, what the input says is not: a user who writes
 * "<|im_end|>" says these ten characters.
 *
 * A file may have several templates: where tools are given, the one named tool_use is taken if it
 * is there. A file may have none, or one that cannot be parsed; then rendering fails, not opening,
 * as there may be nothing to render. Immutable once open; any thread. Owns all it needs. */
#ifndef TD_MODEL_CHAT_H
#define TD_MODEL_CHAT_H

#include "base/err.h"
#include "model/chat/jinja.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

typedef struct td_chat td_chat;

/* The template that `choice` means: NULL, the file's own; FILE.jinja (what ends so, or has a '/');
 * another one of the file's by its name; a family's format (td_chat_family_at). Errors: TD_E_USAGE
 * for a name that is none, with those that are; of FILE.jinja TD_E_IO, TD_E_DATA; TD_E_NOMEM. */
td_chat *td_chat_open(const td_gguf *g, const td_tokenizer *t, const char *choice, td_err *err);
void td_chat_close(td_chat **c);

/* The name of family i, NULL after the last. */
const char *td_chat_family_at(size_t i);

/* What is wrong with the file's own template; NULL: nothing, or it has none. */
const char *td_chat_problem(const td_chat *c);
/* For people: "(none)", "jinja", "jinja, tool_use", or the choice. */
const char *td_chat_describe(const td_chat *c);
/* What tells it from the file's own: "" for that, else its name or a hash of its text. */
const char *td_chat_identity(const td_chat *c);
/* May the text depend on the date? */
bool td_chat_uses_date(const td_chat *c);

/* JSON texts, NULL where not given. */
typedef struct {
    const char *messages; /* a list of objects */
    const char *tools;    /* a list */
    const char *kwargs;   /* an object: more variables, which win over the usual ones */
} td_chat_turns;

/* The conversation with the opening of the assistant's next turn. *out is to be freed whatever
 * comes back. Errors: TD_E_DATA (no template, a broken one, one that refuses), TD_E_NOMEM. */
bool td_chat_render(const td_chat *c, const td_chat_turns *turns, const struct tm *now,
                    td_jinja_output *out, td_err *err);

#endif
