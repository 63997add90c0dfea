/* Chat formats by name, for files without a template of their own. Private to model/chat. */
#ifndef TD_MODEL_CHAT_FAMILIES_H
#define TD_MODEL_CHAT_FAMILIES_H

#include "base/json_writer.h"

#include <stddef.h>

typedef struct td_chat_family td_chat_family;

/* The template that renders each of them, given td_chat_family_write's variables. */
extern const char td_chat_family_template[];

const td_chat_family *td_chat_family_find(const char *name); /* or NULL */
const char *td_chat_family_name_at(size_t i);                /* NULL after the last */
/* Its variables as one JSON object. */
void td_chat_family_write(const td_chat_family *f, td_json_writer *w);

#endif
