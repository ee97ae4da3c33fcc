#!/usr/bin/env bash
# The tests of examples/android; `make test-android` calls this.
#
# usage: tests/android.sh [PART]...     parts: java sanitizers arm64 smoke sources sample ndk (default: all)
#
#   java        the native methods on this machine's Java, with -Xcheck:jni, which must have nothing to say
#   sanitizers  the same with the address, leak and undefined-behaviour sanitizers
#   arm64       the same for arm64 on an arm64 Java under qemu-user
#   smoke       libdrllm_jni.so compiled for Android's three ABIs with clang, linked against stubs, and looked at: an
#               Android-target smoke build, which is not an NDK's and cannot run
#   sources     Android.mk compiles the files that CMakeLists.txt compiles
#   sample      Android's aapt takes the sample app's manifest and resources; its Java is compiled where ANDROID_HOME is set
#   ndk         with ANDROID_NDK_HOME set: both build descriptions with the real NDK, and the same look at the results
#
# JOBS: how many compilers run at once (default: all cores).
# The last line is the sum, "N passed, N failed, N skipped"; the exit status is 0 only if none failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. tools/setup/common.sh

build=${BUILD:-build}/android
jobs=-j${JOBS:-$(getconf _NPROCESSORS_ONLN)}
java_sources=(examples/android/drllm/src/main/java/org/drllm/*.java)
deps=$PWD/$build/deps
passed=0 failed=0 skipped=0
mkdir -p "$build"

pass() { passed=$((passed + 1)); printf 'ok      %s\n' "$*"; }
fail() { failed=$((failed + 1)); printf 'FAILED  %s\n' "$*"; }
skip() { skipped=$((skipped + 1)); printf 'skipped %s\n' "$*"; }
# check NAME COMMAND...: its output, which is shown if it fails, goes to a file.
check() {
    local name=$1 log
    shift
    log=$build/$(tr -c 'A-Za-z0-9\n' - <<<"$name").log
    if "$@" >"$log" 2>&1; then
        pass "$name"
    else
        fail "$name (log: $log)"
        tail -n 25 "$log"
        return 1
    fi
}

# --- Builds ----------------------------------------------------------------------------------------------------------------
sources() {
    [ -e "$deps/.complete" ] || { tools/setup/deps.sh --sources "$deps" && touch "$deps/.complete"; }
}

# cmake_build NAME OPTION...: libdrllm_jni.so in $build/NAME
cmake_build() {
    local folder=$build/$1
    shift
    cmake -G Ninja -S examples/android -B "$folder" -DDRLLM_DEPS_SOURCES="$deps" -DDRLLM_WERROR=ON "$@" &&
        ninja "$jobs" -C "$folder" drllm_jni
}

fixtures() {
    ${MAKE:-make} --no-print-directory "$jobs" build/drllm build/android-fixtures &&
        mkdir -p "$build/data" && build/android-fixtures "$build/data" &&
        build/drllm pack "$build/data/tiny.gguf" -r "$build/data/routers.gguf" -o "$build/data/tiny.drllm"
}

# With what Android's tools take (Java 8), without a warning.
classes() {
    rm -rf "$build/classes" && mkdir -p "$build/classes" &&
        javac --release 8 -Xlint:all,-options -Werror -d "$build/classes" "${java_sources[@]}" &&
        javac --release 11 -cp "$build/classes" -d "$build/classes" tests/android/DrLlmTest.java
}

prepared=
prepare() {
    [ -z "$prepared" ] || { [ "$prepared" = yes ]; return; }
    prepared=no
    check 'sources of the libraries' sources && check 'test files' fixtures && check 'Java classes' classes || return
    prepared=yes
}

# What the program says about the model in the cache, for the Java test to compare with; none if it is not there.
real_arguments=()
real_model() {
    local model routers=examples/routers/smollm2-135m-instruct-q4_1.gguf review
    model=${DRLLM_TEST_MODEL-$(tools/setup/model.sh --print)}
    real_arguments=()
    [ -r "$model" ] || return 0
    review=$(printf 'Review: a warm and clever film that never loses its way\nSentiment:')
    {
        build/drllm run -m "$model" -p 'Name three primary colours.' -n 24 --temp 0 2>/dev/null | tr '\n' ' ' | sed 's/ $//'
        echo
        build/drllm run -m "$model" -r "$PWD/$routers" --raw -p "$review" -n 1 --temp 0 --json 2>/dev/null |
            sed -n 's/.*"program":[^"]*"\([^"]*\)".*/\1/p'
    } >"$build/expected"
    real_arguments=("model=$model" "routers=$PWD/$routers" "expected=$PWD/$build/expected")
}

