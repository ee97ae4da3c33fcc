#!/usr/bin/env bash
# Linking it: what make install puts down is used as others would, from an empty prefix.
#
# usage: tests/linking.sh     the last line is "N passed, N failed"
#
# Installs cmake, pkg-config and a C++ compiler if they are missing. The arm64 cross compiler, qemu-user, clang and lld are used
# where they are there; without, a line says what is skipped. Environment: BUILD, DRLLM_TEST_MODEL (default: the model in the
# cache, and where that is not, random weights).
# shellcheck disable=SC2317 # functions are called by name
set -uo pipefail
cd "$(dirname "$0")/.." || exit
# shellcheck source=tools/setup/common.sh
. tools/setup/common.sh

make=${MAKE:-make}
build=${BUILD:-build}
cross=aarch64-linux-gnu-
passed=0 failed=0 skipped=0
strict=(-Wall -Wextra -Wpedantic -Werror)
text='The capital of France is' n_tokens=12
review='Review: a warm and clever film that never loses its way
Sentiment:'

tools/setup/packages.sh build link || exit
scratch=$(mktemp -d "${TMPDIR:-/tmp}/drllm-linking.XXXXXX") || exit
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

# check NAME COMMAND...: one test; what the command says is shown if it fails.
check() {
    local name=$1
    shift
    if "$@" >"$scratch/log" 2>&1 </dev/null; then
        passed=$((passed + 1))
        printf '[  ok  ] %s\n' "$name"
    else
        failed=$((failed + 1))
        printf '[FAILED] %s\n' "$name"
        tail -n 30 "$scratch/log"
    fi
}
skip() {
    skipped=$((skipped + 1))
    printf '[ skip ] %s\n' "$1"
}
has() { command -v "$1" >/dev/null; }
# same WHAT HAS WANTED
same() {
    [ "$2" = "$3" ] || { printf '%s: got\n%s\ninstead of\n%s\n' "$1" "$2" "$3"; return 1; }
}
finish() {
    printf '\n%d passed, %d failed, %d skipped\n' $passed $failed $skipped
    [ $failed = 0 ] && [ $passed != 0 ]
    exit
}

# --- Names -----------------------------------------------------------------------------------------------------------------
# What the headers declare, by the compiler's own word (the makefile looks at the text).
declared() {
    local header
    for header in drllm.h drllm_os.h; do
        gcc -I"$1" -aux-info "$scratch/prototypes" -fsyntax-only -x c - <<<"#include <drllm/$header>" || return
        grep -F "/drllm/drllm" "$scratch/prototypes" | grep -oE '\<drllm_[a-z0-9_]+ \(' | tr -d ' ('
    done | sort -u
}
defined() { "$1"nm -g --defined-only "$2" 2>/dev/null | awk 'NF == 3 { print $3 }' | sort; }

# Every global name of libdrllm.a is ours, the public ones among them, and none is there twice.
plain_names() {
    local names foreign
    names=$(defined "$1" "$2")
    foreign=$(grep -v '^drllm_' <<<"$names")
    same 'names that are not ours' "$foreign" '' || return
    same 'names that are there twice' "$(uniq -d <<<"$names")" '' || return
    same 'public functions that are missing' "$(comm -13 <(echo "$names") "$scratch/declared")" ''
}
full_names() { same "names of $2" "$(defined "$1" "$2")" "$(cat "$scratch/declared")"; }
# Nothing but libc's and libm's is asked for: neither a foreign library nor C++.
full_needs() {
    local asked
    asked=$("$1"nm -u "$2" | awk 'NF == 2 { print $2 }' | grep -E '^(drllm|xnn|pthreadpool|cpuinfo|utf8proc|_Z|__asan|__gcov)')
    same 'what is missing' "$asked" ''
}
no_groups() { ! "$1"readelf -gW "$2" | grep 'group section'; }

# --- Programs --------------------------------------------------------------------------------------------------------------
# says [EMULATOR...] PROGRAM: it goes on with the text as our own program does, and with the review under the routers, whose
# products are XNNPACK's.
says() {
    local got
    got=$("$@" "$model" "$text" "$n_tokens") || { echo "exit status $?: $got"; return 1; }
    echo "$got"
    same 'the answer' "$got" "$expected" || return
    [ -n "$expected_routed" ] || return 0
    got=$("$@" "$model" "$review" "$n_tokens" "$routers" 2>"$scratch/saved") || { echo "exit status $?: $got"; return 1; }
    same 'the routed answer' "$got" "$expected_routed" && grep '^layers saved: [1-9]' "$scratch/saved"
}
build_and_run() {
    local out=$scratch/$1
    shift
    "$@" -o "$out" && says "$out"
}
flags() { pkg-config "$@" drllm; }

