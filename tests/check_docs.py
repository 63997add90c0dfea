#!/usr/bin/env python3
"""docs/cli.md names every option of every command, and no other: check_docs.py TANDEM.
docs/config.md names every key of a configuration. Links between the pages lead somewhere."""
import os
import re
import subprocess
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
COMMANDS = ["generate", "draft", "devices", "inspect", "tokenize", "logits", "bench", "plan"]


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def main():
    problems = []
    pages = re.split(r"^## ", read("docs/cli.md"), flags=re.MULTILINE)
    sections = {page.split("\n")[0].strip().strip("`"): page for page in pages}
    config = read("docs/config.md")
    for command in COMMANDS:
        text = subprocess.run([sys.argv[1], command, "--help"], check=True, stdout=subprocess.PIPE,
                              text=True).stdout
        options, _, keys = text.partition("Keys of a --config file")
        known = set(re.findall(r"^  (--?[a-z-]+)", options, re.MULTILINE)) - {"-h"}
        page = sections.get(f"tandem {command}", "")
        named = set(re.findall(r"^\| `(--?[a-z-]+)", page, re.MULTILINE))
        for flag in sorted(known - named):
            problems.append(f"docs/cli.md, tandem {command}: {flag} is missing")
        for flag in sorted(named - known):
            problems.append(f"docs/cli.md, tandem {command}: {flag} does not exist")
        for key in re.findall(r"^  ([a-z]+\.[a-z_]+) ", keys, re.MULTILINE):
            if f"`{key}`" not in config:
                problems.append(f"docs/config.md: {key} is missing")
    folders = ["", "docs", "configs", "configs/tales", "scripts/train", "tests/data/golden"]
    for folder in folders:
        for name in os.listdir(os.path.join(ROOT, folder)):
            if not name.endswith(".md"):
                continue
            page = os.path.join(folder, name)
            for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page)):
                if "://" not in link and not os.path.exists(os.path.join(ROOT, folder, link)):
                    problems.append(f"{page}: the link to {link} leads nowhere")
    for line in problems:
        print(line)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
