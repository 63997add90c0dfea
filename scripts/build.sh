#!/usr/bin/env bash
# Configures and builds: build.sh DIR [cmake options...]. Quiet when all is well; on failure the
# end of the log, which is kept in DIR/build.log.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?"build.sh DIR [cmake options...]"}
shift
mkdir -p "$build"
log=$build/build.log
echo "building in $build (log: $log)" >&2
if ! { cmake -S . -B "$build" -G Ninja "$@" && cmake --build "$build"; } >"$log" 2>&1; then
    grep -E 'error|FAILED|CMake Error' "$log" | head -n 20 >&2 || true
    tail -n 30 "$log" >&2
    echo "build: failed; all of it is in $log" >&2
    exit 1
fi
