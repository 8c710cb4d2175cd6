/* bench: the lines of gpu-check. Every line is flushed before the next check begins. */
#include "bench/gpu_report.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "bench/cli.h"
#include "bench/host.h"
#include "kernels/base/clock.h"

#define VERDICT_WIDTH 17 /* of the longest name */

const char *
shl_gpu_verdict_name(shl_gpu_verdict v)
{
    static const char *const names[] = {"passed", "failed", "not possible here", "not reached"};
    return names[v];
}

/* The folder and those above it. */
static shl_code
make_folder(const char *folder)
{
    char path[4096];
    shl_strf(path, sizeof(path), "%s", folder);
    for (char *p = path + 1;; p++) {
        if (*p == '/' || *p == '\0') {
            char kept = *p;
            *p = '\0';
            if (mkdir(path, 0777) != 0 && errno != EEXIST) {
                (void)SHL_RAISE(SHL_E_IO, "cannot make the folder %s", path);
                return shl_err_because("%s", strerror(errno));
            }
            if (kept == '\0') {
                return SHL_OK;
            }
            *p = kept;
        }
    }
}

shl_code
shl_gpu_report_open(const char *folder, const char *name, double budget_s, shl_gpu_report *out)
{
    memset(out, 0, sizeof(*out));
    out->begin_ns = out->check_ns = shl_clock_ns();
    out->budget_s = budget_s;
    out->stop = shl_host_stop_flag();
    if (strcmp(folder, "none") == 0) {
        return SHL_OK;
    }
    SHL_TRY(make_folder(folder));
    shl_strf(out->path, sizeof(out->path), "%s/%s.jsonl", folder, name);
    out->file = fopen(out->path, "ae");
    if (!out->file) {
        (void)SHL_RAISE(SHL_E_IO, "cannot write to %s", out->path);
        return shl_err_because("%s", strerror(errno));
    }
    return SHL_OK;
}

void
shl_gpu_report_close(shl_gpu_report *r)
{
    if (r->file) {
        (void)fclose(r->file);
        r->file = NULL;
    }
}

shl_code
shl_gpu_begin(shl_gpu_report *r)
{
    r->check_ns = shl_clock_ns();
    if (atomic_load(r->stop)) {
        return SHL_RAISE(SHL_E_INTERRUPTED, "interrupted");
    }
    return SHL_OK;
}

bool
shl_gpu_is_late(const shl_gpu_report *r)
{
    return (double)(shl_clock_ns() - r->begin_ns) * 1e-9 > r->budget_s;
}

double
shl_gpu_left_s(const shl_gpu_report *r)
{
    double left_s = r->budget_s - (double)(shl_clock_ns() - r->begin_ns) * 1e-9;
    return left_s > 1.0 ? left_s : 1.0;
}

shl_code
shl_gpu_write(shl_gpu_report *r, json_t *row)
{
    bool wrote = true;
    if (r->file) {
        wrote = row && json_dumpf(row, r->file, JSON_COMPACT | JSON_ENSURE_ASCII) == 0 &&
                fputc('\n', r->file) != EOF && fflush(r->file) == 0;
    }
    json_decref(row);
    if (!wrote) {
        (void)SHL_RAISE(SHL_E_IO, "cannot write to %s", r->path);
        return shl_err_because("%s", strerror(errno));
    }
    return SHL_OK;
}

static void
count_verdict(shl_gpu_report *r, shl_gpu_verdict v, const char *label, const char *detail)
{
    if (v == SHL_GPU_FAILED && r->count[v] == 0) {
        shl_strf(r->first_failure, sizeof(r->first_failure), "%s: %s", label, detail);
    }
    r->count[v]++;
}

bool
shl_gpu_adopt(shl_gpu_report *r, const char *line, char *label, size_t label_bytes)
{
    for (int v = 0; v < SHL_GPU_VERDICT_COUNT; v++) {
        const char *name = shl_gpu_verdict_name((shl_gpu_verdict)v);
        size_t len = strlen(name), part = strlen(r->part);
        const char *at = line + VERDICT_WIDTH + 2;
        if (strncmp(line, name, len) != 0 || len + strspn(line + len, " ") != VERDICT_WIDTH + 2 ||
            strncmp(at, r->part, part) != 0 || !strchr(". ", at[part])) {
            continue; /* a library may begin a line with such a word */
        }
        const char *detail = strstr(at, " s  ");
        shl_strf(label, label_bytes, "%.*s", (int)strcspn(at, " "), at);
        count_verdict(r, (shl_gpu_verdict)v, label, detail ? detail + 4 : "");
        return true;
    }
    return false;
}

void
shl_gpu_keep_output(shl_gpu_report *r, const char *title, const char *text)
{
    char path[sizeof(r->path) + 8];
    char *dot = strrchr(r->path, '.');
    if (!r->file || !dot) {
        return;
    }
    shl_strf(path, sizeof(path), "%.*s.log", (int)(dot - r->path), r->path);
    FILE *log = fopen(path, "ae");
    if (log) {
        (void)fprintf(log, "---- %s.%s\n%s\n", r->part, title, text);
        (void)fclose(log);
    }
}

shl_code
shl_gpu_tell(shl_gpu_report *r, const char *name, shl_gpu_verdict v, const char *fmt, ...)
{
    char detail[768], label[96];
    shl_str line = {0};
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(detail, sizeof(detail), fmt, args);
    va_end(args);
    double seconds = (double)(shl_clock_ns() - r->check_ns) * 1e-9;
    shl_strf(label, sizeof(label), "%s%s%s", r->part, name[0] ? "." : "", name);
    shl_str_add(&line, "%-*s  %-32s  %6.2f s  %s\n", VERDICT_WIDTH, shl_gpu_verdict_name(v), label,
                seconds, detail);
    count_verdict(r, v, label, detail);
    shl_code code = shl_cli_print(&line);
    shl_str_fini(&line);
    SHL_TRY(code);
    SHL_TRY(
        shl_gpu_write(r, json_pack("{ss si ss ss ss sf ss}", "kind", "gpu-check", "schema", 1,
                                   "part", r->part, "name", name, "verdict",
                                   shl_gpu_verdict_name(v), "seconds", seconds, "detail", detail)));
    return shl_gpu_begin(r);
}

shl_code
shl_gpu_tell_error(shl_gpu_report *r, const char *name)
{
    shl_err e = *shl_err_get();
    if (e.code == SHL_E_INTERRUPTED) {
        return e.code;
    }
    shl_err_clear();
    return shl_gpu_tell(r, name, e.code == SHL_E_USAGE ? SHL_GPU_NOT_POSSIBLE : SHL_GPU_FAILED,
                        "%s%s%s", e.what, e.because[0] ? ": " : "", e.because);
}
