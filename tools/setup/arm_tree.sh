#!/usr/bin/env bash
# Make a Debian 12 of an Arm architecture in the cache, a folder in which its programs run under qemu-user. proot takes the
# place of chroot and of the kernel's binfmt_misc, so that neither is needed.
#
# usage: arm_tree.sh [--print] arm64|armhf     the last line on stdout is the folder
#
# in_tree.sh FOLDER ARCH CPU COMMAND... runs a command in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
. "$here/fetch.sh"

print=0
if [ "${1-}" = --print ]; then
    print=1
    shift
fi
arch=$1
folder=$cache/trees/bookworm-$arch
if [ $print = 1 ] || [ -e "$folder/.complete" ]; then
    echo "$folder"
    exit 0
fi
"$here/packages.sh" arm-test
[ "$(id -u)" = 0 ] || die "debootstrap needs root"
mkdir -p "$cache/trees"
exec 9>"$cache/trees/.lock"
flock -n 9 || { note "waiting for another one who makes a tree"; flock 9; }
if [ ! -e "$folder/.complete" ]; then
    work=$folder.new log=$cache/trees/log-$arch
    failed() {
        tail -n 15 "$log" >&2
        die "making the tree failed; the whole log is $log"
    }
    note "making a Debian 12 for $arch in $folder, once: some minutes"
    uri=$(mirror) || uri=http://deb.debian.org/debian
    rm -rf "$work"
    debootstrap --foreign --arch="$arch" --variant=minbase bookworm "$work" "$uri" >"$log" 2>&1 9>&- || failed
    # In a container debootstrap makes it a link to the machine's own.
    [ ! -L "$work/proc" ] || { rm "$work/proc" && mkdir "$work/proc"; }
    "$here/in_tree.sh" "$work" "$arch" max env DEBOOTSTRAP_DIR=/debootstrap /debootstrap/debootstrap --second-stage \
        >>"$log" 2>&1 9>&- || failed
    rm -rf "$work"/var/cache/apt/archives/*.deb "$folder"
    touch "$work/.complete"
    mv "$work" "$folder"
fi
echo "$folder"
