compiled += $(foreach file,$(LOCAL_SRC_FILES),$(abspath $(file))$(subst $(space),,$(foreach flag,$(filter -mavx% -mfma -mf16c -march=armv8.2%,$(LOCAL_CFLAGS)),|$(flag))))
