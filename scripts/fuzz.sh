#!/usr/bin/env bash
# Fuzzes what reads a peer's bytes, with libFuzzer under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     scripts/fuzz.sh [--seconds N] [--jobs N] [--keep DIR] [--merge] [NAME...]
#
#   --seconds N   in all, shared by the harnesses one after another (default: 600)
#   --jobs N      processes of each harness at once (default: 1)
#   --keep DIR    where new inputs go, to go on from next time (default: a folder that is removed)
#   --merge       afterwards, what adds to the coverage of tests/fuzz/corpus/NAME goes there
#   NAME          one of tests/fuzz/fuzz_NAME.c (default: all)
#
# Prints, for each harness, how many inputs ran. An input that fails is left in the current folder
# (crash-..., or what libFuzzer names it), and the exit code is 1: mend it, and put it into
# tests/fuzz/corpus/NAME, where the tests run it from then on. Exits 77 without clang.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
seconds=600 jobs=1 keep= merge=
names=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=$2 && shift ;;
    --jobs) jobs=$2 && shift ;;
    --keep) keep=$2 && shift ;;
    --merge) merge=1 ;;
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'
        exit 0
        ;;
    -*)
        echo "fuzz.sh: \"$1\" is no option; see --help" >&2
        exit 2
        ;;
    *) names+=("$1") ;;
    esac
    shift
done

clang=
for name in clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14; do
    if command -v "$name" >/dev/null && echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
        "$name" -x c - -fsanitize=fuzzer -o /dev/null 2>/dev/null; then
        clang=$name
        break
    fi
done
if [ -z "$clang" ]; then
    echo "fuzz.sh: no clang with libFuzzer here (Debian: clang, libclang-rt-dev)"
    exit 77
fi
if [ ${#names[@]} -eq 0 ]; then
    for file in "$top"/tests/fuzz/fuzz_*.c; do
        name=$(basename "$file" .c)
        names+=("${name#fuzz_}")
    done
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags=(-std=gnu11 -g -O1 -fno-omit-frame-pointer -D_GNU_SOURCE '-DTD_VERSION="fuzz"' -I"$top"
    -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -ffp-contract=off)
# shellcheck disable=SC2046
flags+=($(pkg-config --cflags jansson libzmq))
share=$((seconds / ${#names[@]}))
status=0
mkdir "$work/o"
for file in "$top"/base/*.c "$top"/transport/*.c "$top"/model/prefix_file.c; do
    printf '%s\0%s\0' "$file" "$work/o/$(basename "$(dirname "$file")")-$(basename "$file" .c).o"
done | xargs -0 -n 2 -P "$(nproc)" sh -c 'shift 0; src=$1 obj=$2; shift 2; exec '"$clang $(printf "'%s' " "${flags[@]}")"' -c "$src" -o "$obj"' sh
for name in "${names[@]}"; do
    # shellcheck disable=SC2046
    "$clang" "${flags[@]}" -fsanitize=fuzzer "$top/tests/fuzz/fuzz_$name.c" "$work"/o/*.o -o "$work/$name" \
        $(pkg-config --libs jansson libzmq) -lpthread -lm
    corpus=${keep:-$work/corpus}/$name
    mkdir -p "$corpus" "$top/tests/fuzz/corpus/$name"
    log=$work/$name.log
    arguments=(-max_total_time="$share" -max_len=70000 -timeout=25 -rss_limit_mb=2048 -print_final_stats=1
        -use_value_profile=1 "$corpus" "$top/tests/fuzz/corpus/$name")
    pids=()
    for ((job = 0; job < jobs; job++)); do
        UBSAN_OPTIONS=print_stacktrace=1 "$work/$name" "${arguments[@]}" >"$log.$job" 2>&1 &
        pids+=($!)
    done
    for ((job = 0; job < jobs; job++)); do
        if ! wait "${pids[job]}"; then
            tail -n 60 "$log.$job" >&2
            status=1
        fi
    done
    [ -z "$merge" ] || "$work/$name" -merge=1 -use_counters=0 -max_len=1024 "$top/tests/fuzz/corpus/$name" "$corpus" >"$log.merge" 2>&1
    awk -v name="$name" -v seconds="$share" -v jobs="$jobs" '
        /^stat::number_of_executed_units/ { runs += $2 }
        / cov: [0-9]+/ { match($0, /cov: [0-9]+/); cov = substr($0, RSTART + 5, RLENGTH - 5); covs[FILENAME] = cov }
        END { for (f in covs) if (covs[f] > most) most = covs[f]
              printf "%-12s %12d executions in %d s x %d, %d edges covered\n", name, runs, seconds, jobs, most }' "$log".[0-9]*
done
exit $status
