/* What the language does with texts: cutting, replacing, changing case, filling in. Marks follow
 * their bytes; a byte that is new in a text takes the mark of the one it stands for. Private to
 * model/chat/. */
#ifndef TD_MODEL_CHAT_STRINGS_H
#define TD_MODEL_CHAT_STRINGS_H

#include "model/chat/render.h"

enum { JINJA_LEFT = 1, JINJA_RIGHT = 2 };

/* Without the characters of `chars` (a text; absent or None: white space) at its ends. */
const jinja_text *jinja_strip(jinja_render *r, const jinja_text *t, jinja_value chars, int sides);
/* separator NULL: at white space, none of which stays. */
jinja_list *jinja_split(jinja_render *r, const jinja_text *t, const jinja_text *separator,
                        size_t n_max, bool from_right);
jinja_list *jinja_split_lines(jinja_render *r, const jinja_text *t, bool keeps_ends);
/* The last place of `needle` that ends by `limit`, SIZE_MAX if there is none. */
size_t jinja_text_find_last(const jinja_text *t, const jinja_text *needle, size_t limit);
bool jinja_has_at(const jinja_text *t, const jinja_text *part, size_t at);
const jinja_text *jinja_replace(jinja_render *r, const jinja_text *t, const jinja_text *old,
                                const jinja_text *new, size_t n_max);
/* Up to `width` characters with `fill` (NULL: a space) on these sides. */
const jinja_text *jinja_pad(jinja_render *r, const jinja_text *t, int64_t width,
                            const jinja_text *fill, int sides);

typedef enum {
    JINJA_UPPER,
    JINJA_LOWER,
    JINJA_TITLE,      /* after anything that has no case */
    JINJA_CAPITALIZE, /* the first character alone */
    JINJA_SWAP,
    JINJA_WORDS, /* after white space and opening brackets: the filter `title` */
} jinja_case;
const jinja_text *jinja_change_case(jinja_render *r, const jinja_text *t, jinja_case to);
/* Has it letters of the one case and none of the other? */
bool jinja_is_case(const jinja_text *t, jinja_case c);

/* "%s" % v and "{}".format(v): format.c. */
bool jinja_format_percent(jinja_render *r, const jinja_text *t, jinja_value v, jinja_value *out);
const jinja_text *jinja_format_braces(jinja_render *r, const jinja_text *t, const jinja_args *args);

#endif
