#!/usr/bin/env bash
# Installs the packages that building tandem needs, and with --tests those of its tests.
#
#     ./scripts/setup.sh [--tests] [--print]
#
# Knows Debian, Ubuntu, Fedora, Arch and what is like them (ID and ID_LIKE of /etc/os-release); tested
# on Debian 12, the others go by the names of their packages. Only what is missing is installed; where
# nothing is, no package manager is called. Not root: by sudo or pkexec. --print only prints the
# commands. TD_OS_RELEASE=FILE: another file than /etc/os-release. TD_SKIP_SETUP=1 skips it all, for
# systems where the tools come from elsewhere.
set -euo pipefail

cmake_wanted=$(sed -n 's/^cmake_minimum_required(VERSION \([0-9.]*\)).*/\1/p' "$(dirname "$0")/../CMakeLists.txt")

# What is needed, by family. With --tests also a software Vulkan driver and the validation layers: the
# GPU tests run on machines without a GPU; jinja2, what chat templates are compared with; and gnuplot, with which `tandem report` draws. On
# Debian and what is like it a second software driver is fetched then, but not installed
# (scripts/fetch_swiftshader.sh).
declare -A build_packages=(
    [debian]="build-essential cmake ninja-build pkg-config libvulkan-dev glslang-tools spirv-tools
        libzmq3-dev libjansson-dev libutf8proc-dev libsqlite3-dev libpq-dev python3"
    [fedora]="gcc cmake ninja-build pkgconf-pkg-config vulkan-headers vulkan-loader-devel glslang
        spirv-tools zeromq-devel jansson-devel utf8proc-devel sqlite-devel libpq-devel python3"
    [arch]="base-devel cmake ninja vulkan-headers vulkan-icd-loader glslang spirv-tools zeromq jansson
        libutf8proc sqlite postgresql-libs python"
)
declare -A test_packages=(
    [debian]="libcmocka-dev mesa-vulkan-drivers vulkan-validationlayers clang-format
        python3-jinja2 postgresql gnuplot-nox"
    [fedora]="libcmocka-devel mesa-vulkan-drivers vulkan-validation-layers clang-tools-extra
        python3-jinja2 postgresql-server gnuplot-minimal"
    [arch]="cmocka vulkan-swrast vulkan-validation-layers clang python-jinja postgresql gnuplot"
)
declare -A install_command=(
    [debian]="env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 install -y --no-install-recommends"
    [fedora]="dnf install -y --setopt=install_weak_deps=False"
    [arch]="pacman -S --needed --noconfirm"
)

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

is_print=
is_tests=
for argument in "$@"; do
    case $argument in
    --tests) is_tests=1 ;;
    --print) is_print=1 ;;
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) fail "\"$argument\" is no option; allowed: --tests, --print" ;;
    esac
done
[ -z "${TD_SKIP_SETUP:-}" ] || exit 0

# The value of a key of os-release, without its quotes. Not sourced: it is only data.
os_release=${TD_OS_RELEASE:-/etc/os-release}
[ -r "$os_release" ] || os_release=/usr/lib/os-release
value_of() { sed -n "s/^$1=[\"']\{0,1\}\([^\"']*\)[\"']\{0,1\}\$/\1/p" "$os_release" 2>/dev/null | head -n 1; }

family=
for id in $(value_of ID) $(value_of ID_LIKE); do
    case $id in
    debian | ubuntu) family=debian ;;
    fedora) family=fedora ;;
    arch) family=arch ;;
    *) continue ;;
    esac
    break
done
if [ -z "$family" ]; then
    read -ra packages <<<"$(echo ${build_packages[debian]} ${is_tests:+${test_packages[debian]}})"
    fail "\"$(value_of ID)\" (ID of $os_release) is neither Debian, Ubuntu, Fedora nor Arch, nor like them;" \
        "install what these Debian packages hold: ${packages[*]}; then run again with TD_SKIP_SETUP=1"
fi
read -ra packages <<<"$(echo ${build_packages[$family]} ${is_tests:+${test_packages[$family]}})"

if [ -n "$is_print" ]; then
    [ "$family" != debian ] || echo "apt-get -q update"
    echo "${install_command[$family]} ${packages[*]}"
    exit 0
fi

is_installed() {
    case $family in
    debian) [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
    fedora) rpm -q --quiet --whatprovides "$1" ;;
    arch) [ -z "$(pacman -T "$1")" ] ;;
    esac
}

# What the distribution has may be too old; the build would say so in its own words.
check_cmake() {
    local found
    found=$(cmake --version 2>/dev/null | sed -n 's/^cmake version \([0-9.]*\).*/\1/p')
    [ -n "$found" ] || fail "cmake is not on the path, though its package is installed"
    [ "$(printf '%s\n' "$cmake_wanted" "$found" | sort -V | head -n 1)" = "$cmake_wanted" ] ||
        fail "the CMake of $(value_of PRETTY_NAME) is $found; needed: $cmake_wanted or later. Take a newer" \
            "release of it, or put a newer cmake first on the path (snap install --classic cmake, say)"
}

# What comes after the packages: of the tests, a second Vulkan driver, which may lack.
finish() {
    check_cmake
    [ -z "$is_tests" ] || [ "$family" != debian ] || "$(dirname "$0")/fetch_swiftshader.sh"
}

missing=()
for package in "${packages[@]}"; do
    is_installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    finish
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null; then
        as_root=(sudo)
    elif command -v pkexec >/dev/null; then
        as_root=(pkexec)
    else
        fail "not root, and neither sudo nor pkexec; as root: ${install_command[$family]} ${missing[*]}"
    fi
fi

say "installing ${missing[*]} (a few minutes)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ "$family" = debian ]; then
    # A source of the user's that fails to update need not keep the packages from being found.
    "${as_root[@]}" apt-get -q update >"$log" 2>&1 ||
        { tail -n 5 "$log" >&2 && say "apt-get update failed; going on"; }
fi
read -ra install <<<"${install_command[$family]}"
if ! "${as_root[@]}" "${install[@]}" "${missing[@]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "the installation failed (its last lines are above); is the network up, and has this release" \
        "these packages? By hand: ${install_command[$family]} ${missing[*]}"
fi
finish
say "installed"
