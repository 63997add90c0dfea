/* Which template a conversation is written by, and what the template is told. */
#include "model/chat.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json_writer.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "model/chat/families.h"

#include <stdio.h>
#include <string.h>

#define KEY          "tokenizer.chat_template"
#define NAME_MAX_LEN 64u
#define TOKENS       4

struct td_chat {
    td_jinja *own, *tool_use; /* or NULL */
    char *family;             /* its variables as JSON, or NULL */
    char *tokens[TOKENS];     /* texts as JSON, or NULL */
    char description[NAME_MAX_LEN + 16], identity[NAME_MAX_LEN + 1];
    td_err problem; /* why there is no template */
};

static const char *const token_names[TOKENS] = {"bos_token", "eos_token", "unk_token", "pad_token"};

const char *td_chat_family_at(size_t i) { return td_chat_family_name_at(i); }

/* -- opening ----------------------------------------------------------------------------------- */

/* The JSON that was written; NULL for a lack of memory. */
static char *take_json(td_json_writer *w, td_err *err)
{
    const char *text;
    size_t n;
    return td_json_writer_end(w, &text, &n, err) ? td_strndup(text, n, err) : NULL;
}

static bool write_tokens(td_chat *c, const td_tokenizer *t, td_json_writer *w, td_err *err)
{
    const td_tokenizer_info *info = td_tokenizer_get_info(t);
    const uint32_t ids[TOKENS] = {info->bos, info->eos, info->unk, info->pad};
    for (size_t i = 0; i < TOKENS; i++) {
        size_t n;
        if (ids[i] == TD_NO_TOKEN)
            continue;
        const char *bytes = td_token_bytes(t, ids[i], true, &n);
        td_json_write_bytes(w, bytes, n);
        c->tokens[i] = take_json(w, err);
        if (!c->tokens[i])
            return false;
    }
    return true;
}

/* A template of the file's by its key, NULL where it has none of that name. */
static bool parse_key(const td_gguf *g, const char *key, td_jinja **t, td_err *err)
{
    const char *text;
    size_t n;
    if (!td_gguf_has(g, key))
        return true;
    if (!td_gguf_get_str(g, key, &text, &n, err))
        return false;
    *t = td_jinja_parse(text, n, err);
    return *t || td_err_prepend(err, "%s: %s", td_gguf_path(g), key);
}

static const char *list_names(char *out, size_t size)
{
    size_t n = 0;
    const char *name;
    out[0] = 0;
    for (size_t i = 0; (name = td_chat_family_name_at(i)) && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? ", " : "", name);
    return out;
}

/* The file's own. Whatever is wrong with it is kept for when it is needed. */
static bool open_own(td_chat *c, const td_gguf *g, td_err *err)
{
    char list[768];
    bool is_ok = parse_key(g, KEY, &c->own, &c->problem) &&
                 parse_key(g, KEY ".tool_use", &c->tool_use, &c->problem);
    if (c->problem.code == TD_E_NOMEM)
        return td_err_set(err, TD_E_NOMEM, "%s", c->problem.message);
    if (!is_ok) {
        snprintf(c->description, sizeof c->description, "(broken)");
        return true;
    }
    snprintf(c->description, sizeof c->description, "%s%s", c->own ? "jinja" : "(none)",
             c->tool_use ? ", tool_use" : "");
    if (!c->own)
        td_err_set(&c->problem, TD_E_DATA,
                   "the model's file has no " KEY "; name one with --chat-template: FILE.jinja, or "
                   "one of %s",
                   list_names(list, sizeof list));
    return true;
}

static bool open_file(td_chat *c, const char *path, td_err *err)
{
    char *text;
    size_t n;
    uint8_t digest[32];
    td_sha256 s;
    if (!td_io_read_file(path, TD_JINJA_TEMPLATE_MAX, &text, &n, err))
        return false;
    c->own = td_jinja_parse(text, n, err);
    td_sha256_begin(&s);
    td_sha256_add(&s, text, n);
    td_sha256_end(&s, digest);
    td_sha256_hex(digest, c->identity, 32);
    td_free(text);
    return c->own || td_err_prepend(err, "%s", path);
}

