/* The files at both ends of a run: prompts, of which any line may be wrong, and results, which a
 * later run finds again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/jsonl.h"
#include "base/log.h"
#include "base/mem.h"
#include "run/identity.h"
#include "run/prompts.h"
#include "run/results.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char in_path[64], out_path[64];

static void write_file(const char *path, const char *text, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && write(fd, text, n) == (ssize_t)n);
    close(fd);
}

static td_run_params defaults(void)
{
    return (td_run_params){.in_path = in_path,
                           .out_path = out_path,
                           .n_predict = 256,
                           .sampling = TD_SAMPLING_DEFAULTS,
                           .seed = 42,
                           .n_stops = 1,
                           .stops = {"END"}};
}

/* -- prompts ----------------------------------------------------------------------------------- */

/* All prompts of a text (up to n_max). */
static uint32_t read_all(const td_run_params *params, const char *text, size_t n_bytes,
                         td_prompt **out, uint32_t n_max)
{
    write_file(in_path, text, n_bytes);
    td_err err = {0};
    td_prompts *p = td_prompts_open(params, NULL, &err);
    if (!p)
        fail_msg("%s", err.message);
    uint32_t n = 0;
    for (td_prompt *q; (q = td_prompts_next(p, &err)); n++) {
        assert_true(n < n_max);
        out[n] = q;
    }
    assert_int_equal(err.code, TD_OK);
    assert_null(td_prompts_next(p, &err)); /* the end stays the end */
    td_prompts_close(&p);
    assert_null(p);
    return n;
}

static td_prompt *read_one(const td_run_params *params, const char *line)
{
    td_prompt *q[1];
    assert_int_equal(read_all(params, line, strlen(line), q, 1), 1);
    return q[0];
}

static void test_a_prompt_takes_every_field(void **state)
{
    (void)state;
    td_run_params params = defaults();
    td_prompt *q = read_one(
        &params, "{\"id\":\"x\",\"prompt\":\"Once \\u00e4\",\"n\":7,\"temp\":0.5,\"top_k\":40,"
                 "\"top_p\":0.25,\"min_p\":0.125,\"repeat_penalty\":1.5,\"seed\":9,"
                 "\"stop\":[\"a\",\"bc\"]}");
    assert_int_equal(q->err.code, TD_OK);
    assert_string_equal(q->id, "x");
    assert_int_equal(q->line, 1);
    assert_string_equal(q->text, "Once \xc3\xa4");
    assert_int_equal(q->n_text, 7);
    assert_int_equal(q->n_predict, 7);
    assert_true(q->sampling.temperature == 0.5f && q->sampling.top_p == 0.25f);
    assert_true(q->sampling.min_p == 0.125f && q->sampling.repeat_penalty == 1.5f);
    assert_int_equal(q->sampling.top_k, 40);
    assert_int_equal(q->stream, 9);
    assert_int_equal(q->n_stops, 2);
    assert_string_equal(q->stops[0], "a");
    assert_string_equal(q->stops[1], "bc");
    td_prompt_destroy(&q);
    assert_null(q);
    q = read_one(&params, "{\"prompt\":\"p\",\"stop\":\"one\"}");
    assert_int_equal(q->n_stops, 1);
    assert_string_equal(q->stops[0], "one");
    td_prompt_destroy(&q);
    q = read_one(&params, "{\"prompt\":\"p\",\"stop\":[]}"); /* none, though the run has one */
    assert_int_equal(q->n_stops, 0);
    td_prompt_destroy(&q);
}

static void test_a_prompt_keeps_the_runs_settings(void **state)
{
    (void)state;
    td_run_params params = defaults();
    td_prompt *q = read_one(&params, "{\"prompt\":\"\"}");
    assert_int_equal(q->err.code, TD_OK);
    assert_int_equal(q->n_text, 0);
    assert_int_equal(q->n_predict, 256);
    assert_memory_equal(&q->sampling, &params.sampling, sizeof q->sampling);
    assert_string_equal(q->stops[0], "END");
    assert_ptr_equal(strstr(q->id, "line-1-"), q->id);
    assert_int_equal(strlen(q->id), strlen("line-1-12345678"));
    td_prompt_destroy(&q);
    params.in_path = NULL;
    params.prompt = "from the command line";
    td_prompts *p = td_prompts_open(&params, NULL, NULL);
    assert_int_equal(td_prompts_count(p), 1);
    q = td_prompts_next(p, NULL);
    assert_string_equal(q->id, "prompt");
    assert_string_equal(q->text, "from the command line");
    assert_int_equal(q->stream, 42);
    assert_int_equal(q->line, 0);
    assert_null(td_prompts_next(p, NULL));
    td_prompt_destroy(&q);
    td_prompts_close(&p);
}

