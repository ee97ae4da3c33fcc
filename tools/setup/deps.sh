#!/usr/bin/env bash
# Fetch, check and build the third-party libraries, statically, into a cache outside the source tree.
#
# usage: deps.sh [--print] [--no-xnnpack] [TRIPLE]
#        deps.sh --sources FOLDER     only fetch the sources, checked, into FOLDER/NAME; for other build systems
#   TRIPLE        the machine to build for, e.g. aarch64-linux-gnu (default: this one)
#   --print       only print the folder where the libraries are, or will be
#   --no-xnnpack  leave XNNPACK out
#
# The last line on stdout is that folder: include/*.h, lib/*.a, licenses/, versions.txt, and .complete once all is there.
# Environment: DRLLM_CACHE (default ${XDG_CACHE_HOME:-$HOME/.cache}/drllm), DEPS_CC and DEPS_CXX (default TRIPLE-gcc, g++),
# DEPS_JOBS (default: all cores).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
. "$here/fetch.sh"

# --- what is built ---------------------------------------------------------------------------------------------------------
# Name, version, tarball's sha256 (Debian's .orig.tar, fetched by apt), and upstream's repository and commit, which are used
# where apt has no such tarball. Versions in one block are alternatives, tried from the top.
sources() {
    cat <<'END'
xnnpack     0.0~git20241108.4ea82e5 90bde2caef0f880f627bab0dc805a86c4b8070cd98e3243db3046ab3f3be1a99 https://github.com/google/XNNPACK 4ea82e595b36106653175dcb04b2aa532660d0d8
pthreadpool 0.0~git20240616.560c60d 4cc3cbd933b28131d2a34edc54f76af9fb41bc490af5eae1a5bd3cd07ea90708 https://github.com/Maratyszcza/pthreadpool 560c60d342a76076f0557a3946924c6478470044
cpuinfo     0.0~git20250327.39ea79a 2a10028948f7f0663c56cc34405484391ee3d7ccdf09fe51d73897937b99d9d4 https://github.com/pytorch/cpuinfo 39ea79a3c132f4e678695c579ea9353d2bd29968
cpuinfo     0.0~git20250905.877328f 557ca404a3836b9f335a3a06b65ff9fe9dbaaefab7fb5c0185f53d9f33615a10 https://github.com/pytorch/cpuinfo 877328f188a3c7d1fa855871a278eb48d530c4c0
fxdiv       0.0~git20200417.b408327 7953482badaf4cb34026c3487c257b8e4ab2df061c019bd6fabbbc12ad52c44b https://github.com/Maratyszcza/FXdiv b408327ac2a15ec3e43352421954f5b1967701d1
utf8proc    2.8.0                   a0a60a79fe6f6d54e7d411facbfcc867a6e198608f2cd992490e46f04b1bcecc https://github.com/JuliaStrings/utf8proc 1cb28a66ca79a0845e99433fd1056257456cef8b
cjson       1.7.18                  3aa806844a03442c00769b83e99970be70fbef03735ff898f4811dd03b9f5ee5 https://github.com/DaveGamble/cJSON acc76239bee01d8e9c858ae2cab296704e52d916
cmocka      1.1.7                   810570eb0b8d64804331f82b29ff47c790ce9cd6b163e98d47a4807047ecad82 https://gitlab.com/cmocka/cmocka refs/tags/cmocka-1.1.7
END
}

# A tag can be moved, so what is compiled of a library that is fetched by tag is pinned too.
file_pins='35c84a603149b4099f3e071e35ec0beacf39054aa0b44ef6d45e7c029e076355  src/cmocka.c
af7504d9fd3212ec2bcd9c0d4558649277236f668ef14481ac31f5edc9ea735f  include/cmocka.h
89c5f73030e6f88a0a58e82e676c173071e00a678ebc60df9e7b4b136b95f266  include/cmocka_private.h'

# Debian's suites that have these versions. The last one moves on, and may one day have none of them.
suites='bookworm trixie forky'

cflags='-O2 -DNDEBUG -fPIC -ffunction-sections -fdata-sections'
# KleidiAI would be downloaded by CMake; the others need newer compilers than Debian 12's or serve no product that we use.
xnnpack_options='-DXNNPACK_ENABLE_KLEIDIAI=OFF -DXNNPACK_ENABLE_ARM_SME=OFF -DXNNPACK_ENABLE_ARM_SME2=OFF
    -DXNNPACK_ENABLE_ARM_BF16=OFF -DXNNPACK_ENABLE_ARM_FP16_SCALAR=OFF -DXNNPACK_ENABLE_ARM_FP16_VECTOR=OFF'

