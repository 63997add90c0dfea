#!/usr/bin/env python3
"""Holds the manual against the program: check_docs.py TANDEM [--fix].

The tables of options in docs/cli.md are the table of options that `tandem COMMAND --help` prints: the
same flags in the same order, their argument, and the help with its range and default, word for word;
links and code marks are the page's own. docs/config.md has every key of a configuration file with its
flag, and no range or default that differs. Links between the pages lead somewhere, and files that
they name exist. --fix rewrites the
rows of docs/cli.md that differ."""
import os
import re
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
COMMANDS = ["generate", "draft", "stage", "job", "prefix", "keys", "devices", "inspect", "tokenize", "logits", "bench", "eval", "report", "plan",
            "check"]
ROW = re.compile(r"^\| `(--?[a-z-]+)([^`]*)` \| (.*) \|$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def read_help(command):
    """(flag, argument, help) of each option, and the flag of each key of a file."""
    text = subprocess.run([sys.argv[1], command, "--help"], check=True, stdout=subprocess.PIPE,
                          text=True).stdout
    text, _, keys = text.partition("Keys of a --config file")
    text = re.sub(r"\n {20,}", " ", text)
    options = []
    for line in re.findall(r"^  (-.*)$", text, re.MULTILINE):
        left, right = (line[:27].split(), line[27:]) if line[26:27] == " " else (line.split()[:2], "")
        right = right or line.split(None, 2)[2]
        if left[0] != "-h,":
            options.append((left[0], left[1] if len(left) > 1 else "", right.strip()))
    return options, dict(re.findall(r"^  ([a-z]+(?:\.[a-z_]+)?) +(\S+)$", keys, re.MULTILINE))


def plain(text):
    """A cell as the terminal shows it: no links, no code marks."""
    return LINK.sub(r"\1", text).replace("`", "").replace("\\|", "|").strip()


def make_row(flag, argument, text, old):
    """The row of an option, with the links and the code marks of the old one where they still fit."""
    cell = text.replace("`", "").replace("|", "\\|")
    marks = re.findall(r"`([^`]+)`", LINK.sub(r"\1", old)) + re.findall(r"`([^`]+)`", text)
    for mark in sorted(set(marks) | set(re.findall(r"--[a-z-]+", cell)), key=len, reverse=True):
        cell = re.sub(rf"(?<![`\w-]){re.escape(mark)}(?![`\w-])", f"`{mark}`", cell)
    for phrase, target in LINK.findall(old):
        if cell.count(phrase) == 1:
            cell = cell.replace(phrase, f"[{phrase}]({target})")
    left = f"{flag} {argument}".strip().replace("|", "\\|")
    return f"| `{left}` | {cell} |"


def check_command(command, page, problems):
    """Compares one command's rows; gives its page with the rows that it should have."""
    options, _ = read_help(command)
    old = {flag: (argument.strip().replace("\\|", "|"), text) for flag, argument, text in ROW.findall(page)}
    known = {flag for flag, _, _ in options}
    for flag in old:
        if flag not in known:
            problems.append(f"docs/cli.md, tandem {command}: {flag} does not exist")
    rows = []
    for flag, argument, text in options:
        was = old.get(flag, ("", ""))
        if flag not in old:
            problems.append(f"docs/cli.md, tandem {command}: {flag} is missing")
        elif (was[0], plain(was[1])) != (argument, plain(text)):
            problems.append(f"docs/cli.md, tandem {command}: {flag} {was[0]}: \"{plain(was[1])}\"; "
                            f"--help: {argument}: \"{plain(text)}\"")
        else:
            rows.append(next(m.group() for m in ROW.finditer(page) if m.group(1) == flag))
            continue
        rows.append(make_row(flag, argument, text, was[1]))
    if [f for f in old if f in known] != [f for f, _, _ in options if f in old]:
        problems.append(f"docs/cli.md, tandem {command}: the order of the options is not that of --help")
    matches = list(ROW.finditer(page))
    if not matches:
        return page
    return page[:matches[0].start()] + "\n".join(rows) + page[matches[-1].end():]


def check_config(problems):
    """Each key of docs/config.md with the flag, the range and the default of --help."""
    page = read("docs/config.md")
    for command, title in (("generate", "## For `tandem generate`"), ("draft", "## For `tandem draft`"),
                           ("stage", "## For `tandem stage`")):
        options, keys = read_help(command)
        helps = {flag: text for flag, _, text in options}
        section = page.partition(title)[2].partition("\n## ")[0]
        rows = {}
        for names, flags, value in re.findall(r"^\| (`[a-z].*?) \| (.*?) \| (.*) \|$", section, re.MULTILINE):
            names, flags = re.findall(r"`([^`]+)`", names), re.findall(r"`([^`]+)`", flags)
            rows.update({name: (flag, value) for name, flag in zip(names, flags)})
        for key in sorted(set(keys) | set(rows)):
            if keys.get(key) != rows.get(key, ("",))[0]:
                problems.append(f"docs/config.md, {title[3:]}: {key} is {rows.get(key, ('missing',))[0]}; "
                                f"--help: {keys.get(key, 'no such key')}")
                continue
            text, value = helps[keys[key]], rows[key][1]
            limits = re.search(r"\(([\d.]+?)\.\.([\d.]+)[;)]", text)
            said = re.search(r"(?<![\w.])([\d.]+?)\.\.([\d.]+)(?![\d.])", value.rstrip("."))
            if limits and said and limits.groups() != said.groups():
                problems.append(f"docs/config.md: {key}: {said.group()}; --help: {limits.group()}")
            default = re.search(r"default: ([\w.:]+)\)", text)
            said = re.search(r"default `?([\w.:]+)", value)
            if default and said and default.group(1) != said.group(1).rstrip(".:"):
                problems.append(f"docs/config.md: {key}: {said.group()}; --help: {default.group()}")


def check_links(problems):
    for folder in ["", "docs", "docs/hardware", "configs", "configs/tales", "scripts/train", "tests/data/golden"]:
        for name in os.listdir(os.path.join(ROOT, folder)):
            if not name.endswith(".md"):
                continue
            page = os.path.join(folder, name)
            for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", read(page)):
                path = os.path.normpath(os.path.join(folder, link)) if link else page
                if "://" in link:
                    continue
                if not os.path.exists(os.path.join(ROOT, path)):
                    problems.append(f"{page}: the link to {link} leads nowhere")
                elif anchor and path.endswith(".md"):
                    heads = re.findall(r"^#+ (.*)$", read(path), re.MULTILINE)
                    slugs = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in heads}
                    if anchor not in slugs:
                        problems.append(f"{page}: {path} has no heading #{anchor}")


