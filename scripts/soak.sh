#!/bin/sh
# A mixed batch for a long time, and what must not grow meanwhile: soak.sh --help
exec python3 "$(dirname "$0")/soak.py" "$@"
