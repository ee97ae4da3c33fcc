#!/usr/bin/env bash
# The firmware library: built for four processors, looked into, and run on emulated boards; `make test-firmware` calls this.
#
# usage: tests/firmware.sh [CPU]...     cortex-m55 cortex-m7 cortex-m33 cortex-a53 (default: all)
#
# The last line is "N passed, N failed, N skipped". Instruction counts are those of `qemu -icount shift=0`: a nanosecond of the
# emulated clock is one instruction. They are no board's cycles.
# The time limits are only there for an emulator that hangs: on idle cores nothing takes more than half a minute.
# Environment: DRLLM_TEST_MODEL (default: the model in the cache; without it the tests that need it are skipped).
set -uo pipefail
export LC_ALL=C # one order for sort and comm
cd "$(dirname "$0")/.." || exit
make=${MAKE:-make}
work=build/firmware/test
mkdir -p $work
passed=0 failed=0 skipped=0

pass() { passed=$((passed + 1)) && printf 'ok      %s\n' "$*"; }
fail() { failed=$((failed + 1)) && printf 'FAILED  %s\n' "$*"; }
skip() { skipped=$((skipped + 1)) && printf 'skipped %s\n' "$*"; }
# check NAME COMMAND...
check() {
    local name=$1
    shift
    if "$@" >$work/out 2>&1; then pass "$name"; else fail "$name" && tail -n 20 $work/out; fi
}

# ---- Processors ----

cross_of() { case $1 in cortex-a53) echo aarch64-linux-gnu- ;; *) echo arm-none-eabi- ;; esac }
board_of() {
    case $1 in
        cortex-m55) echo an547 ;;
        cortex-m7) echo an500 ;;
        cortex-m33) echo an505 ;;
        *) echo virt ;;
    esac
}

# emulate SECONDS CPU IMAGE MODEL COMMAND: what the board writes.
emulate() {
    local seconds=$1 cpu=$2 image=$3 model=$4 command=${5//,/,,} machine load=()
    case $cpu in
        cortex-m55) machine=(qemu-system-arm -M mps3-an547) && load=(0x70000000) ;;
        cortex-m7) machine=(qemu-system-arm -M mps2-an500) && load=(0x60000000) ;;
        cortex-m33) machine=(qemu-system-arm -M mps2-an505) && load=(0x80000000) ;;
        *) machine=(qemu-system-aarch64 -M virt -cpu cortex-a53 -m 1G -nic none) && load=(0x48000000) ;;
    esac
    [ -z "$model" ] || load=(-device "loader,file=$model,addr=${load[0]},force-raw=on")
    [ -n "$model" ] || load=()
    timeout "$seconds" "${machine[@]}" -display none -monitor none -serial none -icount shift=0 -kernel "$image" "${load[@]}" \
        -semihosting-config "enable=on,target=native,arg=$command" 2>&1 </dev/null
}

# value NAME FILE: behind "NAME: " in what a board wrote.
value() { sed -n "s/^$1: //p" "$2" | head -n 1; }

# ---- What is built ----

build() {
    local cpu=$1
    "$make" --no-print-directory "CROSS=$(cross_of "$cpu")" "CPU=$cpu" firmware firmware-example firmware-kernels
}

undefined() {
    local cpu=$1 cross
    cross=$(cross_of "$cpu")
    "${cross}ld" -r --whole-archive build/firmware/"$cpu"/libdrllm-fw.a -o "$work/whole-$cpu.o" || return
    "${cross}nm" -u "$work/whole-$cpu.o" | awk '{ print $2 }' | sort -u >"$work/undefined-$cpu"
    grep -v '^#' examples/firmware/undefined.txt | grep . | sort >$work/allowed
    [ -s "$work/undefined-$cpu" ] || return
    if [ -n "$(comm -23 "$work/undefined-$cpu" $work/allowed)" ]; then
        echo "not in examples/firmware/undefined.txt:"
        comm -23 "$work/undefined-$cpu" $work/allowed
        return 1
    fi
    # And no name of the C library is there in vain.
    if [ -n "$(grep -v '^__' $work/allowed | comm -23 - "$work/undefined-$cpu")" ]; then
        echo "in examples/firmware/undefined.txt, but not needed:"
        grep -v '^__' $work/allowed | comm -23 - "$work/undefined-$cpu"
        return 1
    fi
}

