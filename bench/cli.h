/* bench: what every subcommand of the program has: an entry of the command table with its option
 * rows, its words, its help; stdout that reports a full disk. */
#ifndef SHL_BENCH_CLI_H
#define SHL_BENCH_CLI_H

#include <stdbool.h>

#include "engines/api/shardlab.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"

#define SHL_VERSION SHL_LAB_VERSION

#define SHL_WORDS_FILES "@files"

struct shl_world;

/* One call of the program. Borrowed by the command. */
typedef struct shl_cli {
    int argc; /* words after the subcommand */
    const char *const *argv;
    int full_argc; /* the whole command line, for records and for rank processes */
    const char *const *full_argv;
    struct shl_world *world; /* this process is one rank of it; NULL: an ordinary process */
} shl_cli;

typedef struct shl_command {
    const char *name;
    const char *summary;  /* one line in the list of commands */
    const char *usage;    /* "shardlab train [options]" */
    const char *examples; /* lines that a shell runs, each ending in a newline */
    const char *common;   /* "model steps": options that help shows first; or NULL */
    const char *words;    /* "models records": positional words; SHL_WORDS_FILES last: paths too */
    const shl_option *options; /* fed to parser and help; or NULL */
    size_t n_options;          /* rows shown and parsed */
    size_t n_hidden;           /* rows behind them that are parsed and not shown */
    shl_code (*run)(const shl_cli *cli);
} shl_command;

/* Each in its own bench/cmd_<name>.c. */
extern const shl_command shl_command_train;
extern const shl_command shl_command_bench;
extern const shl_command shl_command_plan;
extern const shl_command shl_command_check;
extern const shl_command shl_command_ckpt;
extern const shl_command shl_command_plot;
extern const shl_command shl_command_info;
extern const shl_command shl_command_doctor;
extern const shl_command shl_command_gpu_check;
extern const shl_command shl_command_gpu_bench;
extern const shl_command shl_command_help;

/* The commands in the order of the list (bench/commands.c); one by name (NULL: unknown). */
const shl_command *const *shl_command_table(size_t *n);
const shl_command *shl_command_find(const char *name);

/* Errors: SHL_E_USAGE with the nearest name and the list. Returns it, to end a function. */
shl_code shl_command_raise_unknown(const char *name);

/* The rows that a user sees, group by group in the order of the help: the common ones, the rest, and
 * last those of every command (--color, --help). At most max; returns how many. */
#define SHL_MAX_VISIBLE 128
size_t shl_command_rows(const shl_command *c, shl_option *rows, size_t max);

/* Appends the values that a row is known to take, with blanks between (presets, strategies, choices);
 * nothing when any number, text or file will do. */
void shl_command_values(const shl_option *row, shl_str *out);

/* Appends the help text of a command: what `help NAME` and `NAME --help` print. */
void shl_command_help_text(const shl_command *c, shl_str *out);

/* The man page of the program, and what a shell reads to complete its words (bash, zsh, fish). */
void shl_manual_text(shl_str *out);
void shl_completion_bash(shl_str *out);
void shl_completion_zsh(shl_str *out);
void shl_completion_fish(shl_str *out);

/* Appends the usage of the bare program (at most twelve lines). */
void shl_cli_usage_text(shl_str *out);

/* Colour as the words say, wrong ones aside: for messages before the words are parsed. */
void shl_cli_scan_color(int argc, const char *const *argv);

/* Defaults, then the words of cli; --help or -h anywhere prints the help on stdout, sets *help_shown
 * and parses nothing. Params: origins, positionals as shl_option_parse (NULL and 0 for none). */
shl_code shl_cli_parse(const shl_command *c, const shl_cli *cli, void *values, shl_origin *origins,
                       const char **positionals, int *n_positionals, int max_positionals,
                       bool *help_shown) SHL_MUST_USE;

/* Writes and flushes text on stdout. Errors: SHL_E_IO (full disk, closed pipe), SHL_E_HEAP when the
 * text itself is incomplete. */
shl_code shl_cli_print(const shl_str *text) SHL_MUST_USE;

/* Messages and progress on stderr. */
void shl_cli_note(const char *fmt, ...) SHL_PRINTF(1, 2);
bool shl_cli_stderr_is_terminal(void);

/* The three lines "error: what", "because: ...", "try: ..." of the thread's error on stderr. */
void shl_cli_report_error(void);

/* shl_host_fit_openmp for this command line; nothing in a rank process. Call before any output. */
shl_code shl_cli_fit_openmp(const shl_cli *cli, int ranks, int threads) SHL_MUST_USE;

#endif