static void test_streams_come_from_seed_and_id(void **state)
{
    (void)state;
    td_run_params params = defaults();
    td_prompt *q[5];
    static const char text[] =
        "{\"id\":\"a\",\"prompt\":\"p\"}\n{\"id\":\"b\",\"prompt\":\"p\"}\n{\"prompt\":\"p\"}\n"
        "{\"prompt\":\"p\"}\n{\"id\":\"a\",\"prompt\":\"other\"}\n";
    assert_int_equal(read_all(&params, text, strlen(text), q, 5), 5);
    uint64_t streams[5];
    for (uint32_t i = 0; i < 5; i++) {
        streams[i] = q[i]->stream;
        td_prompt_destroy(&q[i]);
    }
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t k = 0; k < i; k++)
            assert_true(streams[i] != streams[k]);
    assert_true(streams[4] == streams[0]); /* whatever the line's number and text */
    params.seed = 43;
    td_prompt *other = read_one(&params, "{\"id\":\"a\",\"prompt\":\"p\"}");
    assert_true(other->stream != streams[0]);
    td_prompt_destroy(&other);
}

static void test_messages_are_read_and_hashed(void **state)
{
    (void)state;
    td_run_params params = defaults();
    char sha[4][TD_SHA_HEX + 1];
    static const char *const lines[] = {
        "{\"messages\":[{\"role\":\"system\",\"content\":\"Be \\u00e4.\"},{\"role\":\"tool\","
        "\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"bc\"}]}],"
        "\"seed\":1}",
        "{\"messages\":[{\"role\":\"system\",\"content\":\"Be \\u00e4.\"},{\"role\":\"user\","
        "\"content\":\"abc\"}],\"seed\":1}",
        "{\"messages\":[{\"role\":\"system\",\"content\":\"Be \\u00e4.a\"},{\"role\":\"user\","
        "\"content\":\"bc\"}],\"seed\":1}",
    };
    td_prompt *q = read_one(&params, lines[0]);
    assert_int_equal(q->err.code, TD_OK);
    assert_int_equal(q->n_text, 0);
    assert_string_equal(q->chat.messages,
                        "[{\"role\":\"system\",\"content\":\"Be \xc3\xa4.\"},{\"role\":\"tool\","
                        "\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\","
                        "\"text\":\"bc\"}]}]");
    assert_null(q->chat.tools);
    td_prompt_destroy(&q);
    static const char with_tools[] =
        "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"n\":1.0}],"
        "\"name\":\"x\"}],\"tools\":[{\"a\":[1,-2,true,null,{}]}],"
        "\"chat_template_kwargs\":{\"enable_thinking\":false}}";
    q = read_one(&params, with_tools);
    assert_int_equal(q->err.code, TD_OK);
    assert_string_equal(q->chat.messages, "[{\"role\":\"assistant\",\"content\":null,"
                                          "\"tool_calls\":[{\"n\":1.0}],\"name\":\"x\"}]");
    assert_string_equal(q->chat.tools, "[{\"a\":[1,-2,true,null,{}]}]");
    assert_string_equal(q->chat.kwargs, "{\"enable_thinking\":false}");
    td_prompt_destroy(&q);
    /* Another role, another cut, other tools: another input. */
    for (size_t i = 0; i < 4; i++) {
        q = read_one(&params, i == 3 ? with_tools : lines[i]);
        memcpy(sha[i], q->input_sha, sizeof sha[i]);
        td_prompt_destroy(&q);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(sha[i], sha[k]);
    }
}

