/* tests/bench: what the program tells a person: examples that run, every flag in man page and completions,
 * the nearest name for a wrong one, and what a terminal sees that a pipe does not. */
#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/cli.h"
#include "bench/progress.h"
#include "kernels/base/clock.h"
#include "kernels/base/types.h"
#include "kernels/device/sanitize.h"
#include "tests/support/program.h"
#include "tests/support/temp_folder.h"

#define MAX_WORDS 24
#define ESCAPE "\033"

static char out[1 << 18], err[1 << 14];

static void
slurp(const char *path, char *dst, size_t dst_bytes)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    dst[fread(dst, 1, dst_bytes - 1, f)] = '\0';
    (void)fclose(f);
}

/* Runs a shell line in the folder, where "shardlab" is the program; its exit status. */
static int
run(const char *line)
{
    char command[4096];
    shl_strf(command, sizeof(command),
             "cd %s && export PATH=%s:$PATH && (%s\n) >stdout 2>stderr </dev/null", folder, folder,
             line);
    int status = system(command);
    shl_strf(command, sizeof(command), "%s/stdout", folder);
    slurp(command, out, sizeof(out));
    shl_strf(command, sizeof(command), "%s/stderr", folder);
    slurp(command, err, sizeof(err));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static bool
has_tool(const char *name)
{
    char line[64];
    shl_strf(line, sizeof(line), "command -v %s", name);
    return run(line) == 0;
}

/* ---- examples ---- */

/* Runs the examples of one command in their order; how many there are. The speed table takes a minute,
 * so its examples run only when everything does. */
static int
run_examples(const shl_command *c)
{
    char line[512];
    int n = 0;
    bool all = shl_env("SHL_TEST_ALL") != NULL || strcmp(c->name, "bench") != 0;
    shl_strf(line, sizeof(line), "shardlab help %s", c->name);
    assert_int_equal(run(line), 0);
    static char text[1 << 16];
    shl_strf(text, sizeof(text), "%s", out);
    const char *at = strstr(text, "\nexamples:\n");
    assert_non_null(at);
    assert_true(at < strstr(text, "\nusage: "));
    at += strlen("\nexamples:\n");
    for (; strncmp(at, "  shardlab ", 11) == 0; at += strcspn(at, "\n") + 1) {
        shl_strf(line, sizeof(line), "%.*s", (int)strcspn(at, "\n"), at);
        n++;
        int status = all ? run(line) : 0;
        /* A doctor on a machine that lacks something says so by its code. */
        bool judged = strcmp(c->name, "doctor") == 0 && status == 1;
        if (status != 0 && !judged) {
            fail_msg("exit %d of \"%s\": %s", status, line, err);
        }
    }
    assert_int_equal(*at, '\n');
    return n;
}

static void
test_help_examples_run(void **state)
{
    SHL_UNUSED(state);
    if ((SHL_ASAN || SHL_TSAN) && !shl_env("SHL_TEST_ALL")) {
        skip(); /* other tests train under the sanitizers, at sizes that suit them */
    }
    size_t n;
    const shl_command *const *table = shl_command_table(&n);
    for (size_t i = 0; i < n; i++) {
        int examples = run_examples(table[i]);
        if (examples < 2 || examples > 5) {
            fail_msg("%s has %d examples", table[i]->name, examples);
        }
    }
}

static void
test_help_fits_a_narrow_screen(void **state)
{
    SHL_UNUSED(state);
    size_t n;
    const shl_command *const *table = shl_command_table(&n);
    for (size_t i = 0; i < n; i++) {
        shl_str text = {0};
        shl_command_help_text(table[i], &text);
        for (const char *line = shl_str_get(&text); *line;) {
            size_t len = strcspn(line, "\n");
            if (len > 80) {
                fail_msg("%s: %zu columns: %.*s", table[i]->name, len, (int)len, line);
            }
            line += len + (line[len] == '\n');
        }
        shl_str_fini(&text);
    }
}

/* ---- man page and completions ---- */

/* The part of text that begins with `first` and ends before `last`. */
static const char *
section(const char *text, const char *first, const char *last)
{
    static char part[1 << 16];
    const char *begin = strstr(text, first);
    if (!begin) {
        fail_msg("no \"%s\"", first);
        return "";
    }
    const char *end = strstr(begin + strlen(first), last);
    size_t len = end ? (size_t)(end - begin) : strlen(begin);
    assert_true(len < sizeof(part));
    memcpy(part, begin, len);
    part[len] = '\0';
    return part;
}

/* text holds before + name + one of the characters `after`. */
static bool
holds(const char *text, const char *before, const char *name, const char *after)
{
    char word[256];
    shl_strf(word, sizeof(word), "%s%s", before, name);
    for (const char *at = text; (at = strstr(at, word)) != NULL; at++) {
        char next = at[strlen(word)];
        if (next && strchr(after, next)) {
            return true;
        }
    }
    return false;
}

/* A command's part lies between first + name + behind and last; there a flag is before + flag, and one
 * of the characters after. NULL for before: what begins the part stands before every flag. */
typedef struct rendering {
    const char *line, *first, *behind, *last, *before, *after;
} rendering;

static const rendering RENDERINGS[] = {
    {"shardlab help --man", ".SH \"SHARDLAB ", "\"", "\n.SH ", "\n\\fB\\-\\-", "\\"},
    {"shardlab help --completion bash", "\n    ", ")\n", "esac ;;\n", "--", " '"},
    {"shardlab help --completion zsh", "\n    ", ")\n", " ;;\n", "'--", "=["},
    {"shardlab help --completion fish", "_from ", "' -l ", "\n\n", NULL, " "},
};

/* A name as the rendering spells it: roff writes a minus with a backslash. */
static const char *
spell(const rendering *r, const char *name)
{
    static char text[128];
    size_t len = 0;
    bool roff = strcmp(r->after, "\\") == 0;
    for (const char *p = name; *p; p++) {
        if (roff && *p == '-') {
            text[len++] = '\\';
        }
        text[len++] = *p;
    }
    text[len] = '\0';
    return text;
}

static void
check_rendering(const rendering *r)
{
    size_t n;
    const shl_command *const *table = shl_command_table(&n);
    assert_int_equal(run(r->line), 0);
    static char text[sizeof(out)];
    memcpy(text, out, sizeof(text));
    for (size_t i = 0; i < n; i++) {
        const shl_command *c = table[i];
        char first[64];
        shl_strf(first, sizeof(first), "%s%s%s", r->first, c->name, r->behind);
        const char *before = r->before ? r->before : first;
        const char *part = section(text, first, r->last);
        for (size_t k = 0; k < c->n_options + c->n_hidden; k++) {
            bool there = holds(part, before, spell(r, c->options[k].name), r->after);
            if (there != (k < c->n_options)) {
                fail_msg("%s: --%s of %s is %s", r->line, c->options[k].name, c->name,
                         there ? "shown" : "missing");
            }
        }
        assert_true(holds(part, before, "color", r->after));
        assert_true(holds(part, before, "help", r->after));
        assert_false(holds(part, before, "nowhere", r->after));
    }
}

static void
test_help_every_flag_is_in_every_rendering(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(RENDERINGS); i++) {
        check_rendering(&RENDERINGS[i]);
    }
    assert_int_equal(run("shardlab help --man train"), 2);
    assert_int_equal(run("shardlab help --man --completion zsh"), 2);
}

