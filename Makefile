# drllm. `make help` lists what can be made and what can be set.

# --- What can be set on the command line --------------------------------------------------------------------------------
CROSS ?=        # prefix of a cross toolchain, e.g. aarch64-linux-gnu-
SANITIZER ?=    # e.g. address,undefined or thread
XNNPACK ?= 1    # 0: build without XNNPACK
THREADS ?= 1    # 0: build without threads (platform/threads_serial.c)
SERVE ?= 1      # 0: build without `drllm serve` and libmicrohttpd
MPI ?= 0        # 1: search over the ranks of mpirun (Open MPI), in build/mpi
WERROR ?= 1     # 0: warnings do not stop the build
V ?=            # 1: show the commands
CFLAGS ?=
LDFLAGS ?=
PROMPT ?= What is the boiling point of water?
REVIEW ?= Review: a warm and clever film that never loses its way

# A value that is followed by a comment has blanks at its end.
override CROSS := $(strip $(CROSS))
override SANITIZER := $(strip $(SANITIZER))
override XNNPACK := $(strip $(XNNPACK))
override THREADS := $(strip $(THREADS))
override SERVE := $(strip $(SERVE))
override MPI := $(filter 1,$(MPI))
override WERROR := $(strip $(WERROR))
override V := $(strip $(V))

# --- The machine to build for --------------------------------------------------------------------------------------------
target := $(patsubst %-,%,$(CROSS))
ifneq ($(and $(CROSS),$(MPI)),)
$(error MPI=1 is for the machine that builds: not with CROSS)
endif
ifeq ($(origin CC),default)
CC := $(CROSS)gcc
endif
ifeq ($(origin AR),default)
AR := $(CROSS)ar
endif
# One clang serves every target, gcc is one compiler for each.
cc := $(CC)
ifneq ($(and $(target),$(findstring clang,$(notdir $(CC)))),)
cc += --target=$(target)
endif
is_clang := $(findstring __clang__,$(shell $(cc) -dM -E -x c /dev/null 2>/dev/null))
cross_packages := $(if $(target),$(if $(filter arm-%,$(target)),cross-armhf,cross))
arch := $(firstword $(subst -, ,$(or $(target),$(shell $(cc) -dumpmachine 2>/dev/null || uname -m))))

# XNNPACK is not tested there.
ifeq ($(arch),arm)
override XNNPACK := 0
endif

empty :=
comma := ,
space := $(empty) $(empty)
variant := $(subst $(space),-,$(strip $(target) $(subst $(comma),-,$(SANITIZER)) $(MPI:1=mpi)))
BUILD ?= build$(addprefix /,$(variant))
obj := $(BUILD)/obj

