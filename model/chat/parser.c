/* Statements: data, printed expressions and blocks. Each block tag is a row of a table; its body
 * ends at the tags that the row's parser names. */
#include "model/chat/parser.h"

#include "model/chat/text.h"

#include "base/rng.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>

#define NAME_SLOTS_MIN 256u

/* -- tokens ------------------------------------------------------------------------------------ */

bool jinja_next(jinja_parser *p)
{
    if (p->has_ahead) {
        p->token = p->ahead;
        p->has_ahead = false;
        return true;
    }
    return jinja_lex(&p->lexer, &p->token);
}

bool jinja_look(jinja_parser *p)
{
    if (!p->has_ahead && !jinja_lex(&p->lexer, &p->ahead))
        return false;
    p->has_ahead = true;
    return true;
}

bool jinja_at_op(const jinja_parser *p, int op)
{
    return p->token.kind == TOKEN_OPERATOR && p->token.op == op;
}

bool jinja_at_name(const jinja_parser *p, const char *name)
{
    return p->token.kind == TOKEN_NAME && p->token.n == strlen(name) &&
           memcmp(p->token.text, name, p->token.n) == 0;
}

static const char *describe(const jinja_token *t, char *out, size_t size)
{
    static const char *const names[] = {
        [TOKEN_END] = "the end of the template", [TOKEN_DATA] = "text",
        [TOKEN_BLOCK_BEGIN] = "\"{%\"",          [TOKEN_BLOCK_END] = "\"%}\"",
        [TOKEN_PRINT_BEGIN] = "\"{{\"",          [TOKEN_PRINT_END] = "\"}}\""};
    if (t->kind <= TOKEN_PRINT_END)
        snprintf(out, size, "%s", names[t->kind]);
    else if (t->kind == TOKEN_OPERATOR && t->op > 0xff)
        snprintf(out, size, "\"%c%c\"", t->op >> 8, t->op & 0xff);
    else if (t->kind == TOKEN_OPERATOR)
        snprintf(out, size, "\"%c\"", t->op);
    else if (t->kind == TOKEN_NAME || t->kind == TOKEN_STRING)
        snprintf(out, size, "%s", td_text_quote(t->text, t->n).text);
    else
        snprintf(out, size, "a number");
    return out;
}

bool jinja_parse_fail(jinja_parser *p, const char *expected)
{
    char seen[TD_TEXT_QUOTE_MAX + 8];
    return jinja_lex_fail(p->err, p->token.line, p->token.column, "unexpected %s; expected %s",
                          describe(&p->token, seen, sizeof seen), expected);
}

bool jinja_expect_op(jinja_parser *p, int op)
{
    char expected[8];
    snprintf(expected, sizeof expected, "\"%c\"", op);
    return jinja_at_op(p, op) ? jinja_next(p) : jinja_parse_fail(p, expected);
}

bool jinja_skip_op(jinja_parser *p, int op, bool *did)
{
    bool is_there = jinja_at_op(p, op);
    if (did)
        *did = is_there;
    return !is_there || jinja_next(p);
}

bool jinja_skip_name(jinja_parser *p, const char *name, bool *did)
{
    bool is_there = jinja_at_name(p, name);
    if (did)
        *did = is_there;
    return !is_there || jinja_next(p);
}

/* -- nodes and names --------------------------------------------------------------------------- */

jinja_node *jinja_node_create(jinja_parser *p, jinja_node_kind kind)
{
    jinja_node *n = td_arena_alloc(p->template->arena, 1, sizeof *n, p->err);
    if (n) {
        n->kind = kind;
        n->line = p->token.line;
        n->column = p->token.column;
    }
    return n;
}

bool jinja_enter_nesting(jinja_parser *p)
{
    if (p->depth >= TD_JINJA_NESTING_MAX)
        return jinja_lex_fail(p->err, p->token.line, p->token.column,
                              "blocks, brackets and operators more than %u in one another; "
                              "allowed: %u",
                              TD_JINJA_NESTING_MAX, TD_JINJA_NESTING_MAX);
    p->depth++;
    return true;
}

void jinja_leave_nesting(jinja_parser *p) { p->depth--; }

static jinja_name **name_slot(const td_jinja *t, const char *text, size_t n)
{
    size_t i = td_hash64(0, text, n) & (t->n_name_slots - 1);
    while (t->name_slots[i] &&
           (t->name_slots[i]->text.n != n || memcmp(t->name_slots[i]->text.bytes, text, n) != 0))
        i = (i + 1) & (t->n_name_slots - 1);
    return &t->name_slots[i];
}

