#!/bin/sh
# Tries the GPUs of this machine with tandem and writes a report to send back.
#
#     ./run.sh [--quick] [--all] [--model FILE.gguf]... [--out FOLDER]
#
#   --quick      a minute instead of ten: small shapes, short texts
#   --all        software drivers too, where there is a GPU
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
if [ -z "$hard" ]; then
    say "There is no GPU that tandem can use; devices.txt says why. The host is tried alone."
    wrong=3
fi

# -- check --------------------------------------------------------------------------------------
verdict="left out: this tandem has no check"
if tandem check --help >/dev/null 2>&1; then
    say "checking (up to five minutes)"
    set --
    for gpu in $hard; do set -- "$@" --device "$gpu"; done
    # Software drivers, and the host alone, would take longer than there is.
    [ -z "$quick" ] && echo "$gpus" | grep -qv -e ' software$' -e '^$' || set -- "$@" --quick
    limited 330 "$here/bin/tandem" check "$@" --report "$out/check.json" >"$out/check.txt" 2>&1
    code=$?
    case $code in
    0) verdict="passed" ;;
    124 | 137) verdict="cut off after 330 s" && wrong=1 ;;
    *) verdict="FAILED (exit code $code)" && wrong=1 ;;
    esac
fi
say "check: $verdict"

# -- law 1: the same texts with any draft and with none ------------------------------------------
n=48
[ -z "$quick" ] || n=12
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
    limited 200 "$here/bin/tandem" generate --target "$target" --in "$work/prompts.jsonl" -n $n \
        --ctx 256 --ignore-eos --trust --quiet "$@" >"$work/lines" 2>"$work/err" || return 1
    sed 's/.*"id": *"\([^"]*\)".*"tokens": *\(\[[^]]*\]\).*/\1 \2/' "$work/lines" | sort >"$to"
    accepted=$((accepted + $(sed 's/.*"accepted": *\([0-9]*\).*/+ \1/' "$work/lines" | tr -d '\n' | sed 's/^/0 /')))
    [ "$(grep -c '\[[0-9]' "$to")" -eq 5 ]
}
# law1 TARGET DRAFT DEVICES DRAFT-DEVICE...: one run without a draft, then one with it on each.
law1() {
    target=$1 draft=$2 devices=$3
    shift 3
    what="$(basename "$target" .gguf) on $(echo $devices | tr ' ' '+')"
    if [ "$(left)" -lt 60 ]; then
        say "left out, time was up: $what"
        return
    fi
    n_runs=$((n_runs + 1))
    if ! texts "$work/plain" "$target" "$devices" --draft none; then
        say "FAILED: $what: $(tail -n 1 "$work/err")"
        wrong=1
        return
    fi
    is_held=1 accepted=0
    for draft_device in "$@"; do
        for drafting in "--draft-fixed 4 --parallel 1" "--draft-fixed 16 --parallel 4"; do
            with="$what, draft on $draft_device, $drafting"
            # shellcheck disable=SC2086 # options
            if ! texts "$work/drafted" "$target" "$devices" --draft "$draft" \
                --draft-device "$draft_device" $drafting; then
                say "FAILED: $with: $(tail -n 1 "$work/err")"
                is_held=0
            elif ! cmp -s "$work/plain" "$work/drafted"; then
                say "BROKEN: $with"
                { echo "== $with" && diff "$work/plain" "$work/drafted"; } >>"$out/broken.txt"
                is_held=0
            fi
        done
    done
    n_held=$((n_held + is_held))
    [ $is_held -eq 1 ] && say "held: $what ($accepted tokens of drafts accepted)" || wrong=1
}
tales=models/tales-target.q8_0.gguf
tales_draft=models/tales-draft.q8_0.gguf
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
say "law 1: $law"
[ $n_held -eq $n_runs ] || wrong=1

# -- speeds -------------------------------------------------------------------------------------
bench() {
    limited "$(($(left) > 30 ? $(left) : 30))" "$here/bin/tandem" bench "$@" >>"$out/bench.md" 2>>"$out/log.txt" ||
        say "bench failed or was cut off: $*"
}
say "measuring"
for device in ${hard:-host}; do
    if [ -n "$quick" ]; then
        bench --model $tales --device "$device" --pp 32 --tg 4 --widths 1,4 --repeat 1
        continue
    fi
    bench --model $tales --device "$device" --widths 1,2,4,8,16,32,64 --ops
    bench --model $tales --draft $tales_draft --device "$device"
    echo "$models" | while IFS= read -r model; do
        [ -z "$model" ] || bench --model "$model" --device "$device" --depth 0,4096 --measure
    done
done

# -- the page -----------------------------------------------------------------------------------
{
    echo "# tandem on $(awk '/"name":/  { sub(/.*: "/, ""); sub(/",.*/, ""); print }' \
        "$out/devices.json" | tr '\n' ';' | sed 's/;$//; s/;/; /g')"
    echo
    echo "- check: $verdict"
    echo "- law 1: $law"
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
