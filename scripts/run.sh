#!/usr/bin/env bash
# The tour: installs what is missing, builds, and generates text with the bundled pair of models.
#
#     ./scripts/run.sh [--prompts N] [--tokens N] [--draft K] [--build DIR]
#
# The draft runs in a process of its own and is reached over ipc; the target is split over two
# devices: a GPU and what comes next where there is one, else two host devices. Shows each text with
# the accepted draft tokens marked, then the figures with and without the draft, and fails if a
# single token differs between the two.
set -euo pipefail
cd "$(dirname "$0")/.."

build=build/release
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    --prompts | --tokens | --draft)
        arguments+=("$1" "${2:?"$1 needs a number"}")
        shift 2
        ;;
    --build)
        build=${2:?"--build needs a folder"}
        shift 2
        ;;
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        echo "run.sh: \"$1\" is no option; see --help" >&2
        exit 2
        ;;
    esac
done

./scripts/setup.sh
./scripts/build.sh "$build" -DCMAKE_BUILD_TYPE=Release -DTD_TESTS=OFF
exec python3 scripts/tour.py --tandem "$build/tandem" "${arguments[@]}"
