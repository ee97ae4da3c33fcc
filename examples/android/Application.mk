# ndk-build: what CMakeLists.txt says to CMake. See Android.mk.
APP_ABI := arm64-v8a armeabi-v7a x86_64
APP_PLATFORM := android-24
APP_STL := none
APP_OPTIM := release
# Pages of 16 KiB; NDKs before r27 take the linker's option in Android.mk.
APP_SUPPORT_FLEXIBLE_PAGE_SIZES := true