static void test_bad_lines_are_errors_of_their_own(void **state)
{
    (void)state;
    static const struct {
        const char *line, *part;
    } cases[] = {
        {"{}", "prompt"},
        {"[]", "object"},
        {"{\"prompt\":\"p\"", "/"}, /* the file's name at least */
        {"{\"prompt\":\"p\"} x", ":2"},
        {"{\"prompt\":5}", "prompt"},
        {"{\"prompt\":null}", "prompt"},
        {"{\"prompt\":\"a\\u0000b\"}", ":2"},
        {"{\"prompt\":\"\xff\"}", ":2"},
        {"{\"prompt\":\"p\",\"prompt\":\"q\"}", "prompt"},
        {"{\"promt\":\"p\"}", "promt"},
        {"{\"prompt\":\"p\",\"temperature\":1}", "temperature"},
        {"{\"prompt\":\"p\",\"n\":0}", "n"},
        {"{\"prompt\":\"p\",\"n\":-1}", "1..16777216"},
        {"{\"prompt\":\"p\",\"n\":1000000000}", "1..16777216"},
        {"{\"prompt\":\"p\",\"n\":1.5}", "n"},
        {"{\"prompt\":\"p\",\"n\":\"5\"}", "n"},
        {"{\"prompt\":\"p\",\"temp\":-0.1}", "temp"},
        {"{\"prompt\":\"p\",\"temp\":101}", "temp"},
        {"{\"prompt\":\"p\",\"temp\":1e999}", ":2"},
        {"{\"prompt\":\"p\",\"temp\":NaN}", ":2"},
        {"{\"prompt\":\"p\",\"top_k\":-1}", "top_k"},
        {"{\"prompt\":\"p\",\"top_p\":1.1}", "top_p"},
        {"{\"prompt\":\"p\",\"top_p\":0}", "top_p is 0; it must be above 0"},
        {"{\"prompt\":\"p\",\"top_p\":1e-60}", "top_p is 0"}, /* as a float */
        {"{\"prompt\":\"p\",\"min_p\":1}", "min_p is 1; it must be below 1"},
        {"{\"prompt\":\"p\",\"min_p\":0.99999999999}", "min_p is 1"},
        {"{\"prompt\":\"p\",\"repeat_penalty\":0}", "repeat_penalty"},
        {"{\"prompt\":\"p\",\"seed\":-1}", "seed"},
        {"{\"prompt\":\"p\",\"seed\":18446744073709551615}", ":2"},
        {"{\"prompt\":\"p\",\"seed\":1.0}", "seed"},
        {"{\"prompt\":\"p\",\"stop\":\"\"}", "stop"},
        {"{\"prompt\":\"p\",\"stop\":[\"a\",\"\"]}", "stop"},
        {"{\"prompt\":\"p\",\"stop\":[1]}", "stop"},
        {"{\"prompt\":\"p\",\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\","
         "\"11\",\"12\","
         "\"13\",\"14\",\"15\",\"16\",\"17\"]}",
         "stop"},
        {"{\"prompt\":\"p\",\"id\":\"\"}", "id"},
        {"{\"prompt\":\"p\",\"id\":5}", "id"},
        {"{\"id\":\"x\"}", "neither \"prompt\" nor \"messages\""},
        {"{\"prompt\":\"p\",\"messages\":[{\"role\":\"user\",\"content\":\"c\"}]}", "both"},
        {"{\"messages\":[]}", "messages: an empty list; allowed: 1..4096"},
        {"{\"messages\":{}}", "messages"},
        {"{\"messages\":[5]}", "messages[0]"},
        {"{\"messages\":[{\"role\":\"user\"}]}", "messages[0]: the key \"content\""},
        {"{\"messages\":[{\"content\":\"c\"}]}", "messages[0]: the key \"role\""},
        {"{\"messages\":[{\"role\":\"\",\"content\":\"c\"}]}", "messages[0].role"},
        {"{\"messages\":[{\"role\":4,\"content\":\"c\"}]}", "messages[0].role"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":5}]}", "messages[0].content is 5"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}],\"special\":true}", "special"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}],\"tools\":{}}", "tools"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}],\"tools\":[1]}", "tools[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}],\"chat_template_kwargs\":[]}",
         "chat_template_kwargs"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"c\"}],\"chat_template_kwargs\":"
         "{\"tools\":1}}",
         "chat_template_kwargs.tools"},
        {"{\"prompt\":\"p\",\"tools\":[]}", "tools: without \"messages\""},
        {"{\"prompt\":\"p\",\"special\":1}", "special"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"text\":\"\"}]}]}",
         "messages[0].content[0].type"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
         "messages[0].content[0]: the key \"text\""},
        {"null", "expected near 'null'"},
        {"prompt", ":2"},
    };
    td_run_params params = defaults();
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        char text[1024];
        td_prompt *q[3];
        int n = snprintf(text, sizeof text, "{\"prompt\":\"before\"}\n%s\n{\"prompt\":\"after\"}\n",
                         cases[i].line);
        assert_int_equal(read_all(&params, text, (size_t)n, q, 3), 3);
        assert_int_equal(q[0]->err.code, TD_OK);
        assert_int_equal(q[2]->err.code, TD_OK);
        assert_int_equal(q[2]->line, 3);
        if (q[1]->err.code != TD_E_DATA || !strstr(q[1]->err.message, cases[i].part) ||
            !strstr(q[1]->err.message, ":2"))
            fail_msg("%s: \"%s\" lacks \"%s\" or :2", cases[i].line, q[1]->err.message,
                     cases[i].part);
        assert_int_equal(strlen(q[1]->input_sha), TD_SHA_HEX);
        if (!strstr(cases[i].line, "\"id\":\"x\""))
            assert_ptr_equal(strstr(q[1]->id, "line-2-"), q[1]->id);
        for (uint32_t k = 0; k < 3; k++)
            td_prompt_destroy(&q[k]);
    }
}

