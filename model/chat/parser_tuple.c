/* Tuples, which need no brackets, and what can be assigned to. */
#include "model/chat/parser.h"

static bool is_tuple_end(const jinja_parser *p, const char *stop)
{
    return p->token.kind == TOKEN_PRINT_END || p->token.kind == TOKEN_BLOCK_END ||
           jinja_at_op(p, ')') || (stop && jinja_at_name(p, stop));
}

/* is_target: names and literals alone, as they stand before `in` and `=`. */
static jinja_node *parse_list(jinja_parser *p, bool with_condition, const char *stop,
                              bool is_parenthesised, bool is_target)
{
    jinja_node *first = NULL, **tail = &first;
    bool is_tuple = false;
    jinja_node *tuple = jinja_node_create(p, NODE_TUPLE);
    if (!tuple)
        return NULL;
    for (;;) {
        if (first && !jinja_expect_op(p, ','))
            return NULL;
        if (is_tuple_end(p, stop))
            break;
        *tail = is_target ? jinja_parse_primary(p) : jinja_parse_expression(p, with_condition);
        if (!*tail)
            return NULL;
        tail = &(*tail)->next;
        if (!jinja_at_op(p, ','))
            break;
        is_tuple = true;
    }
    if (!is_tuple && first)
        return first;
    if (!is_tuple && !is_parenthesised) {
        jinja_parse_fail(p, "an expression");
        return NULL;
    }
    tuple->a = first;
    return tuple;
}

jinja_node *jinja_parse_tuple(jinja_parser *p, bool with_condition, const char *stop,
                              bool is_parenthesised)
{
    return parse_list(p, with_condition, stop, is_parenthesised, false);
}

static bool check_target(jinja_parser *p, const jinja_node *n)
{
    if (n->kind == NODE_NAME)
        return true;
    if (n->kind != NODE_TUPLE && n->kind != NODE_LIST)
        return jinja_lex_fail(p->err, n->line, n->column, "this cannot be assigned to");
    for (const jinja_node *item = n->a; item; item = item->next)
        if (!check_target(p, item))
            return false;
    return true;
}

jinja_node *jinja_parse_target(jinja_parser *p, const char *stop)
{
    int uses = p->macro_uses; /* being assigned to is no use */
    jinja_node *n = parse_list(p, true, stop, false, true);
    p->macro_uses = uses;
    return n && check_target(p, n) ? n : NULL;
}