# --- arguments, and the key of this build in the cache ---------------------------------------------------------------------
print=0 xnnpack=1 triple='' sources_to=''
if [ "${1-}" = --sources ]; then
    [ $# = 2 ] || die "--sources takes one folder"
    sources_to=$2
    shift 2
fi
for arg; do
    case $arg in
        --print) print=1 ;;
        --no-xnnpack) xnnpack=0 ;;
        -*) die "unknown option $arg" ;;
        *) triple=$arg ;;
    esac
done
cc=${DEPS_CC:-${triple:+$triple-}gcc}
cxx=${DEPS_CXX:-${triple:+$triple-}g++}
target=$(target_of "$cc" "$triple")
# Arm's assembly kernels multiply the scales in another order than the intrinsics for fewer rows: a row would then depend on
# the batch.
case $target in
    aarch64*) xnnpack_options+=' -DXNNPACK_ENABLE_ASSEMBLY=OFF' ;;
    arm-*) xnnpack_options+=' -DCMAKE_SYSTEM_PROCESSOR=armv7-a' ;; # cpuinfo knows no "arm"
esac
revision=3 # raise it when the build below changes in a way that the rest of the key does not show
key=$({ sources; echo "$cflags $xnnpack_options $revision"; "$cc" -v 2>&1 | tail -1; } 2>/dev/null | sha256sum | cut -c1-12)
name=$target-$key
[ $xnnpack = 1 ] || name=$name-no-xnnpack
[ -z "$sources_to" ] || name=sources-$key
prefix=$cache/deps/$name
if [ $print = 1 ] || { [ -z "$sources_to" ] && [ -e "$prefix/.complete" ]; }; then
    echo "$prefix"
    exit 0
fi

begin_build "the libraries"

# --- sources ---------------------------------------------------------------------------------------------------------------
work=$cache/build/$name # kept until all is done, so that an interrupted build goes on where it was
mkdir -p "$work/src"
for source in xnnpack pthreadpool cpuinfo fxdiv utf8proc cjson cmocka; do get $source; done

# pthreadpool spins a million times, some 20 ms, before it sleeps: where another program wants the core, that is lost for each
# parallel region. 50,000 times, 0.2 to 2 ms, are still longer than a thread takes to wake up. With fewer, a caller that waits and a
# worker without work fall asleep in turn, and every region takes two wake-ups. It is a constant of the source, with no option.
spin=$work/src/pthreadpool/src/threadpool-common.h
sed -i 's/^\(#define PTHREADPOOL_SPIN_WAIT_ITERATIONS\) 1000000$/\1 50000/' "$spin"
grep -q '^#define PTHREADPOOL_SPIN_WAIT_ITERATIONS 50000$' "$spin" || die "pthreadpool's spin count is not where it was"

if [ -n "$sources_to" ]; then
    rm -rf "$sources_to"
    mkdir -p "$(dirname "$sources_to")"
    mv "$work/src" "$sources_to"
    rm -rf "$work"
    echo "$sources_to"
    exit 0
fi

# --- build -----------------------------------------------------------------------------------------------------------------
log=$work/log
: >"$log"
jobs=${DEPS_JOBS:-$(getconf _NPROCESSORS_ONLN)}
failed() {
    tail -n 40 "$log" >&2
    die "building the libraries failed; the whole log is $log"
}
run() { "$@" >>"$log" 2>&1 || failed; }

system=
if [ -n "$triple" ]; then
    system="-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=${target%%-*}"
fi
# shellcheck disable=SC2086 # the option lists are to be split
run cmake -G Ninja -S "$work/src/xnnpack" -B "$work/cmake" $system $xnnpack_options \
    -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_ASM_COMPILER="$cc" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
    -DCMAKE_C_FLAGS="-ffunction-sections -fdata-sections" -DCMAKE_CXX_FLAGS="-ffunction-sections -fdata-sections" \
    -DCMAKE_C_FLAGS_RELEASE="-O2 -DNDEBUG" -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" \
    -DCPUINFO_SOURCE_DIR="$work/src/cpuinfo" -DFXDIV_SOURCE_DIR="$work/src/fxdiv" \
    -DPTHREADPOOL_SOURCE_DIR="$work/src/pthreadpool" \
    -DXNNPACK_LIBRARY_TYPE=static -DCPUINFO_LIBRARY_TYPE=static -DPTHREADPOOL_LIBRARY_TYPE=static \
    -DXNNPACK_BUILD_TESTS=OFF -DXNNPACK_BUILD_BENCHMARKS=OFF -DXNNPACK_BUILD_ALL_MICROKERNELS=OFF \
    -DCPUINFO_BUILD_PKG_CONFIG=OFF

