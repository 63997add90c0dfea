/* tandem tokenize: text to token ids, one JSON list a text. */
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/jsonl.h"
#include "base/mem.h"
#include "model/tokenizer.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *model, *text, *in, *pre;
    bool is_special_added, is_special_parsed;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--model", NULL, OPT_READ, AT(model), 0, 0, "M.gguf", "the vocabulary's file (required)"},
    {"--text", NULL, OPT_TEXT, AT(text), 0, 0, "T", "one text"},
    {"--in", NULL, OPT_READ, AT(in), 0, 0, "FILE.jsonl", "lines of {\"text\": ...}; - for stdin"},
    {"--add-special", NULL, OPT_FLAG, AT(is_special_added), 0, 0, NULL,
     "add BOS and EOS where the file asks for them"},
    {"--parse-special", NULL, OPT_FLAG, AT(is_special_parsed), 0, 0, NULL,
     "read special tokens in the text as such"},
    {"--pre", NULL, OPT_TEXT, AT(pre), 0, 0, "NAME", "override the file's pre-tokenizer"},
};
static const command_help help = {
    "tokenize", "tandem tokenize --model M.gguf (--text T | --in FILE.jsonl) [options]",
    "Prints one JSON list of token ids per text, or {\"line\", \"error\"} for a line without.",
    options, TD_COUNT(options)};

static bool print_ids(const fields *f, const td_tokenizer *t, td_json_writer *w, const char *text,
                      size_t n_bytes, td_err *err)
{
    uint32_t *ids;
    size_t n_ids, n_line;
    const char *line;
    td_added added = f->is_special_added ? TD_ADD_AS_FILE : TD_ADD_NOTHING;
    if (!td_tokenize(t, text, n_bytes, added, f->is_special_parsed, &ids, &n_ids, err))
        return false;
    td_json_begin_array(w);
    for (size_t i = 0; i < n_ids; i++)
        td_json_write_u64(w, ids[i]);
    td_json_end_array(w);
    td_free(ids);
    return td_json_writer_end(w, &line, &n_line, err) && (puts(line) >= 0 || true);
}

/* A line that cannot be read or encoded is a line of its own in the output. */
static bool print_failure(td_json_writer *w, uint64_t number, const td_err *why, td_err *err)
{
    const char *line;
    size_t n_line;
    td_json_begin_object(w);
    td_json_put_u64(w, "line", number);
    td_json_put_string(w, "error", why->message);
    td_json_end_object(w);
    return td_json_writer_end(w, &line, &n_line, err) && (puts(line) >= 0 || true);
}

static bool print_line(const fields *f, const td_tokenizer *t, td_json_writer *w,
                       const td_jsonl_line *line, td_err *err)
{
    static const td_json_field keys[] = {
        {.key = "text", .type = TD_JSON_STRING, .required = true, .min = 0, .max = TD_TEXT_MAX}};
    static const td_json_schema schema = {keys, TD_COUNT(keys), true};
    char name[300];
    snprintf(name, sizeof name, "%.255s:%llu", f->in, (unsigned long long)line->number);
    td_json *doc = td_json_parse(line->text, line->n_bytes, name, err);
    td_json_object o;
    bool is_ok = doc && td_json_read_root(doc, &schema, &o, err);
    if (is_ok) {
        const char *text = td_json_get_string(&o, "text", "");
        is_ok = print_ids(f, t, w, text, strlen(text), err);
    }
    td_json_destroy(&doc);
    return is_ok;
}

/* The number of lines that failed; err is set where reading or writing did. */
static uint64_t print_lines(const fields *f, const td_tokenizer *t, td_json_writer *w, td_err *err)
{
    td_jsonl_reader *reader = td_jsonl_reader_open(f->in, TD_JSON_TEXT_MAX, err);
    uint64_t n_failed = 0;
    while (reader && err->code == TD_OK) {
        td_jsonl_line line;
        td_err of_line = {0};
        td_jsonl_status status = td_jsonl_read(reader, &line, &of_line);
        if (status == TD_JSONL_FAILED)
            td_err_set(err, of_line.code, "%s", of_line.message);
        if (status == TD_JSONL_END || status == TD_JSONL_FAILED)
            break;
        if (status == TD_JSONL_LINE && print_line(f, t, w, &line, &of_line))
            continue;
        n_failed++;
        print_failure(w, line.number, &of_line, err);
    }
    td_jsonl_reader_close(&reader);
    return n_failed;
}

int td_command_tokenize(int argc, char **argv, td_err *err)
{
    fields f = {0};
    bool is_help;
    if (!td_options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help) {
        td_options_print_help(&help);
        return 0;
    }
    if (!f.model || !f.text == !f.in) {
        td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
        return 0;
    }
    if (!td_options_check_files(&help, &f, NULL, true, err))
        return 0;
    td_gguf *g = td_gguf_open(f.model, err);
    td_tokenizer *t = g ? td_tokenizer_create(g, f.pre, err) : NULL;
    td_json_writer *w = t ? td_json_writer_create(false, err) : NULL;
    uint64_t n_failed = 0;
    if (w && f.text)
        print_ids(&f, t, w, f.text, strlen(f.text), err);
    else if (w)
        n_failed = print_lines(&f, t, w, err);
    td_json_writer_destroy(&w);
    td_tokenizer_destroy(&t);
    td_gguf_close(&g);
    return n_failed ? 1 : 0;
}
