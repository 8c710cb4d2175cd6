/* engines: the explicit list of engines. */
#ifndef SHL_ENGINES_ENGINE_REGISTRY_H
#define SHL_ENGINES_ENGINE_REGISTRY_H

#include "engines/engine.h"

/* The engine that runs a strategy; never NULL for a valid one. */
const shl_engine_ops *shl_engine_find(shl_strategy s);

#endif
