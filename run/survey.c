/* A prompt's text is tokenized up to a limit and its length scaled; messages are taken as long as
 * their JSON, which a template makes up for. A line that is wrong is passed over: it will be an
 * error line, not work. */
#include "run/survey.h"

#include "base/check.h"
#include "base/json.h"
#include "base/jsonl.h"
#include "base/mem.h"

#include <string.h>
#include <sys/stat.h>

#define LINES_MAX 64u
#define TEXT_MAX  (16u << 10) /* bytes of a line that are tokenized */

static const td_json_field fields[] = {
    {.key = "prompt", .type = TD_JSON_STRING, .min = 0, .max = TD_JSONL_LINE_MAX},
    {.key = "n", .type = TD_JSON_INT, .min = 1, .max = 1 << 24},
};
static const td_json_schema schema = {fields, TD_COUNT(fields), true};

static double count_tokens(const td_model *model, const char *text, size_t n_bytes)
{
    uint32_t *ids;
    size_t n_ids = 0, n = n_bytes < TEXT_MAX ? n_bytes : TEXT_MAX;
    while (n < n_bytes && n > 0 && ((uint8_t)text[n] & 0xc0) == 0x80) /* not inside a character */
        n--;
    if (!n || !td_tokenize(td_model_tokenizer(model), text, n, TD_ADD_FOR_PROMPT, false, &ids,
                           &n_ids, NULL))
        return 0;
    td_free(ids);
    return (double)n_ids * ((double)n_bytes / (double)n);
}

/* False: the line is of no use. */
static bool look_at(const td_model *model, const td_jsonl_line *line, double *n_prompt,
                    double *n_predict)
{
    td_json *doc = td_json_parse(line->text, line->n_bytes, "line", NULL);
    td_json_object o;
    bool is_ok = doc && td_json_read_root(doc, &schema, &o, NULL);
    if (is_ok) {
        const char *text = td_json_get_string(&o, "prompt", NULL);
        *n_prompt += text ? count_tokens(model, text, strlen(text))
                          : count_tokens(model, line->text, line->n_bytes);
        *n_predict = td_json_has(&o, "n") ? (double)td_json_get_int(&o, "n", 1) : *n_predict;
    }
    td_json_destroy(&doc);
    return is_ok;
}

static td_survey read_file(const td_run_params *params, const td_model *model)
{
    td_survey s = {0};
    td_jsonl_reader *reader = td_jsonl_reader_open(params->in_path, TD_JSONL_LINE_MAX, NULL);
    double n_looked_at = 0, n_prompt = 0, n_predict = 0;
    td_jsonl_line line;
    td_err bad = {0};
    for (td_jsonl_status status = TD_JSONL_LINE; reader; td_err_clear(&bad)) {
        status = td_jsonl_read(reader, &line, &bad);
        if (status == TD_JSONL_END || status == TD_JSONL_FAILED)
            break;
        s.n_prompts++;
        double n_of_line = params->n_predict;
        if (status == TD_JSONL_LINE && n_looked_at < LINES_MAX &&
            look_at(model, &line, &n_prompt, &n_of_line)) {
            n_looked_at++;
            n_predict += n_of_line;
        }
    }
    td_jsonl_reader_close(&reader);
    if (n_looked_at > 0) {
        s.n_prompt = (uint32_t)(n_prompt / n_looked_at);
        s.n_predict = (uint32_t)(n_predict / n_looked_at);
    }
    return s;
}

td_survey td_survey_prompts(const td_run_params *params, const td_model *model)
{
    struct stat st;
    td_survey s = {0};
    if (params->prompt)
        s = (td_survey){.n_prompts = 1,
                        .n_prompt =
                            (uint32_t)count_tokens(model, params->prompt, strlen(params->prompt)),
                        .n_predict = params->n_predict};
    else if (params->in_path && stat(params->in_path, &st) == 0 && S_ISREG(st.st_mode))
        s = read_file(params, model);
    /* Neither can be more than a sequence has room for. */
    uint32_t n_ctx = params->n_ctx ? params->n_ctx : td_model_hparams(model)->n_ctx_train;
    s.n_prompt = td_min_u32(s.n_prompt, n_ctx);
    s.n_predict = td_min_u32(s.n_predict, n_ctx);
    return s;
}
