/* bench: what the machine's cards are, for doctor, fingerprint, gpu-check and warnings. */
#ifndef SHL_BENCH_GPU_FACTS_H
#define SHL_BENCH_GPU_FACTS_H

#include "kernels/base/str.h"
#include "kernels/device/device.h"

struct json_t;

/* Appends one item for each card and one for driver, runtime and libraries, `between` in between. Errors:
 * what keeps the cards from being used. */
shl_code shl_gpu_facts_lines(const char *kind, const char *between, shl_str *out) SHL_MUST_USE;

/* {"cards": [...], "driver": "13.0", "runtime": "13.0", "libraries": "..."}; NULL (json null) without a card
 * that can be used, and the error is cleared. Owner: caller. Errors: SHL_E_HEAP. */
shl_code shl_gpu_facts_json(const char *kind, struct json_t **out) SHL_MUST_USE;

/* Errors: SHL_E_USAGE when a kind that has cards shows none, or what keeps them from being used. */
shl_code shl_gpu_facts_need(const char *kind, shl_device_survey *out) SHL_MUST_USE;

/* Whether each of `ranks` has a card of its own, or may share. Errors: SHL_E_USAGE with both numbers, and as
 * above. A kind without cards always has enough. */
shl_code shl_gpu_facts_enough(const char *kind, int ranks, bool share) SHL_MUST_USE;

#endif
