/* bench: the parts that all subcommands share: parsing with help, stdout with error checks,
 * errors as three lines. */
#include "bench/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bench/host.h"
#include "bench/terminal.h"
#include "engines/config/config.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"
#include "models/presets.h"

/* What every command takes. */
typedef struct everywhere {
    int color;
    bool help;
} everywhere;

static const char *const COLORS[] = {"auto", "always", "never", NULL};

static const shl_option EVERYWHERE[] = {
    {"color", "colour", SHL_OPT_ENUM, offsetof(everywhere, color), 0, 0, "auto", COLORS, NULL,
     "Every command", "auto: on a terminal, unless NO_COLOR is set or TERM is dumb."},
    {"help", "h", SHL_OPT_BOOL, offsetof(everywhere, help), 0, 0, NULL, NULL, NULL, "Every command",
     "This text."},
};

void
shl_cli_usage_text(shl_str *out)
{
    size_t n;
    const shl_command *const *table = shl_command_table(&n);
    shl_str_add(out, "usage: shardlab COMMAND [options]\n");
    for (size_t i = 0; i < n; i++) {
        shl_str_add(out, "  %-9s %s\n", table[i]->name, table[i]->summary);
    }
    shl_str_add(out, "try: shardlab train --strategy zero3 --ranks 2   or: shardlab doctor\n");
}

/* Whether the list of words with blanks between holds name. */
static bool
list_has(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = list; at && (at = strstr(at, name)) != NULL; at += len) {
        if ((at == list || at[-1] == ' ') && (at[len] == '\0' || at[len] == ' ')) {
            return true;
        }
    }
    return false;
}

/* Puts a row behind the last one of its group. */
static void
insert_row(shl_option *rows, size_t *n, const shl_option *row, const char *group)
{
    size_t at = *n;
    for (size_t i = 0; i < *n; i++) {
        at = strcmp(rows[i].group, group) == 0 ? i + 1 : at;
    }
    memmove(&rows[at + 1], &rows[at], (*n - at) * sizeof(rows[0]));
    rows[at] = *row;
    rows[at].group = group;
    (*n)++;
}

size_t
shl_command_rows(const shl_command *c, shl_option *rows, size_t max)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_options && n < max; i++) {
        if (list_has(c->common, c->options[i].name)) {
            insert_row(rows, &n, &c->options[i], "Common");
        }
    }
    for (size_t i = 0; i < c->n_options && n < max; i++) {
        const shl_option *row = &c->options[i];
        if (!list_has(c->common, row->name)) {
            insert_row(rows, &n, row, row->group ? row->group : "Options");
        }
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(EVERYWHERE) && n < max; i++) {
        insert_row(rows, &n, &EVERYWHERE[i], EVERYWHERE[i].group);
    }
    return n;
}

void
shl_command_values(const shl_option *row, shl_str *out)
{
    bool list = row->type == SHL_OPT_LIST || row->type == SHL_OPT_STRING;
    for (size_t i = 0; row->choices && row->choices[i]; i++) {
        shl_str_add(out, "%s%s", i > 0 ? " " : "", row->choices[i]);
    }
    if (list && strcmp(row->name, "model") == 0) {
        const shl_preset *p;
        for (size_t i = 0; (p = shl_preset_at(i)) != NULL; i++) {
            shl_str_add(out, "%s%s", i > 0 ? " " : "", p->name);
        }
    }
    if (list && strcmp(row->name, "strategy") == 0) {
        for (int i = 0; i < SHL_STRATEGY_COUNT; i++) {
            shl_str_add(out, "%s%s", i > 0 ? " " : "", shl_strategy_name((shl_strategy)i));
        }
    }
}

