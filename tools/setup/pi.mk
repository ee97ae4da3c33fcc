# `drllm serve` and its library, the Debian package, and what is tested for Raspberry Pi. Read by the Makefile.

# --- libmicrohttpd, built once into the cache ------------------------------------------------------------------------------
ifneq ($(SERVE),0)
http_command := tools/setup/microhttpd.sh $(target)
http := $(or $(shell tools/setup/microhttpd.sh --print $(target)),$(BUILD)/no-compiler/http)
http_done := $(http)/.complete
http_lib := $(http)/lib/libmicrohttpd.a
$(obj)/tools/serve% $(BUILD)/lint/tools/serve%: private cppflags += -isystem $(http)/include
$(http_done):
	@$(http_command) >/dev/null
endif

.PHONY: test-serve
test-serve: $(program) ## the HTTP service, with OpenAI's client, lm-eval and hostile ones
	@tests/serve.sh $(program)

.PHONY: test-deb
test-deb: $(program) ## the Debian package of this machine: lintian, man page, completion, systemd unit, installed files
	@$(MAKE) --no-print-directory deb >/dev/null
	@tests/deb.sh $(program) $(deb)/*.deb

# --- Debian package --------------------------------------------------------------------------------------------------------
deb_triple := $(or $(target),$(shell $(cc) -dumpmachine 2>/dev/null))
deb_arch := $(patsubst x86_64%,amd64,$(patsubst aarch64%,arm64,$(patsubst arm%,armhf,$(deb_triple))))
deb := $(BUILD)/deb
deb_program := $(deb)/drllm
deb_licenses = $(patsubst %,$(deps)/licenses/%,$(if $(filter 0,$(XNNPACK)),,xnnpack) pthreadpool cpuinfo fxdiv utf8proc cjson) \
    $(if $(http),$(http)/licenses/libmicrohttpd)

# The packages come first, and what this makefile asks the compiler is asked anew behind them.
.PHONY: deb deb-package
deb: ## a Debian package of all this, in build/deb (with CROSS in build/CROSS/deb)
	@tools/setup/packages.sh build deb $(cross_packages)
	@+$(MAKE) --no-print-directory deb-package

deb-package: $(deb_program) $(lib)
	@rm -rf $(deb)/tree $(deb)/*.deb
	@$(MAKE) --no-print-directory install \
	    DESTDIR="$(abspath $(deb))/tree" PREFIX=/usr LIBDIR=/usr/lib/$(deb_triple) DOCDIR=/usr/share/doc/drllm >/dev/null
	@DEB_ARCH=$(deb_arch) OBJDUMP=$(CROSS)objdump STRIP=$(CROSS)strip tools/deb/build.sh $(deb)/tree $(deb_program) $(deb_licenses)

# With the system's C library, which the package depends on, and all else inside.
$(deb_program): $(call objects,$(tool_src)) $(lib) $(BUILD)/sources
	@mkdir -p $(@D)
	$(call say,LINK) $(cc) $(filter-out -static,$(ldflags)) -pie -Wl,-z,relro,-z,now -Wl,--as-needed $(CFLAGS) $(LDFLAGS) -o $@ \
	    $(filter %.o,$^) $(lib) $(call dep_files,cjson utf8proc $(lib_deps)) $(http_lib) -lm

.PHONY: test-arm
test-arm: ## the packages for Raspberry Pi, installed and run in Debian 12 trees under qemu-user
	@+MAKE="$(MAKE)" tests/arm.sh
