/* kernels/base: the error of the current thread. Each thread owns one shl_err in fixed storage, so
 * that reporting an exhausted heap needs no heap. */
#include "kernels/base/err.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    int status;
    const char *name, *text;
} codes[SHL_CODE_COUNT] = {
#define X(code, status, name, text) [code] = {status, name, text},
    SHL_CODE_MAP(X)
#undef X
};

static _Thread_local shl_err current;

static bool
code_is_valid(shl_code code)
{
    return (int)code >= 0 && code < SHL_CODE_COUNT;
}

int
shl_code_exit_status(shl_code code)
{
    return code_is_valid(code) ? codes[code].status : codes[SHL_E_BUG].status;
}

const char *
shl_code_name(shl_code code)
{
    return code_is_valid(code) ? codes[code].name : "unknown";
}

const char *
shl_code_text(shl_code code)
{
    return code_is_valid(code) ? codes[code].text : "a code that this program does not know";
}

const shl_err *
shl_err_get(void)
{
    return &current;
}

void
shl_err_clear(void)
{
    memset(&current, 0, sizeof(current));
}

shl_code
shl_err_put(const shl_err *err)
{
    if (err != &current) {
        current = *err;
    }
    return current.code;
}

shl_code
shl_err_raise(shl_code code, const char *file, int line, const char *func, const char *fmt, ...)
{
    /* The arguments may point into the error that is about to be replaced. */
    char what[sizeof(current.what)];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    shl_err_clear();
    current.code = code;
    memcpy(current.what, what, sizeof(what));
    return shl_err_trace(code, file, line, func);
}

/* Formats through a copy, for the same reason as in shl_err_raise. */
static void replace_text(char *dst, size_t dst_bytes, const char *fmt, va_list args)
    SHL_PRINTF(3, 0);

static void
replace_text(char *dst, size_t dst_bytes, const char *fmt, va_list args)
{
    char text[sizeof(current.because)];
    vsnprintf(text, sizeof(text), fmt, args);
    snprintf(dst, dst_bytes, "%s", text);
}

shl_code
shl_err_because(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    replace_text(current.because, sizeof(current.because), fmt, args);
    va_end(args);
    return current.code;
}

shl_code
shl_err_advice(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    replace_text(current.advice, sizeof(current.advice), fmt, args);
    va_end(args);
    return current.code;
}

shl_code
shl_err_trace(shl_code code, const char *file, int line, const char *func)
{
    if (current.code != code) {
        /* A callee returned a code without an error of its own; an older one must not be shown. */
        shl_err_clear();
        current.code = code;
        snprintf(current.what, sizeof(current.what), "%s", shl_code_text(code));
    }
    size_t len = strlen(current.trace);
    snprintf(current.trace + len, sizeof(current.trace) - len, "%s%s:%d %s", len > 0 ? "\n" : "",
             file, line, func);
    return code;
}

void
shl_assert_failed(const char *cond, const char *file, int line, const char *func)
{
    fprintf(stderr, "shardlab: bug: %s:%d %s: %s does not hold; please report it\n", file, line,
            func, cond);
    abort();
}
