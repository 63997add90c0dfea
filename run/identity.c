#include "run/identity.h"

#include "base/rng.h"
#include "base/sha256.h"

#include <stdio.h>
#include <string.h>

#define SEPARATOR "; "

/* A name as a part of the text: what would end a part or a line becomes '?'. */
static void add(char *text, const char *more)
{
    size_t n = strlen(text);
    for (; *more && n + 1 < TD_IDENTITY_BYTES; more++)
        text[n++] = *more == ';' || (unsigned char)*more < 0x20 || *more == 0x7f ? '?' : *more;
    text[n] = 0;
}

static void begin_part(char *text, const char *key)
{
    size_t n = strlen(text);
    snprintf(text + n, TD_IDENTITY_BYTES - n, "%s%s=", n ? SEPARATOR : "", key);
}

static void add_number(char *text, const char *key, uint32_t value)
{
    char number[16];
    snprintf(number, sizeof number, "%u", value);
    begin_part(text, key);
    add(text, number);
}

/* Experts may be dealt among devices of one kind without changing a bit; of others it counts who
 * has which. */
static void add_dealing(const td_layout_deal *deal, const td_device_info *own, char *kind,
                        size_t n_bytes)
{
    char first[TD_DEVICE_KIND_BYTES], place[TD_DEVICE_KIND_BYTES];
    const td_dealing *d = deal->dealing;
    bool is_alike = true;
    size_t n = strlen(kind), n_own = n;
    td_device_write_kind(own, first, sizeof first);
    for (uint32_t i = 1; i < d->n_seats; i++) {
        td_device_write_kind(td_device_get_info(deal->seats[i].dev), place, sizeof place);
        is_alike &= !strcmp(place, first);
        if (n < n_bytes)
            n += (size_t)snprintf(kind + n, n_bytes - n, " + %s", place);
    }
    uint64_t hash = td_hash64(0, d->seats, (size_t)d->n_layer * d->n_expert);
    if (is_alike)
        kind[n_own] = 0;
    else if (n < n_bytes)
        snprintf(kind + n, n_bytes - n, " with experts dealt as %016llx", (unsigned long long)hash);
}

/* Layers may be cut anywhere among devices of one kind without changing a bit. */
static void add_layers(char *text, const td_target *target)
{
    char previous[1200] = "", kind[1200], place[600], first[32];
    begin_part(text, "layers");
    for (uint32_t i = 0; i < td_target_n_stages(target); i++) {
        td_stage_info info;
        td_target_get_stage_info(target, i, &info);
        td_device_write_kind(info.device, kind, sizeof kind);
        if (info.experts_device) {
            size_t n = strlen(kind);
            td_device_write_kind(info.experts_device, place, sizeof place);
            snprintf(kind + n, sizeof kind - n, " with experts on %s", place);
        }
        if (info.deal)
            add_dealing(info.deal, info.device, kind, sizeof kind);
        snprintf(first, sizeof first, "%s%u on ", i ? ", " : "", info.first);
        if (strcmp(kind, previous) != 0) {
            add(text, first);
            add(text, kind);
        }
        memcpy(previous, kind, sizeof previous);
    }
}

bool td_identity_has_hop(const td_target *target, uint32_t stage)
{
    td_stage_info before, info;
    if (stage == 0)
        return false;
    td_target_get_stage_info(target, stage - 1, &before);
    td_target_get_stage_info(target, stage, &info);
    return (before.host || info.host) &&
           (!before.host || !info.host || strcmp(before.host, info.host) != 0);
}

/* Where activations are rounded on their way: the first layers behind. */
static void add_wire(char *text, const td_type_info *wire, const td_target *target)
{
    bool is_begun = false;
    for (uint32_t i = 0; i < td_target_n_stages(target); i++) {
        td_stage_info info;
        char first[48];
        if (wire->id == TD_TYPE_F32 || !td_identity_has_hop(target, i))
            continue;
        td_target_get_stage_info(target, i, &info);
        if (!is_begun)
            begin_part(text, "wire");
        snprintf(first, sizeof first, "%s%s%u", is_begun ? "," : wire->name, is_begun ? "" : "@",
                 info.first);
        add(text, first);
        is_begun = true;
    }
}

