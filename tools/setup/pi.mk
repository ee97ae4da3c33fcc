# `drllm serve` and its library, the Debian package, and what is tested for Raspberry Pi. Read by the Makefile.

# --- libmicrohttpd, built once into the cache ------------------------------------------------------------------------------
ifneq ($(SERVE),0)
http_command := tools/setup/microhttpd.sh $(target)
http := $(shell tools/setup/microhttpd.sh --print $(target))
http_done := $(http)/.complete
http_lib := $(http)/lib/libmicrohttpd.a
$(obj)/tools/serve% $(BUILD)/lint/tools/serve%: private cppflags += -isystem $(http)/include
$(http_done):
	@$(http_command) >/dev/null
endif

.PHONY: test-serve
test-serve: $(program) ## the HTTP service, with OpenAI's client, lm-eval and hostile ones
	@tests/serve.sh $(program)
