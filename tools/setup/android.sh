#!/usr/bin/env bash
# Fetch what tests/android.sh needs of other architectures' Debian packages, unpacked into the cache; nothing is installed.
#
# usage: android.sh headers|java     headers: musl's and Linux's for the three ABIs, jni.h, android/log.h, libgcc for armhf
#                                    java: a Java runtime for arm64 with the libraries it loads
#
# The last line on stdout is the folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

what=${1-}
case $what in headers | java) ;; *) die "usage: android.sh headers|java" ;; esac
release=$(. /etc/os-release && echo "${ID-unknown}${VERSION_ID-}")
folder=$cache/android/$release-$what
if [ -e "$folder/.complete" ]; then
    echo "$folder"
    exit 0
fi
command -v apt-get >/dev/null || die "the packages of other architectures are Debian's: this needs a Debian system"
mkdir -p "$cache/android"
exec 9>"$cache/android/.$release-$what.lock"
flock -n 9 || { note "waiting for another download"; flock 9; }
if [ -e "$folder/.complete" ]; then
    echo "$folder"
    exit 0
fi

# A state of our own for apt, which knows other architectures; the machine's sources and keys.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/drllm-android.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
chmod 755 "$scratch"
mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/debs"
[ "$(id -u)" != 0 ] || chown _apt "$scratch/debs" 2>/dev/null || true # apt downloads as that user
native=$(dpkg --print-architecture)
cat >"$scratch/apt.conf" <<END
APT::Architectures { "$native"; "amd64"; "arm64"; "armhf"; };
Dir::State "$scratch";
Dir::State::lists "$scratch/lists";
Dir::State::status "/dev/null";
Dir::Cache "$scratch/cache";
Dir::Log "$scratch";
Acquire::Retries "3";
Acquire::Languages "none";
END
export APT_CONFIG=$scratch/apt.conf
note "fetching Debian packages for Android's ABIs ($what), once"
# A source that cannot be read is no error yet: what counts is whether the packages can be had.
apt-get update -q >"$scratch/log" 2>&1 || true
# unpack FOLDER PACKAGE...
unpack() {
    local into=$1 deb
    shift
    (cd "$scratch/debs" && apt-get download -q "$@") >>"$scratch/log" 2>&1 ||
        { tail -n 10 "$scratch/log" >&2; die "cannot fetch $*"; }
    mkdir -p "$into"
    for deb in "$scratch"/debs/*.deb; do dpkg -x "$deb" "$into"; done
    rm -f "$scratch"/debs/*.deb
}

out=$scratch/out
mkdir -p "$out"
if [ "$what" = java ]; then
    # The version of the distribution's own Java, with the libraries that it loads without a screen.
    java=$(apt-cache depends default-jre-headless 2>/dev/null | sed -n 's/.*Depends: \(openjdk-[0-9]*-jre-headless\).*/\1/p' | head -n 1)
    [ -n "$java" ] || die "the package lists have no default-jre-headless"
    unpack "$out" "$java:arm64" libc6:arm64 libgcc-s1:arm64 libstdc++6:arm64 zlib1g:arm64
    # Where /usr is merged, the loader is looked for in /lib.
    [ -e "$out/lib" ] || ln -s usr/lib "$out/lib"
    home=$(cd "$out" && find usr/lib/jvm -path '*/lib/server/libjvm.so' -printf '%P\n' | head -n 1)
    home=usr/lib/jvm/${home%/lib/server/libjvm.so}
    [ -x "$out/$home/bin/java" ] || die "there is no Java in $java"
    # Its settings are links into /etc, which is not this /etc.
    while read -r link; do
        target=$(readlink "$link")
        if [[ $target == /etc/* ]] && [ -e "$out$target" ]; then
            rm "$link"
            cp -rL "$out$target" "$link"
        fi
    done < <(find "$out/$home" -type l)
    ln -s "$home" "$out/java"
else
    unpack "$scratch/android" "android-libnativehelper-dev:$native" "android-liblog-dev:$native"
    mkdir -p "$out/include/android"
    # Where they lie differs between Debian's versions.
    find "$scratch/android" -name jni.h -exec cp {} "$out/include/" \;
    find "$scratch/android" -path '*/android/log.h' -exec cp {} "$out/include/android/" \;
    for file in jni.h android/log.h; do [ -e "$out/include/$file" ] || die "the packages have no $file"; done
    while read -r arch debian musl linux; do
        unpack "$scratch/$arch" "musl-dev:$debian" "linux-libc-dev:$debian"
        mkdir -p "$out/musl-$arch"
        cp -r "$scratch/$arch/usr/include/$musl" "$out/musl-$arch/include"
        cp -r "$scratch/$arch/usr/include/linux" "$scratch/$arch/usr/include/asm-generic" "$out/musl-$arch/include/"
        cp -r "$scratch/$arch/usr/include/$linux/asm" "$out/musl-$arch/include/"
        # On 32 bits musl renames functions for its 64-bit times, which bionic does not.
        sed -i 's/^#define _REDIR_TIME64 1/#define _REDIR_TIME64 0/' "$out/musl-$arch/include/bits/alltypes.h"
    done <<'END'
aarch64 arm64 aarch64-linux-musl aarch64-linux-gnu
armv7a armhf arm-linux-musleabihf arm-linux-gnueabihf
x86_64 amd64 x86_64-linux-musl x86_64-linux-gnu
END
    # Division and the like, which an NDK has in a library of the compiler.
    libgcc=$(apt-cache pkgnames libgcc- | grep -xE 'libgcc-[0-9]+-dev' | sort -V | tail -n 1)
    [ -n "$libgcc" ] || die "the package lists have no libgcc for armhf"
    unpack "$scratch/libgcc" "$libgcc:armhf"
    cp "$scratch"/libgcc/usr/lib/gcc/arm-linux-gnueabihf/*/libgcc.a "$out/libgcc-armv7a.a"
fi
touch "$out/.complete"
rm -rf "$folder"
mv "$out" "$folder"
echo "$folder"
