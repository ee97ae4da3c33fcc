# What the set-up scripts share; read by them, not run.
# shellcheck shell=bash disable=SC2034 # the variables are used by the scripts that read this
cache=${DRLLM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/drllm}

note() { printf 'drllm: %s\n' "$*" >&2; }
die() {
    printf 'drllm: %s\n' "$*" >&2
    exit 1
}

# target_of COMPILER TRIPLE: the triple as the compiler says it, the given one or a guess where there is no compiler yet.
target_of() {
    "$1" -dumpmachine 2>/dev/null || echo "${2:-$(uname -m)-linux-gnu}"
}
