#!/usr/bin/env bash
# Install the system packages that a build needs and that are missing.
#
# usage: packages.sh [--check] GROUP...     groups: build model cross cross-armhf firmware mpi lint link fuzz tiny android android-sample
#                                                   python deb deb-test arm-test
#   --check  install nothing: fail, with the line to paste, if something is missing
#
# Does nothing, quickly, when nothing is missing. Installs as root or with a sudo that asks for no password; otherwise it
# prints the one line to paste.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

check=0 packages=() commands=()
for arg; do
    case $arg in
        --check) check=1 ;;
        build)
            packages+=(build-essential cmake ninja-build python3 xz-utils ca-certificates)
            commands+=(gcc g++ make cmake ninja python3 xz flock)
            ;;
        model)
            packages+=(python3 python3-pip ca-certificates)
            commands+=(python3)
            ;;
        cross)
            packages+=(gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
            commands+=(aarch64-linux-gnu-gcc aarch64-linux-gnu-g++ qemu-aarch64)
            ;;
        cross-armhf)
            packages+=(gcc-arm-linux-gnueabihf g++-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user)
            commands+=(arm-linux-gnueabihf-gcc arm-linux-gnueabihf-g++ qemu-arm)
            ;;
        python)
            packages+=(python3 python3-venv ca-certificates)
            commands+=(python3)
            ;;
        arm-test)
            packages+=(debootstrap proot qemu-user python3 dpkg-dev)
            commands+=(debootstrap proot qemu-aarch64 qemu-arm python3)
            ;;
        deb-test)
            packages+=(lintian man-db systemd bash-completion gcc libc6-dev)
            commands+=(lintian man systemd-analyze)
            ;;
        deb)
            packages+=(dpkg-dev binutils xz-utils)
            commands+=(dpkg-deb objdump xz)
            ;;
        firmware)
            packages+=(gcc-arm-none-eabi libnewlib-arm-none-eabi gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-system-arm python3)
            commands+=(arm-none-eabi-gcc aarch64-linux-gnu-gcc qemu-system-arm qemu-system-aarch64 python3)
            ;;
        mpi)
            packages+=(libopenmpi-dev openmpi-bin)
            commands+=(mpicc mpirun)
            ;;
        link)
            packages+=(build-essential cmake pkg-config)
            commands+=(g++ cmake pkg-config)
            ;;
        fuzz)
            packages+=(clang libclang-rt-dev)
            commands+=(clang)
            ;;
        lint)
            packages+=(clang clang-format clang-tidy shellcheck)
            commands+=(clang clang-format clang-tidy shellcheck)
            ;;
        tiny) # the text of examples/firmware/tiny, and a place for PyTorch
            packages+=(bible-kjv python3-venv)
            commands+=(bible python3)
            ;;
        android)
            packages+=(default-jdk-headless clang lld)
            commands+=(java javac clang ld.lld)
            ;;
        android-sample)
            packages+=(aapt android-framework-res)
            commands+=(aapt)
            ;;
        *) die "packages.sh: unknown group $arg" ;;
    esac
done

if ! command -v dpkg-query >/dev/null; then # not Debian: say what is missing and leave it to the user
    missing=()
    for command in "${commands[@]}"; do command -v "$command" >/dev/null || missing+=("$command"); done
    [ ${#missing[@]} = 0 ] || die "please install: ${missing[*]}"
    exit 0
fi

missing=()
installed=$(dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' 2>/dev/null | sed -n 's/^\([^: ]*\)[^ ]* installed$/\1/p')
for package in "${packages[@]}"; do
    grep -qx -- "$package" <<<"$installed" || [[ " ${missing[*]-} " == *" $package "* ]] || missing+=("$package")
done
[ ${#missing[@]} != 0 ] || exit 0

line="apt-get install -y ${missing[*]}"
if [ $check = 1 ]; then
    die "missing packages; run:  sudo $line"
elif [ "$(id -u)" = 0 ]; then
    sudo=()
elif sudo -n true 2>/dev/null; then
    sudo=(sudo -n)
else
    die "missing packages; run:  sudo $line"
fi
note "installing ${missing[*]}"
log=$(mktemp "${TMPDIR:-/tmp}/drllm-packages.XXXXXX")
export DEBIAN_FRONTEND=noninteractive
install() { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5 "${missing[@]}"; }
# The lists may be old or empty: read them anew only where the packages can't be had without.
if ! install >"$log" 2>&1 </dev/null; then
    "${sudo[@]}" apt-get update -q >>"$log" 2>&1 </dev/null || true
    if ! install >>"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        die "apt-get could not install the packages (log: $log); run:  sudo $line"
    fi
fi
rm -f "$log"
