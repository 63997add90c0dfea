/* The families whose format can be named where a file has no template of its own: a table, and the
 * one template that renders any row of it.
 *
 * A row wraps each message by its role. What else occurs among the families: a system message that
 * opens the next user turn instead of having its own; text that is trimmed; a turn around a run of
 * tool results; a system message that is there even if nobody gave one; an empty block of reasoning
 * before an assistant's words of earlier turns. */
#include "model/chat/families.h"

#include "base/check.h"

#include <string.h>

/* The row's columns are variables of their names. Reasoning and tool calls are not written. */
const char td_chat_family_template[] =
    "{% macro words(m) %}"
    "{% if m.content is string %}{{ m.content }}"
    "{% elif m.content %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% endmacro %}"
    "{% macro say(m) %}"
    "{{ words(m) | trim if trims or (trims_assistant and m.role == 'assistant') else words(m) }}"
    "{% endmacro %}"
    "{{ begin }}"
    "{% if default_system and messages[0].role != 'system' %}"
    "{{ wraps.system[0] ~ default_system ~ wraps.system[1] }}{% endif %}"
    "{% for m in messages %}"
    "{% set where = 'messages[' ~ loop.index0 ~ '].role is \"' ~ m.role ~ '\", which the chat "
    "template ' ~ name %}"
    "{% set wrap = wraps[m.role] %}"
    "{% if not wrap %}{{ raise_exception(where ~ ' has no place for; allowed: ' ~ "
    "wraps | join(', ')) }}{% endif %}"
    "{% if leads and m.role == 'system' %}"
    "{% if loop.last or loop.nextitem.role != 'user' %}{{ raise_exception(where ~ "
    "' writes into a user\\'s message; allowed: before one') }}{% endif %}"
    "{% else %}"
    "{% if m.role == 'tool' and (loop.first or loop.previtem.role != 'tool') %}"
    "{{ around_tools[0] }}{% endif %}"
    "{{ wrap[0] }}"
    "{% if leads and not loop.first and loop.previtem.role == 'system' %}"
    "{{ wraps.system[0] ~ say(loop.previtem) ~ wraps.system[1] }}{% endif %}"
    "{% if m.role == 'assistant' and '</think>' not in words(m) %}{{ empty_reasoning }}{% endif %}"
    "{{ say(m) ~ wrap[1] }}"
    "{% if m.role == 'tool' and (loop.last or loop.nextitem.role != 'tool') %}"
    "{{ around_tools[1] }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ generation }}{% endif %}";

enum {
    TRIM = 1,           /* white space around every text is dropped */
    TRIM_ASSISTANT = 2, /* the same, of the assistant's only */
    SYSTEM_IN_USER = 4, /* a system text is written at the head of the user turn after it */
};

typedef struct { /* around a text; `before` NULL: the role has no place */
    const char *before, *after;
} wrap;

struct td_chat_family {
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
static const td_chat_family families[] = {
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

const td_chat_family *td_chat_family_find(const char *name)
{
    for (size_t i = 0; i < TD_COUNT(families); i++)
        if (strcmp(families[i].name, name) == 0)
            return &families[i];
    return NULL;
}

const char *td_chat_family_name_at(size_t i)
{
    return i < TD_COUNT(families) ? families[i].name : NULL;
}

static const char *or_empty(const char *s) { return s ? s : ""; }

static void put_wrap(td_json_writer *w, const char *key, const wrap *wrapping)
{
    td_json_write_key(w, key);
    td_json_begin_array(w);
    td_json_write_string(w, or_empty(wrapping->before));
    td_json_write_string(w, or_empty(wrapping->after));
    td_json_end_array(w);
}

void td_chat_family_write(const td_chat_family *f, td_json_writer *w)
{
    const struct {
        const char *role;
        const wrap *wrapping;
    } roles[] = {{"system", &f->system},
                 {"user", &f->user},
                 {"assistant", &f->assistant},
                 {"tool", &f->tool}};
    td_json_begin_object(w);
    td_json_put_string(w, "name", f->name);
    td_json_put_string(w, "begin", or_empty(f->begin));
    td_json_put_string(w, "generation", or_empty(f->generation));
    td_json_put_string(w, "default_system", or_empty(f->default_system));
    td_json_put_string(w, "empty_reasoning", or_empty(f->empty_reasoning));
    td_json_put_bool(w, "trims", f->flags & TRIM);
    td_json_put_bool(w, "trims_assistant", f->flags & TRIM_ASSISTANT);
    td_json_put_bool(w, "leads", f->flags & SYSTEM_IN_USER);
    put_wrap(w, "around_tools", &f->tools);
    td_json_write_key(w, "wraps");
    td_json_begin_object(w);
    for (size_t i = 0; i < TD_COUNT(roles); i++)
        if (roles[i].wrapping->before)
            put_wrap(w, roles[i].role, roles[i].wrapping);
    td_json_end_object(w);
    td_json_end_object(w);
}