static void
test_help_renderings_are_read_by_their_readers(void **state)
{
    SHL_UNUSED(state);
    assert_int_equal(run("shardlab help --man > page.1"), 0);
    if (has_tool("groff")) {
        assert_int_equal(run("groff -man -ww -Tascii page.1"), 0);
        assert_string_equal(err, "");
        assert_non_null(strstr(out, "train"));
    }
    static const char *const shells[] = {"bash", "zsh", "fish"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(shells); i++) {
        char line[128];
        shl_strf(line, sizeof(line), "shardlab help --completion %s > c.%s", shells[i], shells[i]);
        assert_int_equal(run(line), 0);
        shl_strf(line, sizeof(line), "%s -n c.%s", shells[i], shells[i]);
        if (has_tool(shells[i]) && run(line) != 0) {
            fail_msg("%s: %s", line, err);
        }
    }
}

/* What bash offers for words (space between) whose last one is being typed. */
static const char *
bash_offers(const char *words)
{
    char line[1024];
    shl_strf(line, sizeof(line),
             "bash -c 'source c.bash; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
             "_shardlab; echo ${COMPREPLY[@]}'",
             words);
    assert_int_equal(run(line), 0);
    assert_string_equal(err, "");
    return out;
}

static void
test_help_bash_completes(void **state)
{
    SHL_UNUSED(state);
    if (!has_tool("bash")) {
        skip();
    }
    assert_int_equal(run("shardlab help --completion bash > c.bash"), 0);
    assert_string_equal(bash_offers("shardlab tr"), "train\n");
    assert_string_equal(bash_offers("shardlab train --strat"), "--strategy\n");
    assert_string_equal(bash_offers("shardlab train --device v"), "virtual\n");
    assert_string_equal(bash_offers("shardlab train --device = v"), "virtual\n");
    assert_string_equal(bash_offers("shardlab train --strategy ddp,zero3,fsdp-"),
                        "ddp,zero3,fsdp-grad-op\n");
    assert_string_equal(bash_offers("shardlab plan --model gpt-7"), "gpt-7b\n");
    assert_string_equal(bash_offers("shardlab info rec"), "records\n");
    assert_string_equal(bash_offers("shardlab help doc"), "doctor\n");
    assert_string_equal(bash_offers("shardlab train --steps 1"), "\n");
    assert_string_equal(bash_offers("shardlab train --color al"), "always\n");
    assert_string_equal(bash_offers("shardlab ckpt ver"), "verify\n");
    assert_int_equal(run("touch figure.jsonl"), 0);
    assert_string_equal(bash_offers("shardlab ckpt ls figure."), "figure.jsonl\n");
    assert_string_equal(bash_offers("shardlab plot figure."), "figure.jsonl\n");
}