# compile_headers COMPILER: alone, each and both, in every language that they promise.
headers_alone() {
    local standard header unit=$scratch/unit
    for standard in c99 c11 c17 c++11 c++17; do
        for header in drllm.h drllm_os.h; do
            printf '#include <drllm/%s>\n#include <drllm/%s>\nextern int unit;\nint unit = DRLLM_OK;\n' "$header" "$header" >"$unit"
            "$1" -x "$(case $standard in c++*) echo c++ ;; *) echo c ;; esac)" -std="$standard" "${strict[@]}" -pedantic-errors \
                -Wshadow -Wconversion -I"$prefix/include" -c -o "$unit.o" "$unit" ||
                { echo "$1 -std=$standard $header"; return 1; }
        done
    done
}

# Takes the address of every public function, in C and in C++: declared, callable from both, there.
every_function() {
    { echo '#include <drllm/drllm_os.h>'
      echo 'extern void (*const functions[])(void); void (*const functions[])(void) = {'
      sed 's/.*/    (void (*)(void))&,/' "$scratch/declared"
      echo '}; int main(void) { return functions[0] == 0; }'; } >"$scratch/every.c"
    gcc -I"$prefix/include" -o "$scratch/every" "$scratch/every.c" "$prefix/lib/libdrllm-full.a" -lm -pthread &&
        g++ -x c++ -I"$prefix/include" -o "$scratch/every" "$scratch/every.c" -x none "$prefix/lib/libdrllm-full.a" -lm -pthread &&
        "$scratch/every"
}

# beside COMPILER PREFIX OUT SOURCE ARCHIVE...: answer.c and another program in one, static.
beside() {
    local cc=$1 from=$2 out=$3 source=$4
    shift 4
    $cc -std=c11 "${strict[@]}" -O1 -I"$from/include" -Dmain=drllm_answer_main -c -o "$out-answer.o" tests/link/answer.c &&
        $cc -std=c11 "${strict[@]}" -O1 -isystem "$deps/include" -c -o "$out.o" "$source" &&
        $cc -static -o "$out" "$out.o" "$out-answer.o" "$@" -lm -pthread
}
beside_and_run() { beside gcc "$prefix" "$scratch/$1" "${@:2}" && says "$scratch/$1"; }

by_cmake() {
    cmake -S tests/link -B "$scratch/cmake" -DCMAKE_PREFIX_PATH="$1" && cmake --build "$scratch/cmake" || return
    says "$scratch/cmake/answer-c" && says "$scratch/cmake/answer-cpp"
}
# The module shows what it defines itself, and nothing of drllm but the renamed main.
module_names() {
    same 'names of the module' "$(nm -D --defined-only "$scratch/cmake/libmodule.so" | awk '{ print $3 }')" drllm_answer_main
}
# Without relocations in its code, which Android refuses, and without anything left open.
into_shared() {
    "$1"gcc -shared -fPIC -I"$prefix/include" -Dmain=drllm_answer_main -Wl,-z,text,-z,defs -o "$scratch/shared.so" \
        tests/link/answer.c "$2" -lm -pthread &&
        same 'names of the library' "$("$1"nm -D --defined-only "$scratch/shared.so" | awk '{ print $3 }' | sort)" \
            "$(sort "$scratch/declared" - <<<drllm_answer_main)"
}
# find_package VERSION: whether a project gets along with what is installed.
find_version() {
    mkdir -p "$scratch/find" && rm -rf "$scratch/find/build"
    printf 'cmake_minimum_required(VERSION 3.16)\nproject(find C)\nfind_package(drllm %s REQUIRED)\n' "$1" >"$scratch/find/CMakeLists.txt"
    cmake -S "$scratch/find" -B "$scratch/find/build" -DCMAKE_PREFIX_PATH="$prefix"
}
refuses_version() {
    ! find_version "$1" && grep -q 'Could not find a configuration file' "$scratch/log"
}

