/* Statements, and the whole of a rendering.
 *
 * Scopes: a loop's body has one per turn, so that what is set in it is gone after it; so have
 * macros, `with` and blocks that capture their output. `if` has none. A macro sees the scope it was
 * defined in, as it is when the macro runs. */
#include "model/chat/render.h"
#include "model/chat/text.h"

#include <string.h>

jinja_scope *jinja_push_scope(jinja_render *r, jinja_scope *parent)
{
    jinja_scope *s = jinja_alloc(r, 1, sizeof *s);
    if (s) {
        s->parent = parent;
        r->scope = s;
    }
    return s;
}

bool jinja_bind(jinja_render *r, const jinja_name *name, jinja_value v)
{
    uint64_t n_looked = 0;
    for (jinja_binding *b = r->scope->bindings; b; b = b->next, n_looked++)
        if (b->name == name) {
            b->value = v;
            return jinja_charge(r, n_looked / 16);
        }
    jinja_binding *b = r->spare;
    if (b)
        r->spare = b->next;
    else if (!(b = jinja_alloc(r, 1, sizeof *b)))
        return false;
    *b = (jinja_binding){name, v, r->scope->bindings};
    r->scope->bindings = b;
    return jinja_charge(r, n_looked / 16);
}

/* A scope for a loop's next turn: the last one, emptied, if nothing can have kept it. */
static bool renew_scope(jinja_render *r, jinja_scope *outer, jinja_scope **scope,
                        uint64_t *n_macros)
{
    jinja_scope *s = *scope;
    bool is_kept = *n_macros != r->n_macros; /* by a macro that was made in it */
    if (!jinja_charge(r, 1))
        return false;
    *n_macros = r->n_macros;
    if (!s || is_kept)
        return (*scope = jinja_push_scope(r, outer)) != NULL;
    while (s->bindings) {
        jinja_binding *next = s->bindings->next;
        s->bindings->next = r->spare;
        r->spare = s->bindings;
        s->bindings = next;
    }
    r->scope = s;
    return true;
}

static bool assign(jinja_render *r, const jinja_node *target, jinja_value v)
{
    jinja_list *items;
    size_t n = 0;
    if (target->kind == NODE_NAME)
        return jinja_bind(r, target->name, v);
    for (const jinja_node *t = target->a; t; t = t->next)
        n++;
    if (!jinja_iterate(r, v, &items))
        return false;
    if (items->n != n)
        return jinja_fail(r, "%zu values for %zu names", items->n, n);
    n = 0;
    for (const jinja_node *t = target->a; t; t = t->next)
        if (!assign(r, t, items->items[n++]))
            return false;
    return true;
}

static bool assign_attribute(jinja_render *r, const jinja_node *target, jinja_value v)
{
    jinja_node name = {
        .kind = NODE_NAME, .line = target->line, .column = target->column, .name = target->name};
    jinja_value space;
    if (!jinja_eval(r, &name, &space))
        return false;
    if (space.type != JINJA_NAMESPACE)
        return jinja_fail(r, "an attribute of '%.64s', which is no namespace, cannot be set",
                          target->name->text.bytes);
    return jinja_dict_set(r, space.as.dict, target->value, v);
}

static bool assign_to(jinja_render *r, const jinja_node *target, jinja_value v)
{
    return target->kind == NODE_NAMESPACE_REF ? assign_attribute(r, target, v)
                                              : assign(r, target, v);
}

bool jinja_capture(jinja_render *r, const jinja_node *list, jinja_value *out)
{
    jinja_buffer *outer = r->out;
    r->out = jinja_buffer_create(r);
    bool is_ok = r->out && jinja_exec(r, list);
    const jinja_text *t = is_ok ? jinja_buffer_text(r, r->out) : NULL;
    r->out = outer;
    *out = jinja_of_text(t);
    return t != NULL;
}

/* Runs a block in a scope of its own, its output captured or not. */
static bool exec_inside(jinja_render *r, const jinja_node *list, jinja_value *captured)
{
    jinja_scope *outer = r->scope;
    bool is_ok = jinja_push_scope(r, outer) &&
                 (captured ? jinja_capture(r, list, captured) : jinja_exec(r, list));
    r->scope = outer;
    return is_ok;
}

/* A chain of filters on a block's text: the innermost has none to be applied to. */
static bool apply_filters(jinja_render *r, const jinja_node *n, jinja_value v, jinja_value *out)
{
    jinja_node text = {.kind = NODE_CONST, .line = n->line, .column = n->column, .value = v};
    jinja_node filter = *n;
    if (n->a) {
        if (!jinja_enter(r) || !apply_filters(r, n->a, v, &text.value))
            return false;
        jinja_leave(r);
    }
    filter.a = &text;
    return jinja_eval(r, &filter, out);
}

