#!/usr/bin/env bash
# Make a Debian 12 of an Arm architecture in the cache, a folder in which its programs run under qemu-user (in_tree.sh).
#
# usage: arm_tree.sh [--print] arm64|armhf     the last line on stdout is the folder
#
# It holds the files of Debian's minimal set of packages, and its package database knows them as installed, so that dpkg finds
# the versions there that a package depends on. Their own scripts were not run: under emulation that takes ten minutes.
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
if [ -e "$folder/.complete" ]; then
    echo "$folder"
    exit 0
fi

work=$folder.new log=$cache/trees/log-$arch
failed() {
    tail -n 15 "$log" >&2
    die "making the tree failed; the whole log is $log"
}
note "making a Debian 12 for $arch in $folder, once: about a minute"
uri=$(mirror) || uri=http://deb.debian.org/debian
rm -rf "$work"
debootstrap --foreign --arch="$arch" --variant=minbase bookworm "$work" "$uri" >"$log" 2>&1 9>&- || failed
# In a container debootstrap makes it a link to the machine's own.
[ ! -L "$work/proc" ] || { rm "$work/proc" && mkdir "$work/proc"; }

# What the second stage would leave, without its scripts.
database=$work/var/lib/dpkg
mkdir -p "$database/info" "$database/updates"
echo 1 >"$database/info/format"
: >"$database/status"
for package in "$work"/var/cache/apt/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work" --keep-directory-symlink >>"$log" 2>&1 || failed
    name=$(dpkg-deb -f "$package" Package)
    [ "$(dpkg-deb -f "$package" Multi-Arch)" != same ] || name=$name:$arch
    { echo /. && dpkg-deb --fsys-tarfile "$package" | tar -t | sed -n 's|^\./\(.*[^/]\)/*$|/\1|p'; } >"$database/info/$name.list"
    { dpkg-deb -f "$package" | sed '1a Status: install ok installed' && echo; } >>"$database/status"
done
for file in passwd group; do
    cp "$work/usr/share/base-passwd/$file.master" "$work/etc/$file"
done
rm -rf "$work"/var/cache/apt/archives/*.deb "$work/debootstrap" "$folder"
touch "$work/.complete"
mv "$work" "$folder"
echo "$folder"
