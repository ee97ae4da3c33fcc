# What Android.mk compiles for ABI, a line for each file with its instruction sets: ndk-build's three includes only write down
# what they are given.
empty :=
space := $(empty) $(empty)
compiled :=
my-dir = examples/android
CLEAR_VARS := tests/android/ndk/clear.mk
BUILD_STATIC_LIBRARY := tests/android/ndk/record.mk
BUILD_SHARED_LIBRARY := tests/android/ndk/record.mk
TARGET_ARCH_ABI := $(ABI)
DRLLM_DEPS_SOURCES := $(DEPS)

include examples/android/Android.mk

all:
	@printf '%s\n' $(foreach file,$(compiled),'$(file)')
.PHONY: all
.DEFAULT_GOAL := all