static void test_long_ids_and_stops_have_limits(void **state)
{
    (void)state;
    td_run_params params = defaults();
    static const struct {
        const char *key;
        size_t max;
    } cases[] = {{"id", TD_PROMPT_ID_MAX}, {"stop", TD_STOP_BYTES_MAX}};
    for (size_t i = 0; i < TD_COUNT(cases); i++)
        for (size_t more = 0; more < 2; more++) {
            char value[512] = "", line[1024];
            memset(value, 'x', cases[i].max + more);
            snprintf(line, sizeof line, "{\"prompt\":\"p\",\"%s\":\"%s\"}", cases[i].key, value);
            td_prompt *q = read_one(&params, line);
            assert_int_equal(q->err.code, more ? TD_E_DATA : TD_OK);
            if (!more)
                assert_string_equal(i ? q->stops[0] : q->id, value);
            td_prompt_destroy(&q);
        }
}

static void test_line_ends_marks_and_blanks_are_passed_over(void **state)
{
    (void)state;
    td_run_params params = defaults();
    static const char text[] =
        "\xef\xbb\xbf{\"prompt\":\"a\"}\r\n\n \t\r\n{\"prompt\":\"b\"}\n\n{\"prompt\":\"c\"}";
    td_prompt *q[3];
    assert_int_equal(read_all(&params, text, strlen(text), q, 3), 3);
    static const uint64_t lines[] = {1, 4, 6};
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(q[i]->err.code, TD_OK);
        assert_int_equal(q[i]->line, lines[i]);
        assert_int_equal(q[i]->text[0], 'a' + (int)i);
        td_prompt_destroy(&q[i]);
    }
    td_prompts *p = td_prompts_open(&params, NULL, NULL);
    assert_int_equal(td_prompts_count(p), 3); /* for the progress line */
    td_prompts_close(&p);
    write_file(in_path, "", 0);
    assert_int_equal(read_all(&params, "", 0, q, 3), 0);
}

/* Two lines that are too long must not pass for one another, here and in the results. */
static void test_lines_that_are_too_long_are_told_apart(void **state)
{
    (void)state;
    const size_t n_line = TD_JSONL_LINE_MAX + 100;
    char *text = malloc(2 * n_line + 100);
    assert_non_null(text);
    size_t n = 0;
    for (int i = 0; i < 2; i++) {
        memset(text + n, 'x', n_line);
        n += n_line;
        text[n++] = '\n';
    }
    n += (size_t)sprintf(text + n, "{\"prompt\":\"p\"}");
    td_run_params params = defaults();
    td_prompt *q[3];
    assert_int_equal(read_all(&params, text, n, q, 3), 3);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(q[i]->err.code, TD_E_DATA);
        assert_int_equal(q[i]->line, i + 1);
        assert_non_null(strstr(q[i]->err.message, i ? "line 2 has" : "line 1 has"));
    }
    assert_string_not_equal(q[0]->id, q[1]->id);
    assert_int_equal(q[2]->err.code, TD_OK);
    assert_int_equal(q[2]->line, 3);
    for (uint32_t i = 0; i < 3; i++)
        td_prompt_destroy(&q[i]);
    free(text);
}

