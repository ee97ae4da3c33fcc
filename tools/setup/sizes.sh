#!/usr/bin/env bash
# How large what is linked is, in bytes; `make sizes` calls this.
#
# usage: sizes.sh BUILD CROSS     BUILD: where the program and the archives lie; CROSS: prefix of the binutils, may be ''
#
# "library N": what the library and all that it needs, but libc, add to the smallest sensible program (examples/simple.c, static,
# without XNNPACK, -Os, sections that nobody uses left out). Environment: MAKE, MAKEFLAGS.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

[ $# = 2 ] || die "usage: sizes.sh BUILD CROSS"
build=$1 cross=$2 small=$1/small
make=${MAKE:-make}

# Code, constants and data with values of all objects of a file.
loaded() { "${cross}size" -t "$1" 2>/dev/null | awk 'NR > 1 { sum = $1 + $2 } END { print sum }'; }
file_bytes() { wc -c <"$1"; }
row() { printf '%-52s %9d %9d\n' "$1" "$2" "$3"; }

mkdir -p "$small"
"$make" --no-print-directory ${cross:+CROSS=$cross} XNNPACK=0 CFLAGS=-Os BUILD="$small" \
    LDFLAGS="-static -Wl,-Map=$small/map" "$small/examples/simple" full >&2
strip=$(mktemp "${TMPDIR:-/tmp}/drllm-sizes.XXXXXX")
trap 'rm -f "$strip"' EXIT

printf '%-52s %9s %9s\n' '' loaded file
"${cross}strip" -o "$strip" "$build/drllm"
row 'drllm, the program, stripped' "$(loaded "$build/drllm")" "$(file_bytes "$strip")"
"${cross}strip" --strip-debug -o "$strip" "$build/libdrllm.a"
row 'libdrllm.a' "$(loaded "$build/libdrllm.a")" "$(file_bytes "$strip")"
row 'libdrllm-full.a' "$(loaded "$build/libdrllm-full.a")" "$(file_bytes "$build/libdrllm-full.a")"
row 'libdrllm-full.a, XNNPACK=0 CFLAGS=-Os' "$(loaded "$small/libdrllm-full.a")" "$(file_bytes "$small/libdrllm-full.a")"
"${cross}strip" -o "$strip" "$small/examples/simple"
row 'examples/simple, static, XNNPACK=0 CFLAGS=-Os' "$(loaded "$small/examples/simple")" "$(file_bytes "$strip")"

awk -f "$here/map_size.awk" "$small/map" | awk '
    $2 ~ /^lib(drllm|utf8proc|cpuinfo|pthreadpool)\.a$/ { printf "    of which %-43s %9d\n", $2, $1; sum += $1 }
    END { print "library", sum }'
