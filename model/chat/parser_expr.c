/* Expressions, by recursive descent. From weakest to strongest: if-else, or, and, not, comparisons
 * with `in`, + and -, ~, the other operators, **, signs, then subscripts, calls, filters and tests
 * from left to right. */
#include "model/chat/parser.h"
#include "model/chat/text.h"

#include <string.h>

static jinja_node *join(jinja_parser *p, jinja_node_kind kind, int op, jinja_node *a, jinja_node *b)
{
    jinja_node *n = a && b ? jinja_node_create(p, kind) : NULL;
    if (n) {
        n->op = op;
        n->line = a->line;
        n->column = a->column;
        n->a = a;
        n->b = b;
    }
    return n;
}

static jinja_node *constant(jinja_parser *p, jinja_value v)
{
    jinja_node *n = jinja_node_create(p, NODE_CONST);
    if (n)
        n->value = v;
    return n && jinja_next(p) ? n : NULL;
}

/* Strings that stand beside each other are one. */
static jinja_node *parse_strings(jinja_parser *p)
{
    jinja_node *n = jinja_node_create(p, NODE_CONST);
    const char *text = p->token.text;
    size_t n_text = p->token.n;
    if (!n || !jinja_next(p))
        return NULL;
    while (p->token.kind == TOKEN_STRING) {
        char *both = td_arena_alloc(p->template->arena, n_text + p->token.n + 1, 1, p->err);
        if (!both)
            return NULL;
        memcpy(both, text, n_text);
        memcpy(both + n_text, p->token.text, p->token.n);
        n_text += p->token.n;
        text = both;
        if (!jinja_next(p))
            return NULL;
    }
    jinja_text *t = td_arena_alloc(p->template->arena, 1, sizeof *t, p->err);
    if (!t)
        return NULL;
    *t = (jinja_text){.bytes = text, .n = n_text, .n_chars = jinja_count_chars(text, n_text)};
    n->value = jinja_of_text(t);
    return n;
}

static jinja_node *parse_name(jinja_parser *p)
{
    static const struct {
        const char *name;
        jinja_value value;
    } words[] = {{"true", {.type = JINJA_BOOL, .as.truth = true}},
                 {"True", {.type = JINJA_BOOL, .as.truth = true}},
                 {"false", {.type = JINJA_BOOL}},
                 {"False", {.type = JINJA_BOOL}},
                 {"none", {.type = JINJA_NONE}},
                 {"None", {.type = JINJA_NONE}}};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (jinja_at_name(p, words[i].name))
            return constant(p, words[i].value);
    if (jinja_at_name(p, "caller"))
        p->macro_uses |= MACRO_CALLER;
    if (jinja_at_name(p, "kwargs"))
        p->macro_uses |= MACRO_KWARGS;
    if (jinja_at_name(p, "varargs"))
        p->macro_uses |= MACRO_VARARGS;
    jinja_node *n = jinja_node_create(p, NODE_NAME);
    if (n)
        n->name = jinja_intern(p, p->token.text, p->token.n);
    return n && n->name && jinja_next(p) ? n : NULL;
}

/* Items up to a closing bracket, which is passed; with a comma after each but the last. */
static bool parse_items(jinja_parser *p, char closing, bool has_pairs, jinja_node **first)
{
    jinja_node **tail = first;
    while (!jinja_at_op(p, closing)) {
        if (tail != first && !jinja_expect_op(p, ','))
            return false;
        if (jinja_at_op(p, closing))
            break;
        *tail = jinja_parse_expression(p, true);
        if (!*tail)
            return false;
        tail = &(*tail)->next;
        if (has_pairs) {
            *tail = jinja_expect_op(p, ':') ? jinja_parse_expression(p, true) : NULL;
            if (!*tail)
                return false;
            tail = &(*tail)->next;
        }
    }
    return jinja_next(p);
}

static jinja_node *parse_bracketed(jinja_parser *p)
{
    bool is_list = jinja_at_op(p, '[');
    jinja_node *n = jinja_node_create(p, is_list ? NODE_LIST : NODE_DICT);
    return n && jinja_next(p) && parse_items(p, is_list ? ']' : '}', !is_list, &n->a) ? n : NULL;
}

