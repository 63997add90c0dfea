/* Chat templates as a table, and the one routine that reads it.
 *
 * A template wraps each message by its role. What else occurs among the families: a system message
 * that opens the next user turn instead of having its own; text that is trimmed; a turn around a
 * run of tool results; a system message that is there even if nobody gave one; an empty block of
 * reasoning before an assistant's words of earlier turns. */
#include "model/chat.h"

#include "base/check.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>

const char *const td_chat_role_names[TD_CHAT_ROLE_COUNT + 1] = {"system", "user", "assistant",
                                                                "tool", NULL};

enum {
    TRIM = 1,           /* white space around every text is dropped */
    TRIM_ASSISTANT = 2, /* the same, of the assistant's only */
    SYSTEM_IN_USER = 4, /* a system text is written at the head of the user turn after it */
};

typedef struct { /* around a text; `before` NULL: the role has no place */
    const char *before, *after;
} wrap;

struct td_chat_template {
    const char *name;
    const char *begin; /* or NULL */
    wrap system, user, assistant, tool;
    const char *generation; /* opens the turn to be generated */
    unsigned flags;
    const char *default_system;  /* where the messages give none; or NULL */
    const char *empty_reasoning; /* before an assistant's text without "</think>"; or NULL */
    wrap tools;                  /* around a run of tool messages; or NULLs */
};

#define CHATML(role)                                                                               \
    {                                                                                              \
        "<|im_start|>" role "\n", "<|im_end|>\n"                                                   \
    }
#define CHATML_GENERATE "<|im_start|>assistant\n"
#define QWEN_TOOL                                                                                  \
    {                                                                                              \
        "\n<tool_response>\n", "\n</tool_response>"                                                \
    }
#define QWEN_TOOLS                                                                                 \
    {                                                                                              \
        "<|im_start|>user", "<|im_end|>\n"                                                         \
    }
#define END_OF_SENTENCE "<｜end▁of▁sentence｜>"
#define COMMAND_R(role)                                                                            \
    {                                                                                              \
        "<|START_OF_TURN_TOKEN|><|" role "_TOKEN|>", "<|END_OF_TURN_TOKEN|>"                       \
    }
#define LLAMA3(role)                                                                               \
    {                                                                                              \
        "<|start_header_id|>" role "<|end_header_id|>\n\n", "<|eot_id|>"                           \
    }
#define LLAMA4(role)                                                                               \
    {                                                                                              \
        "<|header_start|>" role "<|header_end|>\n\n", "<|eot|>"                                    \
    }
#define LINE(role, end)                                                                            \
    {                                                                                              \
        "<|" role "|>\n", end "\n"                                                                 \
    }
#define PHI4(role)                                                                                 \
    {                                                                                              \
        "<|im_start|>" role "<|im_sep|>", "<|im_end|>"                                             \
    }
#define GRANITE(role)                                                                              \
    {                                                                                              \
        "<|start_of_role|>" role "<|end_of_role|>", "<|end_of_text|>\n"                            \
    }
#define HARMONY(role)                                                                              \
    {                                                                                              \
        "<|start|>" role "<|message|>", "<|end|>"                                                  \
    }
#define EXAONE(role)                                                                               \
    {                                                                                              \
        "[|" role "|]", "[|endofturn|]\n"                                                          \
    }
#define MEGREZ(role)                                                                               \
    {                                                                                              \
        "<|role_start|>" role "<|role_end|>", "<|turn_end|>"                                       \
    }
#define SOLAR(role)                                                                                \
    {                                                                                              \
        "<|begin|>" role "<|content|>", "<|end|>"                                                  \
    }
#define SEED(role)                                                                                 \
    {                                                                                              \
        "<seed:bos>" role "\n", "<seed:eos>"                                                       \
    }
#define GEMMA(role)                                                                                \
    {                                                                                              \
        "<start_of_turn>" role "\n", "<end_of_turn>\n"                                             \
    }