/* ---- nearest names ---- */

static void
test_help_names_the_nearest(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        const char *line, *advice;
    } rows[] = {
        {"shardlab trian", "try: shardlab train\n"},
        {"shardlab docter", "try: shardlab doctor\n"},
        {"shardlab help plam", "try: shardlab plan\n"},
        {"shardlab train --stratgy ddp", "try: --strategy\n"},
        {"shardlab train --colr never", "try: --color\n"},
        {"shardlab train --hepl", "try: --help\n"},
        {"shardlab plan --device-memry 1GiB", "try: --device-memory\n"},
        {"shardlab train --color nver", "try: --color never\n"},
        {"shardlab train --model gpt2-124", "try: --model gpt2-124m\n"},
        {"shardlab train --strategy zero33", "zero3"},
        {"shardlab train --strategy fdsp", "fsdp"},
        {"shardlab plot x --figure los", "try: --figure loss\n"},
        {"shardlab help --completion fihs", "try: --completion fish\n"},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        int status = run(rows[i].line);
        const char *last = strstr(err, "  try: ");
        if (status != 2 || out[0] || !last || !strstr(last, rows[i].advice)) {
            fail_msg("%s: exit %d, no \"%s\" in: %s", rows[i].line, status, rows[i].advice, err);
        }
    }
}

/* ---- terminals ---- */

/* What a terminal showed, when first it showed `awaited`, and how the program ended. */
typedef struct screen {
    char text[1 << 16];
    size_t len;
    double first_seen_s;
    int status;
} screen;
static screen seen;

static void
start_on_terminal(const char *const *settings, const char *const *words)
{
    const char *argv[MAX_WORDS + 2] = {program};
    union {
        const char *const *in;
        char *const *out;
    } as = {.in = argv};
    for (int i = 0; i < MAX_WORDS && words[i]; i++) {
        argv[i + 1] = words[i];
    }
    (void)unsetenv("NO_COLOR");
    for (int i = 0; settings[i]; i += 2) {
        (void)setenv(settings[i], settings[i + 1], 1);
    }
    (void)chdir(folder);
    (void)execv(program, as.out);
    _exit(127);
}

