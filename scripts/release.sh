#!/usr/bin/env bash
# Makes what a release consists of: the sources, Debian packages and the bundle, with their checksums.
#
#     ./scripts/release.sh [FOLDER]
#
# FOLDER (default build/dist) then holds tandem-VERSION.tar.xz (of what is committed), tandem_*.deb,
# tandem-doc_*.deb and SHA256SUMS. The bundle for machines without packages is scripts/bundle.sh's.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'
    exit 0
fi
folder=${1:-build/dist}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
./scripts/build.sh build/release -DCMAKE_BUILD_TYPE=Release -DTD_TESTS=OFF
version=$(build/release/tandem --version | cut -d ' ' -f 2)
rm -f "$folder"/tandem*.deb "$folder"/tandem-*.tar.xz
git archive --prefix="tandem-$version/" HEAD | xz -T0 >"$folder/tandem-$version.tar.xz"
cpack --config build/release/CPackConfig.cmake -B "$folder" >"$folder/cpack.log" ||
    { tail -n 20 "$folder/cpack.log" >&2 && exit 1; }
rm -rf "$folder/_CPack_Packages" "$folder/cpack.log"
cd "$folder"
sha256sum tandem*.deb tandem-*.tar.xz | tee SHA256SUMS