jinja_node *jinja_parse_primary(jinja_parser *p)
{
    const jinja_token *t = &p->token;
    switch (t->kind) {
    case TOKEN_NAME:
        return parse_name(p);
    case TOKEN_STRING:
        return parse_strings(p);
    case TOKEN_INT:
        return constant(p, jinja_int(t->integer));
    case TOKEN_FLOAT:
        return constant(p, jinja_float(t->real));
    default:
        break;
    }
    if (jinja_at_op(p, '[') || jinja_at_op(p, '{'))
        return parse_bracketed(p);
    if (jinja_at_op(p, '(')) {
        jinja_node *n = jinja_next(p) ? jinja_parse_tuple(p, true, NULL, true) : NULL;
        return n && jinja_expect_op(p, ')') ? n : NULL;
    }
    jinja_parse_fail(p, "an expression");
    return NULL;
}

/* -- subscripts, calls, filters, tests --------------------------------------------------------- */

/* One part of x[from:to:step], NULL where there is none. */
static bool parse_bound(jinja_parser *p, jinja_node **bound)
{
    if (jinja_at_op(p, ':') || jinja_at_op(p, ']') || jinja_at_op(p, ','))
        return true;
    *bound = jinja_parse_expression(p, true);
    return *bound != NULL;
}

static jinja_node *parse_subscribed(jinja_parser *p)
{
    jinja_node *from = NULL;
    if (!jinja_at_op(p, ':')) {
        from = jinja_parse_expression(p, true);
        if (!from || !jinja_at_op(p, ':'))
            return from;
    }
    jinja_node *n = jinja_node_create(p, NODE_SLICE);
    if (!n || !jinja_next(p) || !parse_bound(p, &n->b))
        return NULL;
    n->a = from;
    if (jinja_at_op(p, ':') && (!jinja_next(p) || !parse_bound(p, &n->c)))
        return NULL;
    return n;
}

static jinja_node *parse_dot(jinja_parser *p, jinja_node *of)
{
    jinja_node *n = jinja_node_create(p, NODE_ATTR);
    if (!n || !jinja_next(p))
        return NULL;
    n->a = of;
    if (p->token.kind == TOKEN_NAME) {
        n->name = jinja_intern(p, p->token.text, p->token.n);
        return n->name && jinja_next(p) ? n : NULL;
    }
    if (p->token.kind != TOKEN_INT) {
        jinja_parse_fail(p, "a name or a number");
        return NULL;
    }
    n->kind = NODE_ITEM;
    n->b = constant(p, jinja_int(p->token.integer));
    return n->b ? n : NULL;
}

static jinja_node *parse_subscript(jinja_parser *p, jinja_node *of)
{
    jinja_node *n = jinja_node_create(p, NODE_ITEM);
    if (!n || !jinja_next(p))
        return NULL;
    n->a = of;
    jinja_node *first = NULL, **tail = &first;
    size_t n_items = 0;
    do {
        if (n_items > 0 && !jinja_expect_op(p, ','))
            return NULL;
        *tail = parse_subscribed(p);
        if (!*tail)
            return NULL;
        tail = &(*tail)->next;
        n_items++;
    } while (!jinja_at_op(p, ']'));
    n->b = first;
    if (n_items > 1) {
        n->b = jinja_node_create(p, NODE_TUPLE);
        if (!n->b)
            return NULL;
        n->b->a = first;
    }
    return jinja_next(p) ? n : NULL;
}

