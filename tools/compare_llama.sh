#!/usr/bin/env bash
# Measure drllm beside llama.cpp on the same files, in turn, and print medians and ratios.
#
# usage: compare_llama.sh PEER [-v VARIANT] [-M MASK] [-k CACHE] [-b OPTIONS] [-n ROUNDS] MODEL.gguf...
#   PEER     a script that runs `llama-bench`: PEER [-v VARIANT] MODEL... -- OPTIONS. It keeps llama.cpp in a tree under
#            ${PEER_ROOT:-~/.cache/llama-peer}, which is also used for load time and memory.
#   VARIANT  llama.cpp's CPU backend, e.g. haswell (AVX2); default: what it picks
#   MASK     drllm's --cpu-mask, e.g. x86-avx2; default: all
#   OPTIONS  what both measure, in words that both know (default: -p 512 -n 128 -t 1,2 -r 3)
#   CACHE    drllm's --kv, e.g. q8_0; default: f16, which is what llama.cpp uses
# Needs root (the tree is a chroot) and GNU time. The files are measured in turn, A B A B ..., because the speed of a shared
# machine drifts; a ratio is that of the medians, its range that of the rounds.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
drllm=${DRLLM:-$here/build/drllm}
peer=${1:?usage: compare_llama.sh PEER [-v VARIANT] [-M MASK] [-k CACHE] [-b OPTIONS] [-n ROUNDS] MODEL.gguf...}
shift
variant='' mask=all cache=f16 rounds=3 bench='-p 512 -n 128 -t 1,2 -r 3'
while getopts v:M:k:b:n: option; do
    case $option in
        v) variant=$OPTARG ;;
        M) mask=$OPTARG ;;
        k) cache=$OPTARG ;;
        b) bench=$OPTARG ;;
        n) rounds=$OPTARG ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
root=${PEER_ROOT:-${XDG_CACHE_HOME:-$HOME/.cache}/llama-peer}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# measure FILE COMMAND...: its output goes to FILE; when it fails, what it said is shown.
measure() {
    local file=$out/$1
    shift
    "$@" >"$file" 2>"$out/log" </dev/null || {
        echo "failed: $*" >&2
        cat "$out/log" >&2
        exit 1
    }
}

for model; do
    name=$(basename "$model" .gguf)
    for ((round = 1; round <= rounds; round++)); do
        echo "$name: round $round of $rounds" >&2
        # shellcheck disable=SC2086 # options are words
        measure "ours.$name.$round" "$drllm" bench -m "$model" --cpu-mask "$mask" --kv "$cache" $bench -o json
        # shellcheck disable=SC2086
        measure "theirs.$name.$round" "$peer" ${variant:+-v "$variant"} "$model" -- $bench -o json
        # Open to ready and peak memory of a program that answers one token in a context of 2048, three times: a virtual
        # machine may have to get its memory back from its host first.
        for ((again = 1; again <= 3; again++)); do
            measure answer /usr/bin/time -f '%e %M' -a -o "$out/ours-run.$name.$round" "$drllm" run -m "$model" \
                --cpu-mask "$mask" --kv "$cache" --raw -p Hi -n 1 -c 2048 --temp 0
            measure answer /usr/bin/time -f '%e %M' -a -o "$out/theirs-run.$name.$round" chroot "$root" \
                llama-completion -m "/m/$(basename "$model")" -p Hi -n 1 -c 2048 --temp 0 -no-cnv --no-warmup
        done
    done
done

python3 - "$out" "$rounds" "$@" <<'END'
import json, os, statistics, sys

out, rounds, models = sys.argv[1], int(sys.argv[2]), sys.argv[3:]

def rows(text):
    data = json.loads(text)
    return data["rows"] if isinstance(data, dict) else data

def speeds(side, name):
    found = {}
    for r in range(1, rounds + 1):
        for row in rows(open(f"{out}/{side}.{name}.{r}").read()):
            key = (row["n_prompt"], row["n_gen"], row["n_threads"])
            found.setdefault(key, []).append(statistics.median(row["samples_ts"]))
    return found

print("| file | test | threads | drllm t/s | llama.cpp t/s | ratio | ratio by round |")
print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
for model in models:
    name = os.path.basename(model)[: -len(".gguf")]
    ours, theirs = speeds("ours", name), speeds("theirs", name)
    for key in sorted(ours):
        a, b = ours[key], theirs[key]
        each = [x / y for x, y in zip(a, b)]
        test = f"prefill {key[0]}" if key[1] == 0 else f"decode {key[1]}"
        print(f"| {name} | {test} | {key[2]} | {statistics.median(a):.1f} | {statistics.median(b):.1f} "
              f"| {statistics.median(a) / statistics.median(b):.2f} | {min(each):.2f} - {max(each):.2f} |")
print()
print("| file | | drllm | llama.cpp | ratio |")
print("| --- | --- | ---: | ---: | ---: |")
for model in models:
    name = os.path.basename(model)[: -len(".gguf")]
    figures = {}
    for side in ("ours", "theirs"):
        each = [line.split() for r in range(1, rounds + 1) for line in open(f"{out}/{side}-run.{name}.{r}")]
        figures[side] = [statistics.median(float(e[i]) for e in each) for i in range(2)]
    for i, what in enumerate(("whole run, one token (s)", "peak memory (MiB)")):
        scale = 1 if i == 0 else 1024
        a, b = figures["ours"][i] / scale, figures["theirs"][i] / scale
        print(f"| {name} | {what} | {a:.2f} | {b:.2f} | {a / b:.2f} |")
END
