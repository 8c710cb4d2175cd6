/* tests/support: runs that must be equal: a run on the cpu and the same run on the virtual device, rank by
 * rank; two runs of one training. All of these fail the test, from the main thread. */
#ifndef SHL_TESTS_ENGINE_TWIN_H
#define SHL_TESTS_ENGINE_TWIN_H

#include "engines/shared/volume.h"
#include "tests/support/engine_world.h"

#define ET_LABEL_BYTES 500

/* A configuration in one line, for messages. */
void et_label(const ew_config *c, char *label, size_t bytes);

/* ew_run of what must work. */
void et_run(const ew_config *c, ew_result *r);

/* Runs one rank of c on the virtual device: peaks per tag, what stood at the peak, its phase and owner, the
 * order of events, calls and bytes are those of `cpu`, the run of c there. *virt is what it was. */
void et_expect_twin(const ew_config *c, const ew_result *cpu, int rank, ew_result *virt);

/* Runs c on the cpu, then every rank as et_expect_twin. */
void et_expect_same_run(const ew_config *c);

/* Losses, norms and final parameters of a and b are equal to the bit; c describes b. */
void et_expect_same_bits(const ew_config *c, const ew_result *a, const ew_result *b);

/* Elements of c's tuned model, counted from its tree; all of them are the family's closed form, adapters
 * apart. */
void et_size(const ew_config *c, shl_formula_size *out);

/* Payloads of r, a rank's run of c, are those of the closed forms: exactly with the padding that the engine
 * tells of, and with no padding where it tells of none. */
void et_expect_volume(const ew_config *c, const ew_result *r, const shl_formula_size *n);

/* The default policy of a compute dtype, fp16 with a dynamic scale that does not overflow at once. */
void et_set_policy(ew_config *c, shl_dtype compute);

#endif
