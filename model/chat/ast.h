/* What a template is parsed to: nodes of one shape in the template's arena, immutable. Private to
 * model/chat/. */
#ifndef TD_MODEL_CHAT_AST_H
#define TD_MODEL_CHAT_AST_H

#include "model/chat/value.h"

typedef struct jinja_name {
    jinja_text text;
    struct jinja_name *next; /* of the template's names, each there once */
} jinja_name;

/* a, b, c: operands or heads of lists linked by `next`; what each kind uses is beside it. */
typedef enum {
    /* expressions */
    NODE_CONST,   /* value */
    NODE_NAME,    /* name */
    NODE_TUPLE,   /* a: items */
    NODE_LIST,    /* a: items */
    NODE_DICT,    /* a: key, value, key, value, ... */
    NODE_ATTR,    /* a . name */
    NODE_ITEM,    /* a [ b ] */
    NODE_SLICE,   /* a : b : c, each may be NULL; stands as b of an item */
    NODE_CALL,    /* a ( b: arguments ) */
    NODE_FILTER,  /* a | name ( b: arguments ); a is NULL in a filter block */
    NODE_TEST,    /* a is name ( b: arguments ) */
    NODE_KEYWORD, /* argument name = a */
    NODE_STAR,    /* argument *a */
    NODE_STARS,   /* argument **a */
    NODE_NOT,     /* not a */
    NODE_NEG,     /* - a */
    NODE_POS,     /* + a */
    NODE_AND,     /* a and b */
    NODE_OR,      /* a or b */
    NODE_IF_ELSE, /* b if a else c; c may be NULL */
    NODE_COMPARE, /* a, then b: operands, each a NODE_OPERAND */
    NODE_OPERAND, /* op a */
    NODE_BINARY,  /* a op b */
    NODE_CONCAT,  /* a: items of a ~ b ~ c */
    /* statements */
    NODE_DATA,         /* value */
    NODE_PRINT,        /* a */
    NODE_FOR,          /* a: target, in b, if test; body, orelse */
    NODE_IF,           /* a; body; c: the `elif` after it, or NULL; orelse */
    NODE_SET,          /* a: target = b */
    NODE_SET_BLOCK,    /* a: target, b: filter or NULL; body */
    NODE_MACRO,        /* name; a: parameters; body; op: MACRO_ bits */
    NODE_PARAM,        /* name, a: default or NULL */
    NODE_CALL_BLOCK,   /* b: call; a: parameters; body; op */
    NODE_FILTER_BLOCK, /* b: filter; body */
    NODE_WITH,         /* a: target, value, target, value, ...; body */
    NODE_SCOPE,        /* body */
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_NAMESPACE_REF, /* target name . value */
} jinja_node_kind;

enum { OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_IN, OP_NOT_IN };
enum { OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_FLOORDIV, OP_MOD, OP_POW };
enum { MACRO_CALLER = 1, MACRO_KWARGS = 2, MACRO_VARARGS = 4 }; /* names its body speaks of */

typedef struct jinja_node jinja_node;
struct jinja_node {
    jinja_node_kind kind;
    int op;
    uint32_t line, column;
    jinja_node *next;
    jinja_node *a, *b, *c;
    jinja_node *body, *orelse, *test;
    const jinja_name *name;
    jinja_value value;
};

struct td_jinja {
    td_arena *arena;
    jinja_node *body;
    jinja_name *names;
    jinja_name **name_slots; /* [n_name_slots] by hash */
    size_t n_name_slots, n_names;
};

/* NULL where the template does not say it. */
const jinja_name *jinja_find_name(const td_jinja *t, const char *text, size_t n);

#endif
