/* Calls: arguments as they stand, bound to parameters of builtins and macros. */
#include "model/chat/render.h"
#include "model/chat/text.h"

#include <string.h>

/* -- arguments --------------------------------------------------------------------------------- */

static bool add_named(jinja_render *r, jinja_args *args, const jinja_text *name, jinja_value v)
{
    for (size_t i = 0; i < args->n_named; i++)
        if (args->named[i].name->n == name->n &&
            !memcmp(args->named[i].name->bytes, name->bytes, name->n))
            return jinja_fail(r, "the argument '%.64s' is given twice", name->bytes);
    jinja_named *named = jinja_alloc(r, args->n_named + 1, sizeof named[0]);
    if (!named || !jinja_charge(r, args->n_named))
        return false;
    if (args->n_named > 0)
        memcpy(named, args->named, args->n_named * sizeof named[0]);
    named[args->n_named++] = (jinja_named){name, v};
    args->named = named;
    return true;
}

/* *list and **dict */
static bool add_spread(jinja_render *r, const jinja_node *n, jinja_value v, jinja_list *places,
                       jinja_args *args)
{
    jinja_list *items;
    if (n->kind == NODE_STAR) {
        if (!jinja_iterate(r, v, &items))
            return false;
        for (size_t i = 0; i < items->n; i++)
            if (!jinja_list_append(r, places, items->items[i]))
                return false;
        return true;
    }
    if (v.type != JINJA_DICT)
        return jinja_fail(r, "argument after ** must be a mapping, not %s", jinja_type_name(v));
    for (size_t i = 0; i < v.as.dict->n; i++) {
        if (v.as.dict->pairs[i].key.type != JINJA_TEXT)
            return jinja_fail(r, "keywords must be strings");
        if (!add_named(r, args, v.as.dict->pairs[i].key.as.text, v.as.dict->pairs[i].value))
            return false;
    }
    return true;
}

bool jinja_eval_args(jinja_render *r, const jinja_node *list, jinja_args *args)
{
    *args = (jinja_args){0};
    if (!list)
        return true;
    jinja_list *places = jinja_list_create(r, 0, JINJA_IS_LIST);
    for (const jinja_node *n = list; places && n; n = n->next) {
        bool is_wrapped = n->kind == NODE_KEYWORD || n->kind == NODE_STAR || n->kind == NODE_STARS;
        jinja_value v;
        if (!jinja_eval(r, is_wrapped ? n->a : n, &v))
            return false;
        bool is_ok = n->kind == NODE_KEYWORD ? add_named(r, args, &n->name->text, v)
                     : is_wrapped            ? add_spread(r, n, v, places, args)
                                             : jinja_list_append(r, places, v);
        if (!is_ok)
            return false;
    }
    if (!places)
        return false;
    args->items = places->items;
    args->n = places->n;
    return true;
}

/* -- builtins ---------------------------------------------------------------------------------- */

const jinja_builtin *jinja_find_in(const jinja_builtin *rows, size_t n, const jinja_text *name)
{
    for (size_t i = 0; i < n; i++)
        if (jinja_text_is(name, rows[i].name))
            return &rows[i];
    return NULL;
}

static bool bind_builtin(jinja_render *r, const jinja_builtin *b, const jinja_args *args,
                         jinja_value *a)
{
    size_t n_params = 0;
    while (n_params < JINJA_PARAMS_MAX && b->params[n_params])
        n_params++;
    if (args->n > n_params)
        return jinja_fail(r, "%s takes at most %zu arguments (%zu given)", b->name, n_params,
                          args->n);
    for (size_t i = 0; i < args->n; i++)
        a[1 + i] = args->items[i];
    for (size_t k = 0; k < args->n_named; k++) {
        size_t i = 0;
        while (i < n_params &&
               (b->params[i][0] == 0 || !jinja_text_is(args->named[k].name, b->params[i])))
            i++;
        if (i == n_params || a[1 + i].type != JINJA_ABSENT)
            return jinja_fail(r, "%s takes no keyword argument '%.64s', or has it already", b->name,
                              args->named[k].name->bytes);
        a[1 + i] = args->named[k].value;
    }
    for (size_t i = 0; i < b->n_required; i++)
        if (a[1 + i].type == JINJA_ABSENT)
            return jinja_fail(r, "%s needs %u arguments (%zu given)", b->name, b->n_required,
                              args->n + args->n_named);
    return true;
}

bool jinja_run_builtin(jinja_render *r, const jinja_builtin *b, jinja_value self,
                       const jinja_args *args, jinja_value *out)
{
    jinja_value a[1 + JINJA_PARAMS_MAX] = {self};
    if (!jinja_enter(r) || (!b->is_variadic && !bind_builtin(r, b, args, a)) ||
        !b->run(r, a, args, out))
        return false;
    jinja_leave(r);
    return true;
}

bool jinja_int_arg(jinja_render *r, jinja_value v, int64_t fallback, const char *what, int64_t *out)
{
    *out = v.type == JINJA_INT ? v.as.integer : v.type == JINJA_BOOL ? v.as.truth : fallback;
    if (v.type == JINJA_INT || v.type == JINJA_BOOL || v.type == JINJA_ABSENT ||
        v.type == JINJA_NONE)
        return true;
    return jinja_fail(r, "%s must be an integer, not '%s'", what, jinja_type_name(v));
}