static jinja_node *parse_argument(jinja_parser *p, int *stage)
{
    enum { PLAIN, NAMED, STAR, STARS };
    jinja_node *n = NULL;
    int is = PLAIN;
    if (jinja_at_op(p, '*') || jinja_at_op(p, JINJA_OP2('*', '*'))) {
        is = jinja_at_op(p, '*') ? STAR : STARS;
        n = jinja_node_create(p, is == STAR ? NODE_STAR : NODE_STARS);
        if (!n || !jinja_next(p))
            return NULL;
    } else if (p->token.kind == TOKEN_NAME) {
        if (!jinja_look(p))
            return NULL;
        if (p->ahead.kind == TOKEN_OPERATOR && p->ahead.op == '=') {
            is = NAMED;
            n = jinja_node_create(p, NODE_KEYWORD);
            if (n)
                n->name = jinja_intern(p, p->token.text, p->token.n);
            if (!n || !n->name || !jinja_next(p) || !jinja_next(p))
                return NULL;
        }
    }
    if (is < *stage && !(is == NAMED && *stage == STAR)) {
        jinja_parse_fail(p, "arguments by place before those by name");
        return NULL;
    }
    *stage = is > *stage ? is : *stage;
    jinja_node *value = jinja_parse_expression(p, true);
    if (n && value)
        n->a = value;
    return value && n ? n : value;
}

static bool parse_arguments(jinja_parser *p, jinja_node **first)
{
    int stage = 0;
    jinja_node **tail = first;
    if (!jinja_expect_op(p, '('))
        return false;
    while (!jinja_at_op(p, ')')) {
        if (tail != first && !jinja_expect_op(p, ','))
            return false;
        if (jinja_at_op(p, ')'))
            break;
        *tail = parse_argument(p, &stage);
        if (!*tail)
            return false;
        tail = &(*tail)->next;
    }
    return jinja_next(p);
}

static jinja_node *parse_call(jinja_parser *p, jinja_node *callee)
{
    jinja_node *n = jinja_node_create(p, NODE_CALL);
    if (n)
        n->a = callee;
    return n && parse_arguments(p, &n->b) ? n : NULL;
}

/* Every link of a chain is a level for the evaluator. */
static bool count_link(jinja_parser *p, uint32_t *n_links)
{
    ++*n_links;
    return jinja_enter_nesting(p);
}

static void forget_links(jinja_parser *p, uint32_t n_links)
{
    while (n_links-- > 0)
        jinja_leave_nesting(p);
}

static jinja_node *parse_postfix(jinja_parser *p, jinja_node *n)
{
    uint32_t n_links = 0;
    for (; n; n = count_link(p, &n_links) ? n : NULL) {
        if (jinja_at_op(p, '.'))
            n = parse_dot(p, n);
        else if (jinja_at_op(p, '['))
            n = parse_subscript(p, n);
        else if (jinja_at_op(p, '('))
            n = parse_call(p, n);
        else
            break;
        if (!n)
            break;
    }
    forget_links(p, n_links);
    return n;
}

/* The name of a filter or a test, which may have dots. */
static bool parse_dotted(jinja_parser *p, jinja_node *n)
{
    if (p->token.kind != TOKEN_NAME)
        return jinja_parse_fail(p, "a name");
    n->name = jinja_intern(p, p->token.text, p->token.n);
    if (!n->name || !jinja_next(p))
        return false;
    return !jinja_at_op(p, '.') || jinja_parse_fail(p, "a name without dots");
}

jinja_node *jinja_parse_filters(jinja_parser *p, jinja_node *node, bool begins_with_name)
{
    uint32_t n_links = 0;
    while (begins_with_name || jinja_at_op(p, '|')) {
        if ((!begins_with_name && !jinja_next(p)) || !count_link(p, &n_links))
            return NULL;
        begins_with_name = false;
        jinja_node *n = jinja_node_create(p, NODE_FILTER);
        if (!n || !parse_dotted(p, n))
            return NULL;
        n->a = node;
        if (jinja_at_op(p, '(') && !parse_arguments(p, &n->b))
            return NULL;
        node = n;
    }
    forget_links(p, n_links);
    return node;
}

