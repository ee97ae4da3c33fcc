#!/usr/bin/env bash
# What llvm-mca expects of the inner loops of the arm64 kernels: cycles for a group of 32 columns by 8 rows and a token.
#
# usage: mca_arm.sh [CPU]...     (default: cortex-a53 cortex-a72 cortex-a76 neoverse-n2)
# Environment: CROSS (aarch64-linux-gnu-), LLVM_MCA (llvm-mca; neoverse-n2 is modelled from LLVM 16 on). Caches are taken to
# hold everything. LLVM takes cortex-a72 and -a76 for a cortex-a57.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cross=${CROSS:-aarch64-linux-gnu-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# != 0 ] || set -- cortex-a53 cortex-a72 cortex-a76 neoverse-n2

# compile NAME FILE FLAGS CALL: the loop around the products of a function that makes one call, in $work/NAME.
compile() {
    cat >"$work/tile.c" <<END
#include "quant/$2.c"
void tile_to_measure(const uint8_t *w, size_t bytes, size_t n, const struct drllm_q8_row *x, const void *groups, float *y,
                     size_t ldy);
void tile_to_measure(const uint8_t *w, size_t bytes, size_t n, const struct drllm_q8_row *x, const void *groups, float *y,
                     size_t ldy) {
    $4;
}
END
    # shellcheck disable=SC2086 # flags are words
    "${cross}gcc" -std=c11 -O3 -ffp-contract=off -fno-math-errno $3 -I"$here" -S -o "$work/tile.s" "$work/tile.c"
    awk '/^tile_to_measure:/ { inside = 1 }
        inside { line[++n] = $0 }
        inside && /^\.L[0-9]+:/ { label = $1; sub(":", "", label); start[label] = n }
        inside && $1 ~ /^(b\.|b[a-z][a-z]|cbn?z|tbn?z)/ && $NF in start && !found {
            products = 0
            for (i = start[$NF]; i <= n; i++) products += line[i] ~ /\t(sdot|smmla|smlal|smull)/
            if (products) { first = start[$NF]; last = n; found = 1 }
        }
        END { for (i = first; i <= last; i++) if (line[i] ~ /^\t[a-z]/) print line[i] }' "$work/tile.s" >"$work/$1"
}

# cycles CPU NAME GROUPS: of a group; "-" where the processor lacks the instructions
cycles() {
    case $1:$2 in
        cortex-a53:dot* | cortex-a72:dot* | cortex-a[57]?:i8mm*) echo - && return ;;
    esac
    "${LLVM_MCA:-llvm-mca}" -mtriple=aarch64-linux-gnu -mcpu="$1" -mattr=+dotprod,+i8mm -iterations=100 "$work/$2" 2>"$work/log" |
        awk -v n="$3" '/^Total Cycles:/ { printf "%.1f\n", $3 / 100 / n }'
}

dots=$(sed -n 's/^dot_flags := .*,,\(.*\))$/\1/p' "$here/Makefile")
[ -n "$dots" ] || { echo "the Makefile has no dot_flags" >&2; exit 1; }
grouped='tile_grouped(DRLLM_FORMAT_Q4_1, w, groups, n, MAX_PAIRS, true, y, ldy)'
compile neon-1 matmul_neon '' 'tile_q8(DRLLM_FORMAT_Q4_1, w, bytes, 2, n, x, 1, y, ldy)'
compile neon-4 matmul_neon '' 'tile_q8(DRLLM_FORMAT_Q4_1, w, bytes, 1, n, x, TILE_TOKENS, y, ldy)'
compile dot-1 matmul_few_neondot "-march=armv8.2-a+dotprod $dots" \
    'tile_few(DRLLM_FORMAT_Q4_1, w, bytes, FEW_PANELS, n, x, 1, NULL, true, y, ldy)'
compile dot-8 matmul_neondot "-march=armv8.2-a+dotprod $dots" 'tile_many(DRLLM_FORMAT_Q4_1, w, groups, n, true, y, ldy)'
compile i8mm-8 matmul_neoni8mm -march=armv8.2-a+dotprod+i8mm "$grouped"

echo '| q4_1, cycles a group and token | neon, 1 token | neon, 4 tokens | neondot, 1 token | neondot, 8 tokens | neoni8mm, 8 tokens |'
echo '| --- | ---: | ---: | ---: | ---: | ---: |'
for cpu; do
    printf '| %s | %s | %s | %s | %s | %s |\n' "$cpu" "$(cycles "$cpu" neon-1 2)" "$(cycles "$cpu" neon-4 4)" \
        "$(cycles "$cpu" dot-1 8)" "$(cycles "$cpu" dot-8 8)" "$(cycles "$cpu" i8mm-8 8)"
done
