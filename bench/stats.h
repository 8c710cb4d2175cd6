/* bench: robust summaries of repeated measurements. */
#ifndef SHL_BENCH_STATS_H
#define SHL_BENCH_STATS_H

#include <stddef.h>

/* All take n >= 1 finite values. Median, percentile and deviation sort them in place, so that no copy
 * is needed: keep raw samples elsewhere when their order matters. */
double shl_stats_median(double *values, size_t n);

/* Percentile q in [0, 100], linear between the two nearest ranks (Hyndman & Fan 1996, type 7). */
double shl_stats_percentile(double *values, size_t n, double q);

/* Median absolute deviation from the median, times 1.4826: the standard deviation of a normal. */
double shl_stats_mad(double *values, size_t n);

/* Geometric mean of positive values. */
double shl_stats_geomean(const double *values, size_t n);

#endif
