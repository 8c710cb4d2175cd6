/* models: classes of Hugging Face's models by the paths of their modules, for configurations that name
 * modules by class. */
#ifndef SHL_MODELS_HF_CLASSES_H
#define SHL_MODELS_HF_CLASSES_H

#include "models/module.h"

/* The paths of a class with more than one layer, such as "GPT2MLP" (a Python path before it is passed over):
 * "h.#.mlp", # for a number. Errors: SHL_E_USAGE for one that the model has not, with those that it has. */
shl_code shl_hf_class_find(const shl_model *model, const char *name,
                           const char **pattern) SHL_MUST_USE;

/* Length of the first part of a path, up to one of its dots, that is of the pattern; 0: none. */
size_t shl_hf_class_part(const char *pattern, const char *path);

#endif
