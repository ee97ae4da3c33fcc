# The fuzz targets of tests/fuzz.h outside of the test runner. Read by the Makefile.

FUZZ_RUNS ?= 100000 # inputs of each target
FUZZ_SEED ?= 1 # of the inputs
LIBFUZZER ?= 0  # 1: let libFuzzer look for inputs, for half a minute each (clang and its libclang-rt-*-dev)
override FUZZ_RUNS := $(strip $(FUZZ_RUNS))
override FUZZ_SEED := $(strip $(FUZZ_SEED))
override LIBFUZZER := $(strip $(LIBFUZZER))

.PHONY: fuzz
fuzz_names = $(shell sed -n 's/^    X(\([a-z]*\)).*/\1/p' tests/fuzz.h)
fuzz_src := $(wildcard tests/fuzz_*.c) tests/gguf_writer.c tests/tiny_model.c tests/router_builder.c
fuzz_objects = $(call objects,$(fuzz_src) $(filter-out tools/drllm.c,$(tool_src)))
fuzzer := $(BUILD)/drllm-fuzz

$(fuzzer): $(obj)/tests/fuzz/driver.o $(fuzz_objects) $(lib) $(BUILD)/sources
	$(call link,cjson utf8proc,$(mpi_libs))

ifeq ($(LIBFUZZER),1)
# A build of its own, with clang, sanitizers and the counters that libFuzzer looks at.
fuzz: ## many inputs for everything that reads bytes from outside; see also LIBFUZZER
	@tools/setup/packages.sh build fuzz
	@+$(MAKE) --no-print-directory CC=clang SANITIZER=address,undefined CFLAGS=-fsanitize=fuzzer-no-link BUILD=build/libfuzzer \
	    LIBFUZZER=2 fuzz
else ifeq ($(LIBFUZZER),2)
fuzz: $(patsubst %,$(BUILD)/fuzz-%,$(fuzz_names))
	@for name in $(fuzz_names); do echo "$$name"; mkdir -p $(BUILD)/corpus-$$name && \
	    $(BUILD)/fuzz-$$name -max_total_time=30 -max_len=65536 -timeout=20 -print_final_stats=1 \
	    -artifact_prefix=$(BUILD)/ $(BUILD)/corpus-$$name >$(BUILD)/fuzz-$$name.log 2>&1 || \
	    { tail -n 40 $(BUILD)/fuzz-$$name.log; exit 1; }; grep number_of_executed_units $(BUILD)/fuzz-$$name.log; done
$(BUILD)/fuzz-%: tests/fuzz/libfuzzer.c $(fuzz_objects) $(lib) $(BUILD)/sources
	$(call say,LINK) $(cc) $(cppflags) $(cflags) $(CFLAGS) -DDRLLM_FUZZ_TARGET=$* $(ldflags) -fsanitize=fuzzer $(LDFLAGS) -o $@ $< \
	    $(filter %.o,$^) $(lib) $(call dep_files,cjson utf8proc $(lib_deps)) -lm
else
fuzz: $(fuzzer)
	@for name in $(fuzz_names); do $(fuzzer) --seed $(FUZZ_SEED) --runs $(FUZZ_RUNS) $$name || exit; done
endif
