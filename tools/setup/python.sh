#!/usr/bin/env bash
# Make a virtual environment with the Python clients that the tests of `drllm serve` use, in the cache.
#
# usage: python.sh [--print]     --print: only print its folder
#
# The last line on stdout is the folder. Versions are pinned; what they depend on is what pip chooses.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

packages=(openai==3.57.0 'lm-eval[api]==0.4.13')
key=$({ printf '%s\n' "${packages[@]}"; python3 --version; } | sha256sum | cut -c1-12)
folder=$cache/python/serve-$key
if [ "${1-}" = --print ] || [ -e "$folder/.complete" ]; then
    echo "$folder"
    exit 0
fi
"$here/packages.sh" python
mkdir -p "$cache/python"
exec 9>"$cache/python/.lock"
flock -n 9 || { note "waiting for another one who makes it"; flock 9; }
if [ ! -e "$folder/.complete" ]; then
    log=$cache/python/log
    note "installing ${packages[*]} from the Python package index into $folder, once"
    rm -rf "$folder"
    { python3 -m venv "$folder" &&
        "$folder/bin/pip" install --disable-pip-version-check --retries 10 --timeout 60 --prefer-binary "${packages[@]}"; } >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        die "pip could not install them; the whole log is $log"
    }
    touch "$folder/.complete"
fi
echo "$folder"
