/* How `tandem eval` shows its figures. */
#include "cli/eval.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json_writer.h"
#include "cli/cache_options.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define TITLE_MIN 13u /* of the first column */

static const struct {
    const char *key, *title;
    size_t offset;
    int n_decimals;            /* in the table, where a share is shown in percent */
    bool is_share, is_integer; /* the latter in JSON */
} columns[] = {
    {"windows", "windows", offsetof(eval_figures, n_windows), 0, false, true},
    {"ppl", "perplexity", offsetof(eval_figures, ppl), 4, false, false},
    {"ppl_err", "+-", offsetof(eval_figures, ppl_err), 4, false, false},
    {"kld_mean", "KLD mean", offsetof(eval_figures, kld_mean), 6, false, false},
    {"kld_median", "median", offsetof(eval_figures, kld_median), 6, false, false},
    {"kld_99", "99 %", offsetof(eval_figures, kld_99), 6, false, false},
    {"kld_99_9", "99.9 %", offsetof(eval_figures, kld_99_9), 6, false, false},
    {"kld_max", "most", offsetof(eval_figures, kld_max), 6, false, false},
    {"same_top", "same top", offsetof(eval_figures, same_top), 2, true, false},
    {"rms_dp", "RMS dp", offsetof(eval_figures, rms_dp), 3, true, false},
    {"right", "right", offsetof(eval_figures, right), 2, true, false},
    {"right_at_0", "at 0 %", offsetof(eval_figures, right_at[0]), 2, true, false},
    {"right_at_25", "at 25 %", offsetof(eval_figures, right_at[1]), 2, true, false},
    {"right_at_50", "at 50 %", offsetof(eval_figures, right_at[2]), 2, true, false},
    {"right_at_75", "at 75 %", offsetof(eval_figures, right_at[3]), 2, true, false},
    {"right_at_100", "at 100 %", offsetof(eval_figures, right_at[4]), 2, true, false},
    {"whole", "all right", offsetof(eval_figures, whole), 2, true, false},
    {"bytes_per_position", "bytes/position", offsetof(eval_figures, bytes_per_position), 0, false,
     true},
    {"decode_ms", "1 row ms", offsetof(eval_figures, speeds.decode_ms), 3, false, false},
    {"verify_ms", "8 rows ms", offsetof(eval_figures, speeds.verify_ms), 3, false, false},
    {"acceptance", "acceptance", offsetof(eval_figures, acceptance), 2, true, false},
    {"tokens_per_verification", "tokens/verification",
     offsetof(eval_figures, tokens_per_verification), 2, false, false},
};
_Static_assert(EVAL_VERIFY_ROWS == 8 && EVAL_DEPTHS == 5, "the titles say so");

static const char *const marks[] = {[EVAL_PLAIN] = "",
                                    [EVAL_BASE] = "  ",
                                    [EVAL_DOMINATED] = "  ",
                                    [EVAL_ON_FRONT] = "* ",
                                    [EVAL_CHOSEN] = "> "};

static double figure(const eval_line *line, size_t column)
{
    double value;
    memcpy(&value, (const char *)&line->figures + columns[column].offset, sizeof value);
    return value;
}

/* Whether a column is there: some line has a figure. */
static bool is_there(const eval_line *lines, uint32_t n, size_t column)
{
    bool is_any = false;
    for (uint32_t i = 0; i < n; i++)
        is_any |= !isnan(figure(&lines[i], column));
    return is_any;
}

static int width(size_t column)
{
    return (int)td_max_u32(10, (uint32_t)strlen(columns[column].title));
}

static void print_cell(const eval_line *line, size_t column)
{
    bool is_share = columns[column].is_share;
    double value = figure(line, column);
    if (isnan(value))
        printf(" %*s |", width(column), "-");
    else
        printf(" %*.*f%s |", width(column) - 2 * is_share, columns[column].n_decimals,
               value * (is_share ? 100 : 1), is_share ? " %" : "");
}

static void print_dashes(uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        putchar('-');
}

