#!/usr/bin/env python3
"""Holds the #include lines against the table of folders in docs/architecture.md, and files against
the sizes the style asks for.

    check_layers.py [ROOT]

A folder may include only folders below it, and only those named here; a foreign library has one
user; a file that a comment names exists. Exit code 1 tells that a rule is broken; long headers are only reported.
"""
import os
import re
import sys

# Folder -> what it may include besides itself and system headers.
LAYERS = {
    "base": set(),
    "kernels": {"base"},
    "model": {"base", "kernels"},
    "transport": {"base"},
    "coordinator": {"base"},
    "draft": {"base", "kernels", "model", "transport"},
    "planning": {"base", "kernels", "model"},
    "target": {"base", "kernels", "model", "transport", "draft", "planning"},
    "check": {"base", "kernels", "model", "planning", "target"},
    "job": {"base"},
}
ALL = set(LAYERS)
LAYERS["run"] = set(ALL)
LAYERS["cli"] = ALL | {"run"}

# Header of a foreign library -> the only files that may include it. Tests may look behind.
FOREIGN = {
    r"vulkan/.*": r"kernels/vulkan/[^/]+",
    r"zmq\.h": r"transport/(link[^/]*|auth|keys)\.c",
    r"jansson\.h": r"base/json[^/]*\.c",
    r"sqlite3\.h": r"job/db_sqlite\.c",
    r"libpq-fe\.h": r"job/db_postgres\.c",
    r"utf8proc\.h": r"model/unicode[^/]*\.c",
}
# The two kinds of devices do not know each other, nor does what is above know them.
BACKENDS = ["kernels/host/", "kernels/vulkan/"]

# Inside a folder, lowest floor first: a file includes only headers before its own name.
FLOORS = {
    "coordinator": ["action", "coordinator.h", "stops", "times", "acceptance", "length", "pipeline", "dealing", "trial",
                    "state", "sequence", "prompt", "round", "batch", "next_action",
                    "coordinator.c"],
}

SOURCE_LINES_MAX = 1000
HEADER_LINES_MAX = 150
COLUMNS_MAX = 100  # of comments, which clang-format leaves alone; it wraps the code itself

# A file that a comment names, to be looked up there.
NAMED = re.compile(r"(?<![\w./*<>-])[\w/]+\.(?:c|h|comp|glsl|py|sh|md)\b(?![\w.*(])")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
NOT_VULKAN = re.compile(r"\bVK_TRY\(\w+,(?!\s*(vk[A-Z]|call\b))")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def blank(match):
    return "\n" * match.group().count("\n")


def floor(folder, path):
    """Where a file stands in its folder; one that is named without its ending has both."""
    name = path.split("/")[-1]
    for key in (name, name.split(".")[0]):
        if key in FLOORS[folder]:
            return FLOORS[folder].index(key)
    return None


def find_names(root):
    """The files that a comment may name: by path, or by the end of it from any folder on; and the
    folders at the top."""
    names = {"/".join(parts[i:]) for folder, _, files in os.walk(root) for file in files
             for parts in [os.path.relpath(os.path.join(folder, file), root).split("/")]
             if parts[0] not in ("build", ".git") for i in range(len(parts))}
    return names, set(os.listdir(root))


def check_names(path, text, known, problems):
    names, tops = known
    for comment in COMMENT.finditer(text):
        for match in NAMED.finditer(comment.group()):
            named = match.group()
            is_ours = "/" not in named or named.split("/")[0] in tops
            if is_ours and named not in names:
                line = text.count("\n", 0, comment.start() + match.start()) + 1
                problems.append(f"{path}:{line}: a comment names {named}, which is no file")


def check_file(root, path, known, problems, notes):
    with open(os.path.join(root, path), encoding="utf-8") as file:
        text = file.read()
    n_lines = text.count("\n")
    if n_lines > SOURCE_LINES_MAX:
        problems.append(f"{path}: {n_lines} lines; allowed: {SOURCE_LINES_MAX}")
    elif path.endswith(".h") and n_lines > HEADER_LINES_MAX and not path.startswith("tests/"):
        notes.append(f"{path}: {n_lines} lines; a header should stay under {HEADER_LINES_MAX}")
    for match in COMMENT.finditer(text) if path.endswith((".c", ".h")) else ():
        begin, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
        first = text.count("\n", 0, begin) + 1
        for i, line in enumerate(text[begin:end].split("\n")):
            if len(line) > COLUMNS_MAX:
                problems.append(f"{path}:{first + i}: a comment reaches column {len(line)}; "
                                f"allowed: {COLUMNS_MAX}")
    check_names(path, text, known, problems)
    folder = path.split("/")[0]
    if folder == "tests" or not path.endswith((".c", ".h")):
        return
    text = COMMENT.sub(blank, text)
    for match in NOT_VULKAN.finditer(text):
        where = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
        problems.append(f"{where}: VK_TRY names the call in its error; allowed: a function vk...")
    for match in INCLUDE.finditer(text):
        kind, header = match.groups()
        where = f"{path}:{text.count(chr(10), 0, match.start(2)) + 1}"
        for pattern, users in FOREIGN.items():
            if re.fullmatch(pattern, header) and not re.fullmatch(users, path):
                problems.append(f"{where}: {header} may be included by {users} only")
        if kind == "<":
            continue
        if not os.path.exists(os.path.join(root, header)):
            problems.append(f"{where}: \"{header}\" is not named from the root of the tree")
            continue
        other = header.split("/")[0]
        if other != folder and other not in LAYERS[folder]:
            allowed = ", ".join(sorted(LAYERS[folder])) or "nothing"
            problems.append(f"{where}: {folder}/ includes {header}; allowed besides itself: {allowed}")
        if folder in FLOORS and other == folder:
            mine, its = floor(folder, path), floor(folder, header)
            if mine is None or its is None:
                problems.append(f"{where}: {path} or {header} has no floor of {folder}/ yet")
            elif its > mine:
                problems.append(f"{where}: {header} is above {path}")
        for prefix in BACKENDS:
            if header.startswith(prefix) and not path.startswith(prefix):
                problems.append(f"{where}: {header} is private to {prefix}")


def check_table(root, problems):
    """The table of docs/architecture.md says what LAYERS says, in the same order."""
    with open(os.path.join(root, "docs/architecture.md"), encoding="utf-8") as file:
        rows = re.findall(r"^\| `(\w+)/` \|.*\| ([\w, ]+) \|$", file.read(), re.MULTILINE)
    if [folder for folder, _ in rows] != list(LAYERS):
        problems.append(f"docs/architecture.md: folders {[f for f, _ in rows]}; allowed: {list(LAYERS)}")
    for i, (folder, text) in enumerate(rows):
        allowed = {f for f, _ in rows[:i]} if text == "all above" else set(text.split(", "))
        if allowed - {"libc"} != LAYERS.get(folder, set()):
            problems.append(f"docs/architecture.md: {folder}/ may include {text}; "
                            f"here: {', '.join(sorted(LAYERS.get(folder, set())))}")


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..")
    problems, notes, n_files, known = [], [], 0, find_names(root)
    for top in [*LAYERS, "tests"]:
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                if name.endswith((".c", ".h", ".comp", ".glsl")):
                    check_file(root, os.path.relpath(os.path.join(folder, name), root), known, problems,
                               notes)
                    n_files += 1
    check_table(root, problems)
    if n_files < 50:
        problems.append(f"only {n_files} files found under {root}: is that the tree?")
    for line in notes:
        print("note:", line)
    for line in problems:
        print("broken:", line)
    print(f"{n_files} files, {len(problems)} broken rules")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
