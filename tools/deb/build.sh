#!/usr/bin/env bash
# Put what `make install` wrote into a Debian package. `make deb` calls this.
#
# usage: build.sh TREE PROGRAM DEPS LICENSES... >path of the package
#   TREE     a folder that holds usr/, and is changed; the package is made beside it
#   PROGRAM  the program, linked for the package: with the C library of the system
#   LICENSES folders of the libraries that are in it: licenses/NAME, versions.txt
# Environment: OBJDUMP and STRIP of the toolchain, DEB_ARCH.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
tree=$1 program=$2
shift 2
umask 022

version=$(sed -n '1s/^drllm (\(.*\)) .*/\1/p' "$here/changelog")
export SOURCE_DATE_EPOCH
SOURCE_DATE_EPOCH=$(date -d "$(sed -n 's/^ -- .*>  //p' "$here/changelog" | head -n 1)" +%s)

# --- files that `make install` does not know ---------------------------------------------------------------------------------
doc=$tree/usr/share/doc/drllm
rm -rf "$doc"
install -d "$doc/examples" "$tree/usr/share/man/man1" "$tree/usr/share/bash-completion/completions" "$tree/etc/default" \
    "$tree/usr/lib/systemd/system" "$tree/usr/share/lintian/overrides" "$tree/DEBIAN"
install -m 755 "$program" "$tree/usr/bin/drllm"
"$STRIP" --strip-unneeded --remove-section=.comment --remove-section=.note "$tree/usr/bin/drllm"
rm -f "$tree/usr/share/man/man1/drllm.1"
gzip -9nc "$root/tools/man/drllm.1" >"$tree/usr/share/man/man1/drllm.1.gz"
install -m 644 "$root/tools/man/drllm.bash" "$tree/usr/share/bash-completion/completions/drllm"
install -m 644 "$here/drllm.service" "$tree/usr/lib/systemd/system/"
install -m 644 "$here/drllm.default" "$tree/etc/default/drllm"
install -m 644 "$root/examples/simple.c" "$doc/examples/"
sed -i 's|"runtime/\(drllm[a-z_]*\.h\)"|<drllm/\1>|' "$doc/examples/simple.c"
gzip -9nc "$here/changelog" >"$doc/changelog.Debian.gz"
install -m 644 "$here/overrides" "$tree/usr/share/lintian/overrides/drllm"
"$here/copyright.sh" "$@" >"$doc/copyright"

# --- control -----------------------------------------------------------------------------------------------------------------
# The program needs the C library alone, as new as the newest symbol that it takes from it.
needed=$("$OBJDUMP" -p "$tree/usr/bin/drllm" | awk '$1 == "NEEDED" { print $2 }')
if grep -vE '^(libc|libm|ld-linux[a-z0-9-]*)\.so\.[0-9]+$' <<<"$needed"; then
    echo 'build.sh: the program needs libraries that Depends would not name' >&2
    exit 1
fi
libc=$("$OBJDUMP" -T "$tree/usr/bin/drllm" | grep -oE 'GLIBC_[0-9.]+' | cut -d_ -f2 | sort -V | tail -n 1)
install -m 755 "$here/postinst" "$here/prerm" "$here/postrm" "$tree/DEBIAN/"
(cd "$tree" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
echo /etc/default/drllm >"$tree/DEBIAN/conffiles"
chmod 644 "$tree/DEBIAN/md5sums" "$tree/DEBIAN/conffiles"
size=$(du -k --apparent-size -s --exclude=DEBIAN "$tree" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$DEB_ARCH/" -e "s/@LIBC@/$libc/" -e "s/@SIZE@/$size/" "$here/control.in" \
    >"$tree/DEBIAN/control"
find "$tree" -depth -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
package=$(dirname "$tree")/drllm_${version}_$DEB_ARCH.deb
dpkg-deb --root-owner-group -Zxz --build "$tree" "$package" >&2
echo "$package"
