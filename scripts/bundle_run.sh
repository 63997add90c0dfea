#!/bin/sh
# Tries the GPUs of this machine with tandem and writes a report to send back.
#
#     ./run.sh [--quick] [--all] [--model FILE.gguf]... [--out FOLDER]
#
#   --quick      a minute instead of ten: small shapes, short texts
#   --all        software drivers too, where there is a GPU
#                (each further device may take five minutes more)
#   --model M    measure a model of yours as well (not sent: only its name and speed)
#   --out DIR    where to write (default: report-DATE-TIME here)
#
# Needs a Vulkan driver and nothing else. What it does: lists devices; `tandem check`: each operation
# against plain C, races, losses, speeds; the same texts with a draft and without, token for token;
# `tandem bench`. The report holds what the machine is (processor, kernel, GPUs, drivers, memory),
# no names of users or files. Exit code: 0 all is well, 1 something is wrong, 3 there is no GPU.
set -u
here=$(cd "$(dirname "$0")" && pwd)
quick= all= out= models=
while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=1 ;;
    --all) all=1 ;;
    --model) models="$models
$(cd "$(dirname "$2")" && pwd)/$(basename "$2")" && shift ;;
    --out) out=$2 && shift ;;
    -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) echo "run.sh: \"$1\" is no option; see --help" >&2 && exit 2 ;;
    esac
    shift
done
out=${out:-$here/report-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
cd "$here" || exit 2

# The machine's C++ runtime and Vulkan loader where it has them: its drivers are made for these.
LD_LIBRARY_PATH=$here/lib
export LD_LIBRARY_PATH TANDEM_CACHE_DIR="$work/cache"
"$here/bin/tandem" --version >/dev/null 2>&1 || LD_LIBRARY_PATH=$here/lib:$here/lib/spare
"$here/bin/tandem" --version >"$work/version" 2>&1 ||
    { cat "$work/version" "$here/BUILD" >&2 && exit 2; }
tandem() { "$here/bin/tandem" "$@"; }

start=$(date +%s)
total=600
n_cut=0 # parts that were made smaller or left out for time
cut() { n_cut=$((n_cut + 1)) && say "$@"; }
left() { echo $((total - $(date +%s) + start)); }
say() { echo "$@" && echo "$@" >>"$out/log.txt"; }
# limited SECONDS COMMAND...: cut off after so long (exit code 124), where there is a timeout.
limited() {
    seconds=$1
    shift
    if command -v timeout >/dev/null 2>&1; then
        timeout -k 5 "$seconds" "$@"
    else
        "$@"
    fi
}

# -- what is here -------------------------------------------------------------------------------
{
    cat "$here/BUILD"
    date -u '+%Y-%m-%d %H:%M UTC'
    uname -srm
    sed -n 's/^PRETTY_NAME="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' /etc/os-release 2>/dev/null
    sed -n 's/^model name[^:]*: /processor: /p' /proc/cpuinfo 2>/dev/null | sort | uniq -c
    sed -n 's/^\(MemTotal\|MemAvailable\): */\1 /p' /proc/meminfo 2>/dev/null
    cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null
} >"$out/machine.txt"
tandem devices >"$out/devices.txt" 2>&1
tandem devices --json >"$out/devices.json" 2>"$work/err" || cat "$work/err" >>"$out/log.txt"
cat "$out/devices.txt"

# "SPEC KIND" of the usable ones: devices --json has a key a line.
gpus=$(awk '/"device":/ { gsub(/[",]/, ""); spec = $2 } /"kind":/ { gsub(/[",]/, ""); kind = $2 }
            /"usable": true/ && kind != "host" { print spec, kind }' "$out/devices.json")
hard=$(echo "$gpus" | sed -n '/ software$/d; s/ .*//p')
[ -n "$hard" ] && [ -z "$all" ] || hard=$(echo "$gpus" | sed 's/ .*//')
wrong=0
n_devices=$(echo "$hard" | grep -c .)
[ "$n_devices" -lt 2 ] || total=$((600 + 300 * (n_devices - 1)))
if [ -z "$hard" ]; then
    say "There is no GPU that tandem can use; devices.txt says why. The host is tried alone."
    wrong=3
fi

# -- check --------------------------------------------------------------------------------------
verdict="left out: this tandem has no check"
if tandem check --help >/dev/null 2>&1; then
    say "checking (up to $((total / 2)) s)"
    set --
    for gpu in $hard; do set -- "$@" --device "$gpu"; done
    # Software drivers, and the host alone, would take longer than there is.
    if [ -n "$quick" ]; then
        set -- "$@" --quick
    elif ! echo "$gpus" | grep -qv -e ' software$' -e '^$'; then
        cut "no GPU but a software driver: the check takes small shapes, 20 repeats, no speeds"
        set -- "$@" --quick
    fi
    limited $((total * 55 / 100)) "$here/bin/tandem" check "$@" --report "$out/check.json" >"$out/check.txt" 2>&1
    code=$?
    case $code in
    0) verdict="passed" ;;
    124 | 137) verdict="cut off after $((total * 55 / 100)) s" && wrong=1 ;;
    *) verdict="FAILED (exit code $code)" && wrong=1 ;;
    esac
