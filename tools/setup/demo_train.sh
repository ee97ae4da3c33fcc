#!/usr/bin/env bash
# From questions to routers and a plot: layer search, training and evaluation on the example data.
#
# usage: demo_train.sh PROGRAM MODEL [FOLDER]     FOLDER: where the results go, build/demo-train unless given
#
# The last line on stdout is the path of the plot. An interrupted run goes on in the search where it was.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

[ $# -ge 2 ] || die "usage: demo_train.sh PROGRAM MODEL [FOLDER]"
program=$1 model=$2 out=${3:-build/demo-train}
data=$(cd "$here/../../examples/data" && pwd)

# step NAME COMMAND...: what the command shows goes to FOLDER/NAME.txt as well.
step() {
    local name=$1 start=$SECONDS
    shift
    note "$name: $*"
    "$@" | tee "$out/$name.txt"
    times+=("$name $((SECONDS - start)) s")
}

mkdir -p "$out"
times=()
step search "$program" search -m "$model" -d "$data/demo.train.jsonl" -o "$out/labels.jsonl" --per task \
    --questions 60 --verify 40 --max-steps 6 --layer-value 0.01
# One label in five is kept from the training, to choose the epoch by.
awk 'NR % 5 == 0' "$out/labels.jsonl" >"$out/labels.valid.jsonl"
awk 'NR % 5 != 0' "$out/labels.jsonl" >"$out/labels.train.jsonl"
step train "$program" train -m "$model" -l "$out/labels.train.jsonl" --valid "$out/labels.valid.jsonl" \
    --guard "$data/guard.jsonl" --valid-guard "$data/guard.valid.jsonl" -o "$out/routers.gguf" --name demo --epochs 8
step eval "$program" eval -m "$model" -r "$out/routers.gguf" -d "$data/demo.valid.jsonl" \
    --train "$data/demo.train.jsonl" --train-limit 30 --seeds 3 \
    --json "$out/eval.json" --csv "$out/eval.csv" --plot "$out/eval.svg"
note "times: $(printf '%s, ' "${times[@]}")$SECONDS s in all"
echo "$out/eval.svg"