#define GEMMA4(role)                                                                               \
    {                                                                                              \
        "<|turn>" role "\n", "<turn|>\n"                                                           \
    }
#define MINIMAX(role)                                                                              \
    {                                                                                              \
        "]~b]" role "\n", "[e~[\n"                                                                 \
    }
#define KIMI(turn, role)                                                                           \
    {                                                                                              \
        "<|im_" turn "|>" role "<|im_middle|>", "<|im_end|>"                                       \
    }
#define BAILING(role)                                                                              \
    {                                                                                              \
        "<role>" role "</role>", ""                                                                \
    }
#define BAILING2(role)                                                                             \
    {                                                                                              \
        "<role>" role "</role>", "<|role_end|>"                                                    \
    }
#define NONE                                                                                       \
    {                                                                                              \
        NULL, NULL                                                                                 \
    }

/* clang-format off */
static const td_chat_template templates[] = {
    {"bailing", NULL, BAILING("SYSTEM"), BAILING("HUMAN"), BAILING("ASSISTANT"), BAILING("TOOL"),
     "<role>ASSISTANT</role>", 0, NULL, NULL, NONE},
    {"bailing-think", NULL, BAILING("SYSTEM"), BAILING("HUMAN"), BAILING("ASSISTANT"),
     BAILING("TOOL"), "<role>ASSISTANT</role><think>", 0, NULL, NULL, NONE},
    {"bailing2", NULL, BAILING2("SYSTEM"), BAILING2("HUMAN"), BAILING2("ASSISTANT"),
     BAILING2("TOOL"), "<role>ASSISTANT</role>", 0, "detailed thinking off", NULL,
     NONE},
    {"chatglm4", "[gMASK]<sop>", {"<|system|>\n", ""}, {"<|user|>\n", ""}, {"<|assistant|>\n", ""},
     {"<|tool|>\n", ""}, "<|assistant|>\n", 0, NULL, NULL, NONE},
    {"chatml", NULL, CHATML("system"), CHATML("user"), CHATML("assistant"), CHATML("tool"),
     CHATML_GENERATE, 0, NULL, NULL, NONE},
    {"command-r", NULL, COMMAND_R("SYSTEM"), COMMAND_R("USER"), COMMAND_R("CHATBOT"), NONE,
     "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", TRIM, NULL, NULL, NONE},
    {"deepseek", NULL, {"", ""}, {"### Instruction:\n", "\n"},
     {"### Response:\n", "\n<|EOT|>\n"}, NONE, "### Response:\n", 0, NULL, NULL, NONE},
    {"deepseek2", NULL, {"", "\n\n"}, {"User: ", "\n\n"}, {"Assistant: ", END_OF_SENTENCE}, NONE,
     "Assistant:", 0, NULL, NULL, NONE},
    {"deepseek3", NULL, {"", "\n\n"}, {"<｜User｜>", ""}, {"<｜Assistant｜>", END_OF_SENTENCE},
     NONE, "<｜Assistant｜>", 0, NULL, NULL, NONE},
    {"deepseek-r1", NULL, {"", ""}, {"<｜User｜>", ""}, {"<｜Assistant｜>", END_OF_SENTENCE}, NONE,
     "<｜Assistant｜><think>\n", 0, NULL, NULL, NONE},
    {"deepseek-v3.1", NULL, {"", ""}, {"<｜User｜>", ""},
     {"<｜Assistant｜></think>", END_OF_SENTENCE}, NONE, "<｜Assistant｜></think>", 0, NULL, NULL,
     NONE},
    {"exaone3", NULL, EXAONE("system"), {"[|user|]", "\n"}, EXAONE("assistant"), NONE,
     "[|assistant|]", TRIM, NULL, NULL, NONE},
    {"exaone4", NULL, EXAONE("system"), {"[|user|]", "\n"}, EXAONE("assistant"), EXAONE("tool"),
     "[|assistant|]", TRIM, NULL, NULL, NONE},
    {"falcon3", NULL, LINE("system", ""), LINE("user", ""), LINE("assistant", ""),
     LINE("tool", ""), "<|assistant|>\n", 0, NULL, NULL, NONE},
    {"gemma", NULL, {"", "\n\n"}, GEMMA("user"), GEMMA("model"), GEMMA("tool"),
     "<start_of_turn>model\n", TRIM | SYSTEM_IN_USER, NULL, NULL, NONE},
    {"gemma4", NULL, GEMMA4("system"), GEMMA4("user"), GEMMA4("model"), GEMMA4("tool"),
     "<|turn>model\n<|channel>thought\n<channel|>", TRIM, NULL, NULL, NONE},
    {"glm4.5", "[gMASK]<sop>", {"<|system|>\n", ""}, {"<|user|>\n", ""}, {"<|assistant|>\n", ""},
     {"\n<tool_response>\n", "\n</tool_response>"}, "<|assistant|>", TRIM_ASSISTANT, NULL,
     "<think></think>\n", {"<|observation|>", ""}},
    {"gpt-oss", NULL, HARMONY("system"), HARMONY("user"),
     {"<|start|>assistant<|message|>", "<|return|>"}, HARMONY("tool"), "<|start|>assistant", 0,
     NULL, NULL, NONE},
    {"granite", NULL, GRANITE("system"), GRANITE("user"), GRANITE("assistant"), GRANITE("tool"),
     "<|start_of_role|>assistant<|end_of_role|>", 0, NULL, NULL, NONE},
    {"harmony",
     "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
     "Knowledge cutoff: 2024-06\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, "
     "final. Channel must be included for every message.<|end|>",
     {"<|start|>developer<|message|># Instructions\n\n", "\n\n<|end|>"}, HARMONY("user"),
     {"<|start|>assistant<|channel|>final<|message|>", "<|end|>"}, NONE, "<|start|>assistant", 0,
     NULL, NULL, NONE},
    {"kimi-k2", NULL, KIMI("system", "system"), KIMI("user", "user"),
     KIMI("assistant", "assistant"), KIMI("system", "tool"),
     "<|im_assistant|>assistant<|im_middle|>", 0, NULL, NULL, NONE},
    {"kimi-k2-thinking", NULL, KIMI("system", "system"), KIMI("user", "user"),
     KIMI("assistant", "assistant"), NONE, "<|im_assistant|>assistant<|im_middle|>", 0,
     "You are Kimi, an AI assistant created by Moonshot AI.", "<think></think>", NONE},
    {"kimi-k2.5", NULL, KIMI("system", "system"), KIMI("user", "user"),
     KIMI("assistant", "assistant"), NONE, "<|im_assistant|>assistant<|im_middle|><think>", 0,
     NULL, "<think></think>", NONE},
    {"llama2", NULL, {"", "\n"}, {"[INST] ", " [/INST]"}, {"", "</s>"}, NONE, "", SYSTEM_IN_USER,
     NULL, NULL, NONE},
    {"llama2-sys", NULL, {"<<SYS>>\n", "\n<</SYS>>\n\n"}, {"[INST] ", " [/INST]"}, {"", "</s>"},
     NONE, "", SYSTEM_IN_USER, NULL, NULL, NONE},
    {"llama2-sys-strip", NULL, {"<<SYS>>\n", "\n<</SYS>>\n\n"}, {"[INST] ", " [/INST]"},
     {"", "</s>"}, NONE, "", SYSTEM_IN_USER | TRIM, NULL, NULL, NONE},
    {"llama3", NULL, LLAMA3("system"), LLAMA3("user"), LLAMA3("assistant"), LLAMA3("tool"),
     "<|start_header_id|>assistant<|end_header_id|>\n\n", TRIM, NULL, NULL, NONE},
    {"llama4", NULL, LLAMA4("system"), LLAMA4("user"), LLAMA4("assistant"), LLAMA4("tool"),
     "<|header_start|>assistant<|header_end|>\n\n", TRIM, NULL, NULL, NONE},
    {"megrez", NULL, MEGREZ("system"), MEGREZ("user"), MEGREZ("assistant"), MEGREZ("tool"),
     "<|role_start|>assistant<|role_end|>", 0, NULL, NULL, NONE},
    {"minimax-m2", "]~!b[", MINIMAX("system"), MINIMAX("user"), MINIMAX("ai"),
     {"\n<response>", "</response>"}, "]~b]ai\n<think>\n", 0, "You are a helpful assistant.", NULL,
     {"]~b]tool", "[e~[\n"}},
    {"mistral-v1", NULL, {"", "\n\n"}, {" [INST] ", " [/INST]"}, {" ", "</s>"}, NONE, "",
     SYSTEM_IN_USER, NULL, NULL, NONE},
    {"mistral-v3", NULL, {"", "\n\n"}, {"[INST] ", "[/INST]"}, {" ", "</s>"}, NONE, "",
     SYSTEM_IN_USER | TRIM_ASSISTANT, NULL, NULL, NONE},
    {"mistral-v3-tekken", NULL, {"", "\n\n"}, {"[INST]", "[/INST]"}, {"", "</s>"}, NONE, "",
     SYSTEM_IN_USER, NULL, NULL, NONE},
    {"mistral-v7", NULL, {"[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"}, {"[INST] ", "[/INST]"},
     {" ", "</s>"}, NONE, "", 0, NULL, NULL, NONE},
    {"mistral-v7-tekken", NULL, {"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"}, {"[INST]", "[/INST]"},
     {"", "</s>"}, NONE, "", 0, NULL, NULL, NONE},
    {"phi3", NULL, LINE("system", "<|end|>"), LINE("user", "<|end|>"),
     LINE("assistant", "<|end|>"), LINE("tool", "<|end|>"), "<|assistant|>\n", 0, NULL, NULL,
     NONE},
    {"phi4", NULL, PHI4("system"), PHI4("user"), PHI4("assistant"), PHI4("tool"),
     "<|im_start|>assistant<|im_sep|>", 0, NULL, NULL, NONE},
    {"phi4-mini", NULL, {"<|system|>", "<|end|>"}, {"<|user|>", "<|end|>"},
     {"<|assistant|>", "<|end|>"}, NONE, "<|assistant|>", 0, NULL, NULL, NONE},
    {"qwen2.5", NULL, CHATML("system"), CHATML("user"), CHATML("assistant"), QWEN_TOOL,
     CHATML_GENERATE, 0, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
     NULL, QWEN_TOOLS},
    {"qwen3", NULL, CHATML("system"), CHATML("user"), CHATML("assistant"), QWEN_TOOL,
     CHATML_GENERATE, 0, NULL, NULL, QWEN_TOOLS},
    {"qwen3-think", NULL, CHATML("system"), CHATML("user"), CHATML("assistant"), QWEN_TOOL,
     CHATML_GENERATE "<think>\n", 0, NULL, NULL, QWEN_TOOLS},
    {"qwen3.5", NULL, CHATML("system"), CHATML("user"), CHATML("assistant"), QWEN_TOOL,
     CHATML_GENERATE "<think>\n", TRIM, NULL, NULL, QWEN_TOOLS},
    {"qwen3.5-nothink", NULL, CHATML("system"), CHATML("user"), CHATML("assistant"), QWEN_TOOL,
     CHATML_GENERATE "<think>\n\n</think>\n\n", TRIM, NULL, NULL, QWEN_TOOLS},
    {"seed_oss", NULL, SEED("system"), SEED("user"), SEED("assistant"), SEED("tool"),
     "<seed:bos>assistant\n", TRIM_ASSISTANT, NULL, NULL, NONE},
    {"solar-open", NULL, SOLAR("system"), SOLAR("user"), SOLAR("assistant"), SOLAR("tool"),
     "<|begin|>assistant", 0, NULL, NULL, NONE},
    {"vicuna", NULL, {"", "\n\n"}, {"USER: ", "\n"}, {"ASSISTANT: ", "</s>\n"}, NONE,
     "ASSISTANT:", 0, NULL, NULL, NONE},
    {"zephyr", NULL, LINE("system", "<|endoftext|>"), LINE("user", "<|endoftext|>"),
     LINE("assistant", "<|endoftext|>"), LINE("tool", "<|endoftext|>"), "<|assistant|>\n", 0, NULL,
     NULL, NONE},
};

