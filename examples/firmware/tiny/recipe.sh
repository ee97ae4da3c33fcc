#!/usr/bin/env bash
# Everything from the text to the int4 file: install, prepare, train, export, quantise, measure, write a sample.
#
# usage: recipe.sh WORK [OPTION of train.py]...     WORK: a folder outside the tree, for some 6 GB of PyTorch
#
# Interrupted, the same command goes on. The result is WORK/tiny-kjv-q4_0.gguf; nothing in the tree is changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
if [ $# = 0 ] || [[ $1 == -* ]]; then
    sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2
    exit 2
fi
work=$1
shift
drllm=${DRLLM:-$root/build/drllm}
[ -x "$drllm" ] || { echo "recipe.sh: no $drllm: run make first, or set DRLLM" >&2; exit 1; }

"$root/tools/setup/packages.sh" tiny
mkdir -p "$work"
if [ ! -e "$work/venv/ready" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --disable-pip-version-check -q -r "$here/requirements.txt"
    touch "$work/venv/ready"
fi
python=$work/venv/bin/python
"$python" "$here/prepare.py" "$work"
"$python" "$here/train.py" "$work" "$@"
"$python" "$here/export.py" "$work/model.pt" "$work/vocabulary.json" "$work/tiny-kjv-f32.gguf"
"$python" "$here/check.py" "$drllm" "$work/model.pt" "$work/tiny-kjv-f32.gguf" "$work"
"$drllm" quantize "$work/tiny-kjv-f32.gguf" "$work/tiny-kjv-q4_0.gguf" q4_0 --force
for model in tiny-kjv-f32 tiny-kjv-q4_0; do
    printf '%s: ' $model
    "$drllm" perplexity -m "$work/$model.gguf" -f "$work/valid.txt" -c 256 2>/dev/null
done
for temperature in 0 0.8; do
    printf 'temperature %s: ' $temperature
    "$drllm" run -m "$work/tiny-kjv-q4_0.gguf" --raw -q -c 256 -n 120 --temp $temperature -p 'And God said'
done
