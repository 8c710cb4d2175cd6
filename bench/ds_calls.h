/* bench: the collectives of a step beside those that DeepSpeed makes with the same settings. */
#ifndef SHL_BENCH_DS_CALLS_H
#define SHL_BENCH_DS_CALLS_H

#include "bench/output.h"

/* Appends, for a row of ddp, zero1, zero2 or zero3, calls and bytes of each kind on both sides, why they
 * differ, and what a rank sends in all. Errors: of the model, and of the virtual run that a zero3 row
 * without DeepSpeed's keys is compared with. */
shl_code shl_ds_calls_add(const shl_output_row *row, shl_str *out) SHL_MUST_USE;

#endif
