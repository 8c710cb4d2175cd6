/* bench: what a number was measured with: machine, compiler, flags, libraries, commit. */
#ifndef SHL_BENCH_FINGERPRINT_H
#define SHL_BENCH_FINGERPRINT_H

#include "kernels/base/err.h"

struct json_t;

/* {"cpu", "cores", "isa", "compiler", "flags", "libraries": {...}, "commit", "version"}; what is not
 * known is null. Owner: caller (json_decref). Errors: SHL_E_HEAP. */
shl_code shl_fingerprint(struct json_t **out) SHL_MUST_USE;

/* The same with a key "gpu": the cards, driver, runtime and libraries of a device kind; null without a card.
 * Asks the driver, which takes a while. */
shl_code shl_fingerprint_gpu(const char *kind, struct json_t **out) SHL_MUST_USE;

#endif
