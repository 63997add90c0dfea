/* The template language of chat templates, executed: a small Jinja.
 *
 *     td_jinja *t = td_jinja_parse(text, n_text, err);
 *     td_jinja_output out;
 *     if (td_jinja_render(t, &(td_jinja_input){.variables = v, .n_variables = n, ...}, &out, err))
 *         td_tokenize_segments(tokenizer, out.segments, out.n_segments, true, &ids, &n_ids, err);
 *     td_jinja_output_free(&out);
 *
 * What it means is what Python's jinja2 makes of it, in the sandboxed environment that publishers
 * try their templates in: blocks trimmed, immutable values, `break` and `continue`, `generation`
 * blocks, `raise_exception`, `strftime_now`, and a `tojson` that escapes nothing for HTML.
 * Templates are programs of unknown origin, so there is no input or output, and nothing they can
 * do goes beyond the limits below, each an error that names it.
 *
 * The output keeps the template's own words apart from those of the messages (segments), so that a
 * user who writes "<|im_end|>" has said these ten characters.
 *
 * Differences to Python, all errors here: integers beyond 64 bits, `recursive` loops, `include` and
 * its kin, the filters `pprint`, `random`, `striptags`, `urlize`, `wordwrap`, `xmlattr`.
 * A parsed template is immutable and may be rendered by several threads. Errors: TD_E_DATA with
 * line and column, TD_E_NOMEM. */
#ifndef TD_MODEL_CHAT_JINJA_H
#define TD_MODEL_CHAT_JINJA_H

#include "base/err.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define TD_JINJA_TEMPLATE_MAX (1u << 20)   /* bytes of a template */
#define TD_JINJA_NESTING_MAX  200u         /* blocks, brackets and operators in one another */
#define TD_JINJA_DEPTH_MAX    1000u        /* of evaluation: expressions, blocks and macro calls */
#define TD_JINJA_STEPS_MAX    (1u << 26)   /* operations of a rendering; 64 bytes moved are one */
#define TD_JINJA_MEMORY_MAX   (256u << 20) /* bytes that a rendering may use */
#define TD_JINJA_TEXT_MAX     TD_TEXT_MAX  /* bytes of a text, the output among them */
#define TD_JINJA_RANGE_MAX    100000u      /* numbers of a range() */
#define TD_JINJA_JSON_DEPTH   64u          /* containers inside one another, of a variable */

typedef struct td_jinja td_jinja;

td_jinja *td_jinja_parse(const char *text, size_t n_text, td_err *err);
void td_jinja_destroy(td_jinja **t);

/* Does the template say this name anywhere? */
bool td_jinja_mentions(const td_jinja *t, const char *name);

typedef struct {
    const char *name; /* NULL: an object, whose members are the variables */
    const char *json; /* its value, one JSON text */
    size_t n_json;
    bool is_trusted; /* its texts count as the template's own */
} td_jinja_variable;

typedef struct {
    const td_jinja_variable *variables; /* a later one of the same name wins */
    size_t n_variables;
    struct tm now;        /* what strftime_now() formats */
    uint64_t n_steps_max; /* 0: TD_JINJA_STEPS_MAX */
} td_jinja_input;

typedef struct {
    char *text; /* [n_text] from td_alloc, ended by a 0 */
    size_t n_text;
    td_text_segment *segments; /* of `text`, in order; is_special: the template's own */
    size_t n_segments;
} td_jinja_output;

/* *out is to be freed whatever comes back. Message texts of the variable "messages" count as the
 * messages', but for a role that is one of the usual words. */
bool td_jinja_render(const td_jinja *t, const td_jinja_input *in, td_jinja_output *out,
                     td_err *err);
void td_jinja_output_free(td_jinja_output *out);

#endif