def check_names(problems):
    """A file that a page names exists, unless it is the reader's own or stands for many (NAME.c)."""
    names = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in ("build", ".git")]
        for name in files:
            parts = os.path.relpath(os.path.join(folder, name), ROOT).split("/")
            names.update("/".join(parts[i:]) for i in range(len(parts)))
    pages = [name for name in sorted(os.listdir(os.path.join(ROOT, "docs"))) if name.endswith(".md")]
    for page in ["README.md", *("docs/" + name for name in pages)]:
        for named in re.findall(r"`(?:\./)?([\w./-]+\.(?:c|h|comp|glsl|py|sh|cmake|md))`", read(page)):
            if not re.search(r"[A-Z]{3}", os.path.basename(named)) and named not in names:
                problems.append(f"{page}: {named} is no file")


def main():
    problems = []
    pages = re.split(r"^(?=## )", read("docs/cli.md"), flags=re.MULTILINE)
    for i, page in enumerate(pages):
        title = re.match(r"## `tandem (\w+)`", page)
        if title and title.group(1) in COMMANDS:
            pages[i] = check_command(title.group(1), page, problems)
    for command in COMMANDS:
        if not any(page.startswith(f"## `tandem {command}`") for page in pages):
            problems.append(f"docs/cli.md: tandem {command} is missing")
    if "--fix" in sys.argv:
        with open(os.path.join(ROOT, "docs/cli.md"), "w", encoding="utf-8") as file:
            file.write("".join(pages))
        problems = []
    check_config(problems)
    check_links(problems)
    check_names(problems)
    for line in problems:
        print(line)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
