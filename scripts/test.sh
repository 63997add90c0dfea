#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test.
#
#     ./scripts/test.sh [--werror] [--quick]
#
#   --werror   warnings fail the build
#   --quick    the main suite only, without the sanitizers
#
# The main suite is all of ctest, the Vulkan validation runs among it. Then the tests that feed the
# program hostile input, the unit tests and the simulations (a quarter of their seeds; not those of
# speed, which have no code of their own) run again under AddressSanitizer and
# UndefinedBehaviorSanitizer. What drivers keep on disk starts empty in every run (build/cache), so
# that each sees what a newcomer's machine does. The ten longest tests of each suite and ctest's
# closing lines come at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

werror=OFF
quick=
while [ $# -gt 0 ]; do
    case $1 in
    --werror) werror=ON ;;
    --quick) quick=1 ;;
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        echo "test.sh: \"$1\" is no option; see --help" >&2
        exit 2
        ;;
    esac
    shift
done

./scripts/setup.sh --tests

status=0
names=()
# suite NAME BUILD-DIR CTEST-OPTIONS...: runs and logs; goes on after failures, so that one run
# tells all of them. Two more at a time than there are cores, as those of several processes mostly
# wait for each other.
suite() {
    local name=$1 build=$2
    shift 2
    names+=("$name:$build")
    echo "== $name" >&2
    ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$(($(nproc) + 2))" "$@" 2>&1 |
        tee "$build/ctest.log" || status=1
}

# The ten longest tests of a log of ctest's: name and seconds.
longest() {
    awk '$1 ~ /^[0-9]+\/[0-9]+$/ && $NF == "sec" { print $(NF - 1), $4 }' "$1" | sort -rn |
        awk 'NR <= 10 { printf "    %8.1f s  %s\n", $1, $2 }' # a head would end sort by a signal
}

rm -rf build/cache
caches=(-DTD_TEST_CACHE="$PWD/build/cache")
./scripts/build.sh build/test -DTD_WERROR=$werror "${caches[@]}"
suite "all tests" build/test

if [ -z "$quick" ]; then
    ./scripts/build.sh build/asan -DTD_WERROR=$werror -DTD_SANITIZE=address,undefined \
        -DTD_SHADERS_OF="$PWD/build/test" "${caches[@]}"
    UBSAN_OPTIONS=print_stacktrace=1 \
        suite "address and undefined-behaviour sanitizers" build/asan -L '^(unit|hostile|sim)$' \
        -E '^unit_(shaders?_(valid|radv|stats)|vulkan_compile)$|^sim_(draft|protocol_speed)|_(own|swiftshader)$'
fi

for name in "${names[@]}"; do
    printf '\n== %s, the ten longest\n' "${name%%:*}"
    longest "${name#*:}/ctest.log"
done
for name in "${names[@]}"; do
    printf '\n== %s\n' "${name%%:*}"
    sed -n '/tests passed/,$p' "${name#*:}/ctest.log"
done
exit $status
