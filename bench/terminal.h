/* bench: what a stream can show: colour, a line that is drawn again, its width. Each stream is judged by
 * itself; a pipe and a dumb terminal get plain text. */
#ifndef SHL_BENCH_TERMINAL_H
#define SHL_BENCH_TERMINAL_H

#include <stdbool.h>

typedef enum shl_color_mode {
    SHL_COLOR_AUTO = 0, /* on a terminal, unless NO_COLOR is set or TERM is dumb */
    SHL_COLOR_ALWAYS,
    SHL_COLOR_NEVER
} shl_color_mode;

typedef enum shl_paint {
    SHL_PAINT_NONE = 0,
    SHL_PAINT_GOOD,
    SHL_PAINT_DOUBT,
    SHL_PAINT_BAD,
    SHL_PAINT_STRONG
} shl_paint;

/* What --color says; it stands above the environment. */
void shl_terminal_set_color(shl_color_mode mode);

/* A terminal, and one whose line can be drawn again (TERM is set and not "dumb"). */
bool shl_terminal_is(int fd);
bool shl_terminal_redraws(int fd);
bool shl_terminal_has_color(int fd);

/* Columns of a terminal; 80 where none is known. */
int shl_terminal_width(int fd);

/* The escape sequence that begins a paint on fd; NONE ends the one before. "" without colour. */
const char *shl_terminal_paint(int fd, shl_paint paint);

#endif
