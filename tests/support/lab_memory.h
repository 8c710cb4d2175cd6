/* tests/support: a handle that does everything that a run does, and what its device took for it. */
#ifndef SHL_TESTS_LAB_MEMORY_H
#define SHL_TESTS_LAB_MEMORY_H

#include "engines/api/lab.h"

/* What a device holds of the system and of its card. */
typedef struct lm_taken {
    size_t reserved_bytes[SHL_TIER_COUNT], comm_bytes;
    size_t driver_bytes; /* 0: no card */
} lm_taken;

typedef struct lm_result {
    lm_taken taken;       /* when the handle was opened, and at the end: or it is an error */
    int64_t staged_bytes; /* of all collectives */
    char memory[200];     /* shl_comm_memory */
} lm_result;

/* A model whose arenas are several steps large and whose step is quick: one layer of 16, many tokens. */
void lm_options(shl_lab_options *o, const char *device, const char *strategy);

/* Opens o's handle, evaluates, saves below dir (NULL: not), trains `steps` steps (0 for a handle without
 * optimizer), evaluates, saves, loads, trains. Errors: SHL_E_VERIFY naming the call behind which the device had
 * taken more than when it was opened. COLLECTIVE over w; NULL: alone. */
shl_code lm_run(const shl_lab_options *o, shl_world *w, const char *dir, int steps,
                lm_result *out) SHL_MUST_USE;

#endif
