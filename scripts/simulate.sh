#!/bin/sh
# The whole program under a simulated clock and faults, by seed:
#
#     scripts/simulate.sh [COUNT [FIRST_SEED [protocol|stages|PROGRAM]]]
#
# COUNT seeds (100,000) from FIRST_SEED (1) on, of the protocol with a draft (tests/sim_protocol.h) or
# of stages on other machines (tests/sim_stages.c). A failure prints the seed that replays it.
set -eu
case ${1:-} in
--help | -h) sed -n '2,7s/^# \{0,1\}//p' "$0" && exit 0 ;;
esac
cd "$(dirname "$0")/.."
program=${3:-protocol}
case $program in
protocol | stages) program=build/default/tests/test_sim_$program ;;
esac
if [ ! -x "$program" ]; then
    echo "$program is not there; build it: cmake --build --preset default" >&2
    exit 2
fi
SIM_COUNT=${1:-100000} SIM_SEED=${2:-1} exec "$program"