# java_tests NAME LIBRARY JAVA... -- ARGUMENT...: run DrLlmTest, and add up what it counts.
java_tests() {
    local name=$1 library=$2 log p f s status java=()
    shift 2
    while [ "$1" != -- ]; do java+=("$1"); shift; done
    shift
    log=$build/$name.log
    printf '\n=== %s\n' "$name"
    "${java[@]}" -Xcheck:jni -Djava.library.path="$library" -Dfile.encoding=UTF-8 -Dsun.jnu.encoding=UTF-8 -cp "$build/classes" \
        DrLlmTest "$build/data" "$@" 2>&1 </dev/null | tee "$log"
    status=${PIPESTATUS[0]}
    if read -r p _ f _ s _ < <(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1); then
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
        if [ "$status" = 0 ] || [ "$f" != 0 ]; then :; else fail "$name: exit status $status"; fi
    else
        fail "$name: it ended without its count, exit status $status"
    fi
    # Both of Java's check and of the sanitizers.
    if grep -qE '^(WARNING|FATAL ERROR)|in native method|exceeds capacity|AddressSanitizer|LeakSanitizer|runtime error' "$log"; then
        fail "$name: complaints"
    else
        pass "$name: no complaint of -Xcheck:jni"
    fi
}

# --- Parts -----------------------------------------------------------------------------------------------------------------
# UTF-8 in file names is the C library's.
export LC_ALL=C.UTF-8
java_home() {
    if [ -e /usr/lib/jvm/default-java/include/jni.h ]; then
        echo /usr/lib/jvm/default-java
    else
        dirname "$(dirname "$(readlink -f "$(command -v javac)")")"
    fi
}

part_java() {
    prepare && check 'JNI library for this machine' cmake_build host -DDRLLM_JNI_INCLUDE="$(java_home)/include" || return
    real_model
    java_tests java "$build/host" "$(java_home)/bin/java" -- "${real_arguments[@]}"
}

part_sanitizers() {
    prepare && check 'JNI library with sanitizers' cmake_build sanitizers -DDRLLM_JNI_INCLUDE="$(java_home)/include" \
        -DCMAKE_C_FLAGS='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1' || return
    # Java uses SIGSEGV itself, and does not free what it has when it ends; it is below every native method, so only the top
    # of a leak's stack is asked who it is. What was freed counts as resident until the quarantine is full.
    printf 'leak:libjvm.so\nleak:libjli.so\nleak:libjava.so\nleak:libjimage.so\nleak:libzip.so\nleak:libnio.so\nleak:ld-linux\n' \
        >"$build/lsan.txt"
    java_tests sanitizers "$build/sanitizers" env LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
        ASAN_OPTIONS=handle_segv=0:handle_sigill=0:handle_sigfpe=0:detect_leaks=1:intercept_tls_get_addr=0:malloc_context_size=3:quarantine_size_mb=16 \
        LSAN_OPTIONS="suppressions=$PWD/$build/lsan.txt:print_suppressions=0" UBSAN_OPTIONS=print_stacktrace=1 \
        "$(java_home)/bin/java" -Xmx512m -- rounds=20
}

