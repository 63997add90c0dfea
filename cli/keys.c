/* tandem keys: who we are to other machines, and whom we let in. */
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "base/mem.h"
#include "transport/keys.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    bool is_json;
} fields;

static const option options[] = {
    {"--json", NULL, OPT_FLAG, offsetof(fields, is_json), 0, 0, NULL, "list: as JSON"},
};
static const command_help help = {
    "keys", "tandem keys new NAME | show NAME | allow NAME KEY | list [--json]",
    "Keys for workers on other machines. `new` makes a pair and prints its public key, `show` "
    "prints "
    "it again, `allow` lets a public key in (KEY in single quotes, or - for standard input), "
    "`list` "
    "shows all. A name is removed by deleting its file.",
    options, TD_COUNT(options)};

static int print_key(const char *key)
{
    printf("%s\n", key);
    return 0;
}

static bool make(const char *name, td_err *err)
{
    char key[TD_KEY_TEXT];
    if (!td_keys_new(name, key, err))
        return false;
    print_key(key);
    if (isatty(STDOUT_FILENO)) /* else it is on its way there already */
        fprintf(stderr, "On machines that are to let it in:\n  tandem keys allow %s '%s'\n", name,
                key);
    return true;
}

static bool show(const char *name, td_err *err)
{
    char key[TD_KEY_TEXT];
    return td_keys_read_public(name, key, err) && !print_key(key);
}

/* The first line of standard input. */
static bool read_key(char key[TD_KEY_TEXT + 2], td_err *err)
{
    if (!fgets(key, TD_KEY_TEXT + 2, stdin))
        return td_err_set(err, TD_E_USAGE, "standard input: no key came");
    key[strcspn(key, "\r\n")] = 0;
    return true;
}

static bool allow(const char *name, const char *key, td_err *err)
{
    char line[TD_KEY_TEXT + 2];
    if (!strcmp(key, "-")) {
        if (!read_key(line, err))
            return false;
        key = line;
    }
    if (!td_keys_allow(name, key, err))
        return false;
    td_log_info("%s is let in by workers here, those that run too", name);
    return true;
}

static void list_one(const td_key_name *n, const char *key, const td_err *problem,
                     td_json_writer *json)
{
    if (!json) {
        printf("%-20s  %-12s  %s\n", n->name,
               n->is_own ? (n->is_allowed ? "own, allowed" : "own") : "allowed",
               problem->code ? problem->message : key);
        return;
    }
    td_json_begin_object(json);
    td_json_put_string(json, "name", n->name);
    td_json_put_string(json, "key", problem->code ? NULL : key);
    td_json_put_bool(json, "own", n->is_own);
    td_json_put_bool(json, "allowed", n->is_allowed && !problem->code);
    td_json_put_string(json, "problem", problem->code ? problem->message : NULL);
    td_json_end_object(json);
}

/* Every name, also one whose file is no good: which makes the exit code. */
static bool list(bool is_json, int *code, td_err *err)
{
    uint32_t n = 0;
    td_json_writer *json = is_json ? td_json_writer_create(true, err) : NULL;
    td_key_name *names = td_alloc(TD_KEYS_MAX, sizeof *names, err);
    bool is_ok = names && (json || !is_json) && td_keys_list(names, &n, err);
    if (is_ok && json)
        td_json_begin_array(json);
    for (uint32_t i = 0; is_ok && i < n; i++) {
        char key[TD_KEY_TEXT] = "";
        td_key_pair own;
        td_err problem = {0};
        if (names[i].is_own && td_keys_read_own(names[i].name, &own, &problem))
            td_key_wipe(&own);
        if (!problem.code)
            td_keys_read_public(names[i].name, key, &problem);
        list_one(&names[i], key, &problem, json);
        if (problem.code)
            *code = td_err_exit_code(problem.code);
    }
    const char *text = "";
    size_t n_bytes;
    if (is_ok && json) {
        td_json_end_array(json);
        is_ok = td_json_writer_end(json, &text, &n_bytes, err);
        printf("%s\n", text);
    }
    td_free(names);
    td_json_writer_destroy(&json);
    return is_ok;
}

int td_command_keys(int argc, char **argv, td_err *err)
{
    static const struct {
        const char *verb;
        int n_words;
    } verbs[] = {{"new", 2}, {"show", 2}, {"allow", 3}, {"list", 1}};
    fields f = {0};
    bool is_help = false;
    int n = 0, code = 0;
    for (size_t i = 0; i < TD_COUNT(verbs) && argc > 0; i++)
        if (!strcmp(argv[0], verbs[i].verb))
            n = verbs[i].n_words;
    bool is_asked = false; /* a key may begin as a flag does, so words are counted, not looked at */
    for (int i = 0; i < argc; i++)
        is_asked |= !strcmp(argv[i], "--help") || !strcmp(argv[i], "-h");
    int n_words = is_asked ? 0 : n < argc ? n : argc;
    if (!td_options_parse(&help, argc - n_words, argv + n_words, &f, &is_help, err)) {
        if (n == 0) {
            td_err_clear(err);
            td_err_set(err, TD_E_USAGE, "tandem keys: \"%.64s\"; allowed: new, show, allow, list",
                       argv[0]);
        }
    } else if (is_help) {
        td_options_print_help(&help);
    } else if (n == 0 || argc < n) {
        td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
    } else if (f.is_json && strcmp(argv[0], "list") != 0) {
        td_err_set(err, TD_E_USAGE, "--json goes with `tandem keys list`");
    } else if (n == 1) {
        list(f.is_json, &code, err);
    } else if (n == 3) {
        allow(argv[1], argv[2], err);
    } else {
        (!strcmp(argv[0], "new") ? make : show)(argv[1], err);
    }
    return code;
}
