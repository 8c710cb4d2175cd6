/* bench: the program. Finds the subcommand, joins the world when this process is a rank of one, and
 * turns an error into three lines and an exit code; the only place that ends the process. */
#include <locale.h>
#include <string.h>

#include "bench/cli.h"
#include "bench/host.h"
#include "engines/comm/world.h"
#include "kernels/base/log.h"

static shl_code
run(int argc, const char *const *argv, shl_world *world)
{
    if (argc < 2) {
        shl_str text = {0};
        shl_cli_usage_text(&text);
        shl_cli_note("%s", shl_str_get(&text));
        shl_str_fini(&text);
        return SHL_E_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        name = "help";
    } else if (strcmp(name, "--version") == 0) {
        name = "info";
    }
    const shl_command *command = shl_command_find(name);
    if (!command) {
        return shl_command_raise_unknown(name);
    }
    shl_cli cli = {
        .argc = argc - 2, .argv = argv + 2, .full_argc = argc, .full_argv = argv, .world = world};
    return command->run(&cli);
}

int
main(int argc, char **argv)
{
    shl_world *world = NULL;
    shl_code code = SHL_OK;
    setlocale(LC_ALL, "C");
    shl_cli_scan_color(argc, (const char *const *)argv);
    const char *log = shl_env("SHL_LOG");
    if (log) {
        code = shl_log_configure(log);
    }
    if (code == SHL_OK) {
        code = shl_world_join(&world);
    }
    if (code == SHL_OK) {
        code = shl_host_catch_signals(world != NULL);
    }
    if (code == SHL_OK) {
        code = run(argc, (const char *const *)argv, world);
    }
    if (world) {
        /* The parent gets the text with the code and reports it once. */
        shl_world_leave(&world, code);
    } else if (code != SHL_OK && shl_err_get()->code == code) {
        shl_cli_report_error();
    }
    return shl_code_exit_status(code);
}
