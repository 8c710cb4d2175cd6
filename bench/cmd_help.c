/* bench: `shardlab help [COMMAND]`: the same text as COMMAND --help. */
#include "bench/cli.h"
#include "kernels/base/types.h"

static shl_code
run_help(const shl_cli *cli)
{
    shl_str text = {0};
    if (cli->argc > 1) {
        SHL_RAISE(SHL_E_USAGE, "help takes one command");
        return shl_err_because("%d words follow it", cli->argc);
    }
    const shl_command *command = cli->argc == 1 ? shl_command_find(cli->argv[0]) : NULL;
    if (cli->argc == 1 && !command) {
        return shl_command_raise_unknown(cli->argv[0]);
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