part_arm64() {
    local java
    prepare || return
    java=$(tools/setup/android.sh java) || { fail 'an arm64 Java'; return; }
    check 'JNI library for arm64' cmake_build arm64 -DDRLLM_JNI_INCLUDE="$(java_home)/include" \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc || return
    java_tests arm64 "$build/arm64" qemu-aarch64 -cpu cortex-a76 -L "$java" "$java/java/bin/java" -Xint -Xmx512m -- rounds=3
}

# The three ABIs: architecture, clang's target, Android's name.
abis() {
    cat <<'END'
aarch64 aarch64-linux-android24 arm64-v8a
armv7a armv7a-linux-androideabi24 armeabi-v7a
x86_64 x86_64-linux-android24 x86_64
END
}

api24() { # api24 ARCH [LIBRARY]: the names, or those of one library
    awk -v arch="$1" -v library="${2-}" '/^#/ { next } (library == "" || $1 == library) && (NF == 2 || $3 == arch) { print $2 }' \
        tests/android/api24.txt
}

stubs() { # stubs ARCH TARGET FOLDER: libraries with the names and nothing behind them
    local library name
    mkdir -p "$3"
    for library in libc libm libdl liblog; do
        for name in $(api24 "$1" $library); do printf '.globl %s\n.type %s, %%function\n%s:\n' "$name" "$name" "$name"; done >"$3/$library.s"
        clang --target="$2" -nostdlib -fuse-ld=lld -shared -Wl,-soname,$library.so -o "$3/$library.so" "$3/$library.s" || return
    done
}

# look FILE ARCH: one line for each thing that is not as it should be.
look() {
    local name
    readelf -W --dynamic "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vxE 'lib(c|m|dl|log)\.so' | sed 's/^/needs /'
    readelf -W --dynamic "$1" | grep -q 'SONAME.*\[libdrllm_jni.so\]' || echo 'has another SONAME, or none'
    readelf -W --program-headers "$1" | awk '$1 == "LOAD" && $NF !~ /^0x(4|8|10|20|40)000$/ { print "a segment is aligned to " $NF }
        $1 == "LOAD" { n++ } END { if (n == 0) print "no segments" }'
    readelf -W --program-headers "$1" | awk '$1 == "LOAD" && /RWE/ { print "a segment is writable and executable" }
        $1 == "GNU_STACK" && /RWE/ { print "the stack is executable" }'
    ! readelf -W --dynamic "$1" | grep -qE 'TEXTREL' || echo 'has text relocations'
    readelf -W --dyn-syms "$1" | awk '$5 ~ /GLOBAL|WEAK/ && $7 != "UND" && $7 != "ABS" && $8 !~ /^(JNI_OnLoad|Java_.*)$/ { print "exports " $8 }'
    readelf -W --dyn-syms "$1" | awk '$8 == "JNI_OnLoad" && $7 != "UND" { found = 1 } END { if (!found) print "does not export JNI_OnLoad" }'
    readelf -W --dyn-syms "$1" | awk 'NR > 3 && $7 == "UND" && $8 != "" { sub(/@.*/, "", $8); print $8 }' | while read -r name; do
        api24 "$2" | grep -qxF -- "$name" || echo "uses $name, which is not in tests/android/api24.txt"
    done
}
look_clean() {
    local found
    found=$(look "$1" "$2")
    [ -z "$found" ] || { printf '%s\n' "$found"; return 1; }
    size "$1"
}

smoke_build() { # smoke_build ARCH TARGET ABI HEADERS
    local root=$PWD/$build/smoke
    mkdir -p "$root"
    cp -r "$4/." "$root/" && stubs "$1" "$2" "$root/stubs-$1" &&
        cmake_build "smoke/$3" -DCMAKE_TOOLCHAIN_FILE="$PWD/tests/android/smoke/toolchain.cmake" -DSMOKE_ROOT="$root" \
            -DSMOKE_TARGET="$2" -DSMOKE_ARCH="$1" -DSMOKE_BUILTINS="$(ls "$root/libgcc-$1.a" 2>/dev/null)"
}

