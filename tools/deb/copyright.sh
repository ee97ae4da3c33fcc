#!/usr/bin/env bash
# The package's copyright file: ours, and those of the libraries that are linked into it, by their own texts.
#
# usage: copyright.sh LICENSE_FILE...
set -euo pipefail

cat <<'END'
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: drllm
Comment: The program and the library hold the libraries below, linked statically; the versions and where they come from are in
 tools/setup/deps.sh and tools/setup/microhttpd.sh of the sources, with which they can be replaced and linked anew.

Files: *
Copyright: drllm developers
License: Apache-2.0

END
for file; do
    name=$(basename "$file")
    case $name in
        xnnpack | cpuinfo) license=BSD-3-clause-$name ;;
        pthreadpool) license=BSD-2-clause-$name ;;
        libmicrohttpd) license=LGPL-2.1+ ;;
        *) license=MIT-$name ;;
    esac
    holders=$(grep -E '^\**Copyright ' "$file" | sed -E 's/^\**Copyright //; s/^(\([cC]\)|&copy;) //; s/\*$//') || holders=
    [ "$name" != libmicrohttpd ] || holders='2007-2024 Daniel Pittman, Christian Grothoff, Karlson2k (Evgeny Grin) and others'
    [ -n "$holders" ] || { echo "copyright.sh: no copyright line in $file" >&2; exit 1; }
    printf 'Files: %s\nCopyright: %s\n' "$name" "$(sed '2,$s/^/           /' <<<"$holders")"
    if [ "$license" = LGPL-2.1+ ]; then
        printf 'License: LGPL-2.1+\n\n'
    else
        printf 'License: %s\n' "$license"
        sed -E 's/[[:space:]]+$//; s/^$/./; s/^/ /' "$file"
        printf '\n'
    fi
done
cat <<'END'
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.

License: LGPL-2.1+
 On Debian systems the text is in /usr/share/common-licenses/LGPL-2.1.
END