/* Runs the program on a terminal of 100 columns with NAME, VALUE pairs in its environment. When `awaited`
 * has appeared (and after ten seconds in any case) it is interrupted; NULL waits for its end. */
static void
watch(const char *awaited, const char *const *settings, const char *const *words)
{
    struct winsize size = {.ws_row = 24, .ws_col = 100};
    int terminal = -1, status = 0;
    bool interrupted = false;
    memset(&seen, 0, sizeof(seen));
    int64_t begun = shl_clock_ns();
    pid_t pid = forkpty(&terminal, NULL, NULL, &size);
    if (pid == 0) {
        start_on_terminal(settings, words);
    }
    assert_true(pid > 0);
    for (;;) {
        struct pollfd wait = {.fd = terminal, .events = POLLIN};
        int ready = poll(&wait, 1, 100);
        double elapsed = (double)(shl_clock_ns() - begun) * 1e-9;
        ssize_t n =
            ready > 0 ? read(terminal, seen.text + seen.len, sizeof(seen.text) - 1 - seen.len) : 1;
        if (n <= 0 && errno != EINTR) {
            break; /* EIO: the program has ended */
        }
        seen.len += ready > 0 && n > 0 ? (size_t)n : 0;
        seen.text[seen.len] = '\0';
        bool there = awaited && strstr(seen.text, awaited);
        if (there && seen.first_seen_s <= 0.0) {
            seen.first_seen_s = elapsed;
        }
        if (!interrupted && awaited && (there || elapsed > 10.0)) {
            interrupted = true;
            (void)kill(pid, SIGINT);
        }
    }
    (void)close(terminal);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    seen.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
#define SETTINGS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define LONG_RUN                                                                                   \
    WORDS("train", "--steps", "100000", "--layers", "1", "--width", "32", "--heads", "2",          \
          "--threads", "1", "--out", "steps.jsonl")

static void
test_help_progress_is_for_terminals(void **state)
{
    SHL_UNUSED(state);
    watch("ETA", SETTINGS("TERM", "xterm"), LONG_RUN);
    assert_int_equal(seen.status, 130);
    assert_true(seen.first_seen_s >= 1.0);
    const char *bar = strstr(seen.text, "\rddp x 1  [");
    assert_non_null(bar);
    assert_non_null(strstr(seen.text, "/100000  loss "));
    assert_non_null(strstr(seen.text, "ms/step  ETA "));
    assert_true(strcspn(bar + 1, "\r\033") < 100);
    /* The line is taken away before the table. */
    const char *clear = strstr(bar, "\r" ESCAPE "[K");
    const char *table = strstr(bar, "ddp  ");
    assert_true(clear && table && clear < table);

    watch("ETA", SETTINGS("TERM", "dumb"), LONG_RUN);
    assert_int_equal(seen.status, 130);
    assert_non_null(strstr(seen.text, "ETA"));
    assert_null(strstr(seen.text, ESCAPE));
    for (const char *p = seen.text; (p = strchr(p, '\r')) != NULL; p++) {
        assert_int_equal(p[1], '\n'); /* as the terminal writes a line's end */
    }
    /* A short run, a plan and a pipe show nothing of it. */
    watch(NULL, SETTINGS("TERM", "xterm"), WORDS("train", "--steps", "1", "--layers", "1"));
    assert_int_equal(seen.status, 0);
    assert_null(strstr(seen.text, "ETA"));
    assert_true(run("timeout -s INT 2.5 shardlab train --steps 100000 --layers 1 --width 32 "
                    "--heads 2 --threads 1 --out /dev/null") > 0);
    assert_null(strstr(err, "ETA"));
    assert_null(strstr(err, ESCAPE));
    assert_null(strchr(err, '\r'));
    assert_null(strstr(out, ESCAPE));
}

static void
test_help_progress_line_keeps_its_width(void **state)
{
    SHL_UNUSED(state);
    char line[512];
    for (int width = 1; width < 160; width++) {
        for (int64_t done = 0; done <= 20; done += 5) {
            shl_progress_line(line, sizeof(line), width, "zero3 x 2", done, 20, "loss 1.2345",
                              4000.0);
            assert_true(strlen(line) < (size_t)width || width == 1);
            const char *begin = strchr(line, '['), *end = strchr(line, ']');
            if (!end) {
                assert_true(width < 80);
                continue;
            }
            assert_non_null(strstr(line, "loss 1.2345  ETA 1:06:40"));
            int64_t room = end - begin - 1, full = (int64_t)strspn(begin + 1, "#");
            assert_true(room >= 8 && room <= 30);
            assert_int_equal(full, done * room / 20);
        }
    }
    shl_progress_line(line, sizeof(line), 80, "x", 1, 2, "", -1.0);
    assert_non_null(strstr(line, "1/2  ETA -:--"));
    shl_progress_line(line, sizeof(line), 80, "x", 1, 2, "", 59.7);
    assert_non_null(strstr(line, "ETA 1:00"));
}

static void
expect_color(bool wanted, const char *const *settings, const char *const *words)
{
    watch(NULL, settings, words);
    if ((strstr(seen.text, ESCAPE "[") != NULL) != wanted) {
        fail_msg("%s %s: %s: %s", words[0], words[1] ? words[1] : "",
                 wanted ? "colour is missing" : "colour is not wanted", seen.text);
    }
}

static void
test_help_color_is_asked_for(void **state)
{
    SHL_UNUSED(state);
    const char *const doctor[] = {"doctor", "--model", "gpt2-tiny", NULL};
    expect_color(true, SETTINGS("TERM", "xterm"), doctor);
    expect_color(true, SETTINGS("TERM", "xterm"), WORDS("trian"));
    expect_color(true, SETTINGS("TERM", "xterm", "NO_COLOR", ""), doctor);
    expect_color(false, SETTINGS("TERM", "xterm", "NO_COLOR", "1"), doctor);
    expect_color(false, SETTINGS("TERM", "xterm", "NO_COLOR", "1"), WORDS("trian"));
    expect_color(false, SETTINGS("TERM", "dumb"), doctor);
    expect_color(false, SETTINGS("TERM", "xterm"), WORDS("doctor", "--color=never"));
    expect_color(false, SETTINGS("TERM", "xterm"), WORDS("trian", "--color", "never"));
    expect_color(true, SETTINGS("TERM", "xterm", "NO_COLOR", "1"),
                 WORDS("doctor", "--colour", "always"));
    expect_color(true, SETTINGS("TERM", "xterm"), WORDS("doctor", "--color=auto"));
    (void)run("shardlab doctor --model gpt2-tiny");
    assert_null(strstr(out, ESCAPE));
    (void)run("shardlab doctor --model gpt2-tiny --color=always");
    assert_non_null(strstr(out, ESCAPE "[3"));
    assert_int_equal(run("shardlab trian"), 2);
    assert_null(strstr(err, ESCAPE));
    assert_int_equal(run("shardlab trian --color=always"), 2);
    assert_non_null(strstr(err, ESCAPE "[1;31merror:"));
    assert_int_equal(run("shardlab doctor --json --color=always | grep -c '\033'"), 1);
}

static int
set_up(void **state)
{
    char link[256];
    if (!find_program() || make_folder(state) != 0) {
        return 1;
    }
    shl_strf(link, sizeof(link), "%s/shardlab", folder);
    return symlink(program, link);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help_examples_run),
        cmocka_unit_test(test_help_fits_a_narrow_screen),
        cmocka_unit_test(test_help_every_flag_is_in_every_rendering),
        cmocka_unit_test(test_help_renderings_are_read_by_their_readers),
        cmocka_unit_test(test_help_bash_completes),
        cmocka_unit_test(test_help_names_the_nearest),
        cmocka_unit_test(test_help_progress_is_for_terminals),
        cmocka_unit_test(test_help_progress_line_keeps_its_width),
        cmocka_unit_test(test_help_color_is_asked_for),
    };
    return cmocka_run_group_tests(tests, set_up, remove_folder);
}
