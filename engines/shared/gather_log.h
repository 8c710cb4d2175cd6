/* engines/shared: the schedule of gathers in words: one step of an engine writes down what it gathers,
 * who waits for what, and what is released. On the virtual device this is the schedule before any
 * data exists: order, calls and bytes follow from the layout alone. */
#ifndef SHL_SHARED_GATHER_LOG_H
#define SHL_SHARED_GATHER_LOG_H

#include "engines/shared/gather.h"
#include "kernels/base/str.h"

/* Gathers of forward, of backward, and of resident tensors after the update. */
typedef enum shl_gather_phase {
    SHL_GATHERS_FORWARD = 0,
    SHL_GATHERS_BACKWARD,
    SHL_GATHERS_STEP,
    SHL_GATHERS_PHASES
} shl_gather_phase;

/* The first micro-step of step `step` (from 0) and that step's end. Set e->gather_log to listen. */
typedef struct shl_gather_log {
    int64_t step;
    shl_str text; /* a line for each event, phases with their totals */
    int64_t calls[SHL_GATHERS_PHASES], elems[SHL_GATHERS_PHASES];
    int64_t bytes[SHL_GATHERS_PHASES];   /* full gathered buffers, padding included */
    int64_t n_waits[SHL_GATHERS_PHASES]; /* modules that asked before their gather was waited for */
    int64_t most_live_elems, resident_elems; /* of gathered groups; of those that stay */
    int64_t at_boundary_elems;               /* live when backward begins */
} shl_gather_log;

/* Empty, for step `step`. */
void shl_gather_log_init(shl_gather_log *s, int64_t step);
/* Frees the text. */
void shl_gather_log_fini(shl_gather_log *s);

/* Appends title, events and totals. Errors: SHL_E_HEAP when a line found no room. */
shl_code shl_gather_log_print(const shl_gather_log *s, shl_str *out) SHL_MUST_USE;

/* For the gatherer; all do nothing unless the engine has a listener that wants this step. */
void shl_gather_log_phase_begins(const shl_gatherer *g);
void shl_gather_log_issue(const shl_gatherer *g, int n); /* the first n groups of the batch */
void shl_gather_log_wait(const shl_gatherer *g, int group, const char *module);
void shl_gather_log_release(const shl_gatherer *g, int group);
void shl_gather_log_refresh(const shl_gatherer *g, int flat);

#endif