/* What a file's template says, wherever it says it; the first row whose marks are all there wins,
 * so rows that ask for more come first. */
static const struct {
    const char *marks[3];
    const char *name;
} signs[] = {
    {{"<|im_assistant|>", "<|im_middle|>", "thinking is false"}, "kimi-k2.5"},
    {{"<|im_assistant|>", "<|im_middle|>", "<think></think>"}, "kimi-k2-thinking"},
    {{"<|im_assistant|>assistant<|im_middle|>"}, "kimi-k2"},
    {{"<|im_user|>", "<|im_middle|>"}, "kimi-k2"}, /* its roles are written by a macro */
    {{"<|im_start|>", "<|im_sep|>"}, "phi4"},
    {{"<|im_start|>", "<end_of_utterance>"}, NULL}, /* SmolVLM: not in the table */
    {{"<|im_start|>", "You are Qwen, created by Alibaba Cloud."}, "qwen2.5"},
    {{"<|im_start|>", "render_content", "enable_thinking is true"}, "qwen3.5-nothink"},
    {{"<|im_start|>", "render_content", "'<think>\\n' }}"}, "qwen3.5"},
    {{"<|im_start|>", "<tool_response>", "assistant\\n<think>\\n' }}"}, "qwen3-think"},
    {{"<|im_start|>", "<tool_response>"}, "qwen3"},
    {{"<|im_start|>"}, "chatml"},
    {{"[INST]", "[SYSTEM_PROMPT] "}, "mistral-v7"},
    {{"[INST]", "[SYSTEM_PROMPT]"}, "mistral-v7-tekken"},
    {{"' [INST] ' + system_message"}, "mistral-v1"},
    {{"[INST]", "[AVAILABLE_TOOLS]", " [INST]"}, "mistral-v1"},
    {{"[INST]", "[AVAILABLE_TOOLS]", "\"[INST]\""}, "mistral-v3-tekken"},
    {{"[INST]", "[AVAILABLE_TOOLS]"}, "mistral-v3"},
    {{"[INST]", "<<SYS>>", "content.strip()"}, "llama2-sys-strip"},
    {{"[INST]", "<<SYS>>"}, "llama2-sys"},
    {{"[INST]"}, "llama2"},
    {{"[gMASK]<sop>", "<think></think>"}, "glm4.5"},
    {{"[gMASK]<sop>"}, "chatglm4"},
    {{"]~b]ai"}, "minimax-m2"},
    {{"<｜User｜>", "<｜Assistant｜></think>"}, "deepseek-v3.1"},
    {{"<｜User｜>", "{{'</think>'}}"}, "deepseek-v3.1"},
    {{"<｜User｜>", "<｜Assistant｜><think>"}, "deepseek-r1"},
    {{"<｜User｜>", "<｜Assistant｜>", END_OF_SENTENCE}, "deepseek3"},
    {{"'Assistant: ' + message['content'] + eos_token"}, "deepseek2"},
    {{"### Instruction:", "<|EOT|>"}, "deepseek"},
    {{"<|start|>", "<|channel|>"}, "harmony"},
    {{"<|start_header_id|>", "<|end_header_id|>"}, "llama3"},
    {{"<|header_start|>", "<|header_end|>"}, "llama4"},
    {{"<start_of_turn>"}, "gemma"},
    {{"<|turn>", "<turn|>"}, "gemma4"},
    {{"<|assistant|>", "<|end|>", "<|tool_response|>"}, "phi4-mini"},
    {{"<|assistant|>", "<|end|>"}, "phi3"},
    {{"<|assistant|>", "<|user|>", "<|endoftext|>"}, "zephyr"},
    {{"<|assistant|>", "<|user|>"}, "falcon3"},
    {{"<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>"}, "command-r"},
    {{"<|start_of_role|>"}, "granite"},
    {{"[|system|]", "[|tool|]"}, "exaone4"},
    {{"[|system|]", "[|assistant|]"}, "exaone3"},
    {{"<|role_start|>"}, "megrez"},
    {{"<seed:bos>"}, "seed_oss"},
    {{"<|begin|>", "<|content|>"}, "solar-open"},
    {{"<role>ASSISTANT</role>", "<|role_end|>"}, "bailing2"},
    {{"<role>ASSISTANT</role>", "<think>"}, "bailing-think"},
    {{"<role>ASSISTANT</role>"}, "bailing"},
    {{"USER: ", "ASSISTANT: "}, "vicuna"},
};
/* clang-format on */

