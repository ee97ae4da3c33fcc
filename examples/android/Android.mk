# The same library for ndk-build, for projects that are built with it:
#
#   tools/setup/deps.sh --sources FOLDER        (in drllm's folder: pthreadpool, cpuinfo, FXdiv, utf8proc)
#   ndk-build -C examples/android NDK_PROJECT_PATH=. APP_BUILD_SCRIPT=Android.mk NDK_APPLICATION_MK=Application.mk \
#       DRLLM_DEPS_SOURCES=FOLDER
#
# tests/android.sh compares its files and their instruction sets with those of CMakeLists.txt.
ifeq ($(DRLLM_DEPS_SOURCES),)
$(error Set DRLLM_DEPS_SOURCES to the folder that `tools/setup/deps.sh --sources FOLDER` made)
endif
LOCAL_PATH := $(call my-dir)
drllm_path := $(LOCAL_PATH)
drllm_root := $(drllm_path)/../..
drllm_deps := $(DRLLM_DEPS_SOURCES)
drllm_common := -ffunction-sections -fdata-sections -fvisibility=hidden
drllm_cflags := $(drllm_common) -std=c11 -O2 -ffp-contract=off -fno-math-errno -DDRLLM_WITH_XNNPACK=0

# --- Libraries of others ---------------------------------------------------------------------------------------------------
include $(CLEAR_VARS)
LOCAL_MODULE := utf8proc
LOCAL_SRC_FILES := $(drllm_deps)/utf8proc/utf8proc.c
LOCAL_CFLAGS := $(drllm_common) -O2 -DUTF8PROC_STATIC
include $(BUILD_STATIC_LIBRARY)

include $(CLEAR_VARS)
LOCAL_MODULE := pthreadpool
LOCAL_SRC_FILES := $(addprefix $(drllm_deps)/pthreadpool/src/,legacy-api.c portable-api.c memory.c pthreads.c \
    $(if $(filter x86_64,$(TARGET_ARCH_ABI)),fastpath.c))
LOCAL_C_INCLUDES := $(drllm_deps)/pthreadpool/include $(drllm_deps)/pthreadpool/src $(drllm_deps)/fxdiv/include
LOCAL_CFLAGS := $(drllm_common) -std=c11 -O2 -DPTHREADPOOL_USE_FASTPATH=$(if $(filter x86_64,$(TARGET_ARCH_ABI)),1,0)
include $(BUILD_STATIC_LIBRARY)

cpuinfo_files := api cache init log linux/smallfile linux/multiline linux/cpulist linux/processors
cpuinfo_x86 := init info vendor uarch name topology isa cache/init cache/descriptor cache/deterministic linux/init linux/cpuinfo
cpuinfo_arm := uarch cache linux/init linux/cpuinfo linux/clusters linux/chipset linux/midr linux/hwcap android/properties
cpuinfo_files_arm64-v8a := $(addprefix arm/,$(cpuinfo_arm) linux/aarch64-isa)
cpuinfo_files_armeabi-v7a := $(addprefix arm/,$(cpuinfo_arm) linux/aarch32-isa)
cpuinfo_files_x86_64 := $(addprefix x86/,$(cpuinfo_x86))
include $(CLEAR_VARS)
LOCAL_MODULE := cpuinfo
LOCAL_SRC_FILES := $(patsubst %,$(drllm_deps)/cpuinfo/src/%.c,$(cpuinfo_files) $(cpuinfo_files_$(TARGET_ARCH_ABI)))
LOCAL_C_INCLUDES := $(drllm_deps)/cpuinfo/include $(drllm_deps)/cpuinfo/src
LOCAL_CFLAGS := $(drllm_common) -std=c99 -O2 -D_GNU_SOURCE=1 -DCPUINFO_LOG_LEVEL=2 -DCPUINFO_LOG_TO_STDIO=0
include $(BUILD_STATIC_LIBRARY)

