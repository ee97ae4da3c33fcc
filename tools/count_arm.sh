#!/usr/bin/env bash
# Instructions that the arm64 program takes for a token under qemu-user, and llama.cpp's for the same: what can be compared
# of two programs on a processor that is not there.
#
# usage: count_arm.sh [-c CPU] [-p PROMPT] [-n TOKENS] [-l PEER] MODEL.gguf [PROGRAM]
#   CPU      qemu's model: cortex-a53, cortex-a72, cortex-a76, max, ... (default: cortex-a76)
#   PROMPT   tokens of the prompt (default 32)
#   TOKENS   decoded tokens that are counted (default 4)
#   PEER     a folder with Debian's llama.cpp for arm64; made there with `dpkg -x` if it is empty or missing
#   PROGRAM  the arm64 program (default: build/aarch64-linux-gnu/drllm)
# One thread. A count is a difference of two runs: of TOKENS + 1 and 1 decoded tokens behind the prompt, and of prompts of
# twice and once PROMPT. llama.cpp's are llama-bench's, which draws random tokens and samples none.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cpu=cortex-a76 n_prompt=32 n_tokens=4 peer=''
while getopts c:p:n:l: option; do
    case $option in
        c) cpu=$OPTARG ;;
        p) n_prompt=$OPTARG ;;
        n) n_tokens=$OPTARG ;;
        l) peer=$OPTARG ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
model=${1:?usage: count_arm.sh [-c CPU] [-p PROMPT] [-n TOKENS] [-l PEER] MODEL.gguf [PROGRAM]}
program=${2:-$here/build/aarch64-linux-gnu/drllm}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${CC:-cc}" -std=c11 -O2 -shared -fPIC -o "$work/insn.so" "$here/tools/qemu/insn_count.c"

# count COMMAND...: the instructions of a guest program.
count() {
    if ! qemu-aarch64 -cpu "$cpu" -plugin "$work/insn.so" -d plugin -D "$work/count" "$@" >"$work/out" 2>&1; then
        cat "$work/out" >&2
        return 1
    fi
    sed -n 's/^instructions: //p' "$work/count"
}

# One token a word; greedily, such a text goes on without an end.
ours() {
    local text
    text=$(printf ' the%.0s' $(seq "$1"))
    count "$program" run -m "$model" --raw -p "$text" -n "$2" -c 512 -t 1 --temp 0
}

theirs() {
    count -L "$peer" -E LD_LIBRARY_PATH=/usr/lib/aarch64-linux-gnu/llama "$peer/usr/bin/llama-bench" -m "$model" -p 0 -n 0 \
        -pg "$1,$2" -t 1 -r 1 --no-warmup
}

# Packages of one release, without a change to the machine: llama-bench, the libraries of ggml and what both are linked with.
fetch_peer() {
    local mirror=${MIRROR:-http://deb.debian.org/debian} package file
    curl -fsS "$mirror/dists/${RELEASE:-forky}/main/binary-arm64/Packages.xz" | xz -d >"$work/Packages"
    for package in libggml0 libllama0 llama.cpp-tools llama.cpp-tools-extra libc6 libgcc-s1 libstdc++6 libgomp1 libssl3t64 \
        zlib1g libzstd1; do
        file=$(awk -v p="$package" '$1 == "Package:" { found = $2 == p } found && $1 == "Filename:" { print $2; exit }' \
            "$work/Packages")
        curl -fsS -o "$work/package.deb" "$mirror/$file"
        dpkg -x "$work/package.deb" "$peer"
    done
    [ -e "$peer/lib" ] || ln -s usr/lib "$peer/lib"
}

# table SIDE FUNCTION: counts in millions.
table() {
    local one more twice
    one=$("$2" "$n_prompt" 1)
    more=$("$2" "$n_prompt" $((n_tokens + 1)))
    twice=$("$2" $((2 * n_prompt)) 1)
    awk -v side="$1" -v cpu="$cpu" -v one="$one" -v more="$more" -v twice="$twice" -v n="$n_tokens" -v p="$n_prompt" \
        'BEGIN { printf "| %s | %s | %.1f | %.1f |\n", cpu, side, (more - one) / n / 1e6, (twice - one) / p / 1e6 }'
}

if [ -n "$peer" ] && [ ! -x "$peer/usr/bin/llama-bench" ]; then
    mkdir -p "$peer"
    fetch_peer
fi
echo '| CPU | program | millions of instructions a decoded token | a prompt token |'
echo '| --- | --- | ---: | ---: |'
table drllm ours
[ -z "$peer" ] || table llama.cpp theirs
