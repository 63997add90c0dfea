/* The commands of the `tandem` program, one file each. Each gets the arguments after its name and
 * returns the process's exit code; `err` is printed by main when it is set. */
#ifndef TD_CLI_COMMANDS_H
#define TD_CLI_COMMANDS_H

#include "base/err.h"

int td_command_generate(int argc, char **argv, td_err *err);
int td_command_devices(int argc, char **argv, td_err *err);
int td_command_inspect(int argc, char **argv, td_err *err);
int td_command_tokenize(int argc, char **argv, td_err *err);
int td_command_logits(int argc, char **argv, td_err *err);
int td_command_bench(int argc, char **argv, td_err *err);
int td_command_eval(int argc, char **argv, td_err *err);
int td_command_plan(int argc, char **argv, td_err *err);
int td_command_check(int argc, char **argv, td_err *err);
int td_command_draft(int argc, char **argv, td_err *err);
int td_command_stage(int argc, char **argv, td_err *err);
int td_command_job(int argc, char **argv, td_err *err);
int td_command_report(int argc, char **argv, td_err *err);
int td_command_prefix(int argc, char **argv, td_err *err);
int td_command_keys(int argc, char **argv, td_err *err);

#endif
