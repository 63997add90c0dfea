#!/bin/sh
# if_stores_compile.sh PROBE TEST: TEST, unless the driver's compiler does not come to an end with a
# store of a rotated cache, which PROBE (test_op_rotate) has of all tests the smallest of. SwiftShader's
# does not on some CPUs (seen with one that has AVX-512 FP16 and AMX).
TD_TEST_FILTER='test_a_rotated_cache_gives_*' timeout 200 "$1" >/dev/null 2>&1
if [ $? = 124 ]; then
    echo "skipped: this driver's compiler has not ended with a rotated store after 200 s on this CPU"
    exit 77
fi
exec "$2"
