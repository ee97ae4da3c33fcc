#!/usr/bin/env bash
# The Debian packages for Raspberry Pi. That for 64 bits is installed by dpkg into a Debian 12 and run in it under qemu-user on
# the cores of Raspberry Pi Zero 2 W and 3 (cortex-a53), 4 (cortex-a72), 5 (cortex-a76), and on all that qemu knows (max). That
# for 32 bits is unpacked into one, since proot does not carry dpkg of 32 bits, and run on those of Raspberry Pi 2 (cortex-a7)
# and on max. `make test-arm` calls this.
#
# usage: tests/arm.sh [arm64] [armhf]     (default: both); the last line is "N passed, N failed"
# Environment: DRLLM_TEST_MODEL (default: the model in the cache), MAKE.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. tests/cases.sh

make=${MAKE:-make}
model=${DRLLM_TEST_MODEL:-$(tools/setup/model.sh)}
routers=/usr/share/drllm/routers/smollm2-135m-instruct-q4_1.gguf
prompt='What is the boiling point of water?'
review=$'Review: a warm and clever film that never loses its way\nSentiment:'
scratch=$(mktemp -d "${TMPDIR:-/tmp}/drllm-arm.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# in_tree CPU COMMAND...: in the tree of this round
in_tree() { tools/setup/in_tree.sh "$tree" "$arch" "$@"; }

# program CPU ARGUMENT...: drllm of the package, with the tree's C library
program() {
    local cpu=$1
    shift
    if [ "$arch" = armhf ]; then
        "$qemu" -cpu "$cpu" -L "$tree" "$tree/usr/bin/drllm" "$@"
    else
        in_tree "$cpu" drllm "$@"
    fi
}

install_package() {
    if [ "$arch" = armhf ]; then
        dpkg-deb -x "$package" "$tree" && [ "$(dpkg-deb -f "$package" Architecture)" = armhf ]
        return
    fi
    # shellcheck disable=SC2016 # dpkg-query's own
    cp "$package" "$tree/drllm.deb" && in_tree "$old" dpkg -i /drllm.deb && rm "$tree/drllm.deb" &&
        [ "$(in_tree "$old" dpkg-query -W -f '${Status} ${Architecture}' drllm)" = "install ok installed $arch" ] &&
        [ -z "$(in_tree "$old" dpkg --verify drllm)" ]
}

# answers CPU KERNELS: the same text as on the machine that builds, by the kernels that this core should get
answers() {
    local said
    program "$1" run -v -m "$inside/model.gguf" -q --temp 0 -n 12 -t 1 -p "$prompt" >"$scratch/text" 2>"$scratch/said" || {
        cat "$scratch/said"
        return 1
    }
    cat "$scratch/text"
    said=$(grep 'CPU features' "$scratch/said")
    echo "$said"
    [[ "$said" == *"; kernels $2,"* ]] && cmp "$scratch/text" "$scratch/expected"
}

routed_answers() {
    program "$1" run -m "$inside/model.gguf" -r "$inside$routers" --raw --temp 0 -n 2 -t 1 --json -q -p "$review" >"$scratch/routed.json" &&
        python3 -c '
import json, sys
got, wanted = (json.load(open(path)) for path in sys.argv[1:])
print(got["text"], got["routing"]["program"])
assert got["text"] == wanted["text"] and got["routing"]["program"] == wanted["routing"]["program"]
assert got["routing"]["layers_saved"] > 0' "$scratch/routed.json" "$scratch/routed.expected"
}

# Where a container hides /sys, the kernel alone says what the processor can do.
picks_without_sys() {
    local said
    said=$(tools/setup/in_tree.sh --no-sys "$tree" "$arch" "$1" drllm run -v -m /model.gguf -q --temp 0 -n 1 -t 1 -p a 2>&1)
    grep 'CPU features' <<<"$said"
    [[ "$said" == *"; kernels $2,"* ]]
}

# The service, with what the unit hands it, answers one request and stops.
serves() {
    python3 - "$tree" "$qemu -cpu $1" <<'END'
import subprocess, sys
sys.path.insert(0, "tests/serve")
from server import Server

tree, emulator = sys.argv[1], sys.argv[2].split()
with Server(tree + "/usr/bin/drllm", tree + "/model.gguf", "-t", "1", emulator=[*emulator, "-L", tree], patience=600) as server:
    assert server.health()["status"] == "ok"
    reply = server.complete(prompt="The capital of France is", max_tokens=3, temperature=0)
    print(reply)
    assert "Paris" in reply["choices"][0]["text"]
    status, refused, _ = server.request("POST", "/v1/completions", b"{")
    assert status == 400 and refused["error"]["message"]
    assert server.stop()[0] == 0, server.text()
END
}

purge_package() {
    in_tree "$old" dpkg --purge drllm && [ ! -e "$tree/usr/bin/drllm" ] && [ ! -e "$tree/etc/default/drllm" ] &&
        ! find "$tree" -xdev -iname '*drllm*' ! -path '*/var/log/*' | grep .
}

round() {
    local cross=$2 base
    shift 2
    package=$(compgen -G "build/${cross%-}/deb/*_$arch.deb")
    base=$(tools/setup/arm_tree.sh "$arch") || {
        case_of "$arch: a Debian 12 to put it into" false
        return
    }
    tree=$scratch/$arch
    { cp -a "$base" "$tree" && { ln "$model" "$tree/model.gguf" 2>/dev/null || cp "$model" "$tree/model.gguf"; }; } || {
        case_of "$arch: a copy of that tree" false
        return
    }
    inside=
    [ "$arch" != armhf ] || inside=$tree
    case_of "$arch: the package goes into Debian 12" install_package
    while [ $# != 0 ]; do
        case_of "$arch: $1 answers as this machine does, by $2" answers "$1" "$2"
        shift 2
    done
    [ "$arch" = armhf ] ||
        case_of "$arch: $new gets $new_kernels without /sys, too" picks_without_sys "$new" "$new_kernels"
    case_of "$arch: $old runs the package's routers" routed_answers "$old"
    case_of "$arch: drllm serve on $new" serves "$new"
    [ "$arch" = armhf ] || case_of "$arch: the package goes without a trace" purge_package
}

# round ARCH CROSS CPU KERNELS...; old and new: the cores of the other tests
arm64() {
    arch=arm64 qemu=qemu-aarch64 old=cortex-a53 new=cortex-a76 new_kernels=neondot
    round arm64 aarch64-linux-gnu- cortex-a53 neon cortex-a72 neon cortex-a76 neondot max neoni8mm
}

armhf() {
    arch=armhf qemu=qemu-arm old=cortex-a7 new=max new_kernels=neon
    round armhf arm-linux-gnueabihf- cortex-a7 neon max neon
}

rounds=("$@")
[ $# != 0 ] || rounds=(arm64 armhf)
tools/setup/packages.sh build model cross cross-armhf deb arm-test || exit
"$make" --no-print-directory build/drllm >"$scratch/log" 2>&1 || { tail "$scratch/log"; exit 1; }
build/drllm run -m "$model" -q --temp 0 -n 12 -t 1 -p "$prompt" >"$scratch/expected" || exit
build/drllm run -m "$model" -r examples/routers/smollm2-135m-instruct-q4_1.gguf --raw --temp 0 -n 2 -t 1 --json -q -p "$review" \
    >"$scratch/routed.expected" || exit
for arch in "${rounds[@]}"; do
    cross=aarch64-linux-gnu-
    [ "$arch" = arm64 ] || cross=arm-linux-gnueabihf-
    case_of "$arch: make deb" "$make" --no-print-directory deb CROSS=$cross
    "$arch"
done
finish_cases