# Every public function, linked with nothing else: text and constants in all, libgcc's and the C library's share included.
enum_api() { grep -ohE '\bdrllm_[a-z0-9_]+\(' runtime/drllm.h runtime/drllm_fw.h | tr -d '(' | sort -u; }
size_of_all() {
    local cpu=$1 cross most=160000 text
    cross=$(cross_of "$cpu")
    "${cross}nm" --defined-only build/firmware/"$cpu"/libdrllm-fw.a | awk '$2 ~ /[TW]/ { print $3 }' | sort -u >$work/defined
    enum_api | comm -12 - $work/defined >$work/api
    if [ "$(wc -l <$work/api)" -lt 40 ] || ! enum_api | cmp -s - $work/api; then
        echo "functions of the headers that the library lacks:" && enum_api | comm -23 - $work/api
        return 1
    fi
    # shellcheck disable=SC2046 # one argument a function
    "${cross}gcc" -mcpu="$cpu" -mthumb -mfloat-abi=hard -nostdlib -static -Wl,--gc-sections -Wl,-e,drllm_fw_open \
        $(sed 's/^/-Wl,-u,/' $work/api) -o "$work/api-$cpu.elf" build/firmware/"$cpu"/libdrllm-fw.a -lc -lgcc || return
    text=$("${cross}size" -A "$work/api-$cpu.elf" | awk '$1 ~ /^\.(text|rodata|ARM)/ { sum += $2 } END { print sum }')
    printf '        text + rodata, all %d public functions: %d bytes\n' "$(wc -l <$work/api)" "$text" | tee $work/size
    [ "$text" -gt 50000 ] && [ "$text" -le $most ]
}

# The start-up files give 32 KiB of stack on Cortex-M, 64 KiB on AArch64, whose tiles of tokens are larger.
no_recursion() {
    local most=12288
    [ "$1" != cortex-a53 ] || most=32768
    python3 tests/firmware/callgraph.py build/firmware/"$1"/obj $most
}

kernels() {
    local cpu=$1
    emulate 600 "$cpu" build/firmware/"$cpu"/kernels.elf '' none >"$work/kernels-$cpu"
    grep -qE '^[1-9][0-9]* passed, 0 failed$' "$work/kernels-$cpu" || { cat "$work/kernels-$cpu" && return 1; }
}

# ---- What runs ----

# host MODEL ROUTED N PROMPT: ids and program of the ordinary program on portable kernels.
host() {
    local model=$1 routed=$2 n=$3 prompt=$4 routers=()
    [ "$routed" != routed ] || routers=(-r "$model")
    build/drllm run -m "$model" "${routers[@]}" --cpu-mask portable --raw --json --temp 0 -n "$n" -c 256 -p "$prompt" 2>/dev/null |
        python3 -c '
import json, sys
answer = json.load(sys.stdin)
print("ids:", ",".join(map(str, answer["tokens"])))
counts = answer["routing"]["counts"] if "routing" in answer else None
print("layers:", "".join(".#2"[c] for c in counts) if counts else "full")'
}

# same SECONDS CPU MODEL ROUTED N PROMPT NAME: the board's ids and layers are the host's.
same() {
    local seconds=$1 cpu=$2 model=$3 routed=$4 n=$5 prompt=$6 name=$7 board
    board=$work/$name
    host "$model" "$routed" "$n" "$prompt" >"$board.host" || return
    emulate "$seconds" "$cpu" "build/firmware/$cpu/$(board_of "$cpu").elf" "$model" "$routed $n ${prompt//$'\n'/\\n}" >"$board"
    echo "host:" && cat "$board.host" && echo "board:" && cat "$board"
    [ -n "$(value ids "$board.host")" ] && [ "$(value ids "$board")" = "$(value ids "$board.host")" ] || return
    local layers
    layers=$(value layers "$board") && layers=${layers%% *}
    [ "$(value layers "$board.host")" = full ] || [ "$layers" = "$(value layers "$board.host")" ] || return
    [ "$(value 'arena used' "$board")" -le "$(value 'arena bytes' "$board")" ]
}