static void test_files_that_cannot_be_read_are_errors(void **state)
{
    (void)state;
    td_run_params params = defaults();
    td_err err = {0};
    params.in_path = "/nonexistent/prompts.jsonl";
    assert_null(td_prompts_open(&params, NULL, &err));
    assert_int_equal(err.code, TD_E_IO);
    assert_non_null(strstr(err.message, "/nonexistent/prompts.jsonl"));
    td_err_clear(&err);
    params.in_path = "/";
    assert_null(td_prompts_open(&params, NULL, &err));
    assert_int_equal(err.code, TD_E_DATA);
}

static void sha_of(const td_run_params *params, const char *line, char sha[TD_SHA_HEX + 1])
{
    td_prompt *q = read_one(params, line);
    assert_int_equal(q->err.code, TD_OK);
    memcpy(sha, q->input_sha, TD_SHA_HEX + 1);
    td_prompt_destroy(&q);
}

static void test_input_hash_tells_inputs_apart(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "{\"id\":\"a\",\"prompt\":\"p\"}",
        "{\"id\":\"b\",\"prompt\":\"p\"}", /* another stream */
        "{\"id\":\"a\",\"prompt\":\"p \"}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"n\":255}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"temp\":0.80001}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"top_k\":1}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"top_p\":0.9}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"min_p\":0.1}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"repeat_penalty\":1.1}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"seed\":1}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"stop\":[]}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"stop\":[\"ab\",\"c\"]}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"stop\":[\"a\",\"bc\"]}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"stop\":\"abc\"}",
        "{\"id\":\"a\",\"prompt\":\"p\",\"stop\":[\"c\",\"ab\"]}",
    };
    enum { N = TD_COUNT(lines) };
    td_run_params params = defaults();
    char shas[N + 2][TD_SHA_HEX + 1], again[TD_SHA_HEX + 1];
    for (size_t i = 0; i < N; i++) {
        sha_of(&params, lines[i], shas[i]);
        assert_int_equal(strspn(shas[i], "0123456789abcdef"), TD_SHA_HEX);
        sha_of(&params, lines[i], again);
        assert_string_equal(shas[i], again);
    }
    /* What the run says counts too; how the line is written does not. */
    sha_of(&params, " {\"n\": 256, \"prompt\":\"\\u0070\",  \"id\":\"a\", \"temp\": 0.8}", again);
    assert_string_equal(again, shas[0]);
    params.seed = 43;
    sha_of(&params, lines[0], shas[N]);
    params.seed = 42;
    params.sampling.temperature = 0.7f;
    sha_of(&params, lines[0], shas[N + 1]);
    for (size_t i = 0; i < N + 2; i++)
        for (size_t k = 0; k < i; k++)
            if (!strcmp(shas[i], shas[k]))
                fail_msg("inputs %zu and %zu have one hash", i, k);
}

static void test_prompts_survive_every_failing_allocation(void **state)
{
    (void)state;
    td_run_params params = defaults();
    static const char text[] = "{\"prompt\":\"p\",\"id\":\"i\",\"stop\":[\"a\",\"b\"]}\nbad\n";
    write_file(in_path, text, strlen(text));
    uint64_t n = 0;
    for (bool is_ok = false; !is_ok;) {
        td_err err = {0};
        bool is_short = false;
        td_alloc_fail_at(++n);
        td_prompts *p = td_prompts_open(&params, NULL, &err);
        for (td_prompt *q; p && (q = td_prompts_next(p, &err)); td_prompt_destroy(&q))
            is_short |= q->err.code == TD_E_NOMEM; /* told of a line instead */
        td_alloc_fail_at(0);
        is_ok = err.code == TD_OK && !is_short;
        if (err.code != TD_OK && err.code != TD_E_NOMEM)
            fail_msg("allocation %u: %s", (unsigned)n, err.message);
        td_prompts_close(&p);
    }
    assert_true(n > 6);
}

