/* bench: what a number was measured with: machine, compiler, flags, libraries, commit. */
#ifndef SHL_BENCH_FINGERPRINT_H
#define SHL_BENCH_FINGERPRINT_H

#include "kernels/base/err.h"

struct json_t;

/* {"cpu", "cores", "isa", "compiler", "flags", "libraries": {...}, "commit", "version"}; what is not
 * known is null. Owner: caller (json_decref). Errors: SHL_E_HEAP. */
shl_code shl_fingerprint(struct json_t **out) SHL_MUST_USE;

#endif
