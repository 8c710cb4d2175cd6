/* bench: the registry of subcommands, in the order in which they are listed. A new one is one file
 * bench/cmd_<name>.c and one line here. */
#include "bench/cli.h"

const shl_command *const *
shl_command_table(size_t *n)
{
    static const shl_command *const table[] = {
        &shl_command_train,     &shl_command_bench,     &shl_command_plan, &shl_command_check,
        &shl_command_ckpt,      &shl_command_plot,      &shl_command_info, &shl_command_doctor,
        &shl_command_gpu_check, &shl_command_gpu_bench, &shl_command_help,
    };
    *n = sizeof(table) / sizeof(table[0]);
    return table;
}
