#!/usr/bin/env bash
# Makes one archive that tells of a machine nobody here has seen: tandem, the libraries it needs, small
# models, and a script that tries the machine's GPUs and writes a report to send back.
#
#     ./scripts/bundle.sh [--program TANDEM] [ARCHIVE.tar.gz]
#
#   --program TANDEM   this program instead of a release build (build/release)
#
# The archive (default build/tandem-bundle.tar.gz) holds a folder of its name. There `./run.sh` needs a
# Vulkan driver, a shell and the usual small tools, no compiler, no Python, no packages, and a libc as
# new as the one it was built with asks for (the page it writes says which). Instruction sets of the
# host are chosen at run time. See docs/hardware/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

limit_bytes=$((64 << 20))
program=
archive=
while [ $# -gt 0 ]; do
    case $1 in
    --program) program=${2:?"--program needs a file"} && shift 2 ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit 0 ;;
    -*) echo "bundle.sh: \"$1\" is no option; see --help" >&2 && exit 2 ;;
    *) archive=$1 && shift ;;
    esac
done
archive=${archive:-build/tandem-bundle.tar.gz}
if [ -z "$program" ]; then
    ./scripts/build.sh build/release -DCMAKE_BUILD_TYPE=Release -DTD_TESTS=OFF \
        -DTD_POSTGRES=OFF
    program=build/release/tandem
fi
mkdir -p "$(dirname "$archive")"
name=$(basename "${archive%.tar.gz}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
top=$work/$name
mkdir -p "$top/bin" "$top/lib/spare" "$top/models" "$top/licenses"

# The terms a library comes under, where this system has them by package.
terms_of() {
    local package
    package=$(dpkg-query -S "$(realpath "$1")" 2>/dev/null | sed 's/[:,].*//' | head -n 1) || return 0
    [ ! -r "/usr/share/doc/$package/copyright" ] ||
        cp -L "/usr/share/doc/$package/copyright" "$top/licenses/$2.txt"
}

cp "$program" "$top/bin/tandem"
strip "$top/bin/tandem"
# libc belongs to the machine. So do the C++ runtime and the Vulkan loader where it has them: its
# drivers may want newer ones than ours; ours are spares.
while read -r library _ path _; do
    case $library in
    libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | librt.so.* | libresolv.so.*) continue ;;
    libstdc++.so.* | libgcc_s.so.* | libvulkan.so.*) to=$top/lib/spare ;;
    *.so*) to=$top/lib ;;
    *) continue ;;
    esac
    [ -e "$path" ] || continue
    cp -L "$path" "$to/$library"
    strip --strip-unneeded "$to/$library"
    terms_of "$path" "$library"
done < <(ldd "$program" | grep '=> /')

cp configs/tales/*.gguf configs/tales/prompts.jsonl "$top/models/"
for model in llama-q4_k_m qwen35moe deepseek2 gpt-oss gemma3; do # one of each kind of layer
    cp "tests/data/golden/models/$model/model.gguf" "$top/models/tiny-$model.gguf"
done
cp scripts/bundle_run.sh "$top/run.sh"
cp LICENSE "$top/licenses/tandem.txt"
libc=$(for file in "$top/bin/tandem" "$top"/lib/*.so*; do objdump -T "$file"; done |
    grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
{
    "$program" --version
    echo "commit $(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)"
    echo "needs ${libc/_/ }"
} >"$top/BUILD"

tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -czf "$archive" "$name"
bytes=$(stat -c %s "$archive")
if [ "$bytes" -ge "$limit_bytes" ]; then
    echo "bundle.sh: $archive has $bytes bytes; allowed are fewer than $limit_bytes" >&2
    exit 1
fi
echo "$archive: $((bytes >> 10)) KiB, needs ${libc/_/ }"
