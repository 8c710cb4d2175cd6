/* tests/support: the model that a golden file is about, from the file's own attributes. For the test's
 * main thread only, as everything that reads golden files. */
#ifndef SHL_TESTS_GOLDEN_MODEL_H
#define SHL_TESTS_GOLDEN_MODEL_H

#include "models/family.h"
#include "tests/support/golden.h"

/* Fails the test on a model type that is not known here. */
shl_model_config shl_golden_model_config(hid_t file);

#endif
