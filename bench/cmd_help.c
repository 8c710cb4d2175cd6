/* bench: `shardlab help [COMMAND]`: the same text as COMMAND --help; and what else the option tables
 * give: the man page and the completions of shells. */
#include "bench/cli.h"
#include "kernels/base/types.h"

typedef struct help_options {
    bool man;
    int completion; /* 0: none */
} help_options;

static const char *const SHELLS[] = {"none", "bash", "zsh", "fish", NULL};

static const shl_option TABLE[] = {
    {"man", NULL, SHL_OPT_BOOL, offsetof(help_options, man), 0, 0, NULL, NULL, NULL, "Output",
     "The man page, for man -l or a folder such as share/man/man1."},
    {"completion", NULL, SHL_OPT_ENUM, offsetof(help_options, completion), 0, 0, "none", SHELLS,
     NULL, "Output", "What this shell reads to complete commands, options and their values."},
};

static shl_code
print(void (*write)(shl_str *out))
{
    shl_str text = {0};
    write(&text);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

static shl_code
print_command(const char *name)
{
    const shl_command *command = shl_command_find(name);
    if (!command) {
        return shl_command_raise_unknown(name);
    }
    shl_str text = {0};
    shl_command_help_text(command, &text);
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

static shl_code
run_help(const shl_cli *cli)
{
    static void (*const completions[])(shl_str *) = {NULL, shl_completion_bash, shl_completion_zsh,
                                                     shl_completion_fish};
    help_options o;
    const char *word = NULL;
    int n_words = 0;
    bool help_shown;
    SHL_TRY(shl_cli_parse(&shl_command_help, cli, &o, NULL, &word, &n_words, 1, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    if ((n_words > 0) + o.man + (o.completion > 0) > 1) {
        SHL_RAISE(SHL_E_USAGE, "help writes one thing at a time");
        return shl_err_because("a command, --man and --completion exclude one another");
    }
    if (n_words == 1) {
        return print_command(word);
    }
    if (o.completion > 0) {
        return print(completions[o.completion]);
    }
    return print(o.man ? shl_manual_text : shl_cli_usage_text);
}

const shl_command shl_command_help = {
    .name = "help",
    .summary = "what a command does and its options; man page, completions",
    .usage = "shardlab help [COMMAND | --man | --completion SHELL]",
    .examples = "  shardlab help train\n"
                "  shardlab help --man > shardlab.1\n"
                "  shardlab help --completion bash > shardlab.bash\n",
    .options = TABLE,
    .n_options = SHL_ARRAY_LEN(TABLE),
    .run = run_help,
};
