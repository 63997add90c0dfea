#!/usr/bin/env bash
# Fetches SwiftShader, a second software Vulkan driver, for the tests: of another vendor than Mesa's,
# with subgroups of 4 and without f16.
#
#     ./scripts/fetch_swiftshader.sh [FOLDER]
#
# It comes in a package of Debian's browser, of which only the driver is unpacked and nothing is
# installed: FOLDER (default build/drivers/swiftshader) then holds libvk_swiftshader.so and
# vk_swiftshader_icd.json. Does nothing where they are. Where they cannot be had it says why and
# succeeds: the tests that want the driver are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/drivers/swiftshader}
files=(libvk_swiftshader.so vk_swiftshader_icd.json)

is_there() { [ -s "$folder/${files[0]}" ] && [ -s "$folder/${files[1]}" ]; }
skip() {
    printf 'swiftshader: not fetched: %s; its tests will be skipped\n' "$*" >&2
    exit 0
}
if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit 0
fi
! is_there || exit 0
for tool in apt-get dpkg-deb tar; do
    command -v $tool >/dev/null || skip "there is no $tool (packages other than Debian's are not known)"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt downloads as a user of its own
# Without lists apt knows no package; in a fresh container they are fetched first.
download() { (cd "$work" && apt-get -qq download "$1") >"$work/log" 2>&1; }
for package in chromium-common chromium; do
    download $package ||
        { [ "$(id -u)" -eq 0 ] && apt-get -qq update >/dev/null 2>&1 && download $package; } || continue
    deb=$(find "$work" -name "${package}_*.deb" | head -n 1)
    names=$(dpkg-deb --fsys-tarfile "$deb" | tar -tf - | grep -E "/(${files[0]}|${files[1]})\$" || true)
    [ "$(wc -w <<<"$names")" -eq 2 ] || continue
    # shellcheck disable=SC2086 # two names
    dpkg-deb --fsys-tarfile "$deb" | tar -xf - -C "$work" $names
    mkdir -p "$folder"
    for name in $names; do # the library first, so that a folder with the file is whole
        mv "$work/$name" "$folder/"
    done
    is_there || continue
    echo "swiftshader: $(basename "$deb") in $folder" >&2
    exit 0
done
skip "$(tail -n 1 "$work/log" 2>/dev/null || true) (wanted: chromium-common)"