part_smoke() {
    local headers arch target abi library
    printf '\n=== smoke build for the Android targets (clang, no NDK; compiled and linked, not run)\n'
    check 'sources of the libraries' sources || return
    headers=$(tools/setup/android.sh headers) || { fail 'headers for the Android targets'; return; }
    while read -r arch target abi; do
        library=$build/smoke/$abi/libdrllm_jni.so
        check "smoke: $abi compiles and links" smoke_build "$arch" "$target" "$abi" "$headers" &&
            check "smoke: $abi: libraries, pages of 16 KiB, no text relocations, exports, names of API 24" look_clean "$library" "$arch" &&
            printf '        %s: %s bytes, %s without its symbols\n' "$abi" "$(stat -c %s "$library")" \
                "$(size -A "$library" | awk '$1 !~ /^\.(debug|symtab|strtab|shstrtab|comment)/ && $2 ~ /^[0-9]+$/ && $1 != "Total" { n += $2 } END { print n }')"
    done < <(abis)
    check 'smoke: the look finds what is wrong with other libraries' look_finds
}
# The stub of libc is on pages of 4 KiB and exports other things; one for glibc needs other things.
look_finds() {
    look "$build/smoke/stubs-x86_64/libc.so" x86_64 >"$build/look-stub.txt"
    look "$(gcc -print-file-name=libm.so.6)" x86_64 >"$build/look-glibc.txt"
    cat "$build/look-stub.txt" "$build/look-glibc.txt"
    grep -q '^a segment is aligned to 0x1000$' "$build/look-stub.txt" && grep -q '^exports malloc$' "$build/look-stub.txt" &&
        grep -q '^does not export JNI_OnLoad$' "$build/look-stub.txt" && grep -q '^has another SONAME' "$build/look-stub.txt" &&
        grep -q '^needs libc.so.6$' "$build/look-glibc.txt" && grep -q '^uses __gmon_start__,' "$build/look-glibc.txt"
}

# Of a CMake build, a line for each file: its path and its instruction sets, as tests/android/ndk_sources.mk writes them.
cmake_sources() {
    ninja -C "$build/smoke/$1" -t commands drllm_jni | awk '{
        file = ""; flags = ""
        for (i = 1; i <= NF; i++) {
            if ($i == "-c") file = $(i + 1)
            if ($i ~ /^(-mavx.*|-mfma|-mf16c|-march=armv8[.]2.*)$/) flags = flags "|" $i
        }
        if (file != "") print file, flags
    }' | while read -r file flags; do printf '%s%s\n' "$(realpath -m "$file")" "$flags"; done | sort -u
}
same_sources() { # same_sources ABI
    [ -d "$build/smoke/$1" ] || { echo 'there is no smoke build to compare with'; return 1; }
    cmake_sources "$1" >"$build/cmake-$1.txt"
    ${MAKE:-make} --no-print-directory -s -f tests/android/ndk_sources.mk ABI="$1" DEPS="$deps" | sort -u >"$build/mk-$1.txt"
    [ -s "$build/cmake-$1.txt" ] && diff "$build/cmake-$1.txt" "$build/mk-$1.txt"
}

part_sources() {
    local arch target abi
    printf '\n=== Android.mk\n'
    while read -r arch target abi; do
        check "Android.mk compiles what CMakeLists.txt compiles, with the same instruction sets, for $abi" same_sources "$abi"
    done < <(abis)
}

