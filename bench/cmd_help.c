/* bench: `shardlab help [COMMAND]`: the same text as COMMAND --help. */
#include "bench/cli.h"
#include "kernels/base/types.h"

static shl_code
run_help(const shl_cli *cli)
{
    shl_str text = {0};
    const char *word = NULL;
    int n_words = 0;
    bool help_shown;
    SHL_TRY(shl_cli_parse(&shl_command_help, cli, NULL, NULL, &word, &n_words, 1, &help_shown));
    if (help_shown) {
        return SHL_OK;
    }
    const shl_command *command = n_words == 1 ? shl_command_find(word) : NULL;
    if (n_words == 1 && !command) {
        return shl_command_raise_unknown(word);
    }
    if (command) {
        shl_command_help_text(command, &text);
    } else {
        shl_cli_usage_text(&text);
    }
    shl_code code = shl_cli_print(&text);
    shl_str_fini(&text);
    return code;
}

const shl_command shl_command_help = {
    .name = "help",
    .summary = "what a command does and its options",
    .usage = "shardlab help [COMMAND]",
    .run = run_help,
};
