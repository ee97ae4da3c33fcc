#!/usr/bin/env bash
# Run a command in a tree of arm_tree.sh, as root of it, under qemu with the given processor.
#
# usage: in_tree.sh [--no-sys] FOLDER arm64|armhf CPU COMMAND...
set -euo pipefail

sys=(-b /sys)
if [ "$1" = --no-sys ]; then # as in containers that hide it
    sys=()
    shift
fi
folder=$1 cpu=$3
case $2 in
    arm64) qemu='qemu-aarch64' ;;
    armhf) qemu='qemu-arm' ;;
    *)
        echo "in_tree.sh: unknown architecture $2" >&2
        exit 1
        ;;
esac
shift 3
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    proot -0 -r "$folder" -q "$qemu -cpu $cpu" -b /proc -b /dev "${sys[@]}" -w / "$@"
