#!/usr/bin/env bash
# Every C source as clang-format writes it: check_format.sh [--fix]. Skips where clang-format is
# missing or is another major version than the one the tree is written with, because versions
# disagree with each other.
set -eu
cd "$(dirname "$0")/.."
wanted=14
program=$(command -v clang-format-$wanted || command -v clang-format || true)
if [ -z "$program" ]; then
    echo "skipped: no clang-format; on Debian 12: apt-get install clang-format"
    exit 77
fi
version=$("$program" --version | sed 's/.*version \([0-9]*\).*/\1/')
if [ "$version" != $wanted ]; then
    echo "skipped: clang-format $version; the tree is written with $wanted"
    exit 77
fi
mapfile -t files < <(find base kernels model transport coordinator draft planning target run cli tests \
    -name '*.[ch]' | sort)
if [ "${1:-}" = --fix ]; then
    "$program" -i "${files[@]}"
    exit 0
fi
if ! "$program" --dry-run -Werror "${files[@]}" 2>&1 | grep -E '^[^ ]+:[0-9]+:[0-9]+: error' |
    cut -d: -f1 | sort | uniq -c | awk '{ print $2 ": " $1 " lines" } END { exit NR > 0 }'; then
    echo "not formatted; run tests/check_format.sh --fix"
    exit 1
fi
echo "${#files[@]} files"
