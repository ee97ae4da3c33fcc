/* What cpuinfo uses of bionic's header of this name, which no Debian package has; for the smoke build only. */
#ifndef DRLLM_SMOKE_SYSTEM_PROPERTIES_H
#define DRLLM_SMOKE_SYSTEM_PROPERTIES_H

#define PROP_VALUE_MAX 92

int __system_property_get(const char *name, char *value);

#endif