const td_chat_template *td_chat_find(const char *name)
{
    for (size_t i = 0; i < TD_COUNT(templates); i++)
        if (strcmp(templates[i].name, name) == 0)
            return &templates[i];
    return NULL;
}

const char *td_chat_name_at(size_t i) { return i < TD_COUNT(templates) ? templates[i].name : NULL; }

const char *td_chat_name(const td_chat_template *t) { return t->name; }

const td_chat_template *td_chat_recognise(const char *text, size_t n_text)
{
    for (size_t i = 0; i < TD_COUNT(signs); i++) {
        bool has_all = true;
        for (size_t k = 0; k < TD_COUNT(signs[i].marks) && signs[i].marks[k] && has_all; k++)
            has_all = memmem(text, n_text, signs[i].marks[k], strlen(signs[i].marks[k])) != NULL;
        if (has_all)
            return signs[i].name ? td_chat_find(signs[i].name) : NULL;
    }
    return NULL;
}

static const char *list_names(char *out, size_t size)
{
    size_t n = 0;
    out[0] = 0;
    for (size_t i = 0; i < TD_COUNT(templates) && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%s", i ? ", " : "", templates[i].name);
    return out;
}

bool td_chat_check_name(const char *name, td_err *err)
{
    char list[1024];
    return td_chat_find(name) ||
           td_err_set(err, TD_E_USAGE, "chat template \"%.64s\" is not known; known: %s", name,
                      list_names(list, sizeof list));
}

const td_chat_template *td_chat_choose(const td_gguf *g, const char *name, td_err *err)
{
    static const char key[] = "tokenizer.chat_template";
    char list[1024];
    const char *text;
    size_t n_text;
    if (name != NULL)
        return td_chat_check_name(name, err) ? td_chat_find(name) : NULL;
    if (!td_gguf_has(g, key)) {
        td_err_set(err, TD_E_DATA,
                   "the model's file has no %s; name one with --chat-template, known: %s", key,
                   list_names(list, sizeof list));
        return NULL;
    }
    if (!td_gguf_get_str(g, key, &text, &n_text, err))
        return NULL;
    const td_chat_template *t = td_chat_recognise(text, n_text);
    if (t == NULL)
        td_err_set(err, TD_E_DATA,
                   "the file's %s is of no known family; name one with --chat-template, known: %s",
                   key, list_names(list, sizeof list));
    return t;
}

/* -- applying ---------------------------------------------------------------------------------- */

#define SEGMENTS_PER_MESSAGE 9 /* turn around tools 2, system text 3, itself 4 */

typedef struct {
    td_text_segment *items;
    size_t n;
} segment_list;

static void add(segment_list *l, const char *text, size_t n_text, bool is_special)
{
    if (n_text > 0)
        l->items[l->n++] = (td_text_segment){text, n_text, is_special};
}

static void add_marker(segment_list *l, const char *text)
{
    if (text != NULL)
        add(l, text, strlen(text), true);
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static void add_text(segment_list *l, const td_chat_template *t, const td_chat_message *m)
{
    const char *text = m->text;
    size_t n = m->n_text;
    if ((t->flags & TRIM) != 0 ||
        ((t->flags & TRIM_ASSISTANT) != 0 && m->role == TD_CHAT_ASSISTANT)) {
        while (n > 0 && is_space(text[n - 1]))
            n--;
        while (n > 0 && is_space(text[0])) {
            text++;
            n--;
        }
    }
    add(l, text, n, false);
}

static const wrap *wrap_of(const td_chat_template *t, td_chat_role role)
{
    return role == TD_CHAT_SYSTEM      ? &t->system
           : role == TD_CHAT_USER      ? &t->user
           : role == TD_CHAT_ASSISTANT ? &t->assistant
                                       : &t->tool;
}

static bool check_message(const td_chat_template *t, const td_chat_message *messages, size_t n,
                          size_t i, td_err *err)
{
    const td_chat_message *m = &messages[i];
    if (wrap_of(t, m->role)->before == NULL)
        return td_err_set(
            err, TD_E_DATA,
            "messages[%zu].role is \"%s\", which the chat template %s has no place for; allowed: "
            "system, user, assistant",
            i, td_chat_role_names[m->role], t->name);
    bool is_led = (t->flags & SYSTEM_IN_USER) != 0 && m->role == TD_CHAT_SYSTEM;
    if (is_led && (i + 1 == n || messages[i + 1].role != TD_CHAT_USER))
        return td_err_set(err, TD_E_DATA,
                          "messages[%zu].role is \"system\", which the chat template %s writes "
                          "into a user's message; allowed: before one",
                          i, t->name);
    return true;
}

static void add_message(segment_list *l, const td_chat_template *t, const td_chat_message *messages,
                        size_t n, size_t i)
{
    const td_chat_message *m = &messages[i];
    const wrap *w = wrap_of(t, m->role);
    bool is_led = (t->flags & SYSTEM_IN_USER) != 0;
    if (is_led && m->role == TD_CHAT_SYSTEM)
        return; /* written with the next one */
    bool is_tool = m->role == TD_CHAT_TOOL;
    if (is_tool && (i == 0 || messages[i - 1].role != TD_CHAT_TOOL))
        add_marker(l, t->tools.before);
    add_marker(l, w->before);
    if (is_led && i > 0 && messages[i - 1].role == TD_CHAT_SYSTEM) {
        add_marker(l, t->system.before);
        add_text(l, t, &messages[i - 1]);
        add_marker(l, t->system.after);
    }
    if (m->role == TD_CHAT_ASSISTANT && t->empty_reasoning != NULL &&
        memmem(m->text, m->n_text, "</think>", 8) == NULL)
        add_marker(l, t->empty_reasoning);
    add_text(l, t, m);
    add_marker(l, w->after);
    if (is_tool && (i + 1 == n || messages[i + 1].role != TD_CHAT_TOOL))
        add_marker(l, t->tools.after);
}

bool td_chat_apply(const td_chat_template *t, const td_chat_message *messages, size_t n_messages,
                   td_text_segment **segments, size_t *n_segments, td_err *err)
{
    if (n_messages < 1 || n_messages > TD_CHAT_MESSAGES_MAX)
        return td_err_set(err, TD_E_DATA, "messages has %zu of them; allowed: 1..%u", n_messages,
                          TD_CHAT_MESSAGES_MAX);
    for (size_t i = 0; i < n_messages; i++)
        if (!check_message(t, messages, n_messages, i, err))
            return false;
    segment_list l = {td_alloc((n_messages + 1) * SEGMENTS_PER_MESSAGE, sizeof l.items[0], err), 0};
    if (l.items == NULL)
        return false;
    add_marker(&l, t->begin);
    if (t->default_system != NULL && messages[0].role != TD_CHAT_SYSTEM) {
        add_marker(&l, t->system.before);
        add_marker(&l, t->default_system);
        add_marker(&l, t->system.after);
    }
    for (size_t i = 0; i < n_messages; i++)
        add_message(&l, t, messages, n_messages, i);
    add_marker(&l, t->generation);
    *segments = l.items;
    *n_segments = l.n;
    return true;
}