/* -- results ----------------------------------------------------------------------------------- */

static td_results *open_results(void)
{
    td_run_params params = defaults();
    td_err err = {0};
    td_results *r = td_results_open(&params, NULL, &err);
    if (!r)
        fail_msg("%s", err.message);
    return r;
}

static void write_result(td_results *r, const char *id, const char *error, const char *text,
                         size_t n_text)
{
    static const uint32_t tokens[] = {1, 4294967295u};
    td_err err = {0};
    if (!td_results_write(r,
                          &(td_result){.id = id,
                                       .is_ok = !error,
                                       .text = text,
                                       .n_text = n_text,
                                       .tokens = tokens,
                                       .n_tokens = error ? 0 : 2,
                                       .error = error,
                                       .reason = TD_REASON_EOS,
                                       .n_drafted = 5,
                                       .n_accepted = 4,
                                       .n_rounds = 3,
                                       .n_prompt_tokens = 2,
                                       .ttft_ms = 1.5,
                                       .ms = 2.25,
                                       .finished_s = 1796000000.1256,
                                       .input_sha = "0123456789abcdef",
                                       .config_sha = "c",
                                       .model_sha = "m",
                                       .placement = "host@0-1"},
                          &err))
        fail_msg("%s", err.message);
}

static td_result_state claim(td_results *r, const char *id, const char *input, const char *config,
                             const char *part)
{
    char why[512] = "";
    td_err err = {0};
    td_result_state s = td_results_claim(r, id, input, config, why, sizeof why, &err);
    assert_int_equal(err.code, TD_OK);
    if (!strstr(why, part))
        fail_msg("\"%s\" lacks \"%s\"", why, part);
    return s;
}

static size_t read_back(char *text, size_t n_max)
{
    int fd = open(out_path, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, n_max - 1);
    close(fd);
    assert_true(n >= 0);
    text[n] = 0;
    return (size_t)n;
}

static void test_a_result_is_one_stable_line(void **state)
{
    (void)state;
    unlink(out_path);
    td_results *r = open_results();
    write_result(r, "i\"d", NULL, "a\xff\xc3\xa4\n\0b", 7);
    write_result(r, "e", "went wrong", NULL, 0);
    assert_true(td_results_close(&r, NULL));
    assert_null(r);
    char text[2048];
    read_back(text, sizeof text);
    assert_string_equal(
        text,
        "{\"id\":\"i\\\"d\",\"status\":\"ok\",\"text\":\"a\xef\xbf\xbd\xc3\xa4\\n\xef\xbf\xbd"
        "b\",\"tokens\":[1,4294967295],"
        "\"reason\":\"eos\",\"error\":null,\"drafted\":5,\"accepted\":4,\"rounds\":3,\"prompt_"
        "tokens\":2,"
        "\"ttft_ms\":1.5,\"ms\":2.25,\"finished_s\":1796000000.125,"
        "\"input_sha\":\"0123456789abcdef\",\"config_sha\":\"c\","
        "\"model_sha\":\"m\",\"placement\":\"host@0-1\",\"config\":\"\"}\n"
        "{\"id\":\"e\",\"status\":\"error\",\"text\":\"\",\"tokens\":[],\"reason\":null,\"error\":"
        "\"went wrong\","
        "\"drafted\":5,\"accepted\":4,\"rounds\":3,\"prompt_tokens\":2,\"ttft_ms\":1.5,\"ms\":2.25,"
        "\"finished_s\":1796000000.125,"
        "\"input_sha\":\"0123456789abcdef\",\"config_sha\":\"c\",\"model_sha\":\"m\",\"placement\":"
        "\"host@0-1\",\"config\":\"\"}\n");
}