# Small random models, packed with routers and as GGUF files, and the trained one where it is there.
small_models() {
    local cpu=$1 format kind model
    for format in q4_0:bpe q4_1:spm q8_0:bpe; do
        kind=${format#*:} format=${format%:*}
        for model in "$work/$format.drllm" "$work/$format.gguf"; do
            local routed=full
            [[ $model != *.drllm ]] || routed=routed
            check "$cpu: ids of a small $format model ($kind, ${model##*.}, $routed)" \
                same 300 "$cpu" "$model" $routed 12 'Once upon a time' "$cpu-$format-${model##*.}"
        done
    done
    if [ ! -f "$work/tiny.drllm" ]; then
        skip "$cpu: there is no trained model in examples/firmware/tiny"
        return
    fi
    for model in examples/firmware/tiny/*.gguf "$work/tiny.drllm"; do
        check "$cpu: ids of the trained model (${model##*.})" same 600 "$cpu" "$model" full 48 'And God said' "$cpu-tiny"
        sed -n 's/^answer:/        &/p' "$work/$cpu-tiny"
    done
}

review=$'Review: a warm and clever film that never loses its way\nSentiment:'
# The share of instructions that routing saves is at least 0.9 of the share of layers.
ratio() {
    awk -v full="$(value 'prompt ns' "$1")" -v routed="$(value 'prompt ns' "$2")" -v saved="$(value 'layers saved' "$2")" 'BEGIN {
        share = (full - routed) / full / (saved / 30)
        printf "        instructions of the prompt: full %.0f, routed %.0f (%d of 30 layers saved): %.3f of the layers'"'"' share\n", full, routed, saved, share
        exit !(saved > 0 && share >= 0.9)
    }'
}

choice() {
    local cpu=$1
    emulate 900 "$cpu" "build/firmware/$cpu/$(board_of "$cpu").elf" "$packed" "routed 1 ${review//$'\n'/\\n}| negative| positive" >"$work/$cpu-choice"
    build/drllm score -m "$packed" -r "$packed" --cpu-mask portable -p "$review" --choice ' negative' --choice ' positive' >"$work/host-choice" 2>/dev/null
    cat "$work/$cpu-choice" "$work/host-choice"
    grep -q '^answer: positive$' "$work/$cpu-choice"
}

real_model() {
    local cpu=$1 routed
    for routed in full routed; do
        check "$cpu: SmolLM2-135M, $routed: ids and layers of the host" same 900 "$cpu" "$packed" $routed 3 "$review" "$cpu-real-$routed"
        sed -n 's/^\(layers\|answer\):/        &/p' "$work/$cpu-real-$routed"
    done
    check "$cpu: routing saves what the layers' share is" ratio "$work/$cpu-real-full" "$work/$cpu-real-routed"
    cat $work/out
    check "$cpu: at most 8 MiB beside the model ($(value 'arena bytes' "$work/$cpu-real-routed") bytes)" \
        test "$(value 'arena bytes' "$work/$cpu-real-routed")" -le $((8 << 20))
    check "$cpu: the review is found positive" choice "$cpu"
}

# ---- ----

tools/setup/packages.sh build model cross firmware || exit
cpus=("$@")
[ $# != 0 ] || cpus=(cortex-m55 cortex-m7 cortex-m33 cortex-a53)

check 'host: program and model maker' "$make" --no-print-directory build/drllm build/firmware/make_model
model=${DRLLM_TEST_MODEL:-$(tools/setup/model.sh)} # without it the tests that need it are skipped
packed=$work/smollm2.drllm
if [ -f "$model" ]; then
    check 'host: pack SmolLM2-135M with its routers' build/drllm pack "$model" -r examples/routers/smollm2-135m-instruct-q4_1.gguf -o $packed
fi
for format in q4_0:bpe q4_1:spm q8_0:bpe; do
    name=$work/${format%:*}
    check "host: make a small ${format%:*} model" build/firmware/make_model "${format%:*}" "${format#*:}" "$name.gguf" "$name-routers.gguf"
    check "host: pack it" build/drllm pack "$name.gguf" -r "$name-routers.gguf" -o "$name.drllm"
done

rm -f "$work/tiny.drllm"
for file in examples/firmware/tiny/*.gguf; do
    [ ! -f "$file" ] || check "host: pack $file" build/drllm pack "$file" -o $work/tiny.drllm
done
check 'the header in C99' "${CC:-cc}" -std=c99 -pedantic-errors -Wall -Werror -fsyntax-only -I. -x c runtime/drllm_fw.h
check 'the header in C++17' "${CXX:-c++}" -std=c++17 -pedantic-errors -Wall -Werror -fsyntax-only -I. -x c++ runtime/drllm_fw.h

for cpu in "${cpus[@]}"; do
    check "$cpu: build" build "$cpu"
    [ -f "build/firmware/$cpu/$(board_of "$cpu").elf" ] || continue
    check "$cpu: undefined symbols are those of examples/firmware/undefined.txt" undefined "$cpu"
    check "$cpu: no recursion, and little stack" no_recursion "$cpu"
    sed 's/^/        /' $work/out
    if [[ $cpu = cortex-m* ]]; then
        check "$cpu: text and constants of all functions are at most 160 KB" size_of_all "$cpu"
        cat $work/size
    fi
    check "$cpu: kernels give the portable ones' bits on $(board_of "$cpu")" kernels "$cpu"
    tail -n 1 "$work/kernels-$cpu" | sed 's/^/        /'
    case $cpu in
        cortex-m7 | cortex-m33) small_models "$cpu" ;;
        *) if [ -f $packed ]; then real_model "$cpu"; else skip "$cpu: SmolLM2-135M is not there (make model)"; fi ;;
    esac
done

printf '\n%d passed, %d failed, %d skipped\n' $passed $failed $skipped
[ $failed = 0 ] && [ $passed != 0 ]