void td_identity_write(const td_run_params *params, const td_model *model, const td_target *target,
                       uint32_t prefill_rows, td_identity *out)
{
    td_sha256 s;
    uint8_t digest[32];
    char kv[TD_CACHE_TYPES_TEXT];
    *out = (td_identity){0};
    snprintf(out->model_sha, sizeof out->model_sha, "%016llx",
             (unsigned long long)td_gguf_hash(td_model_gguf(model)));
    begin_part(out->text, "tandem");
    add(out->text, TD_VERSION);
    begin_part(out->text, "model");
    add(out->text, out->model_sha);
    begin_part(out->text, "cache");
    td_cache_types_write(&params->kv, kv);
    add(out->text, kv);
    add_number(out->text, "ctx", td_target_n_ctx(target));
    add_number(out->text, "ignore_eos", params->ignore_eos);
    add_number(out->text, "chunk", prefill_rows);
    add_layers(out->text, target);
    if (params->wire)
        add_wire(out->text, params->wire, target);
    td_sha256_begin(&s);
    td_sha256_add(&s, out->text, strlen(out->text));
    td_sha256_end(&s, digest);
    td_sha256_hex(digest, out->sha, TD_SHA_HEX);
}

/* All parts but the two that say when a text ends; the context also chooses between tables of
 * rotations (model/rope.c). */
void td_identity_write_prompts(const td_identity *identity, const td_model *model, uint32_t n_ctx,
                               char out[TD_IDENTITY_BYTES])
{
    out[0] = 0;
    for (const char *at = identity->text; *at;) {
        const char *end = strstr(at, SEPARATOR);
        size_t n = end ? (size_t)(end - at) : strlen(at), used = strlen(out);
        if (strncmp(at, "ctx=", 4) != 0 && strncmp(at, "ignore_eos=", 11) != 0)
            snprintf(out + used, TD_IDENTITY_BYTES - used, "%.*s" SEPARATOR, (int)n, at);
        at += n + (end ? strlen(SEPARATOR) : 0);
    }
    size_t used = strlen(out);
    bool is_long = n_ctx > td_model_hparams(model)->rope_orig_ctx;
    snprintf(out + used, TD_IDENTITY_BYTES - used, "rope=%s", is_long ? "long" : "short");
}

/* The value of a key of n_key bytes, n_value bytes; NULL where there is none. */
static const char *find(const char *text, const char *key, size_t n_key, size_t *n_value)
{
    for (const char *at = text; *at;) {
        const char *end = strstr(at, SEPARATOR);
        size_t n = end ? (size_t)(end - at) : strlen(at);
        if (n > n_key && !strncmp(at, key, n_key) && at[n_key] == '=') {
            *n_value = n - n_key - 1;
            return at + n_key + 1;
        }
        at += n + (end ? strlen(SEPARATOR) : 0);
    }
    return NULL;
}

void td_identity_read(const char *text, const char *key, char *out, size_t n_bytes)
{
    size_t n = 0;
    const char *value = find(text, key, strlen(key), &n);
    snprintf(out, n_bytes, "%.*s", (int)n, value ? value : "");
}

/* Adds a part that differs. One that a text lacks cannot be compared, unless that means `usual`. */
static void compare_part(const char *there, const char *now, const char *key, size_t n_key,
                         const char *usual, char *out, size_t n_bytes)
{
    size_t n_usual = usual ? strlen(usual) : 0, n_then = n_usual, n_now = n_usual;
    const char *new_value = find(now, key, n_key, &n_now);
    const char *old_value = find(there, key, n_key, &n_then);
    size_t used = strlen(out);
    new_value = new_value ? new_value : usual;
    old_value = old_value ? old_value : usual;
    if (old_value && new_value && (n_then != n_now || memcmp(old_value, new_value, n_now) != 0))
        snprintf(out + used, n_bytes - used, "%s%.*s is \"%.*s\" there and \"%.*s\" now",
                 used ? ", " : "", (int)n_key, key, (int)n_then, old_value, (int)n_now, new_value);
}

void td_identity_compare(const char *there, const char *now, char *out, size_t n_bytes)
{
    static const char wire[] = "wire";
    const size_t n_wire = strlen(wire);
    out[0] = 0;
    for (const char *at = now; *at;) {
        const char *end = strstr(at, SEPARATOR);
        size_t n_key = strcspn(at, "=");
        if (n_key != n_wire || memcmp(at, wire, n_wire) != 0)
            compare_part(there, now, at, n_key, NULL, out, n_bytes);
        at = end ? end + strlen(SEPARATOR) : "";
    }
    compare_part(there, now, wire, n_wire, "F32", out, n_bytes);
}