static void test_results_are_found_again(void **state)
{
    (void)state;
    static const char sha[] = "0123456789abcdef";
    unlink(out_path);
    td_results *r = open_results();
    assert_int_equal(claim(r, "new", sha, "c", ""), TD_RESULT_NONE);
    assert_int_equal(claim(r, "new", sha, "c", ""),
                     TD_RESULT_TWICE); /* though nothing is written yet */
    write_result(r, "new", NULL, "t", 1);
    write_result(r, "bad", "e", NULL, 0);
    write_result(r, "mended", "e", NULL, 0);
    write_result(r, "mended", NULL, "t", 1); /* retried: the later line counts */
    write_result(r, "other", NULL, "t", 1);
    for (int i = 0; i < 2000; i++) { /* the table grows */
        char id[32];
        snprintf(id, sizeof id, "many-%d", i);
        write_result(r, id, NULL, "t", 1);
    }
    assert_true(td_results_close(&r, NULL));
    r = open_results();
    assert_int_equal(claim(r, "new", sha, "c", ""), TD_RESULT_DONE);
    assert_int_equal(claim(r, "new", sha, "c", ""), TD_RESULT_TWICE);
    assert_int_equal(claim(r, "bad", sha, "c", ""), TD_RESULT_ERROR);
    assert_int_equal(claim(r, "mended", sha, "c", ""), TD_RESULT_DONE);
    assert_int_equal(claim(r, "other", "fedcba9876543210", "c",
                           "other: the result there is of another input (0123456789abcdef there, "
                           "fedcba9876543210 now)"),
                     TD_RESULT_OTHER);
    assert_int_equal(claim(r, "many-7", sha, "d", "of another configuration (c there, d now)"),
                     TD_RESULT_OTHER);
    assert_int_equal(claim(r, "many-1999", sha, "c", ""), TD_RESULT_DONE);
    assert_int_equal(claim(r, "unknown", sha, "c", ""), TD_RESULT_NONE);
    assert_true(td_results_close(&r, NULL));
}

static void expect_difference(const char *there, const char *now, const char *wanted)
{
    char what[256];
    td_identity_compare(there, now, what, sizeof what);
    assert_string_equal(what, wanted);
}

static void test_what_differs_is_named_by_part(void **state)
{
    (void)state;
    expect_difference("a=1; b=x; c=", "a=1; b=x; c=", "");
    expect_difference("a=1; b=x", "a=1; b=y z", "b is \"x\" there and \"y z\" now");
    expect_difference("a=1; b=x; c=3", "a=2; b=x; c=4",
                      "a is \"1\" there and \"2\" now, c is \"3\" there and \"4\" now");
    expect_difference("ab=1", "a=1; b=1", ""); /* parts that the other lacks cannot be compared */
    /* but for one that is only there where it is unusual */
    expect_difference("a=1; wire=F16@5", "a=1; wire=F16@4,7",
                      "wire is \"F16@5\" there and \"F16@4,7\" now");
    expect_difference("a=1; wire=F16@5", "a=1", "wire is \"F16@5\" there and \"F32\" now");
    expect_difference("a=1", "wire=F16@5; a=1", "wire is \"F32\" there and \"F16@5\" now");
    expect_difference("a=", "a=1", "a is \"\" there and \"1\" now");
    /* Whatever a file says. */
    expect_difference("", "a=1", "");
    expect_difference("; ; =; ;a=", "a=1", "");
    expect_difference("a=1; a=2", "a=2", "a is \"1\" there and \"2\" now");
    char small[16];
    td_identity_compare("a=11111111111111", "a=2", small, sizeof small);
    assert_int_equal(strlen(small), sizeof small - 1);
}

static void test_a_torn_tail_is_removed(void **state)
{
    (void)state;
    unlink(out_path);
    td_results *r = open_results();
    write_result(r, "a", NULL, "t", 1);
    write_result(r, "b", NULL, "t", 1);
    assert_true(td_results_close(&r, NULL));
    char text[2048];
    size_t n = read_back(text, sizeof text), n_first = (size_t)(strchr(text, '\n') - text) + 1;
    td_log_set_level(TD_LOG_ERROR);
    for (size_t cut = n_first + 1; cut < n; cut += 13) {
        write_file(out_path, text, cut);
        r = open_results();
        assert_int_equal(claim(r, "a", "0123456789abcdef", "c", ""), TD_RESULT_DONE);
        assert_int_equal(claim(r, "b", "0123456789abcdef", "c", ""), TD_RESULT_NONE);
        write_result(r, "b", NULL, "t", 1);
        assert_true(td_results_close(&r, NULL));
        char now[2048];
        assert_int_equal(read_back(now, sizeof now), n);
        assert_memory_equal(now, text, n);
    }
    td_log_set_level(TD_LOG_INFO);
}

