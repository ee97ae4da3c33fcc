/* What Android's log.h uses of this header, which musl does not have; for the smoke build only. */
#ifndef DRLLM_SMOKE_CDEFS_H
#define DRLLM_SMOKE_CDEFS_H

#define __BEGIN_DECLS
#define __END_DECLS

#endif