void
shl_command_help_text(const shl_command *c, shl_str *out)
{
    shl_option rows[SHL_MAX_VISIBLE];
    shl_str_add(out, "%s: %s\n", c->name, c->summary);
    if (c->examples) {
        shl_str_add(out, "\nexamples:\n%s", c->examples);
    }
    shl_str_add(out, "\nusage: %s\n\n", c->usage);
    shl_option_help(rows, shl_command_rows(c, rows, SHL_ARRAY_LEN(rows)), out);
    shl_str_add(out, "\nexit codes: 0 ok, 1 verification failed, 2 usage or configuration,\n"
                     "  3 does not fit, 5 run time or input/output, 130 interrupted\n");
}

const shl_command *
shl_command_find(const char *name)
{
    size_t n;
    const shl_command *const *table = shl_command_table(&n);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(table[i]->name, name) == 0) {
            return table[i];
        }
    }
    return NULL;
}

shl_code
shl_command_raise_unknown(const char *name)
{
    const char *names[16];
    size_t n;
    shl_str list = {0};
    const shl_command *const *table = shl_command_table(&n);
    for (size_t i = 0; i < n && i < SHL_ARRAY_LEN(names); i++) {
        names[i] = table[i]->name;
        shl_str_add(&list, "%s%s", i > 0 ? ", " : "", names[i]);
    }
    const char *near = shl_nearest(name, names, n);
    SHL_RAISE(SHL_E_USAGE, "unknown command \"%s\"", name);
    shl_err_because("the commands are %s", shl_str_get(&list));
    shl_str_fini(&list);
    return shl_err_advice("shardlab %s", near ? near : "help");
}

/* The words of --color at argv[0]: 1 or 2, and 0 when it is something else. */
static int
color_words(int argc, const char *const *argv)
{
    for (size_t i = 0; i < 2; i++) {
        const char *name = i == 0 ? EVERYWHERE[0].name : EVERYWHERE[0].alias;
        size_t len = strlen(name);
        if (strncmp(argv[0], "--", 2) == 0 && strncmp(argv[0] + 2, name, len) == 0) {
            char after = argv[0][2 + len];
            bool next = argc > 1 && strncmp(argv[1], "--", 2) != 0;
            if (after == '=' || after == '\0') {
                return after == '\0' && next ? 2 : 1;
            }
        }
    }
    return 0;
}

void
shl_cli_scan_color(int argc, const char *const *argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        int used = color_words(argc - i, argv + i);
        everywhere values = {0};
        if (used > 0 && shl_option_parse(EVERYWHERE, SHL_ARRAY_LEN(EVERYWHERE), used, argv + i,
                                         &values, NULL, NULL, NULL, 0) == SHL_OK) {
            shl_terminal_set_color((shl_color_mode)values.color);
        }
    }
    shl_err_clear();
}

/* Refuses a misspelt option whose nearest name is one of every command; the command's own parser knows
 * only its own names. A word with two dashes is never the value of an option. */
static shl_code
check_spelling(const shl_command *c, const char *word)
{
    const char *names[SHL_MAX_VISIBLE];
    shl_option rows[SHL_MAX_VISIBLE];
    char name[64];
    size_t n = shl_command_rows(c, rows, SHL_ARRAY_LEN(rows));
    shl_strf(name, sizeof(name), "%.*s", (int)strcspn(word + 2, "="), word + 2);
    for (size_t i = 0; i < n; i++) {
        names[i] = rows[i].name;
    }
    const char *near = shl_nearest(name, names, n);
    for (size_t i = 0; i < c->n_options + c->n_hidden; i++) {
        const shl_option *row = &c->options[i];
        if (strcmp(row->name, name) == 0 || (row->alias && strcmp(row->alias, name) == 0)) {
            return SHL_OK;
        }
    }
    for (size_t i = 0; near && i < SHL_ARRAY_LEN(EVERYWHERE); i++) {
        if (strcmp(near, EVERYWHERE[i].name) == 0) {
            SHL_RAISE(SHL_E_USAGE, "unknown option --%s", name);
            shl_err_because("no option has this name; the nearest is --%s", near);
            return shl_err_advice("--%s", near);
        }
    }
    return SHL_OK;
}