void td_eval_print_table(const eval_params *p, const eval_line *lines, uint32_t n)
{
    uint32_t n_name = TITLE_MIN;
    for (uint32_t i = 0; i < n; i++)
        n_name = td_max_u32(n_name, (uint32_t)strlen(lines[i].kv->name));
    printf("%u windows of %u tokens, %u positions scored; divergence from %s\n\n", p->n_windows,
           p->window, p->n_windows * p->n_scored, p->kvs[0].name);
    n_name += lines[0].mark ? 2 : 0;
    printf("| %-*s |", (int)n_name, "cache");
    for (size_t c = 0; c < TD_COUNT(columns); c++)
        if (is_there(lines, n, c))
            printf(" %*s |", width(c), columns[c].title);
    printf("\n|");
    print_dashes(n_name + 2);
    putchar('|');
    for (size_t c = 0; c < TD_COUNT(columns); c++)
        if (is_there(lines, n, c)) {
            print_dashes((uint32_t)width(c) + 1);
            printf(":|");
        }
    putchar('\n');
    for (uint32_t i = 0; i < n; i++) {
        printf("| %s%-*s |", marks[lines[i].mark], (int)(n_name - strlen(marks[lines[i].mark])),
               lines[i].kv->name);
        for (size_t c = 0; c < TD_COUNT(columns); c++)
            if (is_there(lines, n, c))
                print_cell(&lines[i], c);
        putchar('\n');
    }
}

bool td_eval_print_json(const eval_line *lines, uint32_t n, td_err *err)
{
    const char *text;
    size_t n_bytes;
    td_json_writer *w = td_json_writer_create(true, err);
    if (!w)
        return false;
    td_json_begin_array(w);
    for (uint32_t i = 0; i < n; i++) {
        td_json_begin_object(w);
        td_json_put_string(w, "kv", lines[i].kv->name);
        for (size_t c = 0; c < TD_COUNT(columns); c++) {
            double value = figure(&lines[i], c);
            if (columns[c].is_integer && !isnan(value))
                td_json_put_u64(w, columns[c].key, (uint64_t)value);
            else if (is_there(lines, n, c))
                td_json_put_double(w, columns[c].key, value);
        }
        if (lines[i].mark) {
            td_json_put_bool(w, "dominated", lines[i].mark == EVAL_DOMINATED);
            td_json_put_bool(w, "chosen", lines[i].mark == EVAL_CHOSEN);
        }
        td_json_end_object(w);
    }
    td_json_end_array(w);
    bool is_ok = td_json_writer_end(w, &text, &n_bytes, err);
    if (is_ok)
        puts(text);
    td_json_writer_destroy(&w);
    return is_ok;
}

/* Types are in lower case wherever they are written. */
static void put_lower(td_json_writer *w, const char *key, const char *name)
{
    char text[32] = "";
    for (size_t i = 0; name[i] && i + 1 < sizeof text; i++)
        text[i] = (char)tolower((unsigned char)name[i]);
    td_json_put_string(w, key, text);
}

bool td_eval_write_config(const char *path, const eval_kv *kv, td_err *err)
{
    const char *text;
    size_t n_bytes;
    char rotate[16];
    td_json_writer *w = td_json_writer_create(true, err);
    if (!w)
        return false;
    snprintf(rotate, sizeof rotate, "k=%.4s,v=%.4s", td_cache_options_mode_name(kv->types.rotate_k),
             td_cache_options_mode_name(kv->types.rotate_v));
    td_json_begin_object(w);
    td_json_write_key(w, "cache");
    td_json_begin_object(w);
    put_lower(w, "k", kv->types.k->name);
    put_lower(w, "v", kv->types.v->name);
    if (kv->types.rotate_k != TD_ROTATE_AUTO || kv->types.rotate_v != TD_ROTATE_AUTO)
        td_json_put_string(w, "rotate", rotate);
    if (kv->types.n_rules) {
        char kept[TD_CACHE_TYPES_TEXT];
        td_json_write_key(w, "keep");
        td_json_begin_array(w);
        for (uint32_t i = 0; i < kv->types.n_rules; i++)
            if (td_cache_types_write_kept(&kv->types, i, ",=", kept, sizeof kept))
                td_json_write_string(w, kept);
        td_json_end_array(w);
    }
    td_json_end_object(w);
    td_json_end_object(w);
    bool is_ok =
        td_json_writer_end(w, &text, &n_bytes, err) && td_io_replace_file(path, text, n_bytes, err);
    td_json_writer_destroy(&w);
    return is_ok;
}