static bool open_family(td_chat *c, const td_chat_family *f, td_json_writer *w, td_err *err)
{
    td_chat_family_write(f, w);
    c->family = take_json(w, err);
    c->own = td_jinja_parse(td_chat_family_template, strlen(td_chat_family_template), err);
    return c->family && c->own;
}

static bool is_path(const char *choice)
{
    size_t n = strlen(choice);
    return strchr(choice, '/') || (n > 6 && !strcmp(choice + n - 6, ".jinja"));
}

static bool open_choice(td_chat *c, const td_gguf *g, const char *choice, td_json_writer *w,
                        td_err *err)
{
    char list[768], key[sizeof KEY + NAME_MAX_LEN + 2];
    const td_chat_family *f = td_chat_family_find(choice);
    snprintf(c->description, sizeof c->description, "%.64s", choice);
    if (is_path(choice))
        return open_file(c, choice, err);
    snprintf(c->identity, sizeof c->identity, "%.64s", choice);
    snprintf(key, sizeof key, KEY ".%.64s", choice);
    if (td_gguf_has(g, key))
        return parse_key(g, key, &c->own, err);
    if (f)
        return open_family(c, f, w, err);
    return td_err_set(err, TD_E_USAGE,
                      "--chat-template: \"%.64s\" is no template of the model's file; allowed: "
                      "FILE.jinja, or one of %s",
                      choice, list_names(list, sizeof list));
}

td_chat *td_chat_open(const td_gguf *g, const td_tokenizer *t, const char *choice, td_err *err)
{
    td_chat *c = td_alloc(1, sizeof *c, err);
    td_json_writer *w = c ? td_json_writer_create(false, err) : NULL;
    bool is_ok = w && write_tokens(c, t, w, err) &&
                 (choice ? open_choice(c, g, choice, w, err) : open_own(c, g, err));
    if (w)
        td_json_writer_destroy(&w);
    if (!is_ok && c)
        td_chat_close(&c);
    return c;
}

void td_chat_close(td_chat **chat)
{
    td_chat *c = *chat;
    if (!c)
        return;
    if (c->own)
        td_jinja_destroy(&c->own);
    if (c->tool_use)
        td_jinja_destroy(&c->tool_use);
    for (size_t i = 0; i < TOKENS; i++)
        td_free(c->tokens[i]);
    td_free(c->family);
    td_free(c);
    *chat = NULL;
}

const char *td_chat_problem(const td_chat *c)
{
    bool is_broken = c->problem.code != TD_OK && !strcmp(c->description, "(broken)");
    return is_broken ? c->problem.message : NULL;
}

const char *td_chat_describe(const td_chat *c) { return c->description; }

const char *td_chat_identity(const td_chat *c) { return c->identity; }

bool td_chat_uses_date(const td_chat *c)
{
    return (c->own && td_jinja_mentions(c->own, "strftime_now")) ||
           (c->tool_use && td_jinja_mentions(c->tool_use, "strftime_now"));
}

/* -- rendering --------------------------------------------------------------------------------- */

bool td_chat_render(const td_chat *c, const td_chat_turns *turns, const struct tm *now,
                    td_jinja_output *out, td_err *err)
{
    const td_jinja *t = turns->tools && c->tool_use ? c->tool_use : c->own;
    td_jinja_variable v[TOKENS + 8];
    size_t n = 0;
    *out = (td_jinja_output){0};
    if (!t)
        return td_err_set(err, c->problem.code, "%s", c->problem.message);
    for (size_t i = 0; i < TOKENS; i++)
        if (c->tokens[i])
            v[n++] = (td_jinja_variable){
                .name = token_names[i], .json = c->tokens[i], .is_trusted = true};
    const td_jinja_variable rest[] = {
        {.name = "messages", .json = turns->messages},
        {.name = "tools", .json = turns->tools ? turns->tools : "null"},
        {.name = "documents", .json = "null"},
        {.name = "add_generation_prompt", .json = "true", .is_trusted = true},
        {.json = c->family, .is_trusted = true},
        {.json = turns->kwargs},
    };
    for (size_t i = 0; i < TD_COUNT(rest); i++)
        if (rest[i].json)
            v[n++] = rest[i];
    for (size_t i = 0; i < n; i++)
        v[i].n_json = strlen(v[i].json);
    return td_jinja_render(t, &(td_jinja_input){.variables = v, .n_variables = n, .now = *now}, out,
                           err);
}