/* Copies to words what the command's own parser is to see. */
static shl_code
take_common_words(const shl_command *c, const shl_cli *cli, const char **words, int *n_words)
{
    bool ended = false;
    *n_words = 0;
    for (int i = 0; i < cli->argc; i++) {
        const char *const *at = cli->argv + i;
        ended = ended || strcmp(*at, "--") == 0;
        int used = ended ? 0 : color_words(cli->argc - i, at);
        if (used > 0) {
            everywhere values = {0};
            SHL_TRY(shl_option_parse(EVERYWHERE, SHL_ARRAY_LEN(EVERYWHERE), used, at, &values, NULL,
                                     NULL, NULL, 0));
            shl_terminal_set_color((shl_color_mode)values.color);
            i += used - 1;
            continue;
        }
        if (!ended && strncmp(*at, "--", 2) == 0) {
            SHL_TRY(check_spelling(c, *at));
        }
        words[(*n_words)++] = *at;
    }
    return SHL_OK;
}

static shl_code
print_help(const shl_command *c)
{
    shl_str text = {0};
    shl_command_help_text(c, &text);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

shl_code
shl_cli_parse(const shl_command *c, const shl_cli *cli, void *values, shl_origin *origins,
              const char **positionals, int *n_positionals, int max_positionals, bool *help_shown)
{
    *help_shown = false;
    for (int i = 0; i < cli->argc && strcmp(cli->argv[i], "--") != 0; i++) {
        if (strcmp(cli->argv[i], "--help") == 0 || strcmp(cli->argv[i], "-h") == 0) {
            *help_shown = true;
            return print_help(c);
        }
    }
    size_t n = c->n_options + c->n_hidden;
    const char **words = NULL;
    int n_words = 0;
    SHL_TRY(shl_option_defaults(c->options, n, values, origins));
    SHL_TRY(shl_heap_alloc((size_t)cli->argc + 1, sizeof(*words), &words));
    shl_code code = take_common_words(c, cli, words, &n_words);
    if (code == SHL_OK) {
        code = shl_option_parse(c->options, n, n_words, words, values, origins, positionals,
                                n_positionals, max_positionals);
    }
    shl_heap_free(&words);
    return code;
}

shl_code
shl_cli_print(const shl_str *text)
{
    if (text->failed) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory while writing the result");
    }
    if (fwrite(shl_str_get(text), 1, text->len, stdout) != text->len || fflush(stdout) != 0) {
        SHL_RAISE(SHL_E_IO, "cannot write to stdout");
        return shl_err_because("%s", strerror(errno));
    }
    return SHL_OK;
}

void
shl_cli_note(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
}

bool
shl_cli_stderr_is_terminal(void)
{
    return shl_terminal_is(STDERR_FILENO);
}

void
shl_cli_report_error(void)
{
    const shl_err *e = shl_err_get();
    const char *plain = shl_terminal_paint(STDERR_FILENO, SHL_PAINT_NONE);
    const char *strong = shl_terminal_paint(STDERR_FILENO, SHL_PAINT_STRONG);
    fprintf(stderr, "%serror:%s %s\n", shl_terminal_paint(STDERR_FILENO, SHL_PAINT_BAD), plain,
            e->what[0] ? e->what : shl_code_text(e->code));
    if (e->because[0]) {
        fprintf(stderr, "  because: %s\n", e->because);
    }
    if (e->advice[0]) {
        fprintf(stderr, "  %stry:%s %s\n", strong, plain, e->advice);
    }
    const char *log = shl_env("SHL_LOG");
    if (e->trace[0] && (e->code == SHL_E_BUG || log)) {
        fprintf(stderr, "  trace:\n%s\n", e->trace);
    }
}

shl_code
shl_cli_fit_openmp(const shl_cli *cli, int ranks, int threads)
{
    return cli->world ? SHL_OK : shl_host_fit_openmp(cli->full_argv, ranks, threads);
}
