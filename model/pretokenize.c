/* The table of pre-tokenizers and the loop that applies their stages.
 *
 * Stages are composed by marks in the text itself: a stage sees each word of the stage before and
 * may cut it further, so a chain needs no lists and no memory. */
#include "model/pretokenize.h"

#include "base/check.h"
#include "model/pretokenize_stages.h"
#include "model/unicode.h"

#include <string.h>

/* clang-format off */
#define GPT2 {td_pretokenize_gpt2}
#define LLAMA3 {td_pretokenize_llama3}
#define QWEN2 {td_pretokenize_qwen2}
#define GPT4O {td_pretokenize_gpt4o}
#define STOPS {td_pretokenize_between_stops}
#define DIGIT_GPT2 {td_pretokenize_digit, td_pretokenize_gpt2}
#define DEEPSEEK_V3 \
    {td_pretokenize_number_triples, td_pretokenize_cjk_kana, td_pretokenize_deepseek_v3}
/* clang-format on */

static const td_pretokenizer known[] = {
    {"default",
     {td_pretokenize_punctuation, td_pretokenize_gpt2, td_pretokenize_numbers,
      td_pretokenize_ascii_triples},
     false,
     false},

    {"gpt-2", GPT2, false, false},
    {"phi-2", GPT2, false, false},
    {"mpt", GPT2, false, false},
    {"olmo", GPT2, false, false},
    {"jais", GPT2, false, false},
    {"exaone4", GPT2, false, false},
    {"gigachat", GPT2, false, false},
    {"trillion", GPT2, false, false},
    {"granite-docling", GPT2, false, false},
    {"mellum", GPT2, false, false},
    {"a.x-4.0", GPT2, false, false},

    {"falcon",
     {td_pretokenize_punctuation_backtick, td_pretokenize_gpt2, td_pretokenize_ascii_triples},
     false,
     false},
    {"bloom", STOPS, false, false},
    {"poro-chat", STOPS, false, false},
    {"gpt3-finnish", STOPS, false, false},
    {"viking", {td_pretokenize_between_stops, td_pretokenize_digit}, false, false},
    {"superbpe", {td_pretokenize_numbers, td_pretokenize_thousands}, false, false},

    {"starcoder", DIGIT_GPT2, false, false},
    {"refact", DIGIT_GPT2, false, false},
    {"command-r", DIGIT_GPT2, false, false},
    {"smollm", DIGIT_GPT2, false, false},
    {"codeshell", DIGIT_GPT2, false, false},
    {"exaone", DIGIT_GPT2, false, false},
    {"minerva-7b", DIGIT_GPT2, false, false},
    {"mellum2", DIGIT_GPT2, false, false},

    {"llama-bpe", LLAMA3, true, true},
    {"llama3", LLAMA3, true, true},
    {"llama-v3", LLAMA3, true, true},
    {"falcon3", LLAMA3, true, true},
    {"falcon-h1", LLAMA3, true, true},
    {"pixtral", LLAMA3, true, true},
    {"midm-2.0", LLAMA3, true, true},
    {"lfm2", LLAMA3, true, true},
    {"glm4", LLAMA3, false, false},
    {"chatglm-bpe", LLAMA3, false, false},
    {"dbrx", LLAMA3, false, false},
    {"smaug-bpe", LLAMA3, false, false},

    {"qwen2", QWEN2, false, false},
    {"deepseek-r1-qwen", QWEN2, false, false},
    {"kormo", QWEN2, false, false},
    {"f2llmv2", QWEN2, false, false},
    {"megrez", QWEN2, false, false},
    {"stablelm2", QWEN2, false, false},
    {"hunyuan", QWEN2, false, false},
    {"solar-open", QWEN2, false, false},
    {"grok-2", QWEN2, false, false},
    {"bailingmoe", QWEN2, false, false},
    {"bailingmoe2", QWEN2, false, false},
    {"llada-moe", QWEN2, false, false},
    {"seed-coder", {td_pretokenize_seed_coder}, false, false},
    {"qwen35", {td_pretokenize_qwen35}, false, false},

    {"deepseek-llm",
     {td_pretokenize_line_ends, td_pretokenize_western_words, td_pretokenize_ascii_and_marks,
      td_pretokenize_trailing_space, td_pretokenize_cjk_hangul, td_pretokenize_numbers},
     false,
     false},
    {"deepseek-coder",
     {td_pretokenize_line_ends, td_pretokenize_spaced_letters, td_pretokenize_spaced_punctuation,
      td_pretokenize_cjk_hangul, td_pretokenize_digit},
     false,
     false},
    {"deepseek-v3", DEEPSEEK_V3, false, false},
    {"hunyuan-dense", DEEPSEEK_V3, false, false},
    {"joyai-llm", DEEPSEEK_V3, false, false},
    {"hy_v4", DEEPSEEK_V3, false, false},

    {"gpt-4o", GPT4O, false, false},
    {"llama4", GPT4O, false, false},
    {"kanana2", GPT4O, false, false},
    {"talkie", GPT4O, false, false},
    {"minimax-m2", GPT4O, false, false},
    {"gemma4", {td_pretokenize_lines}, false, true},
    {"tekken", {td_pretokenize_tekken}, true, true},
    {"kimi-k2", {td_pretokenize_kimi_k2}, false, false},
};

const td_pretokenizer *td_pretokenize_find(const char *name)
{
    for (size_t i = 0; i < TD_COUNT(known); i++) {
        if (strcmp(known[i].name, name) == 0)
            return &known[i];
    }
    return NULL;
}

const char *td_pretokenize_name(size_t i) { return i < TD_COUNT(known) ? known[i].name : NULL; }

td_char td_pretokenize_char(uint32_t codepoint)
{
    return codepoint | (td_unicode_class(codepoint) << TD_CHAR_CLASS_SHIFT);
}

void td_pretokenize_run(const td_pretokenizer *p, td_char *chars, size_t n)
{
    for (size_t i = 0; i < n; i++)
        chars[i] &= ~TD_CHAR_CUT;
    if (n > 0)
        chars[0] |= TD_CHAR_CUT;
    for (size_t s = 0; s < TD_PRETOKENIZE_STAGES && p->stages[s] != NULL; s++) {
        size_t begin = 0;
        while (begin < n) {
            size_t end = begin + 1; /* found before the stage adds marks of its own */
            while (end < n && (chars[end] & TD_CHAR_CUT) == 0)
                end++;
            p->stages[s](chars, begin, end);
            begin = end;
        }
    }
}
