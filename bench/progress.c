/* bench: the progress line. It is drawn at most ten times a second, so that it costs nothing. */
#include "bench/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bench/terminal.h"
#include "kernels/base/clock.h"
#include "kernels/base/str.h"

#define QUIET_NS INT64_C(1000000000)
#define REDRAW_NS INT64_C(100000000)
#define BAR_MOST 30
#define BAR_LEAST 8

void
shl_progress_begin(shl_progress *p, int64_t total)
{
    memset(p, 0, sizeof(*p));
    p->redraws = shl_terminal_redraws(STDERR_FILENO);
    p->plain = !p->redraws && shl_terminal_is(STDERR_FILENO);
    p->total = total > 0 ? total : 1;
    p->begun_ns = shl_clock_ns();
}

static void
spell_time(double seconds, char *dst, size_t dst_bytes)
{
    int64_t s = seconds < 3.5e8 ? (int64_t)(seconds + 0.5) : 350000000;
    if (s >= 3600) {
        shl_strf(dst, dst_bytes, "%lld:%02d:%02d", (long long)(s / 3600), (int)(s / 60 % 60),
                 (int)(s % 60));
    } else {
        shl_strf(dst, dst_bytes, "%d:%02d", (int)(s / 60), (int)(s % 60));
    }
}

void
shl_progress_line(char *dst, size_t dst_bytes, int width, const char *label, int64_t done,
                  int64_t total, const char *detail, double seconds_left)
{
    char tail[160], left[24] = "-:--", bar[BAR_MOST + 1];
    if (seconds_left >= 0.0) {
        spell_time(seconds_left, left, sizeof(left));
    }
    shl_strf(tail, sizeof(tail), "%lld/%lld  %s%sETA %s", (long long)done, (long long)total, detail,
             detail[0] ? "  " : "", left);
    int room = width - (int)strlen(label) - (int)strlen(tail) - 6;
    room = room > BAR_MOST ? BAR_MOST : room;
    if (room < BAR_LEAST) {
        shl_strf(dst, dst_bytes, "%s  %s", label, tail);
    } else {
        double part = (double)done / (double)total;
        int full = (int)((part < 1.0 ? part : 1.0) * room);
        memset(bar, '-', (size_t)room);
        memset(bar, '#', (size_t)full);
        bar[room] = '\0';
        shl_strf(dst, dst_bytes, "%s  [%s] %s", label, bar, tail);
    }
    /* A line that fills the last column would wrap and could not be drawn over. */
    if (width > 0 && strlen(dst) >= (size_t)width) {
        dst[width - 1] = '\0';
    }
}

void
shl_progress_show(shl_progress *p, int64_t done, const char *label, const char *detail)
{
    char line[512];
    if (!p->redraws && !p->plain) {
        return;
    }
    int64_t now = shl_clock_ns();
    if (!p->counted) {
        p->first = done > 0 ? done - 1 : 0;
        p->counted = true;
    }
    if (now - p->begun_ns < QUIET_NS || now - p->drawn_ns < (p->plain ? QUIET_NS : REDRAW_NS)) {
        return;
    }
    p->drawn_ns = now;
    double elapsed = (double)(now - p->begun_ns) * 1e-9;
    double each = done > p->first ? elapsed / (double)(done - p->first) : -1.0;
    shl_progress_line(line, sizeof(line), shl_terminal_width(STDERR_FILENO), label, done, p->total,
                      detail, each * (double)(p->total - done));
    if (p->plain) {
        (void)fprintf(stderr, "%s\n", line);
    } else {
        (void)fprintf(stderr, "\r%s\033[K", line);
        p->drawn = true;
    }
    (void)fflush(stderr);
}

void
shl_progress_clear(shl_progress *p)
{
    if (p->drawn) {
        (void)fputs("\r\033[K", stderr);
        (void)fflush(stderr);
        p->drawn = false;
    }
}
