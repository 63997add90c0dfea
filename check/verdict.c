/* Verdicts on disk (verdict.h): one file for each key, named by the key's hash, which holds the key
 * and the reason. No file: nothing is known against the device. */
#include "check/verdict.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define KEY_BYTES  1024
#define PATH_BYTES 4096

/* Threads are no part of it: what is wrong with a host is wrong with all of it. */
static void write_key(const td_device_info *info, char key[KEY_BYTES])
{
    bool is_host = info->kind == TD_DEVICE_HOST;
    snprintf(key, KEY_BYTES, "tandem %s 1; %.200s; %.200s; %.40s %.20s", TD_VERSION, info->name,
             info->driver, is_host ? "host" : info->uuid, is_host ? "" : info->pci);
    td_text_make_printable(key);
}

static bool find_path(const char *key, char path[PATH_BYTES])
{
    return td_io_cache_path("verdict", td_hash64(0, key, strlen(key)), ".json", path, PATH_BYTES);
}

void td_verdict_keep(const td_check_report *report, bool is_whole)
{
    char key[KEY_BYTES], path[PATH_BYTES];
    const char *text;
    size_t n_bytes;
    td_err why = {0};
    const td_check_item *failed = td_check_find_failed(report);
    write_key(&report->info, key);
    if (!find_path(key, path))
        return;
    if (!failed) {
        if (is_whole)
            unlink(path);
        return;
    }
    td_json_writer *w = td_json_writer_create(false, &why);
    if (w) {
        td_json_begin_object(w);
        td_json_put_string(w, "key", key);
        td_json_put_string(w, "failed", failed->name);
        td_json_put_string(w, "reason", failed->reason);
        td_json_end_object(w);
        if (td_json_writer_end(w, &text, &n_bytes, &why))
            td_io_replace_file(path, text, n_bytes, &why);
    }
    td_json_writer_destroy(&w);
    if (why.code != TD_OK)
        td_log_warn("the verdict is not kept: %s", why.message);
}

static bool read_verdict(const td_json *doc, const char *key, td_json_object *o, td_err *why)
{
    static const td_json_field fields[] = {
        {.key = "key", .type = TD_JSON_STRING, .required = true, .max = KEY_BYTES},
        {.key = "failed", .type = TD_JSON_STRING, .required = true, .max = 64},
        {.key = "reason", .type = TD_JSON_STRING, .required = true, .max = TD_CHECK_REASON_MAX},
    };
    static const td_json_schema schema = {fields, TD_COUNT(fields), false};
    return td_json_read_root(doc, &schema, o, why) &&
           (!strcmp(td_json_get_string(o, "key", ""), key) ||
            td_json_fail(o, "key", why, "is of another device"));
}

bool td_verdict_find(const td_device_info *info, char found[TD_VERDICT_MAX])
{
    char key[KEY_BYTES], path[PATH_BYTES];
    td_err why = {0};
    td_json_object o;
    write_key(info, key);
    if (!find_path(key, path) || access(path, F_OK) != 0)
        return false;
    td_json *doc = td_json_read_file(path, &why);
    bool has_failed = doc && read_verdict(doc, key, &o, &why);
    if (has_failed)
        snprintf(found, TD_VERDICT_MAX, "%s: %s", td_json_get_string(&o, "failed", ""),
                 td_json_get_string(&o, "reason", ""));
    else
        td_log_warn("a verdict is not used: %s", why.message);
    td_json_destroy(&doc);
    return has_failed;
}

bool td_verdict_ask(const td_device_info *info, td_err *err)
{
    char found[TD_VERDICT_MAX];
    return !td_verdict_find(info, found) ||
           td_err_set(err, TD_E_UNAVAILABLE,
                      "%s (%s, driver %s) has failed `tandem check`: %s; take another --device, "
                      "check it again after a change, or go on with --trust",
                      info->spec, info->name, info->driver, found);
}

bool td_verdict_ask_spec(const char *spec, td_err *err)
{
    char own[128];
    td_device_info info;
    snprintf(own, sizeof own, "%.*s", (int)strcspn(spec, "@"), spec);
    return !td_device_find(own, &info, NULL) || td_verdict_ask(&info, err);
}