static void test_files_that_hold_no_results_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"{\"id\":\"a\"}\n", "result line 1 at byte 0"},
        {"{\"id\":\"a\",\"status\":\"fine\",\"input_sha\":\"1\",\"config_sha\":\"1\"}\n", "status"},
        {"{\"id\":\"a\",\"status\":\"ok\",\"input_sha\":\"12345678901234567\",\"config_sha\":\"1\"}"
         "\n",
         "input_sha"},
        {"{\"id\":5,\"status\":\"ok\",\"input_sha\":\"1\",\"config_sha\":\"1\"}\n", "id"},
        {"{\"id\":\"a\",\n{\"id\":\"a\",\"status\":\"ok\",\"input_sha\":\"1\",\"config_sha\":\"1\"}"
         "\n",
         "line 1"},
        {"some text that is not ours", "/"},
    };
    td_run_params params = defaults();
    for (size_t i = 0; i < TD_COUNT(cases); i++) {
        write_file(out_path, cases[i].text, strlen(cases[i].text));
        td_err err = {0};
        td_results *r = td_results_open(&params, NULL, &err);
        if (r)
            fail_msg("taken: %s", cases[i].text);
        assert_int_equal(err.code, TD_E_DATA);
        if (!strstr(err.message, cases[i].part))
            fail_msg("\"%s\" lacks \"%s\"", err.message, cases[i].part);
        char text[2048];
        assert_int_equal(read_back(text, sizeof text), strlen(cases[i].text)); /* and left alone */
    }
}

static void test_a_second_run_on_the_file_is_refused(void **state)
{
    (void)state;
    unlink(out_path);
    td_results *r = open_results();
    td_run_params params = defaults();
    td_err err = {0};
    assert_null(td_results_open(&params, NULL, &err));
    assert_int_equal(err.code, TD_E_AGAIN);
    assert_true(td_results_close(&r, NULL));
    params.out_path = params.in_path = NULL; /* one prompt's text goes to stdout: no JSON */
    r = td_results_open(&params, NULL, &err);
    assert_non_null(r);
    write_result(r, "a", NULL, "t", 1);
    assert_int_equal(claim(r, "b", "s", "c", ""), TD_RESULT_NONE);
    assert_true(td_results_poll(r, NULL));
    assert_true(td_results_close(&r, NULL));
}

int main(void)
{
    snprintf(in_path, sizeof in_path, "/tmp/unit_run_%ld.in", (long)getpid());
    snprintf(out_path, sizeof out_path, "/tmp/unit_run_%ld.out", (long)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_prompt_takes_every_field),
        cmocka_unit_test(test_a_prompt_keeps_the_runs_settings),
        cmocka_unit_test(test_streams_come_from_seed_and_id),
        cmocka_unit_test(test_messages_are_read_and_hashed),
        cmocka_unit_test(test_bad_lines_are_errors_of_their_own),
        cmocka_unit_test(test_long_ids_and_stops_have_limits),
        cmocka_unit_test(test_line_ends_marks_and_blanks_are_passed_over),
        cmocka_unit_test(test_lines_that_are_too_long_are_told_apart),
        cmocka_unit_test(test_files_that_cannot_be_read_are_errors),
        cmocka_unit_test(test_input_hash_tells_inputs_apart),
        cmocka_unit_test(test_prompts_survive_every_failing_allocation),
        cmocka_unit_test(test_a_result_is_one_stable_line),
        cmocka_unit_test(test_results_are_found_again),
        cmocka_unit_test(test_what_differs_is_named_by_part),
        cmocka_unit_test(test_a_torn_tail_is_removed),
        cmocka_unit_test(test_files_that_hold_no_results_are_refused),
        cmocka_unit_test(test_a_second_run_on_the_file_is_refused),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(in_path);
    unlink(out_path);
    return rc;
}