# The manifest, the resources and the uncompressed assets as an APK, against the framework of Android 10, the newest that Debian has.
sample_apk() {
    local app=examples/android/app/src/main sample=$build/sample framework
    framework=$(dpkg -L android-framework-res | grep '/framework-res.apk$') && rm -rf "$sample" && mkdir -p "$sample/gen" "$sample/assets" &&
        sed 's#<manifest #<manifest package="org.drllm.sample" #' $app/AndroidManifest.xml >"$sample/AndroidManifest.xml" &&
        cp "$build/data/tiny.gguf" "$sample/assets/model.gguf" &&
        aapt package -f -m -J "$sample/gen" -M "$sample/AndroidManifest.xml" -S $app/res -A "$sample/assets" -I "$framework" \
            --min-sdk-version 24 --target-sdk-version 29 -0 gguf -0 drllm -F "$sample/app.apk" &&
        aapt dump badging "$sample/app.apk" >"$sample/badging.txt" && cat "$sample/badging.txt" &&
        grep -q "^launchable-activity: name='org.drllm.sample.MainActivity'" "$sample/badging.txt" &&
        aapt dump xmltree "$sample/app.apk" AndroidManifest.xml | grep -q 'extractNativeLibs.*0x0$' &&
        aapt list -v "$sample/app.apk" | grep -q 'Stored.*assets/model.gguf$'
}
sample_classes() {
    local jar
    jar=$(find "$ANDROID_HOME/platforms" -name android.jar | sort -V | tail -n 1) && [ -n "$jar" ] && mkdir -p "$build/sample/classes" &&
        javac --release 8 -Xlint:all,-options -cp "$jar" -d "$build/sample/classes" "${java_sources[@]}" \
            examples/android/app/src/main/java/org/drllm/sample/*.java "$build"/sample/gen/org/drllm/sample/R.java
}

part_sample() {
    printf '\n=== sample app\n'
    if tools/setup/packages.sh android-sample 2>"$build/aapt.log"; then
        prepare || return
        check 'aapt takes the manifest and the resources, and stores a model uncompressed' sample_apk || return
    else
        skip "the sample app's manifest and resources: there is no aapt to be had ($(tail -n 1 "$build/aapt.log"))"
    fi
    if [ -n "${ANDROID_HOME-}" ] && [ -e "$build/sample/gen" ]; then
        check 'the Java of the sample app compiles against the SDK' sample_classes
    else
        skip 'compiling the Java of the sample app: ANDROID_HOME is not set'
    fi
}

ndk_build() { # by CMake and by ndk-build
    cmake_build "ndk/$1" -DCMAKE_TOOLCHAIN_FILE="$ANDROID_NDK_HOME/build/cmake/android.toolchain.cmake" -DANDROID_ABI="$1" \
        -DANDROID_PLATFORM=android-24 -DANDROID_STL=none -DCMAKE_BUILD_TYPE=Release &&
        "$ANDROID_NDK_HOME/ndk-build" -C examples/android NDK_PROJECT_PATH=. APP_BUILD_SCRIPT=Android.mk \
            NDK_APPLICATION_MK=Application.mk APP_ABI="$1" DRLLM_DEPS_SOURCES="$deps" \
            NDK_OUT="$PWD/$build/ndk-build/obj" NDK_LIBS_OUT="$PWD/$build/ndk-build/libs"
}

part_ndk() {
    local arch target abi
    printf '\n=== NDK\n'
    if [ -z "${ANDROID_NDK_HOME-}" ]; then
        skip 'the build with a real NDK: ANDROID_NDK_HOME is not set'
        return
    fi
    check 'sources of the libraries' sources || return
    while read -r arch target abi; do
        check "NDK: $abi compiles and links" ndk_build "$abi" || continue
        check "NDK: $abi, CMake: the look" look_clean "$build/ndk/$abi/libdrllm_jni.so" "$arch"
        check "NDK: $abi, ndk-build: the look" look_clean "$build/ndk-build/libs/$abi/libdrllm_jni.so" "$arch"
    done < <(abis)
}

tools/setup/packages.sh build cross android || { printf '0 passed, 1 failed\n'; exit 1; }
parts=("$@")
[ $# != 0 ] || parts=(java sanitizers arm64 smoke sources sample ndk)
for part in "${parts[@]}"; do
    if declare -F "part_$part" >/dev/null; then "part_$part"; else fail "there is no part $part"; fi
done
printf '\n%d passed, %d failed, %d skipped\n' $passed $failed $skipped
[ $failed = 0 ] && [ $passed != 0 ]