static bool grow_names(td_jinja *t, td_err *err)
{
    t->n_name_slots = t->n_name_slots ? 2 * t->n_name_slots : NAME_SLOTS_MIN;
    t->name_slots = td_arena_alloc(t->arena, t->n_name_slots, sizeof t->name_slots[0], err);
    for (jinja_name *name = t->names; t->name_slots && name; name = name->next)
        *name_slot(t, name->text.bytes, name->text.n) = name;
    return t->name_slots != NULL;
}

const jinja_name *jinja_intern(jinja_parser *p, const char *text, size_t n)
{
    td_jinja *t = p->template;
    if (2 * t->n_names >= t->n_name_slots && !grow_names(t, p->err))
        return NULL;
    jinja_name **slot = name_slot(t, text, n);
    if (*slot)
        return *slot;
    jinja_name *name = td_arena_alloc(t->arena, 1, sizeof *name, p->err);
    char *bytes = name ? td_arena_strndup(t->arena, text, n, p->err) : NULL;
    if (!bytes)
        return NULL;
    name->text = (jinja_text){.bytes = bytes, .n = n, .n_chars = jinja_count_chars(text, n)};
    name->next = t->names;
    t->names = name;
    t->n_names++;
    *slot = name;
    return name;
}

/* -- statements -------------------------------------------------------------------------------- */

static bool parse_body(jinja_parser *p, const char *const *ends, jinja_node **first);

static bool expect_block_end(jinja_parser *p)
{
    return p->token.kind == TOKEN_BLOCK_END ? jinja_next(p) : jinja_parse_fail(p, "\"%}\"");
}

/* After a block's tag: its body, up to one of the tags `ends`, whose name becomes the token. */
static bool parse_block(jinja_parser *p, const char *const *ends, jinja_node **first)
{
    if (!jinja_skip_op(p, ':', NULL) || !expect_block_end(p) || !jinja_enter_nesting(p))
        return false;
    bool is_ok = parse_body(p, ends, first);
    jinja_leave_nesting(p);
    return is_ok;
}

/* The same, where one tag ends it, which is passed. */
static bool parse_whole_block(jinja_parser *p, const char *end, jinja_node **first)
{
    const char *const ends[] = {end, NULL};
    return parse_block(p, ends, first) && jinja_next(p);
}

static bool parse_for(jinja_parser *p, jinja_node *n)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    bool has_test = false;
    n->kind = NODE_FOR;
    n->a = jinja_parse_target(p, "in");
    if (!n->a || !jinja_at_name(p, "in"))
        return n->a ? jinja_parse_fail(p, "\"in\"") : false;
    n->b = jinja_next(p) ? jinja_parse_tuple(p, false, "recursive", false) : NULL;
    if (!n->b || !jinja_skip_name(p, "if", &has_test))
        return false;
    if (has_test && !(n->test = jinja_parse_expression(p, true)))
        return false;
    if (jinja_at_name(p, "recursive"))
        return jinja_parse_fail(p, "a loop that is not recursive");
    p->n_loops++;
    if (!parse_block(p, ends, &n->body))
        return false;
    p->n_loops--;
    bool has_else = jinja_at_name(p, "else");
    return jinja_next(p) && (!has_else || parse_whole_block(p, "endfor", &n->orelse));
}

static bool parse_if(jinja_parser *p, jinja_node *n)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    n->kind = NODE_IF;
    for (;;) {
        n->a = jinja_parse_tuple(p, false, NULL, false);
        if (!n->a || !parse_block(p, ends, &n->body))
            return false;
        if (!jinja_at_name(p, "elif"))
            break;
        n->c = jinja_next(p) ? jinja_node_create(p, NODE_IF) : NULL;
        if (!n->c)
            return false;
        n = n->c;
    }
    bool has_else = jinja_at_name(p, "else");
    return jinja_next(p) && (!has_else || parse_whole_block(p, "endif", &n->orelse));
}

static jinja_node *parse_set_target(jinja_parser *p)
{
    if (p->token.kind == TOKEN_NAME && !jinja_look(p))
        return NULL;
    if (p->token.kind != TOKEN_NAME || p->ahead.kind != TOKEN_OPERATOR || p->ahead.op != '.')
        return jinja_parse_target(p, NULL);
    jinja_node *n = jinja_node_create(p, NODE_NAMESPACE_REF);
    if (!n)
        return NULL;
    n->name = jinja_intern(p, p->token.text, p->token.n);
    if (!n->name || !jinja_next(p) || !jinja_next(p))
        return NULL;
    if (p->token.kind != TOKEN_NAME) {
        jinja_parse_fail(p, "a name");
        return NULL;
    }
    const jinja_name *attribute = jinja_intern(p, p->token.text, p->token.n);
    if (!attribute || !jinja_next(p))
        return NULL;
    n->value = jinja_of_text(&attribute->text);
    return n;
}

