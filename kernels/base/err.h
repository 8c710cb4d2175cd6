/* kernels/base: error codes, the error of the current thread (what / because / try / trace).
 * Three kinds of error: a bug (SHL_ASSERT), the world (a code passed up by SHL_TRY), a remote
 * failure (engines/comm: agree). Nothing below bench/main.c exits or aborts on the last two. */
#ifndef SHL_BASE_ERR_H
#define SHL_BASE_ERR_H

#include <stddef.h>

/* code, exit status of the program, name, what it means */
#define SHL_CODE_MAP(X)                                                                            \
    X(SHL_OK, 0, "ok", "success")                                                                  \
    X(SHL_E_VERIFY, 1, "verify", "a verification or gate failed (hash, value, comparison)")        \
    X(SHL_E_USAGE, 2, "usage", "a bad flag, value or combination, or an unsupported request")      \
    X(SHL_E_CONFIG, 2, "config", "a bad configuration file or a checkpoint of another model")      \
    X(SHL_E_OOM, 3, "does-not-fit", "a memory limit is exceeded (device, host or nvme)")           \
    X(SHL_E_INCONCLUSIVE, 4, "inconclusive", "no verdict, with --strict")                          \
    X(SHL_E_IO, 5, "io", "a file cannot be opened, read or written")                               \
    X(SHL_E_PEER, 5, "peer", "another rank failed, died or stalled")                               \
    X(SHL_E_SYSTEM, 5, "system", "the operating system or a library refused a request")            \
    X(SHL_E_HEAP, 5, "heap", "host heap exhausted")                                                \
    X(SHL_E_BUG, 5, "bug", "an internal invariant does not hold: please report")                   \
    X(SHL_E_NOT_COMPARABLE, 6, "not-comparable", "two records cannot be compared")                 \
    X(SHL_E_INTERRUPTED, 130, "interrupted", "interrupted by a signal")

typedef enum shl_code {
#define X(code, status, name, text) code,
    SHL_CODE_MAP(X)
#undef X
        SHL_CODE_COUNT
} shl_code;

#define SHL_MUST_USE __attribute__((warn_unused_result))
#define SHL_PRINTF(fmt_index, args_index) __attribute__((format(printf, fmt_index, args_index)))

/* Exit status of the program for a code; short name; one-line meaning (static strings). */
int shl_code_exit_status(shl_code code);
const char *shl_code_name(shl_code code);
const char *shl_code_text(shl_code code);

/* The error of the calling thread, as set by the last SHL_RAISE on it. Strings are bounded and
 * owned by the thread; empty when absent. `trace` holds "file:line function" lines, innermost
 * first. A SHL_OK code means no error is set. */
typedef struct shl_err {
    shl_code code;
    char what[512];
    char because[512];
    char advice[512];
    char trace[1024];
} shl_err;

const shl_err *shl_err_get(void);
void shl_err_clear(void);

/* Replaces the calling thread's error by *err (used to carry an error across threads). Returns
 * err->code. err borrowed, may be the thread's own. */
shl_code shl_err_put(const shl_err *err);

/* Starts a new error on this thread and returns `code`. Use through SHL_RAISE. */
shl_code shl_err_raise(shl_code code, const char *file, int line, const char *func, const char *fmt,
                       ...) SHL_PRINTF(5, 6);

/* Add the second and third line to the thread's current error: the value against its limit, and
 * the command or change to try. Return the current code, so that they can end a function. */
shl_code shl_err_because(const char *fmt, ...) SHL_PRINTF(1, 2);
shl_code shl_err_advice(const char *fmt, ...) SHL_PRINTF(1, 2);

/* Appends one trace line and returns code. Use through SHL_TRY. */
shl_code shl_err_trace(shl_code code, const char *file, int line, const char *func);

#define SHL_RAISE(code, ...) shl_err_raise((code), __FILE__, __LINE__, __func__, __VA_ARGS__)

/* Returns the code of a failed call from the enclosing function. */
#define SHL_TRY(call)                                                                              \
    do {                                                                                           \
        shl_code try_code_ = (call);                                                               \
        if (try_code_ != SHL_OK) {                                                                 \
            return shl_err_trace(try_code_, __FILE__, __LINE__, __func__);                         \
        }                                                                                          \
    } while (0)

/* Stores the code of a failed call in `code_var` and jumps to `label` (one clean-up label, `out`). */
#define SHL_TRY_TO(code_var, label, call)                                                          \
    do {                                                                                           \
        (code_var) = (call);                                                                       \
        if ((code_var) != SHL_OK) {                                                                \
            (code_var) = shl_err_trace((code_var), __FILE__, __LINE__, __func__);                  \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

/* A bug: prints the condition and aborts. On in every profile; never inside timed inner loops. */
void shl_assert_failed(const char *cond, const char *file, int line, const char *func)
    __attribute__((noreturn));
#define SHL_ASSERT(cond) ((cond) ? (void)0 : shl_assert_failed(#cond, __FILE__, __LINE__, __func__))

#endif
