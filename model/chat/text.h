/* Texts: UTF-8 with a mark per byte, counted in characters. Private to model/chat/. */
#ifndef TD_MODEL_CHAT_TEXT_H
#define TD_MODEL_CHAT_TEXT_H

#include "model/chat/value.h"

/* A buffer is appended to and then, once, becomes a text. */
jinja_buffer *jinja_buffer_create(jinja_render *r);
bool jinja_append(jinja_render *r, jinja_buffer *b, const char *bytes, size_t n, bool is_message);
bool jinja_append_text(jinja_render *r, jinja_buffer *b, const jinja_text *t);
bool jinja_append_part(jinja_render *r, jinja_buffer *b, const jinja_text *t, size_t from,
                       size_t n);
bool jinja_append_char(jinja_render *r, jinja_buffer *b, uint32_t codepoint, bool is_message);
const jinja_text *jinja_buffer_text(jinja_render *r, jinja_buffer *b);
/* From byte `from` on all of it is a message's if any of it is: what was mixed. */
void jinja_buffer_blend(jinja_buffer *b, size_t from);

/* Of borrowed bytes. */
const jinja_text *jinja_text_create(jinja_render *r, const char *bytes, size_t n, bool is_message);
/* Of a constant, template's own: jinja_text_literal(r, "..."). */
const jinja_text *jinja_text_literal(jinja_render *r, const char *s);
const jinja_text *jinja_text_part(jinja_render *r, const jinja_text *t, size_t from, size_t n);
const jinja_text *jinja_text_concat(jinja_render *r, const jinja_text *a, const jinja_text *b);
const jinja_text *jinja_text_markup(jinja_render *r, const jinja_text *t, bool is_markup);

bool jinja_text_is(const jinja_text *t, const char *s);
bool jinja_text_mark_at(const jinja_text *t, size_t i); /* of byte i */
bool jinja_text_is_message(const jinja_text *t);        /* any byte */
size_t jinja_count_chars(const char *bytes, size_t n);
/* The byte at which character i (<= n_chars) begins. */
size_t jinja_text_offset(const jinja_text *t, size_t i_char);
/* The code point at byte *i (< n), which moves on. */
uint32_t jinja_text_next(const jinja_text *t, size_t *i);
/* The first place of `needle` at or after `from`, SIZE_MAX if there is none. Bytes. */
size_t jinja_text_find(const jinja_text *t, const jinja_text *needle, size_t from);
int jinja_text_compare(const jinja_text *a, const jinja_text *b); /* by code points */

/* What printing shows; is_repr: as inside of a list. */
bool jinja_print(jinja_render *r, jinja_buffer *b, jinja_value v, bool is_repr);
bool jinja_to_text(jinja_render *r, jinja_value v, const jinja_text **out);
#define JINJA_DOUBLE_MAX 40
size_t jinja_write_double(double d, char out[JINJA_DOUBLE_MAX]);

/* JSON: json_read.c, json_write.c. */
bool jinja_read_json(jinja_render *r, const td_jinja_variable *v, jinja_value *out);
typedef struct {
    bool is_ascii, is_sorted;
    const jinja_text *indent; /* NULL: one line */
    const jinja_text *item_separator, *key_separator;
} jinja_json_style;
bool jinja_write_json(jinja_render *r, jinja_buffer *b, jinja_value v,
                      const jinja_json_style *style);

#endif