fi
say "check: $verdict"

# -- law 1: the same texts with any draft and with none ------------------------------------------
# What the benches at the end may take; law 1 has the time between.
bench_s=120
[ -z "$quick" ] || bench_s=30
n=8
cat >"$work/prompts.jsonl" <<LINES
{"id": "greedy", "prompt": "Once upon a time there was a king who", "temp": 0}
{"id": "drawn", "prompt": "The old woman said to the fox", "temp": 0.8, "seed": 1}
{"id": "hot", "prompt": "In the forest", "temp": 1.3, "seed": 3}
{"id": "chain", "prompt": "There was once a girl", "temp": 0.9, "top_k": 40, "top_p": 0.95, "seed": 4}
{"id": "again", "prompt": "Once upon a time there was a king who", "temp": 0, "repeat_penalty": 1.3}
LINES
n_held=0 n_runs=0 accepted=0
# texts FILE TARGET DEVICES OPTIONS...: ids and tokens of a run into a file, by id.
texts() {
    to=$1 target=$2 devices=$3
    shift 3
    for device in $devices; do set -- "$@" --device "$device"; done
    limit=$(($(left) - bench_s))
    [ "$limit" -gt 10 ] || limit=10
    limited $limit "$here/bin/tandem" generate --target "$target" --in "$work/prompts.jsonl" -n $n \
        --ctx 256 --ignore-eos --trust --quiet "$@" >"$work/lines" 2>"$work/err" || return
    sed 's/.*"id": *"\([^"]*\)".*"tokens": *\(\[[^]]*\]\).*/\1 \2/' "$work/lines" | sort >"$to"
    accepted=$((accepted + $(sed 's/.*"accepted": *\([0-9]*\).*/+ \1/' "$work/lines" | tr -d '\n' | sed 's/^/0 /')))
    [ "$(grep -c '\[[0-9]' "$to")" -eq 5 ]
}
# failed CODE TEXT...: a run that did not end well; one that was cut off has only taken too long.
failed() {
    code=$1
    shift
    case $code in
    124 | 137) is_cut=1 && cut "cut off, time was up: $*" ;;
    *) is_held=0 && say "FAILED: $*: $(tail -n 1 "$work/err")" ;;
    esac
}
# law1 TARGET DRAFT DEVICES DRAFT-DEVICE...: one run without a draft, then one with it on each.
law1() {
    target=$1 draft=$2 devices=$3
    shift 3
    what="$(basename "$target" .gguf) on $(echo "$devices" | tr ' ' '+')"
    if [ "$(left)" -lt $((bench_s + 20)) ]; then
        cut "left out, time was up: $what"
        return
    fi
    is_held=1 is_cut= n_compared=0 accepted=0
    texts "$work/plain" "$target" "$devices" --draft none
    code=$?
    [ $code -eq 0 ] || failed $code "$what"
    for draft_device in "$@"; do
        for drafting in "--draft-fixed 4 --parallel 1" "--draft-fixed 16 --parallel 4"; do
            [ $code -eq 0 ] && [ -z "$is_cut" ] || continue
            with="$what, draft on $draft_device, $drafting"
            # shellcheck disable=SC2086 # options
            texts "$work/drafted" "$target" "$devices" --draft "$draft" \
                --draft-device "$draft_device" $drafting
            drafted_code=$?
            n_compared=$((n_compared + (drafted_code == 0)))
            if [ $drafted_code -ne 0 ]; then
                failed $drafted_code "$with"
            elif ! cmp -s "$work/plain" "$work/drafted"; then
                say "BROKEN: $with"
                { echo "== $with" && diff "$work/plain" "$work/drafted"; } >>"$out/broken.txt"
                is_held=0
            fi
        done
    done
    [ $is_held -eq 1 ] || wrong=1
    [ $n_compared -gt 0 ] || [ $is_held -eq 0 ] || return # cut off before there was anything
    n_runs=$((n_runs + 1))
    n_held=$((n_held + is_held))
    [ $is_held -eq 0 ] || say "held: $what, $n tokens ($accepted tokens of drafts accepted)"
}
tales=models/tales-target.q8_0.gguf
tales_draft=models/tales-draft.q8_0.gguf
# How fast are they? Eight tokens of five texts a device, shaders compiled before.
[ -z "$quick" ] || n=12
pace=0
for device in ${hard:-host:1}; do
    [ -z "$quick" ] || break
    texts "$work/plain" $tales "$device" --draft none
    from=$(date +%s)
    texts "$work/plain" $tales "$device" --draft none || say "FAILED: $device: $(tail -n 1 "$work/err")"
    spent=$(($(date +%s) - from))
    [ "$spent" -le "$pace" ] || pace=$spent