static bool exec_set(jinja_render *r, const jinja_node *n)
{
    jinja_value v;
    bool is_ok = n->kind == NODE_SET
                     ? jinja_eval(r, n->b, &v)
                     : exec_inside(r, n->body, &v) && (!n->b || apply_filters(r, n->b, v, &v));
    return is_ok && assign_to(r, n->a, v);
}

static bool exec_print(jinja_render *r, const jinja_node *n)
{
    jinja_value v;
    return jinja_eval(r, n->a, &v) && jinja_print(r, r->out, v, false);
}

/* The items that pass the loop's own test. */
static bool select_items(jinja_render *r, const jinja_node *n, jinja_list **items)
{
    jinja_list *selected = jinja_list_create(r, 0, JINJA_IS_LIST);
    jinja_scope *outer = r->scope, *scope = NULL;
    uint64_t n_macros = r->n_macros;
    for (size_t i = 0; selected && i < (*items)->n; i++) {
        jinja_value v;
        if (!renew_scope(r, outer, &scope, &n_macros) || !assign(r, n->a, (*items)->items[i]) ||
            !jinja_eval(r, n->test, &v) ||
            (jinja_truth(v) && !jinja_list_append(r, selected, (*items)->items[i])))
            return false;
    }
    r->scope = outer;
    *items = selected;
    return selected != NULL;
}

static bool exec_for(jinja_render *r, const jinja_node *n)
{
    jinja_value v;
    jinja_list *items;
    jinja_scope *outer = r->scope, *scope = NULL;
    if (!jinja_eval(r, n->b, &v) || !jinja_iterate(r, v, &items) ||
        (n->test && !select_items(r, n, &items)))
        return false;
    jinja_loop *loop = jinja_alloc(r, 1, sizeof *loop);
    if (!loop)
        return false;
    *loop = (jinja_loop){.items = items};
    uint64_t n_macros = r->n_macros;
    for (; loop->i < items->n; loop->i++) {
        if (!renew_scope(r, outer, &scope, &n_macros) ||
            (r->loop_name &&
             !jinja_bind(r, r->loop_name, (jinja_value){.type = JINJA_LOOP, .as.loop = loop})) ||
            !assign(r, n->a, items->items[loop->i]) || !jinja_exec(r, n->body))
            return false;
        bool is_over = r->flow == JINJA_FLOW_BREAK;
        r->flow = JINJA_FLOW_ON;
        if (is_over)
            break;
    }
    r->scope = outer;
    return items->n > 0 || !n->orelse || exec_inside(r, n->orelse, NULL);
}

static bool exec_if(jinja_render *r, const jinja_node *n)
{
    for (;; n = n->c) {
        jinja_value v;
        if (!jinja_charge(r, 1) || !jinja_eval(r, n->a, &v))
            return false;
        if (jinja_truth(v))
            return jinja_exec(r, n->body);
        if (!n->c)
            return !n->orelse || jinja_exec(r, n->orelse);
    }
}

static bool exec_with(jinja_render *r, const jinja_node *n)
{
    jinja_scope *outer = r->scope, *inner = jinja_alloc(r, 1, sizeof *inner);
    if (!inner)
        return false;
    inner->parent = outer;
    for (const jinja_node *target = n->a; target; target = target->next->next) {
        jinja_value v;
        if (!jinja_eval(r, target->next, &v))
            return false;
        r->scope = inner;
        if (!assign(r, target, v))
            return false;
        r->scope = outer;
    }
    r->scope = inner;
    bool is_ok = jinja_exec(r, n->body);
    r->scope = outer;
    return is_ok;
}

static bool make_macro(jinja_render *r, const jinja_node *n, jinja_value *out)
{
    jinja_callable *c = jinja_alloc(r, 1, sizeof *c);
    if (!c)
        return false;
    *c = (jinja_callable){.kind = JINJA_MACRO, .node = n, .scope = r->scope};
    r->n_macros++;
    *out = (jinja_value){.type = JINJA_CALLABLE, .as.callable = c};
    return true;
}

static bool exec_call_block(jinja_render *r, const jinja_node *n)
{
    static const jinja_text name = {.bytes = "caller", .n = 6, .n_chars = 6};
    jinja_value callee, caller, v;
    jinja_args args;
    if (!make_macro(r, n, &caller) || !jinja_eval(r, n->b->a, &callee) ||
        !jinja_eval_args(r, n->b->b, &args))
        return false;
    jinja_named *named = jinja_alloc(r, args.n_named + 1, sizeof named[0]);
    if (!named)
        return false;
    if (args.n_named > 0)
        memcpy(named, args.named, args.n_named * sizeof named[0]);
    named[args.n_named++] = (jinja_named){&name, caller};
    args.named = named;
    return jinja_call(r, callee, &args, &v) && jinja_print(r, r->out, v, false);
}