static bool parse_set(jinja_parser *p, jinja_node *n)
{
    bool has_value = false;
    n->a = parse_set_target(p);
    if (!n->a || !jinja_skip_op(p, '=', &has_value))
        return false;
    n->kind = has_value ? NODE_SET : NODE_SET_BLOCK;
    if (has_value) {
        n->b = jinja_parse_tuple(p, true, NULL, false);
        return n->b != NULL;
    }
    if (jinja_at_op(p, '|') && !(n->b = jinja_parse_filters(p, NULL, false)))
        return false;
    return parse_whole_block(p, "endset", &n->body);
}

static bool parse_signature(jinja_parser *p, jinja_node **first)
{
    jinja_node **tail = first;
    bool has_default = false;
    if (!jinja_expect_op(p, '('))
        return false;
    while (!jinja_at_op(p, ')')) {
        if (tail != first && !jinja_expect_op(p, ','))
            return false;
        if (p->token.kind != TOKEN_NAME)
            return jinja_parse_fail(p, "a name");
        *tail = jinja_node_create(p, NODE_PARAM);
        if (!*tail)
            return false;
        (*tail)->name = jinja_intern(p, p->token.text, p->token.n);
        bool had_default = has_default;
        if (!(*tail)->name || !jinja_next(p) || !jinja_skip_op(p, '=', &has_default))
            return false;
        if (has_default && !((*tail)->a = jinja_parse_expression(p, true)))
            return false;
        if (had_default && !has_default)
            return jinja_parse_fail(p, "a default, as the parameter before has one");
        tail = &(*tail)->next;
    }
    return jinja_next(p);
}

/* The body of something that is called; notes which special names it speaks of. */
static bool parse_macro_body(jinja_parser *p, jinja_node *n, const char *end)
{
    int uses = p->macro_uses;
    uint32_t n_loops = p->n_loops;
    p->macro_uses = 0;
    p->n_loops = 0;
    bool is_ok = parse_whole_block(p, end, &n->body);
    n->op = p->macro_uses;
    for (const jinja_node *param = n->a; param; param = param->next)
        if (jinja_text_is(&param->name->text, "caller"))
            n->op &= ~MACRO_CALLER;
    p->macro_uses = uses;
    p->n_loops = n_loops;
    return is_ok;
}

static bool parse_macro(jinja_parser *p, jinja_node *n)
{
    n->kind = NODE_MACRO;
    if (p->token.kind != TOKEN_NAME)
        return jinja_parse_fail(p, "a name");
    n->name = jinja_intern(p, p->token.text, p->token.n);
    return n->name && jinja_next(p) && parse_signature(p, &n->a) &&
           parse_macro_body(p, n, "endmacro");
}

static bool parse_call_block(jinja_parser *p, jinja_node *n)
{
    n->kind = NODE_CALL_BLOCK;
    if (jinja_at_op(p, '(') && !parse_signature(p, &n->a))
        return false;
    n->b = jinja_parse_expression(p, true);
    if (n->b && n->b->kind != NODE_CALL)
        return jinja_parse_fail(p, "a call before it");
    return n->b && parse_macro_body(p, n, "endcall");
}

static bool parse_filter_block(jinja_parser *p, jinja_node *n)
{
    n->kind = NODE_FILTER_BLOCK;
    n->b = jinja_parse_filters(p, NULL, true);
    return n->b && parse_whole_block(p, "endfilter", &n->body);
}

static bool parse_with(jinja_parser *p, jinja_node *n)
{
    jinja_node **tail = &n->a;
    n->kind = NODE_WITH;
    while (p->token.kind != TOKEN_BLOCK_END) {
        if (tail != &n->a && !jinja_expect_op(p, ','))
            return false;
        *tail = jinja_parse_target(p, NULL);
        if (!*tail || !jinja_expect_op(p, '='))
            return false;
        tail = &(*tail)->next;
        *tail = jinja_parse_expression(p, true);
        if (!*tail)
            return false;
        tail = &(*tail)->next;
    }
    return parse_whole_block(p, "endwith", &n->body);
}

static bool parse_generation(jinja_parser *p, jinja_node *n)
{
    n->kind = NODE_SCOPE;
    return parse_macro_body(p, n, "endgeneration");
}

