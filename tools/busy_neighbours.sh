#!/usr/bin/env bash
# Generation with one thread and with more, beside programs that keep cores busy.
#
# usage: tools/busy_neighbours.sh -m MODEL [-t THREADS] [-b BUSY] [-n ROUNDS] [PROGRAM]
#
# BUSY processes (default 2) compute all the time. In each of ROUNDS rounds (default 7) drllm bench generates 128 tokens with one
# thread and with THREADS (default 2), in turn; printed are the medians and their ratio. PROGRAM: default build/drllm.
set -euo pipefail
model='' threads=2 busy=2 rounds=7
while getopts m:t:b:n: option; do
    case $option in
    m) model=$OPTARG ;;
    t) threads=$OPTARG ;;
    b) busy=$OPTARG ;;
    n) rounds=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
program=${1:-build/drllm}
if [ -z "$model" ]; then
    echo "$0: no model: -m MODEL is missing" >&2
    exit 2
fi

neighbours=()
stop() { [ ${#neighbours[@]} = 0 ] || kill "${neighbours[@]}" 2>/dev/null || true; }
trap stop EXIT
for ((i = 0; i < busy; i++)); do
    (while :; do :; done) &
    neighbours+=($!)
done

speed() { "$program" bench -m "$model" -p 0 -n 128 -r 1 -t "$1" -o json 2>/dev/null | grep -o '"median_ts":[^,]*' | grep -o '[0-9.]*$'; }
median() { sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

one=() many=()
for ((i = 0; i < rounds; i++)); do
    one+=("$(speed 1)")
    many+=("$(speed "$threads")")
    echo "round $((i + 1)) of $rounds: ${one[-1]} tokens/s with 1 thread, ${many[-1]} with $threads" >&2
done
a=$(printf '%s\n' "${one[@]}" | median)
b=$(printf '%s\n' "${many[@]}" | median)
awk -v a="$a" -v b="$b" -v t="$threads" -v n="$busy" \
    'BEGIN { printf "beside %d busy processes: %.1f tokens/s with 1 thread, %.1f with %d: %.2f\n", n, a, b, t, b / a }'
