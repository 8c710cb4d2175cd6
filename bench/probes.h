/* bench: what this machine can do right now: the limits that measured speeds are divided by. Each
 * probe runs for some tens of milliseconds on the best instruction set of the machine. */
#ifndef SHL_BENCH_PROBES_H
#define SHL_BENCH_PROBES_H

#include <stdint.h>

/* Peak fp32 FLOP/s of `threads` threads together: fused multiply-adds on registers, two FLOPs per
 * lane, enough independent chains to hide their latency. By each thread's CPU time, so that other
 * work on the machine does not lower it. */
double shl_probe_fma_flops_per_s(int threads);

/* One sweep with the traffic of AdamW over n elements and next to no arithmetic: reads p, m, v, g,
 * writes p, m, v. Returns nanoseconds; 28 n bytes moved. n is a multiple of 64; finite values. */
int64_t shl_probe_traffic_ns(float *p, float *m, float *v, const float *g, int64_t n, int threads);
#define SHL_PROBE_TRAFFIC_BYTES 28.0

/* The instruction set that the probes use: "avx512", "avx2", "base". Static. */
const char *shl_probe_isa(void);

#endif