# --- The library -----------------------------------------------------------------------------------------------------------
# Files for one instruction set are named after it, *_NAME.c; ndk-build has flags for modules only, so each is a module.
drllm_isas := avx2 avx512 avx512vnni avxvnni neon neondot neoni8mm mve dsp
drllm_isas_x86_64 := avx2 avx512 avx512vnni avxvnni
drllm_isas_arm64-v8a := neon neondot neoni8mm
drllm_isas_armeabi-v7a := neon
drllm_own_isas := $(drllm_isas_$(TARGET_ARCH_ABI))
drllm_flags_avx2 := -mavx2 -mfma -mf16c
drllm_flags_avxvnni := $(drllm_flags_avx2) -mavxvnni
drllm_flags_avx512 := $(drllm_flags_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd
drllm_flags_avx512vnni := $(drllm_flags_avx512) -mavx512vnni
drllm_flags_neon := $(if $(filter armeabi-v7a,$(TARGET_ARCH_ABI)),-mfpu=neon-vfpv4)
drllm_flags_neondot := -march=armv8.2-a+dotprod
drllm_flags_neoni8mm := -march=armv8.2-a+dotprod+i8mm

drllm_files := $(filter-out %/platform/threads_serial.c, \
    $(foreach folder,runtime quant platform,$(wildcard $(drllm_root)/$(folder)/*.c)))
drllm_isa_files := $(filter $(foreach isa,$(drllm_isas),%_$(isa).c),$(drllm_files))
drllm_fast_files := $(filter $(drllm_root)/quant/% %/runtime/attention.c %/runtime/router.c %/runtime/sampler.c, \
    $(drllm_files))

# drllm_module(NAME, FILES, FLAGS)
define drllm_module
include $$(CLEAR_VARS)
LOCAL_PATH := $(drllm_path)
LOCAL_MODULE := $(1)
LOCAL_SRC_FILES := $(2)
LOCAL_C_INCLUDES := $(drllm_root) $(drllm_deps)/pthreadpool/include $(drllm_deps)/cpuinfo/include $(drllm_deps)/utf8proc
LOCAL_CFLAGS := $(drllm_cflags) $(3)
include $$(BUILD_STATIC_LIBRARY)
endef

drllm_plain := $(filter-out $(drllm_isa_files) $(drllm_fast_files) $(drllm_root)/platform/%,$(drllm_files))
$(eval $(call drllm_module,drllm,$(drllm_plain),-DUTF8PROC_STATIC))
$(eval $(call drllm_module,drllm-platform,$(filter $(drllm_root)/platform/%,$(drllm_files)),-D_GNU_SOURCE))
$(eval $(call drllm_module,drllm-fast,$(filter-out $(drllm_isa_files),$(drllm_fast_files)),-O3))
$(foreach isa,$(drllm_own_isas),$(eval $(call drllm_module,drllm-$(isa),$(filter %_$(isa).c,$(drllm_files)),-O3 $(drllm_flags_$(isa)))))

# --- The native methods ----------------------------------------------------------------------------------------------------
include $(CLEAR_VARS)
LOCAL_PATH := $(drllm_path)
LOCAL_MODULE := drllm_jni
LOCAL_SRC_FILES := $(wildcard $(drllm_path)/jni/*.c)
LOCAL_C_INCLUDES := $(drllm_root)
LOCAL_CFLAGS := $(drllm_common) -std=c11 -O2
# They call one another.
LOCAL_WHOLE_STATIC_LIBRARIES := drllm drllm-platform drllm-fast $(addprefix drllm-,$(drllm_own_isas))
LOCAL_STATIC_LIBRARIES := pthreadpool cpuinfo utf8proc
LOCAL_LDLIBS := -llog -lm
LOCAL_LDFLAGS := -Wl,--gc-sections -Wl,-z,max-page-size=16384 -Wl,-z,text -Wl,--version-script=$(drllm_path)/jni/exports.map
include $(BUILD_SHARED_LIBRARY)
