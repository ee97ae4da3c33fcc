#!/usr/bin/env bash
# Fetch, check and build GNU libmicrohttpd for `drllm serve`, statically, into the cache: without TLS and all else that a local
# service does not use.
#
# usage: microhttpd.sh [--print] [TRIPLE]
#   TRIPLE   the machine to build for, e.g. aarch64-linux-gnu (default: this one)
#   --print  only print the folder where it is, or will be
#
# The last line on stdout is that folder: include/, lib/libmicrohttpd.a, licenses/, versions.txt, .complete.
# Environment: DRLLM_CACHE, DEPS_CC as for deps.sh.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
. "$here/fetch.sh"

# Debian's tarball is upstream's.
sources() {
    cat <<'END'
libmicrohttpd 1.0.1 a89e09fc9b4de34dde19f4fcb4faaa1ce10299b9908db1132bbfa1de47882b94 https://ftp.gnu.org/gnu/libmicrohttpd/libmicrohttpd-1.0.1.tar.gz tarball
END
}
suites='trixie'
cflags='-O2 -g -fPIC -ffunction-sections -fdata-sections -ffile-prefix-map=WORK=.' # messages name source files
options='--disable-shared --enable-static --disable-https --disable-curl --disable-doc --disable-examples --disable-tools
    --disable-postprocessor --disable-dauth --disable-bauth --disable-httpupgrade --disable-cookie --disable-experimental'

print=0 triple=
for arg; do
    case $arg in
        --print) print=1 ;;
        -*) die "unknown option $arg" ;;
        *) triple=$arg ;;
    esac
done
cc=${DEPS_CC:-${triple:+$triple-}gcc}
target=$(target_of "$cc" "$triple")
key=$({ sources; echo "$cflags $options"; "$cc" -v 2>&1 | tail -1; } 2>/dev/null | sha256sum | cut -c1-12)
name=$target-microhttpd-$key
prefix=$cache/deps/$name
if [ $print = 1 ] || [ -e "$prefix/.complete" ]; then
    echo "$prefix"
    exit 0
fi

begin_build libmicrohttpd
work=$cache/build/$name
rm -rf "$work"
mkdir -p "$work/src" "$work/build"
get libmicrohttpd

log=$work/log
failed() {
    tail -n 30 "$log" >&2
    die "building libmicrohttpd failed; the whole log is $log"
}
note "building libmicrohttpd for $target, once"
# shellcheck disable=SC2086 # the options are to be split
(
    cd "$work/build" &&
        "$work/src/libmicrohttpd/configure" ${triple:+--host="$triple"} CC="$cc" CFLAGS="${cflags//WORK/$work}" $options &&
        make -j "${DEPS_JOBS:-$(getconf _NPROCESSORS_ONLN)}" -C src/microhttpd
) >"$log" 2>&1 </dev/null || failed

out=$work/prefix
mkdir -p "$out/include" "$out/lib" "$out/licenses"
cp "$work/build/src/microhttpd/.libs/libmicrohttpd.a" "$out/lib/"
cp "$work/src/libmicrohttpd/src/include/microhttpd.h" "$out/include/"
cp "$work/src/libmicrohttpd/COPYING" "$out/licenses/libmicrohttpd"
cat "$work/src/libmicrohttpd.version" >"$out/versions.txt"
touch "$out/.complete"
rm -rf "$prefix"
mv "$out" "$prefix"
rm -rf "$work"
echo "$prefix"