static jinja_node *parse_test(jinja_parser *p, jinja_node *of)
{
    bool is_negated = false;
    jinja_node *n = jinja_node_create(p, NODE_TEST);
    if (!n || !jinja_next(p) || !jinja_skip_name(p, "not", &is_negated) || !parse_dotted(p, n))
        return NULL;
    n->a = of;
    jinja_token_kind kind = p->token.kind;
    bool is_word = kind == TOKEN_NAME && !jinja_at_name(p, "else") && !jinja_at_name(p, "or") &&
                   !jinja_at_name(p, "and");
    if (jinja_at_op(p, '(')) {
        if (!parse_arguments(p, &n->b))
            return NULL;
    } else if (is_word || kind == TOKEN_STRING || kind == TOKEN_INT || kind == TOKEN_FLOAT ||
               jinja_at_op(p, '[') || jinja_at_op(p, '{')) {
        if (jinja_at_name(p, "is")) {
            jinja_parse_fail(p, "no second \"is\"");
            return NULL;
        }
        jinja_node *argument = jinja_parse_primary(p);
        n->b = argument ? parse_postfix(p, argument) : NULL;
        if (!n->b)
            return NULL;
    }
    if (!is_negated)
        return n;
    jinja_node *negation = join(p, NODE_NOT, 0, n, n);
    if (negation)
        negation->b = NULL;
    return negation;
}

static jinja_node *parse_filters_and_tests(jinja_parser *p, jinja_node *n)
{
    uint32_t n_links = 0;
    while (n) {
        if (jinja_at_op(p, '|'))
            n = jinja_parse_filters(p, n, false);
        else if (jinja_at_name(p, "is"))
            n = parse_test(p, n);
        else if (jinja_at_op(p, '('))
            n = parse_call(p, n);
        else
            break;
        if (!count_link(p, &n_links))
            return NULL;
    }
    forget_links(p, n_links);
    return n;
}

/* -- operators --------------------------------------------------------------------------------- */

static jinja_node *parse_unary(jinja_parser *p, bool with_filters)
{
    jinja_node *n;
    if (!jinja_enter_nesting(p))
        return NULL;
    if (jinja_at_op(p, '-') || jinja_at_op(p, '+')) {
        n = jinja_node_create(p, jinja_at_op(p, '-') ? NODE_NEG : NODE_POS);
        if (!n || !jinja_next(p))
            return NULL;
        n->a = parse_unary(p, false);
        n = n->a ? n : NULL;
    } else {
        n = jinja_parse_primary(p);
    }
    n = n ? parse_postfix(p, n) : NULL;
    if (n && with_filters)
        n = parse_filters_and_tests(p, n);
    jinja_leave_nesting(p);
    return n;
}

/* Left-associative operators by their strength, weakest first; ~ is between the two. */
typedef struct {
    int token, op;
} operator_row;
static const operator_row sums[] = {{'+', OP_ADD}, {'-', OP_SUB}, {0, 0}};
static const operator_row products[] = {
    {'*', OP_MUL}, {'/', OP_DIV}, {JINJA_OP2('/', '/'), OP_FLOORDIV}, {'%', OP_MOD}, {0, 0}};
static const operator_row powers[] = {{JINJA_OP2('*', '*'), OP_POW}, {0, 0}};

static jinja_node *parse_operators(jinja_parser *p, const operator_row *rows,
                                   jinja_node *(*parse)(jinja_parser *p))
{
    uint32_t n_links = 0;
    jinja_node *left = parse(p);
    while (left && p->token.kind == TOKEN_OPERATOR) {
        const operator_row *row = rows;
        while (row->token && row->token != p->token.op)
            row++;
        if (!row->token)
            break;
        if (!jinja_next(p) || !count_link(p, &n_links))
            return NULL;
        left = join(p, NODE_BINARY, row->op, left, parse(p));
    }
    forget_links(p, n_links);
    return left;
}

static jinja_node *parse_signed(jinja_parser *p) { return parse_unary(p, true); }

static jinja_node *parse_power(jinja_parser *p) { return parse_operators(p, powers, parse_signed); }

static jinja_node *parse_product(jinja_parser *p)
{
    return parse_operators(p, products, parse_power);
}

static jinja_node *parse_concat(jinja_parser *p)
{
    jinja_node *first = parse_product(p);
    if (!first || !jinja_at_op(p, '~'))
        return first;
    jinja_node *n = jinja_node_create(p, NODE_CONCAT), **tail = &first->next;
    while (n && jinja_at_op(p, '~')) {
        *tail = jinja_next(p) ? parse_product(p) : NULL;
        if (!*tail)
            return NULL;
        tail = &(*tail)->next;
    }
    if (n)
        n->a = first;
    return n;
}

