/* Special tokens: which they are, and finding them in a text.
 *
 * Files do not say which tokens end a turn, so tokens are recognised by their text too, as the
 * reference does; the lists below are its lists.
 *
 * In a text longer tokens win over shorter ones wherever they stand, so the text is cut at tokens
 * of one length at a time, longest first. Each length is one pass over what is still raw;
 * where its tokens all begin with one byte ('<', mostly), from one such byte to the next. */
#include "model/tokenizer_private.h"

#include "base/check.h"
#include "base/mem.h"

#include <string.h>

#define NONE UINT32_MAX

/* Ids that the file may give, and the texts that stand for one that it does not give. */
enum { EOT, EOM, FIM_PRE, FIM_SUF, FIM_MID, FIM_PAD, FIM_REP, FIM_SEP, ROLES };

typedef struct {
    const char *keys[2];
    bool ends;             /* ends a generation */
    const char *texts[12]; /* the first that the vocabulary has */
} role;

static const role roles[ROLES] = {
    [EOT] = {{"tokenizer.ggml.eot_token_id"},
             true,
             {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",
              "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]", "<｜end▁of▁sentence｜>",
              "<end_of_utterance>"}},
    [EOM] = {{"tokenizer.ggml.eom_token_id"}, true, {"<|eom_id|>"}},
    [FIM_PRE] = {{"tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"},
                 false,
                 {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>",
                  "▁<PRE>", "<|code_prefix|>", "<|prefix|>"}},
    [FIM_SUF] = {{"tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"},
                 false,
                 {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>",
                  "▁<SUF>", "<|code_suffix|>", "<|suffix|>"}},
    [FIM_MID] = {{"tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"},
                 false,
                 {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
                  "▁<MID>", "<|code_middle|>", "<|middle|>"}},
    [FIM_PAD] = {{"tokenizer.ggml.fim_pad_token_id"},
                 true,
                 {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
    [FIM_REP] = {{"tokenizer.ggml.fim_rep_token_id"},
                 true,
                 {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
    [FIM_SEP] = {{"tokenizer.ggml.fim_sep_token_id"}, true, {"<|file_sep|>"}},
};

/* Further tokens that end a generation. */
static const char *const ending_texts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
};

/* Tokens of the harmony format, always shown. */
static const char *const harmony_texts[] = {"<|channel|>", "<|message|>", "<|start|>",
                                            "<|constrain|>"};

static uint32_t find_text(const td_tokenizer *t, const char *text)
{
    return td_vocab_table_find(&t->specials, t->tokens, text, strlen(text));
}

/* An id that the file may give; one out of range counts as not given. */
static bool read_role_id(const td_tokenizer *t, const td_gguf *g, const char *key, uint32_t *id,
                         td_err *err)
{
    if (key == NULL || !td_gguf_has(g, key))
        return true;
    uint32_t value;
    if (!td_gguf_get_u32(g, key, &value, err))
        return false;
    if (value < t->info.n_vocab)
        *id = value;
    return true;
}

/* A token that is shown as text. What the file calls a control token stays one in that only the
 * chat template may write it. */
static void show(td_vocab_token *token, int also)
{
    bool was_control = (token->attr & (TD_ATTR_CONTROL | TD_ATTR_SHOWN)) != 0;
    token->attr = (uint8_t)(TD_ATTR_USER | also | (was_control ? TD_ATTR_SHOWN : 0));
}

static void mark_ends(td_tokenizer *t)
{
    for (size_t i = 0; i < TD_COUNT(ending_texts); i++) {
        uint32_t id = find_text(t, ending_texts[i]);
        if (id != TD_NO_TOKEN)
            t->tokens[id].attr |= TD_ATTR_END | TD_ATTR_CONTROL;
    }
    for (size_t i = 0; i < TD_COUNT(harmony_texts); i++) {
        uint32_t id = find_text(t, harmony_texts[i]);
        if (id != TD_NO_TOKEN)
            show(&t->tokens[id], t->tokens[id].attr & TD_ATTR_END);
    }
    const uint32_t also[] = {t->info.eos, t->info.eot};
    for (size_t i = 0; i < TD_COUNT(also); i++) {
        if (also[i] != TD_NO_TOKEN)
            t->tokens[also[i]].attr |= TD_ATTR_END;
    }
}

static bool is_end(const td_tokenizer *t, const char *text)
{
    uint32_t id = find_text(t, text);
    return id != TD_NO_TOKEN && (t->tokens[id].attr & TD_ATTR_END) != 0;
}

/* Vocabularies in which one of the ending tokens is an ordinary one. */
static void unmark_ends(td_tokenizer *t)
{
    bool calls = is_end(t, "<|call|>") || is_end(t, "<|calls|>");
    if (calls && is_end(t, "<|end|>") && (is_end(t, "<|return|>") || is_end(t, "<|flush|>")))
        show(&t->tokens[find_text(t, "<|end|>")], 0);
    if (is_end(t, "<|tool_response>") && is_end(t, "</s>"))
        t->tokens[find_text(t, "</s>")].attr = TD_ATTR_NORMAL;
}

bool td_special_classify(td_tokenizer *t, const td_gguf *g, td_err *err)
{
    for (int r = 0; r < ROLES; r++) {
        uint32_t id = TD_NO_TOKEN;
        if (!read_role_id(t, g, roles[r].keys[0], &id, err) ||
            !read_role_id(t, g, roles[r].keys[1], &id, err))
            return false;
        for (size_t i = 0; id == TD_NO_TOKEN && roles[r].texts[i] != NULL; i++) {
            id = find_text(t, roles[r].texts[i]);
            if (id != TD_NO_TOKEN)
                t->tokens[id].attr |= TD_ATTR_CONTROL;
        }
        if (id != TD_NO_TOKEN && roles[r].ends)
            t->tokens[id].attr |= TD_ATTR_END;
        if (r == EOT)
            t->info.eot = id;
    }
    mark_ends(t);
    unmark_ends(t);
    return true;
}

static bool is_special(const td_vocab_token *token)
{
    return (token->attr & (TD_ATTR_CONTROL | TD_ATTR_USER | TD_ATTR_UNKNOWN)) != 0 &&
           token->n_text > 0;
}

static bool is_user_only(const td_vocab_token *token)
{
    return (token->attr & (TD_ATTR_CONTROL | TD_ATTR_USER | TD_ATTR_UNKNOWN | TD_ATTR_SHOWN)) ==
           TD_ATTR_USER;
}

static void add_to_class(td_special_class *c, const td_vocab_token *token)
{
    unsigned char begin = (unsigned char)token->text[0];
    bool is_first = c->n_bytes == 0;
    c->n_bytes = token->n_text;
    c->first = is_first || c->first == begin ? begin : -1;
    c->begins[begin] = true;
    c->has_user |= is_user_only(token);
}

bool td_special_index(td_tokenizer *t, td_err *err)
{
    bool has_length[TD_TOKEN_MAX + 1] = {false};
    uint32_t class_of[TD_TOKEN_MAX + 1];
    for (uint32_t i = 0; i < t->info.n_vocab; i++) {
        if (is_special(&t->tokens[i]))
            has_length[t->tokens[i].n_text] = true;
    }
    for (uint32_t n = TD_TOKEN_MAX; n > 0; n--) {
        if (has_length[n])
            class_of[n] = t->n_classes++;
    }
    t->classes = td_alloc(t->n_classes, sizeof t->classes[0], err);
    if (t->classes == NULL)
        return false;
    memset(t->specials.slots, 0, t->specials.n_slots * sizeof t->specials.slots[0]);
    t->specials.max_key = 0;
    for (uint32_t i = 0; i < t->info.n_vocab; i++) {
        bool is_new;
        if (!is_special(&t->tokens[i]))
            continue;
        add_to_class(&t->classes[class_of[t->tokens[i].n_text]], &t->tokens[i]);
        if (!td_vocab_table_add(&t->specials, t->tokens, i, &is_new, err))
            return false;
    }
    return true;
}

typedef struct {
    td_text_part *parts;
    uint32_t n, max;
} part_list;

static bool add_part(part_list *l, td_text_part part, td_err *err)
{
    if (l->n == l->max) {
        uint32_t max = l->max == 0 ? 16 : l->max * 2;
        td_text_part *parts = td_realloc(l->parts, l->max, max, sizeof parts[0], err);
        if (parts == NULL)
            return false;
        l->parts = parts;
        l->max = max;
    }
    l->parts[l->n++] = part;
    return true;
}

/* Do begin..end-1 lie in one of the ranges? */
static bool is_within(const td_text_ranges *ranges, uint32_t begin, uint32_t end)
{
    uint32_t low = 0, high = ranges->n; /* the last range that begins at or before `begin` */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (ranges->items[middle].begin <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 && end <= ranges->items[low - 1].end;
}

/* The first token of the class at or after `from` that ends by `end`; its place in *at. */
static uint32_t find_in(const td_tokenizer *t, const td_special_class *c, const char *text,
                        uint32_t from, uint32_t end, const td_text_ranges *parsed, uint32_t *at)
{
    for (uint32_t i = from; end - i >= c->n_bytes; i++) {
        if (c->first >= 0) {
            const char *next = memchr(text + i, c->first, end - i - c->n_bytes + 1);
            if (next == NULL)
                return TD_NO_TOKEN;
            i = (uint32_t)(next - text);
        } else if (!c->begins[(unsigned char)text[i]]) {
            continue;
        }
        uint32_t id = td_vocab_table_find(&t->specials, t->tokens, text + i, c->n_bytes);
        if (id != TD_NO_TOKEN &&
            (is_user_only(&t->tokens[id]) || is_within(parsed, i, i + c->n_bytes))) {
            *at = i;
            return id;
        }
    }
    return TD_NO_TOKEN;
}

static bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Cuts the raw part i at tokens of one class. Removed text leaves an empty raw part. */
static bool split_part(part_list *l, uint32_t i, const td_tokenizer *t, const td_special_class *c,
                       const char *text, const td_text_ranges *parsed, td_err *err)
{
    for (;;) {
        uint32_t begin = l->parts[i].begin, end = l->parts[i].end, next = l->parts[i].next, at;
        if (end - begin < c->n_bytes)
            return true;
        uint32_t id = find_in(t, c, text, begin, end, parsed, &at);
        if (id == TD_NO_TOKEN)
            return true;
        uint32_t right = at + c->n_bytes;
        if ((t->tokens[id].attr & TD_ATTR_STRIP_RIGHT) != 0) {
            while (right < end && is_ascii_space(text[right]))
                right++;
        }
        if (!add_part(l, (td_text_part){at, at + c->n_bytes, id, l->n + 1}, err) ||
            !add_part(l, (td_text_part){right, end, TD_NO_TOKEN, next}, err))
            return false;
        l->parts[i].end = at;
        l->parts[i].next = l->n - 2;
        i = l->n - 1;
    }
}

bool td_special_split(const td_tokenizer *t, const char *text, uint32_t n_bytes,
                      const td_text_ranges *parsed, td_text_part **parts, td_err *err)
{
    part_list l = {0};
    if (!add_part(&l, (td_text_part){0, n_bytes, TD_NO_TOKEN, NONE}, err))
        return false;
    for (uint32_t k = 0; k < t->n_classes; k++) {
        const td_special_class *c = &t->classes[k];
        if (c->n_bytes > n_bytes || (parsed->n == 0 && !c->has_user))
            continue;
        for (uint32_t i = 0; i != NONE;) {
            uint32_t next = l.parts[i].next; /* the new parts need no second look */
            if (l.parts[i].id == TD_NO_TOKEN && !split_part(&l, i, t, c, text, parsed, err)) {
                td_free(l.parts);
                return false;
            }
            i = next;
        }
    }
    *parts = l.parts;
    return true;
}
