/* bench: the parts that all subcommands share: parsing with help, stdout with error checks,
 * errors as three lines. */
#include "bench/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bench/host.h"
#include "kernels/base/types.h"

void
shl_cli_usage_text(shl_str *out)
{
    size_t n;
    const shl_command *const *table = shl_command_table(&n);
    shl_str_add(out, "usage: shardlab COMMAND [options]\n");
    for (size_t i = 0; i < n; i++) {
        shl_str_add(out, "  %-6s %s\n", table[i]->name, table[i]->summary);
    }
    shl_str_add(out, "try: shardlab train --strategy zero3 --ranks 2\n");
}

void
shl_command_help_text(const shl_command *c, shl_str *out)
{
    shl_str_add(out, "%s: %s\n\nusage: %s\n", c->name, c->summary, c->usage);
    if (c->examples) {
        shl_str_add(out, "\nexamples:\n%s", c->examples);
    }
    if (c->n_options > 0) {
        shl_str_add(out, "\n");
        shl_option_help(c->options, c->n_options, out);
    }
    shl_str_add(out,
                "\nexit codes: 0 ok, 1 verification failed, 2 usage or configuration, 3 does not "
                "fit,\n  5 run time or input/output, 130 interrupted\n");
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

shl_code
shl_cli_parse(const shl_command *c, const shl_cli *cli, void *values, shl_origin *origins,
              const char **positionals, int *n_positionals, int max_positionals, bool *help_shown)
{
    *help_shown = false;
    for (int i = 0; i < cli->argc && strcmp(cli->argv[i], "--") != 0; i++) {
        if (strcmp(cli->argv[i], "--help") == 0 || strcmp(cli->argv[i], "-h") == 0) {
            shl_str text = {0};
            shl_command_help_text(c, &text);
            shl_code code = shl_cli_print(&text);
            shl_str_fini(&text);
            *help_shown = true;
            return code;
        }
    }
    size_t n = c->n_options + c->n_hidden;
    SHL_TRY(shl_option_defaults(c->options, n, values, origins));
    SHL_TRY(shl_option_parse(c->options, n, cli->argc, cli->argv, values, origins, positionals,
                             n_positionals, max_positionals));
    return SHL_OK;
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
    return isatty(STDERR_FILENO) == 1;
}

void
shl_cli_report_error(void)
{
    const shl_err *e = shl_err_get();
    fprintf(stderr, "error: %s\n", e->what[0] ? e->what : shl_code_text(e->code));
    if (e->because[0]) {
        fprintf(stderr, "  because: %s\n", e->because);
    }
    if (e->advice[0]) {
        fprintf(stderr, "  try: %s\n", e->advice);
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
