/* models: the closed forms of one family each, called by the ones of models/family.h only. They know
 * no module, no layout and no other family. */
#ifndef SHL_MODELS_FORMULA_H
#define SHL_MODELS_FORMULA_H

#include "models/family.h"

/* models/formula_llama.c */
int64_t shl_llama_formula_params(const shl_model_config *cfg);

#endif
