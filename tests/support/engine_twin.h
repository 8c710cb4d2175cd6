/* tests/support: one code path: what the virtual device says of a configuration is what the cpu does. */
#ifndef SHL_TESTS_ENGINE_TWIN_H
#define SHL_TESTS_ENGINE_TWIN_H

#include "tests/support/engine_world.h"

/* A configuration in one line, for messages. */
void et_label(const ew_config *c, char *label, size_t bytes);

/* Runs c on both, every rank, and fails the test unless peaks per tag, what stood at the peak, its phase
 * and owner, the order of events, calls and bytes are equal. From the main thread. */
void et_expect_same_run(ew_config *c);

#endif