bool jinja_truth_arg(jinja_value v, bool fallback)
{
    return v.type == JINJA_ABSENT ? fallback : jinja_truth(v);
}

bool jinja_text_arg(jinja_render *r, jinja_value v, const char *what, const jinja_text **out)
{
    *out = v.as.text;
    return v.type == JINJA_TEXT ||
           jinja_fail(r, "%s must be a string, not '%s'", what, jinja_type_name(v));
}

/* -- macros ------------------------------------------------------------------------------------ */

/* Takes an argument given by name out of args. */
static bool take_named(jinja_args *args, const jinja_text *name, jinja_value *out)
{
    for (size_t i = 0; i < args->n_named; i++) {
        const jinja_text *other = args->named[i].name;
        if (other->n != name->n || memcmp(other->bytes, name->bytes, name->n))
            continue;
        *out = args->named[i].value;
        args->n_named--;
        memmove(args->named + i, args->named + i + 1, (args->n_named - i) * sizeof args->named[0]);
        return true;
    }
    return false;
}

static bool bind_special(jinja_render *r, const char *text, jinja_value v)
{
    const jinja_name *name = jinja_find_name(r->template, text, strlen(text));
    return !name || jinja_bind(r, name, v);
}

static bool bind_params(jinja_render *r, const jinja_node *n, jinja_args *args, size_t *n_params)
{
    *n_params = 0;
    for (const jinja_node *p = n->a; p; p = p->next, ++*n_params) {
        jinja_value v = jinja_undefined(&p->name->text);
        if (*n_params < args->n)
            v = args->items[*n_params];
        else if (!take_named(args, &p->name->text, &v) && p->a && !jinja_eval(r, p->a, &v))
            return false;
        if (!jinja_bind(r, p->name, v))
            return false;
    }
    return true;
}

/* What the body says of its call beside the parameters: caller, kwargs, varargs. */
static bool bind_rest(jinja_render *r, const jinja_node *n, jinja_args *args, size_t n_params)
{
    static const jinja_text caller_name = {.bytes = "caller", .n = 6, .n_chars = 6};
    if (n->op & MACRO_CALLER) {
        jinja_value caller = jinja_undefined(&caller_name);
        take_named(args, &caller_name, &caller);
        if (!bind_special(r, "caller", caller))
            return false;
    }
    if (n->op & MACRO_KWARGS) {
        jinja_dict *d = jinja_dict_create(r);
        for (size_t i = 0; d && i < args->n_named; i++)
            if (!jinja_dict_set(r, d, jinja_of_text(args->named[i].name), args->named[i].value))
                return false;
        if (!d || !bind_special(r, "kwargs", (jinja_value){.type = JINJA_DICT, .as.dict = d}))
            return false;
        args->n_named = 0;
    }
    if (args->n_named > 0)
        return jinja_fail(r, "the macro takes no keyword argument '%.64s'",
                          args->named[0].name->bytes);
    size_t n_rest = args->n > n_params ? args->n - n_params : 0;
    if (n->op & MACRO_VARARGS) {
        jinja_list *l = jinja_list_create(r, n_rest, JINJA_IS_TUPLE);
        if (l && n_rest > 0)
            memcpy(l->items, args->items + n_params, n_rest * sizeof l->items[0]);
        return l && bind_special(r, "varargs", jinja_of_list(l));
    }
    return !n_rest || jinja_fail(r, "the macro takes not more than %zu arguments (%zu given)",
                                 n_params, args->n);
}

static bool call_macro(jinja_render *r, const jinja_callable *c, const jinja_args *given,
                       jinja_value *out)
{
    jinja_args args = *given;
    jinja_scope *outer = r->scope;
    size_t n_params;
    if (args.n_named > 0) { /* what is taken out of it is the caller's no more */
        args.named = jinja_alloc(r, args.n_named, sizeof args.named[0]);
        if (!args.named)
            return false;
        memcpy(args.named, given->named, args.n_named * sizeof args.named[0]);
    }
    if (!jinja_enter(r) || !jinja_push_scope(r, c->scope) ||
        !bind_params(r, c->node, &args, &n_params) || !bind_rest(r, c->node, &args, n_params) ||
        !jinja_capture(r, c->node->body, out))
        return false;
    r->scope = outer;
    jinja_leave(r);
    return true;
}

bool jinja_call(jinja_render *r, jinja_value callee, const jinja_args *args, jinja_value *out)
{
    if (callee.type != JINJA_CALLABLE)
        return jinja_fail(r, "'%s' object is not callable", jinja_type_name(callee));
    jinja_callable *c = callee.as.callable;
    switch (c->kind) {
    case JINJA_BUILTIN:
        return jinja_run_builtin(r, c->builtin, c->self, args, out);
    case JINJA_MACRO:
        return call_macro(r, c, args, out);
    case JINJA_JOINER: /* nothing the first time */
        *out = c->i++ ? c->self : jinja_of_text(jinja_text_literal(r, ""));
        return out->as.text != NULL;
    default:
        return jinja_fail(r, "a cycler is not callable");
    }
}
