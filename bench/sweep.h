/* bench: lists and ranges. "1,2,4", "1-4", "2-8+2", "1-64*2" for whole numbers, "ddp,zero1" for names; a
 * sweep is the cross product of its axes, the last axis fastest. */
#ifndef SHL_BENCH_SWEEP_H
#define SHL_BENCH_SWEEP_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/err.h"

#define SHL_SWEEP_MAX_VALUES 1024   /* of one axis */
#define SHL_SWEEP_MAX_POINTS 100000 /* of the cross product */
#define SHL_SWEEP_WORD_BYTES 64

/* One value of an axis: its text, and its number for axes of whole numbers. */
typedef struct shl_sweep_value {
    char text[SHL_SWEEP_WORD_BYTES];
    int64_t number;
} shl_sweep_value;

typedef struct shl_sweep_axis {
    const char *name; /* of the flag, for messages */
    shl_sweep_value *values;
    size_t n;
} shl_sweep_axis;

/* Splits a list of names. Errors: SHL_E_USAGE on an empty item, a repeated one, one that is too long,
 * too many; SHL_E_HEAP. Owner: caller, shl_sweep_axis_fini (also after a failure). */
shl_code shl_sweep_names(const char *name, const char *text, shl_sweep_axis *out) SHL_MUST_USE;

/* Splits a list of whole numbers and ranges, each within min..max; counts may be spelled 16M. */
shl_code shl_sweep_numbers(const char *name, const char *text, int64_t min, int64_t max,
                           shl_sweep_axis *out) SHL_MUST_USE;

void shl_sweep_axis_fini(shl_sweep_axis *axis);

/* Number of points of n axes. Errors: SHL_E_USAGE above SHL_SWEEP_MAX_POINTS. */
shl_code shl_sweep_points(const shl_sweep_axis *axes, size_t n, int64_t *out) SHL_MUST_USE;

/* The value of axis `which` at point `index` of the cross product; borrowed from the axis. */
const shl_sweep_value *shl_sweep_at(const shl_sweep_axis *axes, size_t n, int64_t index,
                                    size_t which);

#endif
