/* kernels/base: monotonic and CPU time in nanoseconds. */
#ifndef SHL_BASE_CLOCK_H
#define SHL_BASE_CLOCK_H

#include <stdint.h>

int64_t shl_clock_ns(void);         /* CLOCK_MONOTONIC */
int64_t shl_clock_process_ns(void); /* user + system CPU time of the process */
int64_t shl_clock_thread_ns(void);  /* CPU time of the calling thread */
void shl_clock_sleep_ns(int64_t ns);

#endif
