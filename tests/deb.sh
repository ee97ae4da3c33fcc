#!/usr/bin/env bash
# The Debian package of this machine; `make test-deb` calls this.
#
# usage: tests/deb.sh PROGRAM PACKAGE     the last line is "N passed, N failed"
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. tests/cases.sh

program=$1 package=$2
tools/setup/packages.sh deb-test || exit
tree=$(mktemp -d "${TMPDIR:-/tmp}/drllm-deb.XXXXXX")
trap 'rm -rf "$tree"' EXIT
dpkg-deb -x "$package" "$tree" && dpkg-deb -e "$package" "$tree/DEBIAN" || exit

# Warnings and errors of the Debian policy's checker; overridden are those that tools/deb/overrides gives reasons for.
no_complaints() {
    local said
    said=$(lintian --allow-root --fail-on error,warning "$package" 2>&1)
    local status=$?
    echo "$said"
    [ $status = 0 ]
}

sums() { (cd "$tree" && md5sum --quiet -c DEBIAN/md5sums) && [ "$(wc -l <"$tree/DEBIAN/md5sums")" = "$(find "$tree/usr" -type f | wc -l)" ]; }

man_page() {
    python3 tools/setup/man.py "$program" | diff - tools/man/drllm.1 || {
        echo "run: tools/setup/man.py $program >tools/man/drllm.1"
        return 1
    }
    local said
    said=$(LC_ALL=C MANWIDTH=80 man --warnings -l "$tree/usr/share/man/man1/drllm.1.gz" 2>&1 >/dev/null)
    echo "$said"
    [ -z "$said" ]
}

# Every command, and of each command every option, as the help has them.
completion() {
    PATH=$tree/usr/bin:$PATH bash -c '
        set -u
        . "$1"
        ask() { COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _drllm 2>/dev/null; }
        ask drllm ""
        commands=$(drllm help | sed -n "s/^  \([a-z]*\)  *[A-Z].*/\1/p")
        [ "$(printf "%s\n" "${COMPREPLY[@]}" | sort)" = "$(printf "%s\n" $commands help | sort)" ] || exit 1
        n=0
        for command in $commands; do
            ask drllm "$command" --
            options=$(drllm "$command" --help | grep -oE "^  (-., |    )--[a-z0-9-]+" | grep -oE -- "--[a-z0-9-]+")
            [ "$(printf "%s\n" "${COMPREPLY[@]}" | sort)" = "$(sort <<<"$options")" ] || { echo "$command"; exit 1; }
            n=$((n + ${#COMPREPLY[@]}))
        done
        echo "$n options"
        [ $n -gt 100 ] || exit 1
        ask drllm run --kv ""; [ "${COMPREPLY[*]}" = "f16 q8_0" ] || { echo "kv: ${COMPREPLY[*]}"; exit 1; }
        ask drllm run --compute x; [ "${COMPREPLY[*]}" = xnnpack ] || exit 1
        ask drllm run --temp ""; [ "${#COMPREPLY[@]}" = 0 ] || exit 1
        cd "$2" && ask drllm run -m us && [ "${COMPREPLY[*]}" = usr ]
    ' completion "$tree/usr/share/bash-completion/completions/drllm" "$tree"
}

# Against the program that is in the package.
unit() {
    local unit=$tree/unit/drllm.service
    mkdir -p "$tree/unit"
    sed "s|/usr/bin/drllm|$tree/usr/bin/drllm|" "$tree/usr/lib/systemd/system/drllm.service" >"$unit"
    local said
    said=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no "$unit" 2>&1 | grep -F drllm)
    echo "$said"
    [ -z "$said" ]
}

# The score of what a service may do: 0 nothing, 100 (10.0) everything.
unit_is_hardened() { systemd-analyze security --offline=yes --threshold=20 "$tree/usr/lib/systemd/system/drllm.service"; }

# The words of ExecStart and of /etc/default/drllm, with a model that is there; systemd itself is not run.
unit_command() {
    local words
    # shellcheck source=tools/deb/drllm.default
    . "$tree/etc/default/drllm"
    words=$(sed -n 's|^ExecStart=/usr/bin/drllm ||p' "$tree/usr/lib/systemd/system/drllm.service")
    # shellcheck disable=SC2016,SC2086 # the unit's text; split as systemd does
    set -- ${words//'${DRLLM_MODEL}'/$DRLLM_MODEL}
    # shellcheck disable=SC2086
    set -- "${@:1:$#-1}" $DRLLM_OPTIONS
    echo "$*"
    local said
    said=$("$tree/usr/bin/drllm" "$@" --model /nonexistent 2>&1)
    echo "$said"
    [[ $said == *'cannot open model'* ]]
}

runs() {
    local model
    model=$(tools/setup/model.sh) &&
        "$tree/usr/bin/drllm" run -m "$model" -r "$tree/usr/share/drllm/routers/smollm2-135m-instruct-q4_1.gguf" -q --temp 0 \
            -n 40 -t 1 -p 'What is the boiling point of water?' | tee /dev/stderr | grep -F 100
}

contents() {
    local file
    for file in usr/bin/drllm usr/include/drllm/drllm.h usr/include/drllm/drllm_os.h usr/share/man/man1/drllm.1.gz \
        usr/share/drllm/routers/smollm2-135m-instruct-q4_1.gguf usr/share/doc/drllm/copyright \
        usr/share/doc/drllm/changelog.Debian.gz usr/lib/systemd/system/drllm.service etc/default/drllm \
        usr/share/bash-completion/completions/drllm; do
        [ -s "$tree/$file" ] || { echo "$file is missing"; return 1; }
    done
    compgen -G "$tree/usr/lib/*/libdrllm.a" && grep -q '^Depends: libc6 (>= 2\.[0-9]*)$' "$tree/DEBIAN/control"
}

# A package that is made again is the same file.
same_again() {
    local before
    before=$(sha256sum <"$package") && make --no-print-directory deb >/dev/null 2>&1 && [ "$(sha256sum <"$package")" = "$before" ]
}

case_of 'contents and dependencies' contents
case_of 'lintian' no_complaints
case_of 'md5sums' sums
case_of 'the program runs with the package'\''s routers' runs
case_of 'the man page is what the commands say' man_page
case_of 'bash completion knows all commands and options' completion
case_of 'systemd-analyze verify' unit
case_of 'systemd-analyze security' unit_is_hardened
case_of 'the command of the unit is understood' unit_command
case_of 'made again it is the same' same_again
finish_cases
