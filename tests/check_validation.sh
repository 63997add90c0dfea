#!/bin/sh
# Runs a test program under the validation layers: check_validation.sh core|sync|gpu PROGRAM. Any
# message of the layers aborts the program. Skips where the layers are missing.
set -eu
mode=$1
program=$2
found=
for folder in ${VK_LAYER_PATH:-/usr/share/vulkan/explicit_layer.d /etc/vulkan/explicit_layer.d \
    /usr/local/share/vulkan/explicit_layer.d}; do
    [ -e "$folder/VkLayer_khronos_validation.json" ] && found=1
done
if [ -z "$found" ]; then
    echo "skipped: no validation layers; on Debian: apt-get install vulkan-validationlayers"
    exit 77
fi
# The op tests need not run on the host here, and few weight types and cases will do: the layers see
# buffers and barriers, which are those of all the types that have the same inputs.
export TD_TEST_TYPES=F32,F16,Q4_K,IQ2_XS TD_TEST_BRIEF=1 TANDEM_CACHE_DIR=
TD_TEST_DEVICES=${TD_TEST_DEVICES:-vulkan} TD_VK_VALIDATION=$mode exec "$program"
