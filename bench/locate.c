/* bench: finding shipped files from where the program itself lies, so that it works from a build
 * folder, from an installation and from any working folder without a compiled-in path. */
#include "bench/locate.h"

#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/str.h"

const char *
shl_locate_program(char *path, size_t path_bytes)
{
    ssize_t len = readlink("/proc/self/exe", path, path_bytes - 1);
    path[len > 0 ? len : 0] = '\0';
    return path;
}

shl_code
shl_locate(const char *name, char *path, size_t path_bytes)
{
    char folder[PATH_MAX];
    char program[256];
    shl_strf(program, sizeof program, "%s", shl_locate_program(folder, sizeof folder));
    for (char *cut = strrchr(folder, '/'); cut; cut = strrchr(folder, '/')) {
        *cut = '\0';
        static const char *const below[] = {"", "share/shardlab/"};
        for (size_t i = 0; i < sizeof below / sizeof below[0]; i++) {
            shl_strf(path, path_bytes, "%s/%s%s", folder, below[i], name);
            if (access(path, R_OK) == 0) {
                return SHL_OK;
            }
        }
    }
    shl_strf(path, path_bytes, "%s", name);
    if (access(path, R_OK) == 0) {
        return SHL_OK;
    }
    (void)SHL_RAISE(SHL_E_IO, "a file that ships with the program was not found: %s", name);
    (void)shl_err_because("it is in no folder above %s and not in the working folder", program);
    return shl_err_advice("run the program from inside its source tree or installation");
}
