/* The scanners that pretokenize.c composes; private to the pre-tokenizers. Each is a
 * td_pretokenize_stage: it marks the words of chars[begin..end), never looking outside. */
#ifndef TD_MODEL_PRETOKENIZE_STAGES_H
#define TD_MODEL_PRETOKENIZE_STAGES_H

#include "model/pretokenize.h"

/* pretokenize_words.c: whole expressions, one alternative after another */
td_pretokenize_stage td_pretokenize_gpt2, td_pretokenize_llama3, td_pretokenize_qwen2,
    td_pretokenize_qwen35, td_pretokenize_gpt4o, td_pretokenize_tekken, td_pretokenize_kimi_k2,
    td_pretokenize_deepseek_v3, td_pretokenize_seed_coder;

/* pretokenize_runs.c: runs of one set of characters, used in chains */
td_pretokenize_stage td_pretokenize_punctuation, td_pretokenize_numbers,
    td_pretokenize_number_triples, td_pretokenize_ascii_triples, td_pretokenize_digit,
    td_pretokenize_line_ends, td_pretokenize_western_words, td_pretokenize_ascii_and_marks,
    td_pretokenize_trailing_space, td_pretokenize_cjk_hangul, td_pretokenize_cjk_kana,
    td_pretokenize_punctuation_backtick, td_pretokenize_spaced_letters,
    td_pretokenize_spaced_punctuation, td_pretokenize_between_stops, td_pretokenize_thousands,
    td_pretokenize_lines;

#endif