static jinja_node *parse_sum(jinja_parser *p) { return parse_operators(p, sums, parse_concat); }

/* The comparison at the token, -1 if there is none; passes it. */
static bool parse_comparison_op(jinja_parser *p, int *op)
{
    static const operator_row rows[] = {{JINJA_OP2('=', '='), OP_EQ},
                                        {JINJA_OP2('!', '='), OP_NE},
                                        {'<', OP_LT},
                                        {JINJA_OP2('<', '='), OP_LE},
                                        {'>', OP_GT},
                                        {JINJA_OP2('>', '='), OP_GE}};
    *op = -1;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (jinja_at_op(p, rows[i].token))
            *op = rows[i].op;
    if (jinja_at_name(p, "in")) {
        *op = OP_IN;
    } else if (jinja_at_name(p, "not")) {
        if (!jinja_look(p))
            return false;
        if (p->ahead.kind == TOKEN_NAME && p->ahead.n == 2 && !memcmp(p->ahead.text, "in", 2)) {
            *op = OP_NOT_IN;
            if (!jinja_next(p))
                return false;
        }
    }
    return *op < 0 || jinja_next(p);
}

static jinja_node *parse_compare(jinja_parser *p)
{
    jinja_node *first = parse_sum(p), *n = NULL, **tail = NULL;
    for (int op; first;) {
        if (!parse_comparison_op(p, &op))
            return NULL;
        if (op < 0)
            break;
        if (!n) {
            n = jinja_node_create(p, NODE_COMPARE);
            if (!n)
                return NULL;
            n->a = first;
            tail = &n->b;
        }
        *tail = jinja_node_create(p, NODE_OPERAND);
        if (!*tail)
            return NULL;
        (*tail)->op = op;
        (*tail)->a = parse_sum(p);
        if (!(*tail)->a)
            return NULL;
        tail = &(*tail)->next;
    }
    return n ? n : first;
}

static jinja_node *parse_not(jinja_parser *p)
{
    if (!jinja_at_name(p, "not"))
        return parse_compare(p);
    if (!jinja_enter_nesting(p))
        return NULL;
    jinja_node *n = jinja_node_create(p, NODE_NOT);
    if (!n || !jinja_next(p))
        return NULL;
    n->a = parse_not(p);
    jinja_leave_nesting(p);
    return n->a ? n : NULL;
}

static jinja_node *parse_logic(jinja_parser *p, const char *word, jinja_node_kind kind,
                               jinja_node *(*parse)(jinja_parser *p))
{
    uint32_t n_links = 0;
    jinja_node *left = parse(p);
    while (left && jinja_at_name(p, word)) {
        if (!jinja_next(p) || !count_link(p, &n_links))
            return NULL;
        left = join(p, kind, 0, left, parse(p));
    }
    forget_links(p, n_links);
    return left;
}

static jinja_node *parse_and(jinja_parser *p) { return parse_logic(p, "and", NODE_AND, parse_not); }

static jinja_node *parse_or(jinja_parser *p) { return parse_logic(p, "or", NODE_OR, parse_and); }

jinja_node *jinja_parse_expression(jinja_parser *p, bool with_condition)
{
    bool has_else = false;
    uint32_t n_links = 0;
    if (!jinja_enter_nesting(p))
        return NULL;
    jinja_node *value = parse_or(p);
    while (value && with_condition && jinja_at_name(p, "if")) {
        if (!jinja_next(p) || !count_link(p, &n_links))
            return NULL;
        jinja_node *condition = parse_or(p);
        jinja_node *n = join(p, NODE_IF_ELSE, 0, condition, value);
        if (!n || !jinja_skip_name(p, "else", &has_else))
            return NULL;
        if (has_else)
            n->c = jinja_parse_expression(p, true);
        if (has_else && !n->c)
            return NULL;
        value = n;
    }
    forget_links(p, n_links);
    jinja_leave_nesting(p);
    return value;
}