targets='pthreadpool cpuinfo'
if [ $xnnpack = 1 ]; then
    targets="$targets XNNPACK"
    note "building XNNPACK, pthreadpool and cpuinfo for $target, once: about $((240 / jobs + 20)) s on $jobs cores"
fi
progress() { # ninja's [n/m], on one line of a terminal, or every tenth of the way
    local line n m tenth last=-1
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$log"
        [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
        n=${BASH_REMATCH[1]} m=${BASH_REMATCH[2]}
        tenth=$((n * 10 / m))
        if [ -t 2 ]; then
            printf '\r[%d/%d] ' "$n" "$m" >&2
        elif [ $tenth != $last ]; then
            note "[$n/$m]"
        fi
        last=$tenth
    done
    if [ -t 2 ] && [ $last -ge 0 ]; then echo >&2; fi
}
# shellcheck disable=SC2086
NINJA_STATUS='[%f/%t] ' ninja -C "$work/cmake" -j "$jobs" $targets 2>&1 | progress || failed

out=$work/prefix
rm -rf "$out"
mkdir -p "$out/include" "$out/lib" "$out/licenses" "$work/obj"
archive() { # archive NAME: the objects that were compiled for it
    rm -f "$out/lib/lib$1.a"
    run "${cc%gcc}ar" rcsD "$out/lib/lib$1.a" "$work/obj/$1.o"
}
[[ $cc == *gcc ]] || archive() { run ar rcsD "$out/lib/lib$1.a" "$work/obj/$1.o"; }
# shellcheck disable=SC2086
compile() { run "$cc" $cflags -c -o "$work/obj/$1.o" "${@:2}"; archive "$1"; }
compile utf8proc -DUTF8PROC_STATIC "$work/src/utf8proc/utf8proc.c"
compile cjson "$work/src/cjson/cJSON.c"
compile cmocka -I "$work/src/cmocka/include" -D_GNU_SOURCE -DHAVE_INTTYPES_H -DHAVE_MALLOC_H -DHAVE_SIGNAL_H \
    -DHAVE_STRINGS_H -DHAVE_STRSIGNAL -DHAVE_CLOCK_GETTIME -DHAVE_CLOCK_REALTIME -DHAVE_STRUCT_TIMESPEC \
    -DHAVE_GCC_THREAD_LOCAL_STORAGE "$work/src/cmocka/src/cmocka.c"

copy() { run cp "$@"; }
copy "$work/cmake/pthreadpool/libpthreadpool.a" "$work/cmake/cpuinfo/libcpuinfo.a" "$out/lib/"
copy "$work/src/pthreadpool/include/pthreadpool.h" "$work/src/cpuinfo/include/cpuinfo.h" \
    "$work/src/utf8proc/utf8proc.h" "$work/src/cjson/cJSON.h" "$work/src/cmocka/include/cmocka.h" "$out/include/"
if [ $xnnpack = 1 ]; then
    copy "$work/cmake/libXNNPACK.a" "$work/cmake/libmicrokernels-prod.a" "$out/lib/"
    copy "$work/src/xnnpack/include/xnnpack.h" "$out/include/"
    symbols=$("${cc%gcc}nm" -g --defined-only "$out/lib/libXNNPACK.a" 2>/dev/null) || symbols=$(nm -g "$out/lib/libXNNPACK.a")
    for function in xnn_create_fully_connected_nc_qd8_f32_qc8w xnn_create_fully_connected_nc_qd8_f32_qb4w \
        xnn_create_convert_nc_f32_qd8; do
        grep -q " T $function\$" <<<"$symbols" || die "this build of XNNPACK has no $function"
    done
fi
for source in xnnpack pthreadpool cpuinfo fxdiv utf8proc cjson cmocka; do
    for file in LICENSE LICENSE.md COPYING; do
        [ ! -e "$work/src/$source/$file" ] || copy "$work/src/$source/$file" "$out/licenses/$source"
    done
    cat "$work/src/$source.version"
done >"$out/versions.txt"
touch "$out/.complete"
rm -rf "$prefix"
mv "$out" "$prefix"
rm -rf "$work"
note "the libraries are in $prefix"
echo "$prefix"