# --- Sources -------------------------------------------------------------------------------------------------------------
# Files for one instruction set are named after it, *_NAME.c: which of them this machine takes, and with which flags.
isas := avx2 avx512 avx512vnni avxvnni neon neondot neoni8mm mve dsp
isas_x86_64 := avx2 avx512 avx512vnni avxvnni
isas_aarch64 := neon neondot neoni8mm
isas_arm := neon
isa_flags_avx2 := -mavx2 -mfma -mf16c
isa_flags_avxvnni := $(isa_flags_avx2) -mavxvnni
isa_flags_avx512 := $(isa_flags_avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd
isa_flags_avx512vnni := $(isa_flags_avx512) -mavx512vnni
isa_flags_neon := $(if $(filter arm,$(arch)),-mfpu=neon-vfpv4 -mfp16-format=ieee)
isa_flags_neondot := -march=armv8.2-a+dotprod
isa_flags_neoni8mm := -march=armv8.2-a+dotprod+i8mm

foreign := $(foreach isa,$(filter-out $(isas_$(arch)),$(isas)),%_$(isa).c)
threads_out := platform/$(if $(filter 0,$(THREADS)),threads,threads_serial).c
lib_src := $(filter-out $(foreign) $(threads_out),$(sort $(wildcard runtime/*.c quant/*.c platform/*.c)))
mpi_out := tools/$(if $(MPI),mpi_none,mpi).c
serve_out := $(if $(filter 0,$(SERVE)),$(filter-out %_none.c,$(wildcard tools/serve*.c)),tools/serve_none.c)
tool_src := $(filter-out $(mpi_out) $(serve_out),$(sort $(wildcard tools/*.c)))
test_src := $(sort $(wildcard tests/*.c))
example_src := $(sort $(wildcard examples/*.c))
sources := $(lib_src) $(tool_src) $(test_src) $(example_src)
objects = $(patsubst %.c,$(obj)/%.o,$(1))

lib := $(BUILD)/libdrllm.a
program := $(BUILD)/drllm
runner := $(BUILD)/drllm-tests
routers := examples/routers/smollm2-135m-instruct-q4_1.gguf
examples := $(patsubst %.c,$(BUILD)/%,$(example_src))

# --- Libraries of others: built once into a cache outside the tree --------------------------------------------------------
deps_command := tools/setup/deps.sh $(if $(filter 0,$(XNNPACK)),--no-xnnpack) $(target)
# Nothing is printed before there is a compiler, which goes into the name.
deps := $(or $(shell tools/setup/deps.sh --print $(wordlist 2,9,$(deps_command))),$(BUILD)/no-compiler/deps)
deps_done := $(deps)/.complete
lib_deps := $(if $(filter 0,$(XNNPACK)),,XNNPACK microkernels-prod) pthreadpool cpuinfo
dep_files = $(patsubst %,$(deps)/lib/lib%.a,$(1))

# Asked for only where something of it is compiled or looked at.
ifneq ($(MPI)$(filter lint %.tidy,$(MAKECMDGOALS)),)
mpi_cflags := $(patsubst -I%,-isystem %,$(shell pkg-config --cflags ompi-c 2>/dev/null || mpicc -showme:compile 2>/dev/null))
mpi_libs := $(if $(MPI),$(shell pkg-config --libs ompi-c 2>/dev/null || mpicc -showme:link 2>/dev/null))
endif

include tools/setup/pi.mk

# --- Flags ---------------------------------------------------------------------------------------------------------------
# Products are promised to agree bit for bit over compilers and machines: no fused multiply-add behind our back.
cflags := -std=c11 -O2 -g -ffp-contract=off -fno-math-errno -ffunction-sections -fdata-sections -pthread \
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
    $(if $(filter 0,$(WERROR)),,-Werror)
cppflags := -I. -isystem $(deps)/include -DDRLLM_WITH_XNNPACK=$(XNNPACK) $(if $(MPI),$(mpi_cflags))
ldflags := -pthread -Wl,--gc-sections $(if $(target),-static)
ifneq ($(SANITIZER),)
sanitize := -fsanitize=$(SANITIZER) -fno-sanitize-recover=all -fno-omit-frame-pointer
cflags += -O1 $(sanitize)
# The sanitizers have no static form that every target has.
ldflags := $(filter-out -static,$(ldflags)) $(if $(target),-static-libasan) $(sanitize)
endif

# POSIX and Linux calls are for the platform and the programs; the library proper is plain C11.
$(obj)/platform/% $(obj)/tools/% $(obj)/tests/%: private cppflags += -D_GNU_SOURCE
$(obj)/quant/% $(patsubst %,$(obj)/%.o,runtime/attention runtime/router runtime/sampler tools/train_network): \
    private speed := -O3
# The registers are just enough if gcc does not move instructions before it hands them out.
dot_flags := $(if $(is_clang),,-fno-schedule-insns -flive-range-shrinkage -fweb -frename-registers)
$(addprefix $(obj)/quant/,matmul_neondot.o matmul_few_neondot.o): private speed := -O3 $(dot_flags)
define isa_rule
$(obj)/quant/%_$(1).o: private isa_flags := $(isa_flags_$(1))
endef
$(foreach isa,$(isas_$(arch)),$(eval $(call isa_rule,$(isa))))

# --- Goals ---------------------------------------------------------------------------------------------------------------
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all help deps model print-model packages demo demo-train examples check test lint format clean distclean FORCE

all: $(lib) $(if $(tool_src),$(program)) ## the library and the program (the default)

help: ## this text
	@echo 'usage: make [GOAL]... [NAME=VALUE]...'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@sed -n 's/^\([A-Z_]*\) ?= *\([0-9]*\) *# \(.*\)/  \1|\2|\3/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s%s\n", $$1, $$3, $$2 == "" ? "" : " (default " $$2 ")" }'
	@echo '  CC, CFLAGS, LDFLAGS, BUILD: as usual; changed flags rebuild what they concern'
	@echo
	@echo '  Libraries and models are kept in $${DRLLM_CACHE:-$${XDG_CACHE_HOME:-~/.cache}/drllm}.'

packages: ## install the system packages that are missing (root or sudo)
	@tools/setup/packages.sh build model $(cross_packages) $(if $(MPI),mpi)

deps: $(deps_done) $(http_done) ## fetch and build the libraries of others, into the cache
	@echo $(deps)

model: ## fetch the model of the demo and the tests (SmolLM2-135M-Instruct, Q4_1), into the cache
	@tools/setup/model.sh

print-model: ## say where the model is, or will be
	@tools/setup/model.sh --print

examples: $(examples) ## the example programs

# The packages come first, and what this makefile asks the compiler is asked anew after them.
demo: packages ## from nothing to an answer: packages, libraries, program, model, two routed prompts
	@$(MAKE) --no-print-directory all model
	$(program) run -m "$$(tools/setup/model.sh --print)" -r $(routers) -p "$(PROMPT)" -n 96 --temp 0
	review="$$(printf '%s\nSentiment:' '$(REVIEW)')"; model="$$(tools/setup/model.sh --print)"; \
	$(program) run -m "$$model" -r $(routers) --raw --trace -n 0 -p "$$review" && \
	$(program) score -m "$$model" -r $(routers) -p "$$review" --choice ' negative' --choice ' positive'

demo-train: packages ## from questions to routers: search, training and evaluation on examples/data, with a plot
	@$(MAKE) --no-print-directory all model
	@tools/setup/demo_train.sh $(program) "$$(tools/setup/model.sh --print)"

check: $(runner) $(program) ## the fast tests
	$(test_env) $(runner) --fast

test: ## all tests: native, sanitizers, MPI, arm64 under qemu, clang, linking, serve, packages, firmware, Android, lint
	@+MAKE="$(MAKE)" tests/run.sh

clean: ## remove what was built here
	rm -rf build

distclean: clean ## the same, and say where the cache is
	@echo 'The libraries and models are in' "$$(dirname "$$(dirname "$(deps)")")"

test_env := DRLLM_TEST_MODEL="$${DRLLM_TEST_MODEL:-$$(tools/setup/model.sh --print)}" \
    DRLLM_TEST_SHARED="$${DRLLM_TEST_SHARED-$$(cd ../shared 2>/dev/null && pwd)}" \
    DRLLM_TEST_PROGRAM=$(program)

# --- Rules ---------------------------------------------------------------------------------------------------------------
# say(VERB): one short line for a command, or the command itself.
say = $(if $(V),,@echo '  $(1)	$@' &&)

$(deps_done):
	@$(deps_command) >/dev/null

# Kept flags: what was compiled with others is compiled again.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	$(if $(MPI),$(if $(mpi_cflags),,@tools/setup/packages.sh --check mpi))
	@{ $(cc) --version | head -n 1; echo '$(cc) $(AR) $(cppflags) $(cflags) $(CPPFLAGS) $(CFLAGS) $(ldflags) $(LDFLAGS)'; } >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Kept names: a removed file leaves the archive and the programs.
$(BUILD)/sources: FORCE
	@mkdir -p $(@D)
	@echo '$(sources)' >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(obj)/%.o: %.c $(BUILD)/flags | $(deps_done) $(http_done)
	@mkdir -p $(@D)
	$(call say,CC) $(cc) $(cppflags) $(CPPFLAGS) $(cflags) $(speed) $(isa_flags) $(CFLAGS) -MMD -MP -c -o $@ $<

$(lib): $(call objects,$(lib_src)) $(BUILD)/sources
	@rm -f $@
	$(call say,AR) $(AR) rcsD $@ $(filter %.o,$^)

link = $(call say,LINK) $(cc) $(ldflags) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(lib) $(call dep_files,$(1) $(lib_deps)) -lm $(2)

$(program): $(call objects,$(tool_src)) $(lib) $(BUILD)/sources
	$(call link,cjson utf8proc,$(http_lib) $(mpi_libs))

# The runner holds the tools, too; one of them it includes.
$(runner): $(call objects,$(test_src) $(filter-out tools/drllm.c tools/gguf_file.c,$(tool_src))) $(lib) $(BUILD)/sources
	$(call link,cmocka cjson utf8proc,$(http_lib) $(mpi_libs))

$(examples): $(BUILD)/%: $(obj)/%.o $(lib)
	@mkdir -p $(@D)
	$(call link)

include tools/setup/install.mk tools/setup/fuzz.mk

-include $(patsubst %.o,%.d,$(call objects,$(sources)))

include tests/android.mk platform/firmware/firmware.mk

# --- Style ---------------------------------------------------------------------------------------------------------------
own_files := $(sort $(foreach folder,runtime quant platform platform/firmware tools tests tests/fuzz tests/link tests/firmware examples examples/*,$(wildcard $(folder)/*.[ch] $(folder)/*.cpp)))
headers := $(filter %.h,$(own_files)) $(wildcard quant/*.inc)
# A desktop also looks at the files for arm64, with the headers of the cross compiler where they are; and at mpi.c, with
# those of Open MPI.
arm_src := $(if $(filter x86_64,$(arch)),$(sort $(foreach isa,$(isas_aarch64),$(wildcard quant/*_$(isa).c))))
arm_headers := /usr/aarch64-linux-gnu/include
tidied := $(patsubst %.c,$(BUILD)/lint/%.tidy,$(sources) $(if $(wildcard $(arm_headers)),$(arm_src)) $(if $(mpi_cflags),$(mpi_out)))

scripts := $(wildcard tools/*.sh tools/setup/*.sh tests/*.sh examples/firmware/tiny/*.sh .ci/run)
lint: $(BUILD)/lint/format $(BUILD)/lint/scripts $(tidied) ## clang-format, clang-tidy and shellcheck on all of our files

format: ## let clang-format rewrite our files
	clang-format -i $(own_files)

$(BUILD)/lint/format: $(own_files) .clang-format
	@mkdir -p $(@D)
	$(call say,FORMAT) clang-format --dry-run -Werror $(own_files)
	@touch $@

$(BUILD)/lint/scripts: $(scripts)
	@mkdir -p $(@D)
	$(call say,SHELL) shellcheck -x -P tools/setup $(scripts)
	@touch $@

$(BUILD)/lint/platform/% $(BUILD)/lint/tools/% $(BUILD)/lint/tests/%: private cppflags += -D_GNU_SOURCE
define lint_isa_rule
$(BUILD)/lint/quant/%_$(1).tidy: private isa_flags := $(if $(filter $(1),$(isas_$(arch))),,--target=aarch64-linux-gnu -isystem $(arm_headers)) $(isa_flags_$(1))
endef
$(foreach isa,$(isas_$(arch)) $(isas_aarch64),$(eval $(call lint_isa_rule,$(isa))))
$(BUILD)/lint/%.tidy: %.c $(headers) .clang-tidy | $(deps_done) $(http_done)
	@mkdir -p $(@D)
	$(call say,TIDY) clang-tidy --quiet $< -- $(cppflags) $(mpi_cflags) -std=c11 $(isa_flags) 2>$@.log || { cat $@.log; rm -f $@.log; false; }
	@mv $@.log $@
