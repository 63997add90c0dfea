#!/bin/sh
# What two devices do together against one, each pair of runs in turns: bench_pipeline.sh --help
exec python3 "$(dirname "$0")/bench_pipeline.py" "$@"
