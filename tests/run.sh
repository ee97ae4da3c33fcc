#!/usr/bin/env bash
# All tests, part by part; `make test` calls this.
#
# usage: tests/run.sh [PART]...     parts: packages native sanitizers mpi arm64 clang linking serve deb arm firmware android lint
#       (default: all)
#
# A part that fails does not keep the next one from running. The last line is the sum, "N passed, N failed"; the exit status is
# 0 only if none failed. A part that builds or checks something without counting counts as one.
# Environment: DRLLM_TEST_MODEL, DRLLM_TEST_SHARED (default: the model in the cache; ../shared if it is there).
set -uo pipefail
cd "$(dirname "$0")/.." || exit

make=${MAKE:-make}
jobs=("-j$(getconf _NPROCESSORS_ONLN)")
[[ ${MAKEFLAGS-} != *jobserver* ]] || jobs=() # make was already told how many
logs=build/test-logs
mkdir -p $logs
passed=0 failed=0 summary=

# part NAME COMMAND...: run it, show what it says, and add up what its last line "N passed, N failed" counts.
part() {
    local name=$1 start=$SECONDS status line p f
    shift
    printf '\n=== %s\n' "$name"
    "$@" 2>&1 </dev/null | tee "$logs/$name.log"
    status=${PIPESTATUS[0]}
    line=$(grep -oE '[0-9]+ passed, [0-9]+ failed' "$logs/$name.log" | tail -n 1)
    if [ -n "$line" ]; then
        read -r p _ f _ <<<"$line"
    elif [ "$status" = 0 ]; then
        p=1 f=0
    else
        p=0 f=0
    fi
    # Crashed, or stopped before it could count all.
    if [ "$status" != 0 ] && [ "$f" = 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f))
    summary+=$(printf '%-22s %5d passed, %d failed  (%d s)' "$name" "$p" "$f" $((SECONDS - start)))$'\n'
    [ "$status" = 0 ]
}

build() { $make --no-print-directory "${jobs[@]}" "$@"; }

# The libraries and the model, each with its own message if it cannot be had.
packages() {
    tools/setup/packages.sh build model cross cross-armhf mpi lint link python deb deb-test arm-test firmware android &&
        build deps && build deps CROSS=aarch64-linux-gnu- && build model
}

part_packages() { part packages packages; }

part_native() {
    part native-build build all examples build/drllm-tests && DRLLM_TEST_PROGRAM=build/drllm part native build/drllm-tests
}

part_sanitizers() {
    export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1
    part sanitizers-build build SANITIZER=address,undefined all build/address-undefined/drllm-tests &&
        DRLLM_TEST_PROGRAM=build/address-undefined/drllm part sanitizers build/address-undefined/drllm-tests --fast
}

# One process without MPI beside two ranks with it.
mpi_build() { build build/drllm build/drllm-tests && build MPI=1 all; }

part_mpi() {
    part mpi-build mpi_build && DRLLM_TEST_PROGRAM=build/drllm DRLLM_TEST_MPI_PROGRAM=build/mpi/drllm part mpi build/drllm-tests --fast mpi
}

# All on an old core without dot products; on a later one with them, and on all that qemu knows, what other kernels compute.
part_arm64() {
    local cpu groups computes=(kernels vec xnnpack session routing generate kjv)
    part arm64-build build CROSS=aarch64-linux-gnu- all examples build/aarch64-linux-gnu/drllm-tests || return
    for cpu in cortex-a53 cortex-a76 max; do
        groups=()
        [ $cpu = cortex-a53 ] || groups=("${computes[@]}")
        DRLLM_TEST_PROGRAM=build/aarch64-linux-gnu/drllm DRLLM_TEST_EMULATOR="qemu-aarch64 -cpu $cpu" \
            part "arm64-$cpu" qemu-aarch64 -cpu $cpu build/aarch64-linux-gnu/drllm-tests --fast "${groups[@]}"
    done
}

# The service, and the packages: their own scripts count.
part_serve() { part serve build test-serve; }

part_deb() { part deb build test-deb; }

part_arm() { part arm build test-arm; }

part_firmware() { part firmware build test-firmware; }

part_android() { part android build test-android; }

part_clang() { part clang-build build CC=clang BUILD=build/clang build/clang/libdrllm.a; }

# After the parts whose builds it uses.
part_linking() { part linking tests/linking.sh; }

part_lint() { part lint build lint; }

export DRLLM_TEST_MODEL=${DRLLM_TEST_MODEL:-$(tools/setup/model.sh --print)}
if [ -z "${DRLLM_TEST_SHARED-}" ] && [ -d ../shared ]; then
    DRLLM_TEST_SHARED=$(cd ../shared && pwd)
fi
export DRLLM_TEST_SHARED=${DRLLM_TEST_SHARED-}

parts=("$@")
[ $# != 0 ] || parts=(packages native sanitizers mpi arm64 clang linking serve deb arm firmware android lint)
for name in "${parts[@]}"; do
    if declare -F "part_$name" >/dev/null; then
        "part_$name"
    else
        part "$name" false # an unknown part is a failure, too
    fi
done

printf '\n%s\n%d passed, %d failed\n' "$summary" $passed $failed
[ $failed = 0 ] && [ $passed != 0 ]
