/* The state of one rendering, and what its parts offer each other. Private to model/chat/. */
#ifndef TD_MODEL_CHAT_RENDER_H
#define TD_MODEL_CHAT_RENDER_H

#include "model/chat/ast.h"

typedef struct jinja_binding {
    const jinja_name *name;
    jinja_value value;
    struct jinja_binding *next;
} jinja_binding;

typedef struct jinja_scope {
    jinja_binding *bindings;
    struct jinja_scope *parent;
} jinja_scope;

typedef enum { JINJA_FLOW_ON, JINJA_FLOW_BREAK, JINJA_FLOW_CONTINUE } jinja_flow;

struct jinja_render {
    const td_jinja *template;
    td_err *err;
    jinja_memory memory;
    uint64_t n_steps, n_steps_max;
    uint32_t depth;
    uint32_t line, column; /* of what is being worked on */
    jinja_buffer *out;
    jinja_scope *scope;
    jinja_binding *spare; /* bindings of scopes that are gone */
    uint64_t n_macros;    /* made so far; each keeps the scopes around it */
    jinja_flow flow;
    const jinja_name *loop_name; /* NULL: the template does not speak of it */
    struct tm now;
};

struct jinja_loop {
    jinja_list *items;
    size_t i;
    uint32_t depth;
    jinja_value changed; /* what changed() was last asked about; ABSENT: never */
};

/* Arguments of a call, as they stand. */
typedef struct {
    const jinja_text *name;
    jinja_value value;
} jinja_named;
typedef struct {
    jinja_value *items;
    size_t n;
    jinja_named *named;
    size_t n_named;
} jinja_args;

#define JINJA_PARAMS_MAX 6

/* A filter, test, method or global: a[0] is the value it is applied to (of a global: unused), then
 * its parameters, ABSENT where not given. Variadic ones look at `args`. */
typedef struct jinja_builtin {
    const char *name;
    bool (*run)(jinja_render *r, const jinja_value *a, const jinja_args *args, jinja_value *out);
    uint8_t n_required;
    bool is_variadic;
    const char *params[JINJA_PARAMS_MAX]; /* "": not to be given by name */
} jinja_builtin;

typedef enum { JINJA_BUILTIN, JINJA_MACRO, JINJA_CYCLER, JINJA_JOINER } jinja_callable_kind;
struct jinja_callable {
    jinja_callable_kind kind;
    const jinja_builtin *builtin;
    jinja_value self;       /* of a bound method */
    const jinja_node *node; /* of a macro, or a call block */
    jinja_scope *scope;     /* where it was defined */
    jinja_list *items;      /* of a cycler */
    size_t i;
};

/* -- evaluation: eval.c, exec.c, call.c -------------------------------------------------------- */

bool jinja_eval(jinja_render *r, const jinja_node *n, jinja_value *out);
bool jinja_exec(jinja_render *r, const jinja_node *list);
bool jinja_binary(jinja_render *r, int op, jinja_value a, jinja_value b, jinja_value *out);
bool jinja_compare(jinja_render *r, int op, jinja_value a, jinja_value b, bool *is_so);
bool jinja_get_attr(jinja_render *r, jinja_value v, const jinja_text *name, jinja_value *out);
bool jinja_get_item(jinja_render *r, jinja_value v, jinja_value key, jinja_value *out);
bool jinja_slice(jinja_render *r, jinja_value v, jinja_value from, jinja_value to, jinja_value step,
                 jinja_value *out);
bool jinja_call(jinja_render *r, jinja_value callee, const jinja_args *args, jinja_value *out);
bool jinja_run_builtin(jinja_render *r, const jinja_builtin *b, jinja_value self,
                       const jinja_args *args, jinja_value *out);
bool jinja_eval_args(jinja_render *r, const jinja_node *list, jinja_args *args);
jinja_scope *jinja_push_scope(jinja_render *r, jinja_scope *parent);
bool jinja_bind(jinja_render *r, const jinja_name *name, jinja_value v);
/* Runs `list` with an output of its own. */
bool jinja_capture(jinja_render *r, const jinja_node *list, jinja_value *out);

/* -- tables ------------------------------------------------------------------------------------ */

const jinja_builtin *jinja_find_filter(const jinja_text *name);
const jinja_builtin *jinja_find_test(const jinja_text *name);
const jinja_builtin *jinja_find_method(jinja_value v, const jinja_text *name);
const jinja_builtin *jinja_find_global(const jinja_text *name);
const jinja_builtin *jinja_find_cycler_method(const jinja_text *name);
const jinja_builtin *jinja_find_in(const jinja_builtin *rows, size_t n, const jinja_text *name);
/* Rows of the filters that are about texts (filters_text.c) and about lists (filters_list.c). */
const jinja_builtin *jinja_text_filters(size_t *n);
const jinja_builtin *jinja_list_filters(size_t *n);

/* -- shared by builtins ------------------------------------------------------------------------ */

/* Reads an integer argument (booleans too); `fallback` where absent or None. */
bool jinja_int_arg(jinja_render *r, jinja_value v, int64_t fallback, const char *what,
                   int64_t *out);
bool jinja_truth_arg(jinja_value v, bool fallback);
/* The text of a value that must be one. */
bool jinja_text_arg(jinja_render *r, jinja_value v, const char *what, const jinja_text **out);
/* "a.b.0" of an item, as filters take attributes; `fallback` (or ABSENT) for undefined ones. */
bool jinja_attribute_path(jinja_render *r, jinja_value item, jinja_value path, jinja_value fallback,
                          jinja_value *out);

#endif
