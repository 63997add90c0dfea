#!/usr/bin/env python3
"""Writes the man pages and the completions for bash, zsh and fish from what a tandem says of itself.

    make_pages.py TANDEM FOLDER

FOLDER then holds man1/tandem.1 and man1/tandem-COMMAND.1, bash/tandem, zsh/_tandem, fish/tandem.fish.
Standard library only.
"""
import os
import re
import subprocess
import sys

FILE = re.compile(r"(FILE|\.gguf|\.jsonl|\.json|DIR)")  # an argument that is a path


def say(tandem, *arguments):
    return subprocess.run([tandem, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def read_commands(tandem):
    """(name, summary) of each."""
    listed = say(tandem, "--help").partition("commands:\n")[2].partition("\n\n")[0]
    return re.findall(r"^  (\w+) +(.*)$", listed, re.MULTILINE)


def read_help(tandem, command):
    """Usage, description, [(flag, argument, help)], and what follows the options."""
    usage, _, rest = say(tandem, command, "--help").partition("\n\n")
    text, _, rest = rest.partition("\n\n  -")
    rows, _, after = ("  -" + rest).partition("\n\n")
    options = []
    for left, more in re.findall(r"^  (-.{0,25}\S| -.*?) +(\S.*(?:\n {20,}.*)*)$", rows, re.MULTILINE):
        flag, _, argument = left.strip().partition(" ")
        options.append((flag.rstrip(","), argument, re.sub(r"\s+", " ", more)))
    return usage.partition(": ")[2], re.sub(r"\s+", " ", text), options, after.strip()


def roff(text):
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in ".'" else text


def write(path, lines):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def title(name, version, summary):
    return [f'.TH {name.upper()} 1 "" "tandem {version}" "tandem"', ".SH NAME", f"{name} \\- {roff(summary)}"]


def write_man(folder, version, commands, helps):
    for name, summary in commands:
        usage, text, options, after = helps[name]
        lines = [*title(f"tandem-{name}", version, summary), ".SH SYNOPSIS", roff(usage), ".SH DESCRIPTION", roff(text),
                 ".SH OPTIONS"]
        for flag, argument, what in options:
            lines += [".TP", f"\\fB{roff(flag)}\\fR" + (f" \\fI{roff(argument)}\\fR" if argument else ""), roff(what)]
        if after:
            lines += [".SH CONFIGURATION", ".nf", *map(roff, after.splitlines()), ".fi"]
        write(f"{folder}/man1/tandem-{name}.1", [*lines, ".SH SEE ALSO", "\\fBtandem\\fR(1)"])
    lines = [*title("tandem", version, "speculative decoding over unlike devices"), ".SH SYNOPSIS",
             "\\fBtandem\\fR \\fICOMMAND\\fR [options]", ".SH COMMANDS"]
    for name, summary in commands:
        lines += [".TP", f"\\fBtandem\\-{name}\\fR(1)", roff(summary)]
    codes = "0 done, 1 some prompts failed, 2 usage, 65 bad data, 69 peer unavailable, 70 bug, 74 I/O, 75 try again, 130 " \
            "and 143 signals."
    write(f"{folder}/man1/tandem.1", [*lines, ".SH EXIT STATUS", codes])


def quote(text):
    return "'" + text.replace("'", "'\\''") + "'"


def write_completions(folder, commands, helps):
    names = " ".join(name for name, _ in commands)
    bash = ["_tandem() {", "    local now=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} flags= files=",
            f"    if [ $COMP_CWORD -eq 1 ]; then COMPREPLY=($(compgen -W '{names}' -- \"$now\")); return; fi",
            "    case ${COMP_WORDS[1]} in"]
    zsh = ["#compdef tandem", "local -a commands", "commands=("]
    zsh += [f"    {quote(name + ':' + summary)}" for name, summary in commands]
    zsh += [")", "if (( CURRENT == 2 )); then _describe command commands; return; fi", "case $words[2] in"]
    fish = [f"complete -c tandem -n __fish_use_subcommand -f -a {name} -d {quote(summary)}" for name, summary in commands]
    for name, _ in commands:
        options = helps[name][2]
        flags = " ".join(flag for flag, _, _ in options)
        files = "|".join(flag for flag, argument, _ in options if FILE.search(argument))
        bash.append(f"    {name}) flags='{flags}' files='|{files}|' ;;")
        zsh.append(f"{name}) _arguments \\")
        for flag, argument, what in options:
            what = re.sub(r"([\[\]:])", r"\\\1", what)
            action = f":{argument.replace(':', ' ')}:{'_files' if FILE.search(argument) else ' '}" if argument else ""
            zsh.append(f"    {quote('*' + flag + '[' + what + ']' + action)} \\")
            of = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            more = ("-r" if FILE.search(argument) else "-x") if argument else "-f"
            fish.append(f"complete -c tandem -n '__fish_seen_subcommand_from {name}' {of} {more} -d {quote(what)}")
        zsh += ["    '*:file:_files' ;;"]
    bash += ["    esac", "    if [[ $files == *\"|$before|\"* ]]; then COMPREPLY=($(compgen -f -- \"$now\"))",
             "    else COMPREPLY=($(compgen -W \"$flags\" -- \"$now\")); fi", "}", "complete -o filenames -F _tandem tandem"]
    write(f"{folder}/bash/tandem", bash)
    write(f"{folder}/zsh/_tandem", [*zsh, "esac"])
    write(f"{folder}/fish/tandem.fish", fish)


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    tandem, folder = sys.argv[1:]
    version = say(tandem, "--version").split()[1]
    commands = read_commands(tandem)
    helps = {name: read_help(tandem, name) for name, _ in commands}
    write_man(folder, version, commands, helps)
    write_completions(folder, commands, helps)


main()