done
small=$quick
if [ -z "$quick" ] && [ "$pace" -le 4 ]; then
    n=48
elif [ -z "$quick" ]; then
    n=12
    small=1
    cut "slow: 8 tokens of five texts took $pace s; texts have $n tokens instead of 48, benches are small"
fi
for device in ${hard:-host:1}; do
    law1 $tales $tales_draft "$device" "$device" host:1
    for tiny in models/tiny-*.gguf; do
        [ -z "$quick" ] || [ "$tiny" = models/tiny-qwen35moe.gguf ] || continue
        law1 "$tiny" "$tiny" "$device" "$device"
    done
done
first=
for device in $hard; do # splits: with the host, and of each GPU with the one before, in both orders
    law1 $tales $tales_draft "$device host:1" "$device"
    if [ -n "$first" ]; then
        law1 $tales $tales_draft "$first $device" "$first" "$device"
        law1 $tales $tales_draft "$device $first" "$first" "$device"
    fi
    first=$device
done
law="held in $n_held of $n_runs"
[ $n_runs -gt 0 ] || wrong=1
say "law 1: $law"
[ $n_held -eq $n_runs ] || wrong=1

# -- speeds -------------------------------------------------------------------------------------
# bench SECONDS OPTIONS...
bench() {
    limit=$1
    shift
    limited "$limit" "$here/bin/tandem" bench "$@" >>"$out/bench.md" 2>>"$out/log.txt"
    code=$?
    case $code in
    0) ;;
    124 | 137) cut "bench cut off after $limit s: $*" ;;
    *) wrong=1 && say "bench FAILED: $*" ;;
    esac
}
# share PARTS: an equal part of the time that is left, for one of so many.
share() {
    seconds=$((($(left) - 10) / $1))
    echo $((seconds > 15 ? seconds : 15))
}
say "measuring"
echo "$models" | grep . >"$work/models"
n_left=$(((2 + $(wc -l <"$work/models")) * (n_devices > 0 ? n_devices : 1)))
if [ -z "$small" ] && [ "$(share $n_left)" -lt 50 ]; then
    small=1
    cut "benches are small: there are $(share $n_left) s for each"
fi
for device in ${hard:-host}; do
    if [ -n "$small" ]; then
        bench "$(share $((n_left - 1)))" --model $tales --device "$device" --pp 32 --tg 4 --widths 1,4 --repeat 1
    else
        bench "$(share $n_left)" --model $tales --device "$device" --widths 1,2,4,8,16,32,64 --ops
        bench "$(share $((n_left - 1)))" --model $tales --draft $tales_draft --device "$device"
    fi
    n_left=$((n_left - 2))
    while IFS= read -r model; do
        bench "$(share $n_left)" --model "$model" --device "$device" --depth 0,4096 --measure
        n_left=$((n_left - 1))
    done <"$work/models"
done

# -- the page -----------------------------------------------------------------------------------
{
    echo "# tandem on $(awk '/"name":/  { sub(/.*: "/, ""); sub(/",.*/, ""); print }' \
        "$out/devices.json" | tr '\n' ';' | sed 's/;$//; s/;/; /g')"
    echo
    echo "- check: $verdict"
    echo "- law 1: $law"
    echo "- cut short or left out for time: $n_cut parts, each a line in log.txt"
    echo "- took $((total - $(left))) s${quick:+ (quick)}"
    for part in machine.txt log.txt devices.txt check.txt bench.md broken.txt; do
        [ -s "$out/$part" ] || continue
        printf '\n## %s\n\n```\n' "$part"
        cat "$out/$part"
        echo '```'
    done
} >"$out/REPORT.md"
if command -v tar >/dev/null 2>&1 && tar -czf "$out.tar.gz" -C "$(dirname "$out")" "$(basename "$out")"; then
    say "report: $out.tar.gz (or the folder beside it); look it over and send it back"
else
    say "report: $out; look it over and send it back"
fi
exit $wrong
