/* kernels/base: log lines on stderr: "shardlab[rank] level room: text". stdout is results only.
 * None inside timed regions. Level and room mask come from SHL_LOG ("info,comm=trace"). */
#ifndef SHL_BASE_LOG_H
#define SHL_BASE_LOG_H

#include "kernels/base/err.h"

typedef enum shl_log_level {
    SHL_LOG_ERROR = 0,
    SHL_LOG_WARN,
    SHL_LOG_INFO,
    SHL_LOG_DEBUG,
    SHL_LOG_TRACE
} shl_log_level;

/* Sets levels from text; default "warn". Errors: SHL_E_USAGE names the bad word. Call before
 * threads start. */
shl_code shl_log_configure(const char *text) SHL_MUST_USE;

/* The rank shown in this thread's lines; -1 (the default) shows none. */
void shl_log_set_rank(int rank);
int shl_log_rank(void);

void shl_log(shl_log_level level, const char *room, const char *fmt, ...) SHL_PRINTF(3, 4);

#endif