# --- The installation ------------------------------------------------------------------------------------------------------
files() { (cd "$1" && find . -type f -o -type l | sort); }
no_machine_paths() {
    local places=("$PWD" "$deps" "$cache") place
    for place in "${places[@]}"; do
        ! grep -rlaF -- "$place" "$1" || { echo "hold $place"; return 1; }
    done
}
installs() { $make --no-print-directory BUILD="$build" install "$@"; }
# Staged for a package: the same files, and no word of where they are now.
stages() {
    installs PREFIX=/usr DESTDIR="$scratch/stage" LIBDIR=/usr/lib/triple &&
        same files "$(cd "$scratch/stage/usr" && files . | sed 's|/lib/triple/|/lib/|')" "$(files "$prefix")" &&
        no_machine_paths "$scratch/stage" && ! grep -r "$scratch" "$scratch/stage" &&
        PKG_CONFIG_SYSROOT_DIR=$scratch/stage PKG_CONFIG_LIBDIR=$scratch/stage/usr/lib/triple/pkgconfig pkg-config --validate drllm
}
staged_program() {
    local options
    options=$(PKG_CONFIG_SYSROOT_DIR=$scratch/stage PKG_CONFIG_LIBDIR=$scratch/stage/usr/lib/triple/pkgconfig pkg-config --cflags --libs drllm)
    # shellcheck disable=SC2086 # words
    build_and_run staged gcc tests/link/answer.c $options
}
staged_cmake() { rm -rf "$scratch/cmake"; CMAKE_LIBRARY_ARCHITECTURE=triple by_cmake "$scratch/stage/usr/lib/triple/cmake"; }
uninstalls() { $make --no-print-directory BUILD="$build" uninstall PREFIX="$prefix" && same 'left behind' "$(files "$prefix")" ''; }

# --- Go --------------------------------------------------------------------------------------------------------------------
# A prefix with a name of its own: nothing of the source tree is found by chance.
prefix=$scratch/prefix
printf 'building, and installing into an empty prefix\n'
check 'make install' installs PREFIX="$prefix"
[ $failed = 0 ] || finish
deps=$($make -s BUILD="$build" deps)
export PKG_CONFIG_LIBDIR=$prefix/lib/pkgconfig

model=${DRLLM_TEST_MODEL:-$(tools/setup/model.sh --print)}
if ! [ -e "$model" ]; then
    model=$scratch/random.gguf
    "$prefix/bin/drllm" synthesize smollm2-135m:2 -q -o "$model" || exit
fi
expected=$("$prefix/bin/drllm" run -m "$model" --raw --temp 0 -q -n $n_tokens -p "$text") || exit
printf 'the answer of drllm run: %s\n' "$expected"
# Random weights have no routers.
routers=$prefix/share/drllm/routers/smollm2-135m-instruct-q4_1.gguf expected_routed=
if [ "$model" != "$scratch/random.gguf" ]; then
    expected_routed=$("$prefix/bin/drllm" run -m "$model" -r "$routers" --raw --temp 0 -q -n $n_tokens -p "$review") || exit
    printf 'and routed: %s\n' "$expected_routed"
else
    skip "routers: the model is not here"
fi

check 'no paths of this machine in what is installed' no_machine_paths "$prefix"
declared "$prefix/include" >"$scratch/declared"
check 'the headers declare functions' [ "$(wc -l <"$scratch/declared")" -gt 40 ]
check 'libdrllm.a: every global name is ours' plain_names '' "$prefix/lib/libdrllm.a"
check 'libdrllm-full.a: the names of the headers, all and no other' full_names '' "$prefix/lib/libdrllm-full.a"
check 'libdrllm-full.a: needs libc and libm only' full_needs '' "$prefix/lib/libdrllm-full.a"
check 'libdrllm-full.a: no section groups' no_groups '' "$prefix/lib/libdrllm-full.a"
check 'every public function, linked from C and from C++' every_function

check 'the headers alone, gcc' headers_alone gcc
if has clang; then check 'the headers alone, clang' headers_alone clang; else skip 'the headers alone, clang: no clang here'; fi

# shellcheck disable=SC2046 # flags are words
{
    check 'C99 by pkg-config' build_and_run c99 gcc -std=c99 "${strict[@]}" tests/link/answer.c $(flags --cflags --libs)
    check 'C99 by pkg-config --static' build_and_run c99-static gcc -std=c99 "${strict[@]}" -static tests/link/answer.c \
        $(flags --cflags --libs --static)
    check 'C++17 by pkg-config' build_and_run cxx17 g++ -std=c++17 "${strict[@]}" tests/link/answer.cpp $(flags --cflags --libs)
    check 'C++17 by pkg-config --static, without dead code' build_and_run cxx17-static g++ -std=c++17 "${strict[@]}" -static \
        -Wl,--gc-sections tests/link/answer.cpp $(flags --cflags --libs --static)
}
check 'C99 and C++17 by CMake' by_cmake "$prefix"
check 'a shared library by CMake: nothing of drllm shows' module_names
check 'CMake: version 0.1 is accepted' find_version 0.1
check 'CMake: version 0.2 is refused' refuses_version 0.2
check 'CMake: version 1.0 is refused' refuses_version 1.0

