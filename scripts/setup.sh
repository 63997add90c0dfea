#!/usr/bin/env bash
# Installs the Debian packages that building tandem needs, and with --tests those of its tests.
#
#     ./scripts/setup.sh [--tests]
#
# Only what is missing is installed; where nothing is, apt is not called at all. Uses sudo only when
# not root. TD_SKIP_SETUP=1 skips it, for systems where the tools come from elsewhere.
set -euo pipefail

build_packages=(build-essential cmake ninja-build pkg-config libvulkan-dev glslang-tools spirv-tools
    libzmq3-dev libjansson-dev libutf8proc-dev python3)
# A software Vulkan driver and the validation layers: the GPU tests run on machines without a GPU.
# jinja2: what chat templates are compared with.
test_packages=(libcmocka-dev mesa-vulkan-drivers vulkan-validationlayers clang-format python3-jinja2)

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

packages=("${build_packages[@]}")
for argument in "$@"; do
    case $argument in
    --tests) packages+=("${test_packages[@]}") ;;
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) fail "\"$argument\" is no option; allowed: --tests" ;;
    esac
done

if [ -n "${TD_SKIP_SETUP:-}" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    fail "this system has no apt-get; install what these Debian packages hold:" \
        "${packages[*]}; then run again with TD_SKIP_SETUP=1"
fi

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || state=
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
        fail "not root and no sudo; as root: apt-get install ${missing[*]}"
    as_root=(sudo)
fi

say "installing ${missing[*]} (a few minutes)"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A source of the user's that fails to update need not keep the packages from being found.
"${apt[@]}" update >"$log" 2>&1 || { tail -n 5 "$log" >&2 && say "apt-get update failed; going on"; }
if ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "apt-get install failed (its last lines are above); is the network up, and are the sources" \
        "those of Debian 12 or later? By hand: apt-get install ${missing[*]}"
fi
say "installed"
