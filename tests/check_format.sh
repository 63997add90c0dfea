#!/usr/bin/env bash
# Every C source as clang-format writes it: check_format.sh [--fix]. Skips where clang-format is
# missing or is another major version than the one the tree is written with, because versions
# disagree with each other.
set -euo pipefail
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
mapfile -t files < <(find base kernels model transport coordinator draft target run cli tests \
    -name '*.[ch]' | sort)
if [ "${1:-}" = --fix ]; then
    "$program" -i "${files[@]}"
    exit 0
fi
bad=0
for file in "${files[@]}"; do
    "$program" --dry-run -Werror "$file" 2>/dev/null || { echo "$file"; bad=$((bad + 1)); }
done
[ "$bad" -eq 0 ] || { echo "$bad of ${#files[@]} files are not formatted; run tests/check_format.sh --fix"; exit 1; }
echo "${#files[@]} files"
