/* bench: drawing: the scripts of plots/ are copied beside their data, and gnuplot runs in that folder
 * without a shell. */
#include "bench/figures.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/locate.h"
#include "kernels/base/str.h"

static shl_code
raise_copy(const char *path, int error)
{
    (void)SHL_RAISE(SHL_E_IO, "cannot copy '%s'", path);
    return shl_err_because("%s", strerror(error));
}

/* Copies plots/<name> into dir. Scripts are a few kilobytes. */
static shl_code
copy_script(const char *name, const char *dir)
{
    char from[4096], to[4096], shipped[64], text[16384];
    shl_strf(shipped, sizeof shipped, "plots/%s", name);
    SHL_TRY(shl_locate(shipped, from, sizeof from));
    shl_strf(to, sizeof to, "%s/%s", dir, name);
    FILE *in = fopen(from, "re");
    if (!in) {
        return raise_copy(from, errno);
    }
    size_t len = fread(text, 1, sizeof text, in);
    bool whole = feof(in) != 0;
    (void)fclose(in);
    if (!whole) {
        return raise_copy(from, EFBIG);
    }
    FILE *out = fopen(to, "we");
    if (!out) {
        return raise_copy(to, errno);
    }
    bool wrote = fwrite(text, 1, len, out) == len;
    if (fclose(out) != 0 || !wrote) {
        return raise_copy(to, errno);
    }
    return SHL_OK;
}

/* Starts gnuplot in dir with its messages going to fd `messages`. */
static int
start(const char *dir, const char *script, const char *format, int messages, pid_t *pid)
{
    char set_format[32];
    shl_strf(set_format, sizeof set_format, "format=\"%s\"", format);
    /* posix_spawnp takes writable strings by its prototype only. */
    char program[] = "gnuplot", execute[] = "-e", script_name[64];
    shl_strf(script_name, sizeof script_name, "%s", script);
    char *argv[] = {program, execute, set_format, script_name, NULL};
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);
    if (error != 0) {
        return error;
    }
    (void)posix_spawn_file_actions_addchdir_np(&actions, dir);
    (void)posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    (void)posix_spawn_file_actions_adddup2(&actions, messages, 1);
    (void)posix_spawn_file_actions_adddup2(&actions, messages, 2);
    error = posix_spawnp(pid, program, &actions, NULL, argv, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* Reads everything from fd into text (cut at its size) and drops line ends at both sides. */
static void
read_messages(int fd, char *text, size_t text_bytes)
{
    size_t len = 0;
    char spill[512];
    for (;;) {
        bool room = len + 1 < text_bytes;
        ssize_t got = room ? read(fd, text + len, text_bytes - 1 - len) : read(fd, spill, 512);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            break;
        }
        len += room ? (size_t)got : 0;
    }
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == ' ')) {
        len--;
    }
    text[len] = '\0';
    size_t lead = strspn(text, "\n ");
    memmove(text, text + lead, len - lead + 1);
}

static shl_code
run_gnuplot(const char *dir, const char *script, const char *format)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return SHL_RAISE(SHL_E_SYSTEM, "no pipe for gnuplot: %s", strerror(errno));
    }
    pid_t pid = 0;
    int error = start(dir, script, format, ends[1], &pid);
    (void)close(ends[1]);
    if (error != 0) {
        (void)close(ends[0]);
        (void)SHL_RAISE(SHL_E_SYSTEM, "cannot start gnuplot");
        (void)shl_err_because("%s", error == ENOENT ? "it is not installed or not in PATH"
                                                    : strerror(error));
        return shl_err_advice("apt-get install gnuplot-nox");
    }
    char text[400];
    read_messages(ends[0], text, sizeof text);
    (void)close(ends[0]);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        (void)SHL_RAISE(SHL_E_SYSTEM, "gnuplot failed on %s/%s (%s)", dir, script, format);
        return shl_err_because("%s", text[0] ? text : "it gave no message");
    }
    return SHL_OK;
}

shl_code
shl_figure_draw(shl_figure f, const char *out_dir)
{
    static const char *const formats[] = {"svg", "png"};
    char script[64];
    shl_strf(script, sizeof script, "%s.gp", shl_figure_name(f));
    SHL_TRY(copy_script("style.gp", out_dir));
    SHL_TRY(copy_script(script, out_dir));
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        char path[4096];
        shl_strf(path, sizeof path, "%s/%s.%s", out_dir, shl_figure_name(f), formats[i]);
        shl_code code = run_gnuplot(out_dir, script, formats[i]);
        struct stat info;
        if (code == SHL_OK && (stat(path, &info) != 0 || info.st_size == 0)) {
            code = SHL_RAISE(SHL_E_SYSTEM, "gnuplot wrote no %s", path);
        }
        if (code != SHL_OK) {
            (void)unlink(path);
            return code;
        }
    }
    return SHL_OK;
}
