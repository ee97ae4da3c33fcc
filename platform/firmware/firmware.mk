# libdrllm-fw.a: the runtime without an operating system, and what examples/firmware needs. The Makefile includes this.
#
#   make firmware CROSS=arm-none-eabi-     CPU=cortex-m55     (or cortex-m7, cortex-m33)
#   make firmware CROSS=aarch64-linux-gnu- CPU=cortex-a53     (any compiler for AArch64; nothing of Linux is used)

CPU ?=          # of `make firmware`: cortex-m55, cortex-m7, cortex-m33 or cortex-a53
override CPU := $(strip $(CPU))
fw_cpu := $(or $(CPU),cortex-m55)
fw := build/firmware/$(fw_cpu)
fw_lib := $(fw)/libdrllm-fw.a

fw_machine_cortex-m55 := -mcpu=cortex-m55 -mthumb -mfloat-abi=hard
fw_machine_cortex-m7 := -mcpu=cortex-m7 -mthumb -mfloat-abi=hard -mfpu=fpv5-d16
fw_machine_cortex-m33 := -mcpu=cortex-m33 -mthumb -mfloat-abi=hard -mfpu=fpv5-sp-d16
fw_machine_cortex-a53 := -march=armv8-a -mno-outline-atomics -fno-pic -fno-pie
fw_isas_cortex-m55 := mve
fw_isas_cortex-m7 := dsp
fw_isas_cortex-m33 := dsp
fw_isas_cortex-a53 := neon neondot neoni8mm
fw_machine := $(fw_machine_$(fw_cpu))
fw_isas := $(fw_isas_$(fw_cpu))

# Not part of it: files and cores (open.c), what writes packed models, what searches programs, and benchmarks.
fw_out := runtime/open.c runtime/packed_write.c runtime/probe.c $(foreach isa,$(filter-out $(fw_isas),$(isas)),$(wildcard quant/*_$(isa).c)) \
    $(wildcard quant/peak*.c)
fw_src := $(filter-out $(fw_out),$(sort $(wildcard runtime/*.c quant/*.c platform/firmware/*.c))) platform/threads_serial.c
fw_obj := $(patsubst %.c,$(fw)/obj/%.o,$(fw_src))

# gcc writes down who calls whom and with how much stack, for tests/firmware.sh.
fw_callgraph := $(if $(is_clang),,-fcallgraph-info=su)
# Enums are as short there as their values allow (AAPCS), so that some checks of theirs are always true. Freestanding, but the compiler may know what memcpy, sqrtf and fabsf do.
fw_cflags := -std=c11 -O2 -g -ffreestanding -fbuiltin -ffp-contract=off -fno-math-errno -ffunction-sections -fdata-sections \
    -fno-common $(fw_callgraph) -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
    -Wvla -Wno-type-limits $(if $(filter 0,$(WERROR)),,-Werror) $(fw_machine)
fw_cppflags := -I. -Iplatform/firmware -DDRLLM_WITH_XNNPACK=0
$(fw)/obj/quant/%_neondot.o: private fw_isa := $(isa_flags_neondot)
$(fw)/obj/quant/matmul_few_neondot.o: private fw_isa := $(isa_flags_neondot) $(few_flags)
$(fw)/obj/quant/%_neoni8mm.o: private fw_isa := $(isa_flags_neoni8mm)

.PHONY: firmware test-firmware
firmware: $(fw_lib) ## libdrllm-fw.a for bare metal, in build/firmware/CPU (CROSS= and CPU=, see README)
	@echo $(fw_lib)

test-firmware: ## build the firmware library and its examples, and run them on emulated boards
	@+MAKE="$(MAKE)" tests/firmware.sh

$(fw)/flags: FORCE
	@mkdir -p $(@D)
	$(if $(fw_machine),,$(error there is no firmware for CPU=$(CPU); there is cortex-m55, cortex-m7, cortex-m33 and cortex-a53))
	@{ $(cc) --version | head -n 1; echo '$(cc) $(AR) $(fw_cppflags) $(fw_cflags) $(CFLAGS) $(fw_src)'; } >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(fw)/obj/%.o: %.c $(fw)/flags
	@mkdir -p $(@D)
	$(call say,CC) $(cc) $(fw_cppflags) $(fw_cflags) $(fw_isa) $(CFLAGS) -MMD -MP -c -o $@ $<

$(fw_lib): $(fw_obj)
	@rm -f $@
	$(call say,AR) $(AR) rcsD $@ $^

-include $(fw_obj:.o=.d)

# --- examples/firmware: one program, a board for each processor ------------------------------------------------------------
fw_board_cortex-m55 := an547
fw_board_cortex-m7 := an500
fw_board_cortex-m33 := an505
fw_board_cortex-a53 := virt
fw_board := $(fw_board_$(fw_cpu))
fw_mhz_an547 := 32
fw_mhz_an500 := 25
fw_mhz_an505 := 20
fw_example := $(fw)/$(fw_board).elf
fw_example_src := $(addprefix examples/firmware/,main.c semihost.c $(if $(filter virt,$(fw_board)),start_a.S clock_a.c memory.c,start_m.c))
fw_example_obj := $(patsubst %,$(fw)/obj/%.o,$(basename $(fw_example_src)))
# Of the C library only the functions of examples/firmware/undefined.txt, and nothing of it on AArch64.
fw_link_libs := $(if $(filter virt,$(fw_board)),,-lc) -lgcc

.PHONY: firmware-example
firmware-example: $(fw_example) ## the example program for the board of CPU
	@echo $(fw_example)

$(fw)/obj/examples/firmware/%.o: private fw_cppflags += $(addprefix -DBOARD_MHZ=,$(fw_mhz_$(fw_board)))
# Otherwise memset would become a call of memset.
$(fw)/obj/examples/firmware/memory.o: private fw_isa := -fno-builtin -fno-tree-loop-distribute-patterns
$(fw)/obj/%.o: %.S $(fw)/flags
	@mkdir -p $(@D)
	$(call say,AS) $(cc) $(fw_machine) -g -c -o $@ $<

# fw_link(OBJECTS)
fw_link = $(call say,LINK) $(cc) $(fw_machine) -nostdlib -nostartfiles -static -Wl,--gc-sections -Wl,--fatal-warnings \
    -Wl,-Map,$@.map -Lexamples/firmware -T examples/firmware/$(fw_board).ld -o $@ $(1) $(fw_lib) $(fw_link_libs)

$(fw_example): $(fw_example_obj) $(fw_lib) $(wildcard examples/firmware/*.ld)
	$(call fw_link,$(fw_example_obj))

-include $(fw_example_obj:.o=.d)

# The kernels against the portable ones, on the board: tests/firmware.sh.
fw_kernels := $(fw)/kernels.elf
fw_kernels_obj := $(fw)/obj/tests/firmware/kernels.o $(filter-out %/main.o,$(fw_example_obj))

.PHONY: firmware-kernels
firmware-kernels: $(fw_kernels)
	@echo $(fw_kernels)

$(fw_kernels): $(fw_kernels_obj) $(fw_lib) $(wildcard examples/firmware/*.ld)
	$(call fw_link,$(fw_kernels_obj))

-include $(fw_kernels_obj:.o=.d)

# Small models for the boards, made on the host.
build/firmware/make_model: tests/firmware/make_model.c $(addprefix $(obj)/tests/,tiny_model.o router_builder.o gguf_writer.o) $(lib)
	@mkdir -p $(@D)
	$(call say,LINK) $(cc) $(cppflags) $(cflags) $(ldflags) -o $@ $(filter %.c %.o,$^) $(lib) $(call dep_files,$(lib_deps)) -lm
