/* Parsing: statements (parser.c), expressions (parser_expr.c), both sides of an assignment
 * (parser_tuple.c). Private to model/chat/. */
#ifndef TD_MODEL_CHAT_PARSER_H
#define TD_MODEL_CHAT_PARSER_H

#include "model/chat/ast.h"
#include "model/chat/lexer.h"

typedef struct {
    jinja_lexer lexer;
    jinja_token token, ahead;
    bool has_ahead;
    td_jinja *template;
    td_err *err;
    uint32_t depth;
    uint32_t n_loops; /* around the token, in the same macro */
    int macro_uses;   /* MACRO_ bits of the names seen */
} jinja_parser;

bool jinja_next(jinja_parser *p); /* moves on to the next token */
bool jinja_look(jinja_parser *p); /* makes `ahead` the token after this one */
bool jinja_at_op(const jinja_parser *p, int op);
bool jinja_at_name(const jinja_parser *p, const char *name);
bool jinja_expect_op(jinja_parser *p, int op);
/* Moves on if it is there; *did may be NULL. */
bool jinja_skip_op(jinja_parser *p, int op, bool *did);
bool jinja_skip_name(jinja_parser *p, const char *name, bool *did);
/* "unexpected X; expected WHAT". False. */
bool jinja_parse_fail(jinja_parser *p, const char *expected);

jinja_node *jinja_node_create(jinja_parser *p, jinja_node_kind kind); /* at the token */
const jinja_name *jinja_intern(jinja_parser *p, const char *text, size_t n);
bool jinja_enter_nesting(jinja_parser *p);
void jinja_leave_nesting(jinja_parser *p);

/* NULL with the error set. */
jinja_node *jinja_parse_expression(jinja_parser *p, bool with_condition);
/* A name, a literal or what stands in brackets. */
jinja_node *jinja_parse_primary(jinja_parser *p);
/* Expressions with commas between them are a tuple. stop: a name that ends it too, or NULL. */
jinja_node *jinja_parse_tuple(jinja_parser *p, bool with_condition, const char *stop,
                              bool is_parenthesised);
jinja_node *jinja_parse_target(jinja_parser *p, const char *stop);
/* Filters after the current token, applied to node (NULL: to a block). */
jinja_node *jinja_parse_filters(jinja_parser *p, jinja_node *node, bool begins_with_name);

#endif
