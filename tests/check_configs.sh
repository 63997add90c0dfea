#!/usr/bin/env bash
# Every file of configs/ is accepted by the command it is for, and a key that does not exist is not:
# check_configs.sh TANDEM. A name ending in .draft.json is for `tandem draft`.
set -euo pipefail
cd "$(dirname "$0")/.."
tandem=$1
n=0
for config in configs/*.json; do
    command=generate
    [[ $config == *.draft.json ]] && command=draft
    "$tandem" $command --config "$config" --help >/dev/null
    n=$((n + 1))
done
[ "$n" -gt 0 ] || { echo "no configurations in configs/"; exit 1; }

broken=$(mktemp)
trap 'rm -f "$broken"' EXIT
sed 's/"temp"/"tempp"/' configs/tales.json >"$broken"
code=0
"$tandem" generate --config "$broken" --help >/dev/null 2>&1 || code=$?
[ "$code" -eq 65 ] || { echo "a misspelt key gives exit code $code; expected 65"; exit 1; }
echo "$n configurations"