full=$prefix/lib/libdrllm-full.a
xnnpack=("$deps"/lib/lib{XNNPACK,microkernels-prod,pthreadpool,cpuinfo}.a)
check 'beside functions of the same names' beside_and_run names tests/link/beside_names.c "$full"
check 'beside another XNNPACK, ours first' beside_and_run ours-first tests/link/beside_xnnpack.c "$full" "${xnnpack[@]}"
check 'beside another XNNPACK, ours last' beside_and_run ours-last tests/link/beside_xnnpack.c "${xnnpack[@]}" "$full"
# That this can fail: the same programs with libdrllm.a, whose names are not hidden.
clashes() {
    ! beside gcc "$prefix" "$scratch/clash" tests/link/beside_names.c -Wl,--start-group "$prefix/lib/libdrllm.a" "${xnnpack[@]}" \
        "$deps/lib/libutf8proc.a" -Wl,--end-group && grep -q 'multiple definition' "$scratch/log"
}
check 'libdrllm.a beside the same names: the linker refuses it' clashes

check 'staged with DESTDIR and another LIBDIR' stages
check 'a program from the stage, by pkg-config' staged_program
check 'a program from the stage, by CMake' staged_cmake

# --- Other compilers and linkers -------------------------------------------------------------------------------------------
# variant NAME FOLDER PREFIX-OF-NM MAKE-ARGUMENT...: the bundle that this toolchain makes.
variant() {
    local name=$1 folder=$2 tools=$3
    shift 3
    check "$name: builds" "$make" --no-print-directory BUILD="$folder" "$@" full
    check "$name: the names of the headers, all and no other" full_names "$tools" "$folder/libdrllm-full.a"
    check "$name: needs libc and libm only" full_needs "$tools" "$folder/libdrllm-full.a"
    check "$name: no section groups" no_groups "$tools" "$folder/libdrllm-full.a"
    check "$name: into a shared library" into_shared "$tools" "$folder/libdrllm-full.a"
}
if has clang; then
    variant clang "$build/clang" '' CC=clang
    check 'clang: beside functions of the same names' beside_and_run clang-names tests/link/beside_names.c "$build/clang/libdrllm-full.a"
else
    skip 'the bundle of clang: no clang here'
fi
if has clang && has ld.lld && has llvm-objcopy; then
    variant "LLVM's linker and objcopy" "$build/clang" '' CC=clang LD=ld.lld OBJCOPY=llvm-objcopy
    check "LLVM's: beside another XNNPACK" beside_and_run lld-xnnpack tests/link/beside_xnnpack.c "$build/clang/libdrllm-full.a" "${xnnpack[@]}"
else
    skip "the bundle of LLVM's linker and objcopy: no lld here"
fi
if has ${cross}gcc && has qemu-aarch64; then
    arm=$build/aarch64-linux-gnu
    variant arm64 "$arm" $cross CROSS=$cross
    check 'arm64: every global name of libdrllm.a is ours' plain_names $cross "$arm/libdrllm.a"
    arm_beside() { beside "${cross}gcc" "$prefix" "$scratch/arm-$1" "${@:2}" && says qemu-aarch64 "$scratch/arm-$1"; }
    deps=$($make -s CROSS=$cross deps)
    xnnpack=("$deps"/lib/lib{XNNPACK,microkernels-prod,pthreadpool,cpuinfo}.a)
    check 'arm64: beside functions of the same names' arm_beside names tests/link/beside_names.c "$arm/libdrllm-full.a"
    check 'arm64: beside another XNNPACK' arm_beside xnnpack tests/link/beside_xnnpack.c "$arm/libdrllm-full.a" "${xnnpack[@]}"
else
    skip 'the bundle for arm64: no cross compiler or no qemu-user here'
fi

# --- Sizes -----------------------------------------------------------------------------------------------------------------
sizes() { $make --no-print-directory -s BUILD="$build" sizes | tee "$scratch/sizes"; }
check 'make sizes' sizes
cat "$scratch/sizes"
# A small static program: what of it is the library.
small() {
    local bytes
    bytes=$(awk '$1 == "library" { print $2 }' "$scratch/sizes")
    echo "$bytes bytes"
    [ "$bytes" -gt 0 ] && [ "$bytes" -le 409600 ]
}
check 'the library in a small static program: at most 400 KB' small

check 'make uninstall: nothing is left' uninstalls
finish
