#!/bin/sh
# The whole protocol under a simulated clock and faults, by seed (tests/sim_protocol.h):
#
#     scripts/simulate.sh [COUNT [FIRST_SEED [TEST_SIM_PROTOCOL]]]
#
# COUNT seeds (100,000) from FIRST_SEED (1) on. A failure prints the seed that replays it.
set -eu
case ${1:-} in
--help | -h) sed -n '2,6s/^# \{0,1\}//p' "$0" && exit 0 ;;
esac
cd "$(dirname "$0")/.."
program=${3:-build/default/tests/test_sim_protocol}
if [ ! -x "$program" ]; then
    echo "$program is not there; build it: cmake --build --preset default" >&2
    exit 2
fi
SIM_COUNT=${1:-100000} SIM_SEED=${2:-1} exec "$program"
