# How the set-up scripts fetch pinned sources; read by them, not run. They define before:
#   sources()  lines of: name, version, tarball's sha256 (Debian's .orig.tar, fetched by apt), and upstream's address and commit,
#              which are used where apt has no such tarball. Instead of a commit, "tarball": the address is that very file.
#   suites     Debian's suites that have these versions
#   file_pins  checksums of what is compiled of a repository that is fetched by tag
#   triple, name, prefix   of what is built, for begin_build, which makes scratch, a folder of the run
#   work       where sources go, in $work/src/NAME
# shellcheck shell=bash disable=SC2154 # see above

# What make was told for drllm is not for them: their flags are part of the name that they are kept under.
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS

# begin_build WHAT: what building for $triple needs is there, nobody else builds $name, and $scratch is made. Where somebody has
# built it meanwhile, $prefix is printed and the script ends.
begin_build() {
    local cross=cross
    case $triple in
        '') cross='' ;;
        arm-*) cross='cross-armhf' ;;
    esac
    # shellcheck disable=SC2086 # a word or none
    "$here/packages.sh" --check build $cross
    mkdir -p "$cache/deps" "$cache/downloads" "$cache/build"
    exec 9>"$cache/deps/.$name.lock"
    flock -n 9 || { note "waiting for another build of $1"; flock 9; }
    if [ -e "$prefix/.complete" ]; then
        echo "$prefix"
        exit 0
    fi
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/drllm-build.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM
}

# The URI of Debian's archive that this machine uses, from either form of apt's source lists.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        awk '/^[ \t]*deb(-src)?[ \t]/ { sub(/\[[^]]*\]/, ""); print $2 }
             /^URIs:/ { for (i = 2; i <= NF; i++) print $i }' |
        grep -E '^(https?|file|ftp|mirror\+[a-z]+|tor\+https?|copy)://?.*/debian/?$' | head -n 1
}

# A state of our own for apt: it keeps the machine's way to the network (proxy, credentials, certificates) and its keys, and
# touches none of its files.
apt_ready=
apt_state() {
    [ -z "$apt_ready" ] || { [ "$apt_ready" = yes ]; return; }
    apt_ready=no
    command -v apt-get >/dev/null && command -v apt-config >/dev/null || return 1
    local uri keyring='' signed='' file suite
    uri=$(mirror) || true
    uri=${uri:-http://deb.debian.org/debian}
    for file in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
        [ -e "$file" ] && keyring=$file && break
    done
    [ -z "$keyring" ] || signed="[signed-by=$keyring] "
    local apt=$scratch/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/tar"
    chmod 755 "$scratch" "$apt"
    [ "$(id -u)" != 0 ] || chown _apt "$apt/tar" 2>/dev/null || true # apt downloads as that user
    for suite in $suites; do echo "deb-src $signed$uri $suite main"; done >"$apt/sources.list"
    {
        apt-config dump 2>/dev/null | grep '^Acquire::.*"..*";$' || true
        cat <<END
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$apt/cache";
Dir::Log "$apt";
Acquire::Retries "3";
Acquire::Languages "none";
END
    } >"$apt/apt.conf"
    note "reading Debian's source lists from $uri"
    # A suite that is gone is no error here: what counts is whether the tarball can be had.
    APT_CONFIG=$apt/apt.conf apt-get update -q >"$apt/log" 2>&1 || true
    apt_ready=yes
}

# fetch_apt NAME VERSION FILE: the tarball by apt, whichever of Debian's revisions of the version it offers.
fetch_apt() {
    apt_state || return 1
    local revision apt=$scratch/apt
    for revision in $(APT_CONFIG=$apt/apt.conf apt-cache showsrc --only-source "$1" 2>/dev/null |
        awk '$1 == "Version:" { print $2 }' | sort -u); do
        [ "${revision%-*}" = "$2" ] || continue
        (cd "$apt/tar" && APT_CONFIG=$apt/apt.conf apt-get source -q --download-only --tar-only "$1=$revision") \
            >>"$apt/log" 2>&1 || continue
        mv "$apt/tar/$1_$2.orig.tar."?z "$3" && return 0
    done
    return 1
}

# fetch_git URL COMMIT FOLDER: a commit is its own checksum.
fetch_git() {
    command -v git >/dev/null || return 1
    rm -rf "$3"
    mkdir -p "$3"
    git -C "$3" init -q && git -C "$3" fetch -q --depth 1 "$1" "$2" && git -C "$3" checkout -q FETCH_HEAD || return 1
    case $2 in
        refs/*) (cd "$3" && echo "$file_pins" | sha256sum --quiet -c) || die "$1 $2 is not what was pinned" ;;
        *) [ "$(git -C "$3" rev-parse HEAD)" = "$2" ] || return 1 ;;
    esac
    rm -rf "$3/.git"
}

# fetch_url URL FILE
fetch_url() {
    python3 - "$1" "$2" <<'END'
import shutil, sys, urllib.request

with urllib.request.urlopen(sys.argv[1], timeout=60) as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
END
}

# unpack FILE FOLDER: some tarballs have one folder at the top, some do not.
unpack() {
    rm -rf "$2" "$2.tmp"
    mkdir -p "$2.tmp"
    tar -xf "$1" -C "$2.tmp"
    local top=("$2.tmp"/*)
    if [ ${#top[@]} = 1 ] && [ -d "${top[0]}" ]; then
        mv "${top[0]}" "$2"
        rmdir "$2.tmp"
    else
        mv "$2.tmp" "$2"
    fi
}

# get NAME: sources to $work/src/NAME. A tarball that is here already goes before one that has to be fetched.
get() {
    local name version sha url commit file fetch folder=$work/src/$1
    [ ! -e "$folder" ] || return 0
    for fetch in no yes; do
        while read -r name version sha url commit; do
            file=$cache/downloads/${name}_$version.orig.tar
            if ! { [ -e "$file" ] && echo "$sha  $file" | sha256sum --status -c; }; then
                rm -f "$file"
                if [ $fetch = no ] || ! fetch_apt "$name" "$version" "$scratch/new"; then continue; fi
                echo "$sha  $scratch/new" | sha256sum --status -c ||
                    die "the tarball of $name $version that apt fetched is not the one that was pinned (sha256): refused"
                mv "$scratch/new" "$file.$$" && mv "$file.$$" "$file"
            fi
            note "source of $name $version: checked"
            echo "$name $version" >"$work/src/$1.version"
            unpack "$file" "$folder"
            return 0
        done < <(sources | grep "^$1 ")
    done
    while read -r name version sha url commit; do
        note "apt has no source of $name $version; fetching $url"
        if [ "$commit" = tarball ]; then
            file=$cache/downloads/${name}_$version.orig.tar
            fetch_url "$url" "$scratch/new" || continue
            echo "$sha  $scratch/new" | sha256sum --status -c || continue
            mv "$scratch/new" "$file"
            echo "$name $version" >"$work/src/$1.version"
            unpack "$file" "$folder"
            return 0
        elif fetch_git "$url" "$commit" "$folder.tmp"; then
            echo "$name $version (git $commit)" >"$work/src/$1.version"
            mv "$folder.tmp" "$folder"
            return 0
        fi
    done < <(sources | grep "^$1 ")
    [ ! -e "$scratch/apt/log" ] || tail -n 8 "$scratch/apt/log" >&2
    die "cannot fetch the source of $1, neither from Debian's archive nor from $url"
}
