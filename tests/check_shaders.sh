#!/bin/sh
# Holds every compiled shader against the SPIR-V rules: check_shaders.sh FOLDER-OF-SPV [spirv-val].
# Also checks law 1 where the words show it: no group operation, whose order is the driver's.
set -eu
folder=$1
validator=${2:-spirv-val}
n=0
for spv in "$folder"/*.spv; do
    [ -e "$spv" ] || { echo "no shaders in $folder"; exit 1; }
    "$validator" --target-env vulkan1.3 "$spv"
    if command -v spirv-dis >/dev/null && spirv-dis "$spv" | grep -E 'OpGroupNonUniform[FI](Add|Mul)|OpAtomicF'; then
        echo "$spv: sums by subgroup or atomic have no fixed order"
        exit 1
    fi
    n=$((n + 1))
done
echo "$n shaders are valid"