static bool parse_print(jinja_parser *p, jinja_node *n)
{
    n->kind = NODE_PRINT;
    n->a = jinja_parse_expression(p, true);
    return n->a != NULL;
}

static bool parse_jump(jinja_parser *p, jinja_node *n, jinja_node_kind kind)
{
    n->kind = kind;
    return p->n_loops > 0 || jinja_lex_fail(p->err, n->line, n->column, "not inside of a loop");
}

static bool parse_break(jinja_parser *p, jinja_node *n) { return parse_jump(p, n, NODE_BREAK); }

static bool parse_continue(jinja_parser *p, jinja_node *n)
{
    return parse_jump(p, n, NODE_CONTINUE);
}

static const struct {
    const char *name;
    bool (*parse)(jinja_parser *p, jinja_node *n);
} tags[] = {
    {"for", parse_for},           {"if", parse_if},
    {"set", parse_set},           {"macro", parse_macro},
    {"call", parse_call_block},   {"filter", parse_filter_block},
    {"with", parse_with},         {"generation", parse_generation},
    {"print", parse_print},       {"break", parse_break},
    {"continue", parse_continue},
};

static jinja_node *parse_tag(jinja_parser *p)
{
    jinja_node *n = jinja_node_create(p, NODE_SCOPE);
    for (size_t i = 0; n && i < sizeof tags / sizeof tags[0]; i++)
        if (jinja_at_name(p, tags[i].name))
            return jinja_next(p) && tags[i].parse(p, n) && expect_block_end(p) ? n : NULL;
    if (n)
        jinja_parse_fail(p, "one of the tags for, if, set, macro, call, filter, with, generation, "
                            "print, break, continue, raw, or the end of the block that is open");
    return NULL;
}

static jinja_node *parse_printed(jinja_parser *p)
{
    jinja_node *n = jinja_node_create(p, NODE_PRINT);
    if (!n || !jinja_next(p))
        return NULL;
    n->a = jinja_parse_tuple(p, true, NULL, false);
    if (n->a && p->token.kind != TOKEN_PRINT_END)
        jinja_parse_fail(p, "\"}}\"");
    return n->a && p->token.kind == TOKEN_PRINT_END && jinja_next(p) ? n : NULL;
}

static jinja_node *parse_data(jinja_parser *p)
{
    jinja_node *n = jinja_node_create(p, NODE_DATA);
    jinja_text *t = n ? td_arena_alloc(p->template->arena, 1, sizeof *t, p->err) : NULL;
    if (!t)
        return NULL;
    *t = (jinja_text){.bytes = p->token.text,
                      .n = p->token.n,
                      .n_chars = jinja_count_chars(p->token.text, p->token.n)};
    n->value = jinja_of_text(t);
    return jinja_next(p) ? n : NULL;
}

static bool parse_body(jinja_parser *p, const char *const *ends, jinja_node **first)
{
    for (jinja_node **tail = first; p->token.kind != TOKEN_END; tail = &(*tail)->next) {
        if (p->token.kind == TOKEN_BLOCK_BEGIN) {
            if (!jinja_next(p))
                return false;
            for (size_t i = 0; ends && ends[i]; i++)
                if (jinja_at_name(p, ends[i]))
                    return true;
            *tail = parse_tag(p);
        } else {
            *tail = p->token.kind == TOKEN_DATA ? parse_data(p) : parse_printed(p);
        }
        if (!*tail)
            return false;
    }
    return !ends || jinja_parse_fail(p, ends[0]);
}

td_jinja *td_jinja_parse(const char *text, size_t n_text, td_err *err)
{
    td_err local = {0};
    jinja_parser p = {.err = err ? err : &local};
    td_jinja *t = td_alloc(1, sizeof *t, p.err);
    if (!t)
        return NULL;
    p.template = t;
    t->arena = td_arena_create(p.err);
    if (!t->arena || !jinja_lexer_begin(&p.lexer, text, n_text, t->arena, p.err) ||
        !jinja_next(&p) || !parse_body(&p, NULL, &t->body))
        td_jinja_destroy(&t);
    return t;
}

void td_jinja_destroy(td_jinja **t)
{
    if (!*t)
        return;
    td_arena_destroy(&(*t)->arena);
    td_free(*t);
    *t = NULL;
}

const jinja_name *jinja_find_name(const td_jinja *t, const char *text, size_t n)
{
    return t->n_name_slots > 0 ? *name_slot(t, text, n) : NULL;
}

bool td_jinja_mentions(const td_jinja *t, const char *name)
{
    return jinja_find_name(t, name, strlen(name)) != NULL;
}
