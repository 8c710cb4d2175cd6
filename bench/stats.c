/* bench: robust summaries. Medians and deviations from them, because a shared machine adds time and
 * never takes any away. */
#include "bench/stats.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/base/err.h"

static int
compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double
shl_stats_percentile(double *values, size_t n, double q)
{
    SHL_ASSERT(n > 0 && q >= 0 && q <= 100);
    qsort(values, n, sizeof *values, compare);
    double rank = (double)(n - 1) * q / 100;
    size_t below = (size_t)rank;
    if (below + 1 >= n) {
        return values[n - 1];
    }
    double part = rank - (double)below;
    return values[below] + part * (values[below + 1] - values[below]);
}

double
shl_stats_median(double *values, size_t n)
{
    return shl_stats_percentile(values, n, 50);
}

/* The k-th smallest distance (from 0) to `center` in sorted values: the k + 1 nearest ones are a run
 * of neighbours, so two fingers walk outwards from the center. */
static double
nearest_distance(const double *values, size_t n, double center, size_t k)
{
    size_t right = 0;
    while (right < n && values[right] < center) {
        right++;
    }
    size_t left = right; /* values[left - 1] is the next on the left */
    double distance = 0;
    for (size_t i = 0; i <= k; i++) {
        double on_left = left > 0 ? center - values[left - 1] : HUGE_VAL;
        double on_right = right < n ? values[right] - center : HUGE_VAL;
        if (on_left <= on_right) {
            distance = on_left;
            left--;
        } else {
            distance = on_right;
            right++;
        }
    }
    return distance;
}

double
shl_stats_mad(double *values, size_t n)
{
    double center = shl_stats_median(values, n);
    double low = nearest_distance(values, n, center, (n - 1) / 2);
    double high = nearest_distance(values, n, center, n / 2);
    return 1.4826 * (low + high) / 2;
}

double
shl_stats_geomean(const double *values, size_t n)
{
    SHL_ASSERT(n > 0);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        SHL_ASSERT(values[i] > 0);
        sum += log(values[i]);
    }
    return exp(sum / (double)n);
}
