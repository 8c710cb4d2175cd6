/* bench: one line on a terminal's stderr that says how far a long command is and when it will end.
 * Nothing where stderr is not a terminal, and nothing during the first second. */
#ifndef SHL_BENCH_PROGRESS_H
#define SHL_BENCH_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct shl_progress {
    bool redraws; /* the line is drawn over itself */
    bool plain;   /* a dumb terminal: a new line now and then */
    bool drawn;   /* the line is on the screen */
    bool counted; /* `first` is known */
    int64_t total, first;
    int64_t begun_ns, drawn_ns;
} shl_progress;

/* total: units of the whole command. */
void shl_progress_begin(shl_progress *p, int64_t total);

/* done of the units are done; label stands before the bar and detail behind it (both short). The
 * first call may be far along (a resumed run): time is extrapolated from there. */
void shl_progress_show(shl_progress *p, int64_t done, const char *label, const char *detail);

/* Takes the line away, before anything else is written to the screen and at the end. */
void shl_progress_clear(shl_progress *p);

/* The line of shl_progress_show in `width` columns: "label [##--] 3/10 detail ETA 0:12". seconds_left
 * < 0: not known. */
void shl_progress_line(char *dst, size_t dst_bytes, int width, const char *label, int64_t done,
                       int64_t total, const char *detail, double seconds_left);

#endif