static bool exec_filter_block(jinja_render *r, const jinja_node *n)
{
    jinja_value v;
    return exec_inside(r, n->body, &v) && apply_filters(r, n->b, v, &v) &&
           jinja_print(r, r->out, v, false);
}

static bool exec_one(jinja_render *r, const jinja_node *n)
{
    jinja_value v;
    switch (n->kind) {
    case NODE_DATA:
        return jinja_append_text(r, r->out, n->value.as.text);
    case NODE_PRINT:
        return exec_print(r, n);
    case NODE_FOR:
        return exec_for(r, n);
    case NODE_IF:
        return exec_if(r, n);
    case NODE_SET:
    case NODE_SET_BLOCK:
        return exec_set(r, n);
    case NODE_MACRO:
        return make_macro(r, n, &v) && jinja_bind(r, n->name, v);
    case NODE_CALL_BLOCK:
        return exec_call_block(r, n);
    case NODE_FILTER_BLOCK:
        return exec_filter_block(r, n);
    case NODE_WITH:
        return exec_with(r, n);
    case NODE_SCOPE:
        return exec_inside(r, n->body, NULL);
    default:
        r->flow = n->kind == NODE_BREAK ? JINJA_FLOW_BREAK : JINJA_FLOW_CONTINUE;
        return true;
    }
}

bool jinja_exec(jinja_render *r, const jinja_node *list)
{
    if (!jinja_enter(r))
        return false;
    for (const jinja_node *n = list; n && r->flow == JINJA_FLOW_ON; n = n->next) {
        r->line = n->line;
        r->column = n->column;
        if (!jinja_charge(r, 1) || !exec_one(r, n))
            return false;
    }
    jinja_leave(r);
    return true;
}

/* -- the whole --------------------------------------------------------------------------------- */

static bool bind_members(jinja_render *r, const jinja_dict *d)
{
    for (size_t i = 0; i < d->n; i++) {
        const jinja_text *key = d->pairs[i].key.as.text; /* of JSON they are texts */
        const jinja_name *name = jinja_find_name(r->template, key->bytes, key->n);
        if (name && !jinja_bind(r, name, d->pairs[i].value))
            return false;
    }
    return true;
}

static bool bind_variables(jinja_render *r, const td_jinja_input *in)
{
    for (size_t i = 0; i < in->n_variables; i++) {
        const td_jinja_variable *variable = &in->variables[i];
        const jinja_name *name =
            variable->name ? jinja_find_name(r->template, variable->name, strlen(variable->name))
                           : NULL;
        jinja_value v;
        if ((name || !variable->name) && !jinja_read_json(r, variable, &v))
            return false;
        if (!variable->name && v.type != JINJA_DICT)
            return jinja_fail(r, "variables that are no object");
        if (!(variable->name ? !name || jinja_bind(r, name, v) : bind_members(r, v.as.dict)))
            return false;
    }
    return true;
}

/* The output as the caller's own memory, cut where the bytes' origin changes. */
static bool give_output(const jinja_buffer *b, td_jinja_output *out, td_err *err)
{
    size_t n_segments = b->n > 0;
    for (size_t i = 1; i < b->n; i++)
        n_segments += b->marks[i] != b->marks[i - 1];
    out->text = td_strndup(b->n ? b->bytes : "", b->n, err);
    out->segments = td_alloc(n_segments, sizeof out->segments[0], err);
    if (!out->text || !out->segments)
        return false;
    out->n_text = b->n;
    for (size_t i = 0; i < b->n; i++) {
        if (i == 0 || b->marks[i] != b->marks[i - 1])
            out->segments[out->n_segments++] =
                (td_text_segment){.text = out->text + i, .is_special = !b->marks[i]};
        out->segments[out->n_segments - 1].n_bytes++;
    }
    return true;
}

bool td_jinja_render(const td_jinja *t, const td_jinja_input *in, td_jinja_output *out, td_err *err)
{
    td_err local = {0};
    jinja_render r = {.template = t,
                      .err = err ? err : &local,
                      .n_steps_max = in->n_steps_max ? in->n_steps_max : TD_JINJA_STEPS_MAX,
                      .line = 1,
                      .column = 1,
                      .now = in->now};
    *out = (td_jinja_output){0};
    r.loop_name = jinja_find_name(t, "loop", 4);
    r.memory.arena = td_arena_create(r.err);
    bool is_ok = r.memory.arena && (r.out = jinja_buffer_create(&r)) &&
                 jinja_push_scope(&r, NULL) && bind_variables(&r, in) && jinja_exec(&r, t->body) &&
                 give_output(r.out, out, r.err);
    td_arena_destroy(&r.memory.arena);
    return is_ok;
}

void td_jinja_output_free(td_jinja_output *out)
{
    td_free(out->text);
    td_free(out->segments);
    *out = (td_jinja_output){0};
}
