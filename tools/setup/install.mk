# What others link: libdrllm-full.a, and `make install`. Read by the Makefile.

VERSION := 0.1.0
PREFIX ?=       # of make install (default /usr/local); BINDIR, LIBDIR, INCLUDEDIR, DATADIR, MANDIR, DOCDIR follow it
DESTDIR ?=      # put in front of everything that make install writes, for packages
override PREFIX := $(or $(strip $(PREFIX)),/usr/local)
override DESTDIR := $(strip $(DESTDIR))
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
DOCDIR ?= $(DATADIR)/doc/drllm

# With clang for another machine the binutils are still those of the cross toolchain. Any of them may be LLVM's.
ifeq ($(origin LD),default)
LD := $(CROSS)ld
endif
OBJCOPY ?= $(CROSS)objcopy
STRIP ?= $(CROSS)strip

.PHONY: full install uninstall sizes

# --- One archive without foreign names -----------------------------------------------------------------------------------
full_lib := $(BUILD)/libdrllm-full.a
public_headers := runtime/drllm.h runtime/drllm_os.h
public_symbols := $(BUILD)/full/symbols

full: $(full_lib) ## libdrllm-full.a: the library and all that it needs, with no global names but drllm.h's

# A declared function is a name in front of a parenthesis, once the comments are gone.
$(public_symbols): $(public_headers) $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,NAMES) for header in $(public_headers); do $(cc) -I. -E -P $$header || exit; done | \
	    grep -oE '\<drllm_[a-z0-9_]+\(' | tr -d '(' | sort -u >$@ && test -s $@

# Kept names, as those of the flags: other binutils link anew.
$(BUILD)/full/tools: FORCE
	@mkdir -p $(@D)
	@echo '$(LD) $(OBJCOPY) $(AR)' >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# What the public functions do not reach is left out; lld cannot do that in a relocatable link, and only takes whole
# objects that are needed. Groups (of C++ inline functions) have to go: a linker that sees the same group in another
# library would drop ours, and with it functions that nobody else can reach any more. The empty object tells lld for
# which machine.
$(BUILD)/full/linked.o: $(lib) $(public_symbols) $(BUILD)/full/tools
	$(call say,LD) gc='--gc-sections --force-group-allocation'; case "$$($(LD) --version)" in *LLD*) gc= ;; esac; \
	    $(cc) $(CFLAGS) -x c -c -o $(@D)/empty.o /dev/null && \
	    $(LD) -r $$gc $$(sed 's/^/-u /' $(public_symbols)) -o $@ $(@D)/empty.o --start-group $(lib) $(call dep_files,$(lib_deps)) \
	    --end-group

$(full_lib): $(BUILD)/full/linked.o $(public_symbols)
	$(call say,AR) $(OBJCOPY) --keep-global-symbols=$(public_symbols) --strip-unneeded -R .comment -R .group \
	    $(BUILD)/full/linked.o $(BUILD)/full/drllm.o && rm -f $@ && $(AR) rcsD $@ $(BUILD)/full/drllm.o

# --- Install -------------------------------------------------------------------------------------------------------------
# Rewritten whenever they would differ: the folders and the version are no files to depend on.
under_prefix = $(patsubst $(PREFIX)/%,$${prefix}/%,$(1))
package_files := $(BUILD)/package/drllm.pc $(BUILD)/package/drllm-config.cmake $(BUILD)/package/drllm-config-version.cmake
$(package_files): $(BUILD)/package/%: tools/setup/%.in FORCE
	@mkdir -p $(@D)
	@sed -e 's|@VERSION@|$(VERSION)|g' -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@LIBDIR@|$(call under_prefix,$(LIBDIR))|g' \
	    -e 's|@INCLUDEDIR@|$(call under_prefix,$(INCLUDEDIR))|g' \
	    -e "s|@INCLUDE_FROM_CMAKE@|$$(realpath -ms --relative-to=$(LIBDIR)/cmake/drllm $(INCLUDEDIR))|g" $< >$@

# What goes where, as MODE|FILE|FOLDER.
at = $(foreach file,$(2),$(1)|$(file)|$(3))
installed = \
    $(call at,755,$(program),$(BINDIR)) \
    $(call at,644,$(lib) $(full_lib),$(LIBDIR)) \
    $(call at,644,$(BUILD)/package/drllm.pc,$(LIBDIR)/pkgconfig) \
    $(call at,644,$(filter %.cmake,$(package_files)),$(LIBDIR)/cmake/drllm) \
    $(call at,644,$(public_headers),$(INCLUDEDIR)/drllm) \
    $(call at,644,$(wildcard examples/routers/*.gguf),$(DATADIR)/drllm/routers) \
    $(call at,644,$(wildcard tools/man/*.1 docs/*.1 $(BUILD)/*.1),$(MANDIR)/man1) \
    $(call at,644,LICENSE,$(DOCDIR)) \
    $(call at,644,$(wildcard $(addprefix $(deps)/licenses/,xnnpack pthreadpool cpuinfo fxdiv utf8proc cjson)),$(DOCDIR)/licenses)

# Debug information names the folders of the machine that compiled; STRIP=: as an argument keeps it.
install: $(program) $(lib) $(full_lib) $(package_files) ## program, libraries, headers, pkg-config and CMake files, routers: to PREFIX
	@set -e; for entry in $(foreach entry,$(installed),'$(entry)'); do \
	    mode=$${entry%%|*} folder=$${entry##*|} file=$${entry#*|}; file=$${file%|*}; to="$(DESTDIR)$$folder/$${file##*/}"; \
	    $(if $(V),echo "  INSTALL	$$to";) install -d "$(DESTDIR)$$folder"; install -m $$mode $$file "$$to"; \
	    case $$file in *.a) $(STRIP) --strip-debug "$$to" ;; $(program)) $(STRIP) "$$to" ;; esac; \
	done; echo "drllm $(VERSION) is in $(DESTDIR)$(PREFIX)"

# The same files, and the folders that are ours alone.
uninstall: ## remove what make install wrote
	@for entry in $(foreach entry,$(installed),'$(entry)'); do \
	    file=$${entry#*|}; file=$${file%|*}; rm -f "$(DESTDIR)$${entry##*|}/$${file##*/}"; \
	done
	@for folder in $(LIBDIR)/cmake/drllm $(INCLUDEDIR)/drllm $(DATADIR)/drllm/routers $(DATADIR)/drllm $(DOCDIR)/licenses \
	    $(DOCDIR); do rmdir "$(DESTDIR)$$folder" 2>/dev/null || :; done

# --- Sizes ---------------------------------------------------------------------------------------------------------------
sizes: $(program) $(lib) $(full_lib) ## how large the program, the archives and a small static program are
	@+MAKE="$(MAKE)" tools/setup/sizes.sh "$(BUILD)" "$(CROSS)"
