/* Values of the chat template language, and the memory they live in.
 *
 * A value is 16 bytes; what does not fit lies in the memory of the rendering, which is freed as
 * one and limited. Texts, lists and dicts never change once they can be seen (the language has no
 * way to change them but for namespaces), so that values are copied freely.
 *
 * Where text came from is kept byte by byte: `marks` says which bytes are a message's (or a tool's,
 * or an argument's) and which are the template's own. Numbers and booleans carry one such mark.
 *
 * Functions that can fail return false or NULL with the error set. Private to model/chat/. */
#ifndef TD_MODEL_CHAT_VALUE_H
#define TD_MODEL_CHAT_VALUE_H

#include "model/chat/jinja.h"

#include "base/mem.h"

typedef enum {
    JINJA_ABSENT, /* a parameter that was not given */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_TEXT,
    JINJA_LIST,
    JINJA_DICT,
    JINJA_NAMESPACE,
    JINJA_CALLABLE,
    JINJA_LOOP,
    JINJA_TYPE_COUNT
} jinja_type;

typedef struct jinja_render jinja_render;
typedef struct jinja_list jinja_list;
typedef struct jinja_dict jinja_dict;
typedef struct jinja_callable jinja_callable;
typedef struct jinja_loop jinja_loop;

typedef struct {
    char *bytes;
    uint8_t *marks; /* [capacity] */
    size_t n, capacity;
} jinja_buffer;

typedef struct {
    const char *bytes;
    const uint8_t *marks; /* [n] 1: a message's byte; NULL: all are as is_message says */
    size_t n, n_chars;
    jinja_buffer *tail; /* may be appended to in place while the text is its end; or NULL */
    bool is_message, is_markup;
} jinja_text;

typedef struct {
    jinja_type type;
    bool is_message; /* of numbers, booleans and None */
    union {
        bool truth;
        int64_t integer;
        double real;
        const jinja_text *text; /* of an undefined value its name, or NULL */
        jinja_list *list;
        jinja_dict *dict; /* of a namespace too */
        jinja_callable *callable;
        jinja_loop *loop;
    } as;
} jinja_value;

typedef enum {
    JINJA_IS_LIST,
    JINJA_IS_TUPLE,
    JINJA_IS_RANGE,     /* a sequence without being a list */
    JINJA_IS_VIEW,      /* of a dict: has a length, no places */
    JINJA_IS_GENERATOR, /* can be gone through once, has no length */
} jinja_list_kind;

struct jinja_list {
    jinja_value *items;
    size_t n, n_taken; /* n_taken: of a generator */
    jinja_list_kind kind;
    bool is_group;    /* a tuple of groupby: its items have names */
    const char *view; /* "dict_keys", ... of a view; "range" */
};

typedef struct {
    jinja_value key, value;
} jinja_pair;

struct jinja_dict { /* in order of insertion */
    jinja_pair *pairs;
    size_t n, capacity;
    uint32_t *slots; /* [n_slots] 1 + index of a pair by the hash of its key; NULL while small */
    size_t n_slots;
};

typedef struct {
    td_arena *arena;
    char *at;
    size_t n_left, n_used;
} jinja_memory;

/* -- memory and limits: memory.c --------------------------------------------------------------- */

/* Zeroed memory aligned to 16. */
void *jinja_alloc(jinja_render *r, size_t n, size_t size);
/* Sets the error, with the place in the template that is being worked on before it. False. */
bool jinja_fail(jinja_render *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Counts work; an error when there was too much. */
bool jinja_charge(jinja_render *r, uint64_t n_steps);
/* One level deeper, an error when too deep; jinja_leave after it, unless it failed. */
bool jinja_enter(jinja_render *r);
void jinja_leave(jinja_render *r);

/* -- making values: value.c -------------------------------------------------------------------- */

jinja_value jinja_undefined(const jinja_text *name);
jinja_value jinja_none(void);
jinja_value jinja_bool(bool b);
jinja_value jinja_int(int64_t i);
jinja_value jinja_float(double d);
jinja_value jinja_of_text(const jinja_text *t);
jinja_value jinja_of_list(jinja_list *l);
/* n zeroed items to be filled. */
jinja_list *jinja_list_create(jinja_render *r, size_t n, jinja_list_kind kind);
bool jinja_list_append(jinja_render *r, jinja_list *l, jinja_value v); /* while it is built */
jinja_dict *jinja_dict_create(jinja_render *r);
/* Adds or replaces; an error for a key that cannot be one. */
bool jinja_dict_set(jinja_render *r, jinja_dict *d, jinja_value key, jinja_value value);
/* *found NULL: not there. */
bool jinja_dict_find(jinja_render *r, const jinja_dict *d, jinja_value key, jinja_value **found);
jinja_value *jinja_dict_find_bytes(const jinja_dict *d, const char *key, size_t n_key);

/* -- asking values: value.c -------------------------------------------------------------------- */

const char *jinja_type_name(jinja_value v); /* as the language's messages call it */
bool jinja_truth(jinja_value v);
bool jinja_is_number(jinja_value v); /* integers, floats and booleans */
double jinja_as_double(jinja_value v);
bool jinja_equal(jinja_render *r, jinja_value a, jinja_value b, bool *is_equal);
/* a < b, where the two have an order; else an error. */
bool jinja_less(jinja_render *r, jinja_value a, jinja_value b, bool *is_less);
/* The items of anything that can be gone through, as a list (a generator is used up). */
bool jinja_iterate(jinja_render *r, jinja_value v, jinja_list **items);
bool jinja_contains(jinja_render *r, jinja_value container, jinja_value v, bool *is_in);
bool jinja_length(jinja_render *r, jinja_value v, size_t *n);
/* Does any text in it, or it itself, come from a message? */
bool jinja_is_message(jinja_render *r, jinja_value v);

#endif
