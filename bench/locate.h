/* bench: where the files that ship with the program are: the bundled text and the plot scripts. */
#ifndef SHL_BENCH_LOCATE_H
#define SHL_BENCH_LOCATE_H

#include <stddef.h>

#include "kernels/base/err.h"

/* The path of a shipped file given by its place in the source tree ("bench/data/x.txt"): searched in
 * every folder above this program, there also under share/shardlab, and last in the working folder.
 * Errors: SHL_E_IO with what was searched. Local. */
shl_code shl_locate(const char *name, char *path, size_t path_bytes) SHL_MUST_USE;

/* This program's own file, which starts it again; "" when the system does not tell. Returns path. */
const char *shl_locate_program(char *path, size_t path_bytes);

#endif
