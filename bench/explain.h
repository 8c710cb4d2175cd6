/* bench: `plan --explain-schedule`: the gathers of one steady step, written down by the engine itself. */
#ifndef SHL_BENCH_EXPLAIN_H
#define SHL_BENCH_EXPLAIN_H

#include "bench/session.h"

/* Runs cfg as shl_session_run does and prints the schedule of its second step on stdout. */
shl_code shl_explain_schedule(const shl_session_config *cfg,
                              shl_session_result *result) SHL_MUST_USE;

#endif
