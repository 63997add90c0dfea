#!/bin/sh
# Compiles every pipeline with RADV's null devices, for GPUs that need not be there:
# check_radv.sh TEST_UNIT_VULKAN_COMPILE [family...]. Fails when one spills registers.
set -eu
program=$1
shift
icd=${TD_RADV_ICD:-/usr/share/vulkan/icd.d/radeon_icd.$(uname -m).json}
if [ ! -e "$icd" ]; then
    echo "skipped: no RADV driver ($icd); on Debian: apt-get install mesa-vulkan-drivers"
    exit 77
fi
[ $# -gt 0 ] || set -- gfx1100 rembrandt navi21 vega10
export VK_ICD_FILENAMES="$icd" VK_DRIVER_FILES="$icd"
unset TD_VK_VALIDATION TD_VK_LIMIT
status=0
export MESA_SHADER_CACHE_DISABLE=1 XDG_CACHE_HOME=/dev/null # RADV fails with what it has kept
for family in "$@"; do
    RADV_FORCE_FAMILY=$family "$program" || status=1
done
exit $status
