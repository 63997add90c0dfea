#!/bin/sh
# tandem and llama.cpp in turns on the same models: bench_peer.sh --help
exec python3 "$(dirname "$0")/bench_peer.py" "$@"
