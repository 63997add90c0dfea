#!/bin/sh
# What AMD's compiler makes of the shaders: registers, spills, occupancy and instructions of every
# variant, for GPUs that need not be there (RADV's null device).
#
#     scripts/shader_stats.sh [--update | --check] [--reference DIR] [TEST_UNIT_VULKAN_COMPILE]
#
# Prints the tables; --update puts them into docs/shaders.md; --check fails where registers or
# spills differ from that page's (with another version of Mesa it only says so, and exits 77).
# With --reference it is one table instead: our products beside those of the llama.cpp checkout
# DIR, compiled here by the same driver.
# TD_RADV_ICD names RADV's ICD file where it is not in its usual place.
set -eu
cd "$(dirname "$0")/.."
page=docs/shaders.md
mode=print reference=
while :; do
    case ${1:-} in
    --update | --check) mode=${1#--} && shift ;;
    --reference) reference=${2:?--reference wants a folder} && shift 2 ;;
    --help | -h) sed -n '2,12s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) break ;;
    esac
done
program=${1:-build/default/tests/test_unit_vulkan_compile}
icd=${TD_RADV_ICD:-/usr/share/vulkan/icd.d/radeon_icd.$(uname -m).json}
if [ ! -e "$icd" ]; then
    echo "skipped: no RADV driver ($icd); on Debian: apt-get install mesa-vulkan-drivers"
    exit 77
fi
if [ ! -x "$program" ]; then
    echo "$program is not there; build it: cmake --build --preset default" >&2
    exit 2
fi
export VK_ICD_FILENAMES="$icd" VK_DRIVER_FILES="$icd" TD_TABLE=1
unset TD_VERBOSE TD_VK_VALIDATION TD_VK_LIMIT
folder=$(mktemp -d)
export MESA_SHADER_CACHE_DISABLE=1 XDG_CACHE_HOME=/dev/null # RADV fails with what it has kept
trap 'rm -rf "$folder"' EXIT

# Of the shaders with cache types, those of one type with heads of 128; of products by expert and of
# rare weight types a few row counts.
wanted='/^\| spoil / { next } # sabotage: no model runs it
        /^\| (attention|kv_store|rope_store) / {
            if (/ 1 1 128 128 | 8 8 128 128 | 2 2 128 128 /) print
            else if (/ (30 30|133 133|7 7|6 6|3 3|20 20) 128 128 / && !/ 2 64 0 0 | 4 (64|128) 0 0 /) print
            next
        }
        /^\| mat_tile/ {
            if (/ 4 1 2 8 0 /) { if (/(Q4_K|MXFP4) /) print; next }
            if (!/\.(F32|F16|BF16|Q4_0|Q8_0|Q4_K|Q5_K|Q6_K|MXFP4) /) next
        }
        /^\| mat_vec/ {
            if (/ 512 1 1 2 /) { if (/(Q4_K|MXFP4) (1|4|8) /) print; next }
            if (!/\.(F32|F16|BF16|Q4_0|Q8_0|Q4_K|Q5_K|Q6_K|MXFP4) / && / 16 512 /) next
        }
        { print }'
# For the reference: products of plain weights of two types.
[ -z "$reference" ] || wanted='/^\| mat_(vec|tile)\.(Q4_K|Q8_0) / && !/ 1 2 \| | 1 2 8 0 | 8 1 1 / && !/ (6|10|12) 512 /'

for family in gfx1100 rembrandt; do
    export RADV_FORCE_FAMILY=$family
    "$program" >"$folder/rows" 2>"$folder/log" || { # no shader may spill
        awk -F'|' '$5 > 0' "$folder/rows" && cat "$folder/log" >&2 && exit 1
    }
    driver=$(sed -n 's/^[^,]*, \(.*\): [0-9]* pipelines.*/\1/p' "$folder/log")
    printf '%s %s (%s)\n\n' "${reference:+#}##" "$family" "$driver"
    echo '| shader | VGPRs | SGPRs | spills | subgroups a SIMD | LDS bytes | instructions | latency | inverse throughput | v_dot4 | 16-byte loads | instructions a weight | cycles a multiply-add |'
    echo '|---|---|---|---|---|---|---|---|---|---|---|---|---|'
    awk "$wanted" "$folder/rows"
    [ -z "$reference" ] ||
        scripts/shader_stats_reference.sh "$reference" "$program" "$family" "$folder/$family"
    echo
done >"$folder/tables"

begin='<!-- begin: scripts/shader_stats.sh --update -->'
end='none'
[ -z "$reference" ] || begin='<!-- begin: scripts/shader_stats.sh --reference DIR --update -->' end='<!-- end -->'
between() { # the page's own tables
    awk -v begin="$begin" '$0 == begin { is_on = 1 } is_on' "$1"
}
registers() { # family, shader, VGPRs, SGPRs, spills
    awk -F'|' '/^## / { f = $0 }
               /^\| [a-z]/ && !/^\| shader/ { print f "|" $2 "|" $3 "|" $4 "|" $5 }'
}
case $mode in
print) cat "$folder/tables" ;;
update)
    awk -v begin="$begin" '{ print } $0 == begin { exit }' "$page" >"$folder/page"
    { echo && cat "$folder/tables"; } | sed '$d' >>"$folder/page"
    awk -v end="$end" '$0 == end { is_on = 1; print "" } is_on' "$page" >>"$folder/page"
    cp "$folder/page" "$page"
    ;;
check)
    if ! grep -qF "## gfx1100 ($driver)" "$page"; then
        echo "skipped: $page is of another driver than $driver"
        exit 77
    fi
    between "$page" | registers >"$folder/old"
    registers <"$folder/tables" >"$folder/new"
    if ! diff "$folder/old" "$folder/new"; then
        echo "registers or spills have changed (< $page, > now; VGPRs, SGPRs, spills)."
        echo "If that is meant: scripts/shader_stats.sh --update $program"
        exit 1
    fi
    ;;
esac
