/* tandem bench: prefill and decode speed and the cost of verifying n rows, on one device or a
 * split. The medians of several repeats. */
#include "cli/commands.h"
#include "cli/options.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/json_writer.h"
#include "base/text.h"
#include "target/chain.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIDTHS_MAX  32u
#define REPEATS_MAX 101u

typedef struct {
    const char *model, *widths;
    option_list devices;
    const td_type_info *type_k, *type_v;
    uint32_t n_prefill, n_decode, n_repeats;
    bool is_json;
} fields;

#define AT(name) offsetof(fields, name)

static const option options[] = {
    {"--model", NULL, OPT_TEXT, AT(model), 0, 0, "M.gguf", "the model (required)"},
    {"--device", NULL, OPT_LIST, AT(devices), 0, 0, "SPEC", "as in generate; several make a split"},
    {"--pp", NULL, OPT_U32, AT(n_prefill), 1, 65536, "N", "tokens of the prompt (default: 128)"},
    {"--tg", NULL, OPT_U32, AT(n_decode), 1, 65536, "N", "tokens to decode (default: 32)"},
    {"--widths", NULL, OPT_TEXT, AT(widths), 0, 0, "1,2,4",
     "rows of a verification, 1..64 each (default: 1,2,4,8,9,16)"},
    {"--repeat", NULL, OPT_U32, AT(n_repeats), 1, REPEATS_MAX, "N", "repeats of each (default: 5)"},
    {"--kv-k", NULL, OPT_CACHE_TYPE, AT(type_k), 0, 0, "TYPE",
     "type of cached keys: f32, f16, q8_0, q4_0 (default: f16)"},
    {"--kv-v", NULL, OPT_CACHE_TYPE, AT(type_v), 0, 0, "TYPE",
     "type of cached values (default: f16)"},
    {"--json", NULL, OPT_FLAG, AT(is_json), 0, 0, NULL, "as JSON"},
};
static const command_help help = {
    "bench", "tandem bench --model M.gguf [--device SPEC]... [options]",
    "Measures tokens/s of prefill and decode, and c(n) = time of n rows / time of one.", options,
    TD_COUNT(options)};

