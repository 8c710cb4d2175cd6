/* bench: what a stream can show. The order is no-color.org's: the flag, NO_COLOR, TERM=dumb, and then
 * whether the stream is a terminal. */
#include "bench/terminal.h"

#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "kernels/base/option.h"

/* Set while the command line is read, before any thread starts. */
static shl_color_mode color_mode;

void
shl_terminal_set_color(shl_color_mode mode)
{
    color_mode = mode;
}

bool
shl_terminal_is(int fd)
{
    return isatty(fd) == 1;
}

bool
shl_terminal_redraws(int fd)
{
    const char *term = shl_env("TERM");
    return term && strcmp(term, "dumb") != 0 && shl_terminal_is(fd);
}

bool
shl_terminal_has_color(int fd)
{
    if (color_mode != SHL_COLOR_AUTO) {
        return color_mode == SHL_COLOR_ALWAYS;
    }
    return !shl_env("NO_COLOR") && shl_terminal_redraws(fd);
}

int
shl_terminal_width(int fd)
{
    struct winsize size;
    memset(&size, 0, sizeof(size));
    return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

const char *
shl_terminal_paint(int fd, shl_paint paint)
{
    static const char *const codes[] = {
        [SHL_PAINT_NONE] = "\033[0m",   [SHL_PAINT_GOOD] = "\033[32m",
        [SHL_PAINT_DOUBT] = "\033[33m", [SHL_PAINT_BAD] = "\033[1;31m",
        [SHL_PAINT_STRONG] = "\033[1m",
    };
    return shl_terminal_has_color(fd) ? codes[paint] : "";
}
