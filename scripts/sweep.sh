#!/bin/sh
# Runs of tandem over settings x values, resumable, into CSV and JSON: sweep.sh --help
exec python3 "$(dirname "$0")/sweep.py" "$@"