static bool parse_widths(const char *text, uint32_t widths[WIDTHS_MAX], uint32_t *n, td_err *err)
{
    *n = 0;
    for (const char *p = text; *p;) {
        size_t n_bytes = strcspn(p, ",");
        char one[16] = "";
        uint64_t value = 0;
        if (n_bytes < sizeof one)
            memcpy(one, p, n_bytes);
        if (!td_text_read_u64(one, &value) || value < 1 || value > TD_VERIFY_ROWS_MAX ||
            *n == WIDTHS_MAX)
            return td_err_set(err, TD_E_USAGE, "--widths: %s; allowed: up to %u numbers of 1..%u",
                              td_text_quote(text, strlen(text)).text, WIDTHS_MAX,
                              TD_VERIFY_ROWS_MAX);
        widths[(*n)++] = (uint32_t)value;
        p += n_bytes + (p[n_bytes] == ',');
    }
    return *n > 0 || td_err_set(err, TD_E_USAGE, "--widths: no number");
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, uint32_t n)
{
    qsort(values, n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* Runs n tokens from `position` in one batch (or in prefill chunks); *seconds is what it took. */
static bool timed_run(td_chain *chain, td_mode mode, uint32_t n_vocab, uint32_t position,
                      uint32_t n, double *seconds, td_err *err)
{
    const td_clock clock = td_clock_real();
    uint64_t start = td_clock_now_us(&clock);
    for (uint32_t done = 0; done < n;) {
        td_forward_row rows[TD_PREFILL_ROWS_MAX];
        uint32_t n_rows = td_min_u32(n - done, TD_PREFILL_ROWS_MAX);
        for (uint32_t i = 0; i < n_rows; i++) {
            uint32_t at = position + done + i;
            rows[i] = (td_forward_row){.position = at,
                                       .token = (7 * at + 11) % n_vocab,
                                       .is_output = mode == TD_MODE_VERIFY || done + i + 1 == n};
        }
        if (!td_chain_run(chain, mode, rows, n_rows, err))
            return false;
        done += n_rows;
    }
    *seconds = (double)(td_clock_now_us(&clock) - start) * 1e-6;
    return true;
}

typedef struct {
    double prefill_rate, decode_rate; /* tokens/s, medians */
    uint32_t n_widths, widths[WIDTHS_MAX];
    double verify_ms[WIDTHS_MAX], c[WIDTHS_MAX];
} measured;

static bool measure(const fields *f, td_chain *chain, uint32_t n_vocab, measured *m, td_err *err)
{
    double prefill[REPEATS_MAX], decode[REPEATS_MAX], verify[REPEATS_MAX], t, one_row = 0;
    if (!timed_run(chain, TD_MODE_PREFILL, n_vocab, 0, f->n_prefill, &t, err)) /* warm-up */
        return false;
    for (uint32_t r = 0; r < f->n_repeats; r++) {
        td_chain_truncate(chain, 0, 0);
        if (!timed_run(chain, TD_MODE_PREFILL, n_vocab, 0, f->n_prefill, &t, err))
            return false;
        prefill[r] = f->n_prefill / t;
        decode[r] = 0;
        for (uint32_t i = 0; i < f->n_decode; i++) {
            if (!timed_run(chain, TD_MODE_VERIFY, n_vocab, f->n_prefill + i, 1, &t, err))
                return false;
            decode[r] += t;
        }
        decode[r] = f->n_decode / decode[r];
    }
    m->prefill_rate = median(prefill, f->n_repeats);
    m->decode_rate = median(decode, f->n_repeats);
    for (uint32_t k = 0; k < m->n_widths; k++) {
        for (uint32_t r = 0; r <= f->n_repeats; r++) { /* the first is a warm-up */
            td_chain_truncate(chain, 0, f->n_prefill);
            if (!timed_run(chain, TD_MODE_VERIFY, n_vocab, f->n_prefill, m->widths[k], &t, err))
                return false;
            if (r > 0)
                verify[r - 1] = t;
        }
        m->verify_ms[k] = median(verify, f->n_repeats) * 1e3;
        one_row = k == 0 ? m->verify_ms[0] : one_row;
        m->c[k] = m->verify_ms[k] / one_row;
    }
    return true;
}

static bool print_json(const fields *f, const measured *m, td_err *err)
{
    td_json_writer *w = td_json_writer_create(false, err);
    if (!w)
        return false;
    char key[32];
    td_json_begin_object(w);
    td_json_write_key(w, "model");
    td_json_write_string(w, f->model);
    snprintf(key, sizeof key, "pp%u", f->n_prefill);
    td_json_write_key(w, key);
    td_json_write_double(w, m->prefill_rate);
    snprintf(key, sizeof key, "tg%u", f->n_decode);
    td_json_write_key(w, key);
    td_json_write_double(w, m->decode_rate);
    td_json_write_key(w, "verify");
    td_json_begin_object(w);
    for (uint32_t k = 0; k < m->n_widths; k++) {
        snprintf(key, sizeof key, "%u", m->widths[k]);
        td_json_write_key(w, key);
        td_json_begin_object(w);
        td_json_write_key(w, "ms");
        td_json_write_double(w, m->verify_ms[k]);
        td_json_write_key(w, "c");
        td_json_write_double(w, m->c[k]);
        td_json_end_object(w);
    }
    td_json_end_object(w);
    td_json_end_object(w);
    const char *text;
    size_t n_bytes;
    bool is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    if (is_ok)
        puts(text);
    td_json_writer_destroy(&w);
    return is_ok;
}

static bool run(const fields *f, td_err *err)
{
    measured m = {0};
    if (!parse_widths(f->widths, m.widths, &m.n_widths, err))
        return false;
    td_model *model = td_model_open(f->model, err);
    const char *defaults[TD_STAGES_MAX];
    uint32_t n_default = f->devices.n ? 0 : td_chain_default_specs(defaults);
    td_chain *chain = NULL;
    if (model)
        chain = td_chain_create(
            &(td_chain_params){.model = model,
                               .specs = f->devices.n ? f->devices.items : defaults,
                               .n_specs = f->devices.n ? f->devices.n : n_default,
                               .type_k = f->type_k,
                               .type_v = f->type_v,
                               .n_slots = 1,
                               .n_ctx = f->n_prefill + td_max_u32(f->n_decode, TD_VERIFY_ROWS_MAX)},
            err);
    bool is_ok = chain && measure(f, chain, td_model_hparams(model)->n_vocab, &m, err);
    if (is_ok && f->is_json) {
        is_ok = print_json(f, &m, err);
    } else if (is_ok) {
        printf("%s: prefill of %u: %.1f tokens/s, decode: %.1f tokens/s\n", f->model, f->n_prefill,
               m.prefill_rate, m.decode_rate);
        for (uint32_t k = 0; k < m.n_widths; k++)
            printf("  verify %2u rows: %9.3f ms, c(n) %.2f\n", m.widths[k], m.verify_ms[k], m.c[k]);
    }
    td_chain_destroy(&chain);
    td_model_close(&model);
    return is_ok;
}

int command_bench(int argc, char **argv, td_err *err)
{
    fields f = {.widths = "1,2,4,8,9,16",
                .type_k = td_type_find(TD_TYPE_F16),
                .type_v = td_type_find(TD_TYPE_F16),
                .n_prefill = 128,
                .n_decode = 32,
                .n_repeats = 5};
    bool is_help;
    if (!options_parse(&help, argc, argv, &f, &is_help, err))
        return 0;
    if (is_help)
        options_print_help(&help);
    else if (!f.model)
        td_err_set(err, TD_E_USAGE, "usage: %s", help.usage);
    else
        run(&f, err);
    return 0;
}
