# A compiler for Android's targets made of Debian's packages: clang, lld, musl's headers in the place of bionic's, and a stub
# of bionic's libraries that has the names of API level 24 and no code. What it links cannot run; that it compiles and links,
# and the shape of the result, say something about a real NDK's build. See tests/android.sh.
#
#   -DSMOKE_ROOT=FOLDER  SMOKE_ROOT/include (jni.h, android/log.h), musl-ARCH/include, stubs-ARCH/lib*.so
#   -DSMOKE_TARGET=aarch64-linux-android24  -DSMOKE_ARCH=aarch64
set(CMAKE_SYSTEM_NAME Android)
set(CMAKE_SYSTEM_VERSION 1) # keeps CMake from looking for an NDK, as the NDK's own file did
set(ANDROID TRUE)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SMOKE_ROOT SMOKE_TARGET SMOKE_ARCH)
string(REGEX REPLACE "^armv7a$" "armv7-a" CMAKE_SYSTEM_PROCESSOR ${SMOKE_ARCH})

set(CMAKE_C_COMPILER clang)
set(CMAKE_C_COMPILER_TARGET ${SMOKE_TARGET})
# musl's errno is found by a function of another name; bionic's is put in.
set(CMAKE_C_FLAGS_INIT "-nostdlibinc -isystem ${CMAKE_CURRENT_LIST_DIR} -isystem ${SMOKE_ROOT}/include \
-isystem ${SMOKE_ROOT}/musl-${SMOKE_ARCH}/include -D__errno_location=__errno -Wno-unused-command-line-argument")
if(SMOKE_ARCH STREQUAL armv7a)
    string(APPEND CMAKE_C_FLAGS_INIT " -march=armv7-a -mfpu=neon -mthumb")
endif()
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-nostdlib -fuse-ld=lld -L${SMOKE_ROOT}/stubs-${SMOKE_ARCH}")
set(CMAKE_C_STANDARD_LIBRARIES_INIT "-lc -ldl ${SMOKE_BUILTINS}")
