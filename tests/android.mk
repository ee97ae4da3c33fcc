# What tests/android.sh builds with make.
android_fixtures := $(BUILD)/android-fixtures
$(android_fixtures): $(call objects,tests/android/fixtures.c tests/tiny_model.c tests/gguf_writer.c tests/router_builder.c) $(lib)
	$(call link)

test-android: ## the JNI code on Java for x86-64 and arm64, and the Android-target smoke build
	@+MAKE="$(MAKE)" tests/android.sh

# `make lint` looks at these as well.
android_own := $(wildcard examples/android/jni/*.[ch] tests/android/*.[ch])
jni_include := $(firstword $(foreach java,$(wildcard /usr/lib/jvm/*),$(if $(wildcard $(java)/include/jni.h),$(java)/include)))
lint: $(BUILD)/lint/android-format \
    $(if $(jni_include),$(patsubst %.c,$(BUILD)/lint/%.tidy,$(filter %.c,$(android_own))))
$(BUILD)/lint/examples/android/%: private cppflags += -isystem $(jni_include) -isystem $(jni_include)/linux

$(BUILD)/lint/android-format: $(android_own) .clang-format
	@mkdir -p $(@D)
	$(call say,FORMAT) clang-format --dry-run -Werror $(android_own)
	@touch $@

.PHONY: test-android
