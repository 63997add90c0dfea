/* `tandem COMMAND ...`: picks the command, prints its error, gives its exit code. */
#include "cli/commands.h"

#include "base/check.h"
#include "base/io.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, td_err *err);
    const char *summary;
} commands[] = {
    {"generate", td_command_generate, "generate text: one prompt or a JSONL file of them"},
    {"draft", td_command_draft, "serve a draft model to a generate elsewhere"},
    {"stage", td_command_stage, "serve layers of a target to a generate elsewhere"},
    {"job", td_command_job, "keep a batch in a database, for any number of workers"},
    {"prefix", td_command_prefix, "show, check and remove the prompts kept on the disk"},
    {"keys", td_command_keys, "make and list the keys for workers on other machines"},
    {"devices", td_command_devices, "list the devices that can run a model"},
    {"inspect", td_command_inspect, "show what a GGUF file holds"},
    {"tokenize", td_command_tokenize, "turn text into token ids"},
    {"logits", td_command_logits, "write the raw logits of given tokens"},
    {"bench", td_command_bench, "measure prefill, decode and verification speed"},
    {"eval", td_command_eval, "measure what a type of the cache costs a model"},
    {"check", td_command_check, "tell whether the devices here can be trusted"},
    {"report", td_command_report, "make a page of figures and plots of what was measured"},
    {"plan", td_command_plan, "show where the layers would go"},
};

static void print_usage(FILE *out)
{
    fprintf(out, "usage: tandem COMMAND [options]\n\ncommands:\n");
    for (size_t i = 0; i < TD_COUNT(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(out,
            "\n`tandem COMMAND --help` lists the options of one; `tandem --version` the version.\n"
            "Exit codes: 0 done, 1 some prompts failed, 2 usage, 65 bad data, 69 peer\n"
            "unavailable, 70 bug, 74 I/O, 75 try again, 130/143 signals.\n");
}

int main(int argc, char **argv)
{
    if (!td_io_open_standard())
        return td_err_exit_code(TD_E_IO);
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_usage(stdout);
        return 0;
    }
    if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
        printf("tandem %s\n", TD_VERSION);
        return 0;
    }
    for (size_t i = 0; i < TD_COUNT(commands); i++) {
        if (strcmp(argv[1], commands[i].name))
            continue;
        /* `tandem COMMAND --version` too. */
        for (int k = 2; k < argc; k++)
            if (!strcmp(argv[k], "--version")) {
                printf("tandem %s\n", TD_VERSION);
                return 0;
            }
        td_err err = {0};
        int code = commands[i].run(argc - 2, argv + 2, &err);
        if (err.code != TD_OK) {
            td_log_error("%s", err.message);
            return td_err_exit_code(err.code);
        }
        if (fflush(stdout) || ferror(stdout)) {
            td_log_error("standard output cannot be written");
            return td_err_exit_code(TD_E_IO);
        }
        return code;
    }
    td_log_error("\"%.64s\" is no command of tandem", argv[1]);
    print_usage(stderr);
    return 2;
}
