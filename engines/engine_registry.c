/* engines: the explicit list of engines: a new engine is one folder and one line here. The tables are
 * declared here and not by including upward. */
#include "engines/engine_registry.h"

extern const shl_engine_ops shl_zero_bucketed_engine;
extern const shl_engine_ops shl_zero_stage3_engine;
extern const shl_engine_ops shl_fsdp_engine;

static const shl_engine_ops *const engines[] = {&shl_zero_bucketed_engine, &shl_zero_stage3_engine,
                                                &shl_fsdp_engine};

const shl_engine_ops *
shl_engine_find(shl_strategy s)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(engines); ++i) {
        if (engines[i]->runs(s)) {
            return engines[i];
        }
    }
    SHL_ASSERT(!"every strategy has an engine");
    return NULL;
}
