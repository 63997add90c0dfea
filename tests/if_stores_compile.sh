#!/bin/sh
# if_stores_compile.sh MARK TEST [SECONDS]: runs TEST, unless the driver's compiler does not come to an
# end with a store of a rotated cache. SwiftShader's does not on some machines. With SECONDS this is
# the test that finds out, and leaves the file MARK if so; the others are skipped where it lies.
if [ -n "$3" ]; then
    rm -f "$1"
    timeout "$3" "$2"
    code=$?
    [ $code = 124 ] || exit $code
    : >"$1"
fi
if [ -e "$1" ]; then
    echo "skipped: this driver's compiler does not come to an end with a store of a rotated cache here"
    exit 77
fi
exec "$2"
