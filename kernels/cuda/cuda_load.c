/* kernels/cuda: loading the object. The loader keeps one copy per process, so nothing is remembered
 * here; it is never unloaded, because CUDA's runtime leaves handlers behind. */
#include "kernels/cuda/cuda_load.h"

#include <dlfcn.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/option.h"
#include "kernels/base/types.h"

/* The folder of a file, without the last slash; empty when there is none. */
static void
folder_of(const char *file, char *out, size_t bytes)
{
    const char *slash = strrchr(file, '/');
    shl_strf(out, bytes, "%.*s", slash == NULL ? 0 : (int)(slash - file), file);
}

static void
program_folder(char *out, size_t bytes)
{
    char file[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", file, sizeof(file) - 1);
    file[n > 0 ? n : 0] = '\0';
    folder_of(file, out, bytes);
}

/* Of the library or program that this code lies in. */
static void
library_folder(char *out, size_t bytes)
{
    Dl_info where;
    out[0] = '\0';
    if (dladdr(SHL_CUDA_OBJECT_NAME, &where) != 0 && where.dli_fname != NULL &&
        where.dli_fname[0] == '/') {
        folder_of(where.dli_fname, out, bytes);
    }
}

void
shl_cuda_load_paths(shl_str *out)
{
    static const char *const below[] = {"", "/lib", "/../lib"};
    char folder[2][PATH_MAX];
    const char *asked = shl_env("SHL_CUDA_OBJECT");
    if (asked != NULL) {
        shl_str_add(out, "%s\n", asked);
        return;
    }
    program_folder(folder[0], sizeof(folder[0]));
    library_folder(folder[1], sizeof(folder[1]));
    int n = strcmp(folder[0], folder[1]) == 0 ? 1 : 2;
    for (int i = 0; i < n; i++) {
        for (size_t k = 0; folder[i][0] != '\0' && k < SHL_ARRAY_LEN(below); k++) {
            shl_str_add(out, "%s%s/%s\n", folder[i], below[k], SHL_CUDA_OBJECT_NAME);
        }
    }
}

static shl_code
advise(void)
{
    return shl_err_advice("make CUDA=1, or SHL_CUDA_OBJECT=<path of %s>; device cpu, or device "
                          "virtual standing for cuda",
                          SHL_CUDA_OBJECT_NAME);
}

/* Loads the first path that exists; *tried counts them. */
static shl_code
open_first(const char *paths, void **handle)
{
    char path[PATH_MAX];
    *handle = NULL;
    for (const char *line = paths; *line != '\0';) {
        size_t n = strcspn(line, "\n");
        shl_strf(path, sizeof(path), "%.*s", (int)n, line);
        line += n + (line[n] == '\n');
        if (access(path, F_OK) != 0) {
            continue;
        }
        *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (*handle == NULL) {
            const char *why = dlerror();
            SHL_RAISE(SHL_E_SYSTEM, "the CUDA half does not load: %s", path);
            shl_err_because("%s (looked for in LD_LIBRARY_PATH and the system's folders)",
                            why == NULL ? "the loader does not say why" : why);
            return shl_err_advice("the missing library's folder in LD_LIBRARY_PATH");
        }
        return SHL_OK;
    }
    return SHL_OK;
}

/* The table of a loaded object. */
static shl_code
table_of(void *handle, const shl_cuda_backend **out)
{
    /* A function's address comes back as an object's: POSIX says that this is fine. */
    union {
        void *address;
        shl_cuda_entry_fn fn;
    } entry = {dlsym(handle, SHL_CUDA_ENTRY)};
    *out = entry.address == NULL ? NULL : entry.fn(SHL_CUDA_ABI);
    if (*out == NULL || (*out)->abi != SHL_CUDA_ABI || (*out)->bytes != sizeof(**out)) {
        SHL_RAISE(SHL_E_SYSTEM, "the CUDA half is of another build of shardlab");
        shl_err_because("it has %s, this program needs number %u with %zu bytes",
                        *out == NULL ? "no such table" : "a table of another shape", SHL_CUDA_ABI,
                        sizeof(**out));
        *out = NULL;
        return advise();
    }
    return SHL_OK;
}

shl_code
shl_cuda_load(const shl_cuda_backend **out)
{
    shl_str paths = {0};
    void *handle = NULL;
    *out = NULL;
    shl_cuda_load_paths(&paths);
    shl_code code = paths.failed ? SHL_RAISE(SHL_E_HEAP, "no memory for a path") : SHL_OK;
    if (code == SHL_OK) {
        code = open_first(shl_str_get(&paths), &handle);
    }
    if (code == SHL_OK && handle == NULL) {
        char list[400];
        shl_strf(list, sizeof(list), "%s", shl_str_get(&paths));
        for (char *c = list; *c != '\0'; c++) {
            *c = *c == '\n' ? (c[1] == '\0' ? '\0' : ' ') : *c;
        }
        SHL_RAISE(SHL_E_USAGE, "device 'cuda' is not available");
        shl_err_because("its shared object is not at: %s", list);
        code = advise();
    }
    shl_str_fini(&paths);
    if (code == SHL_OK) {
        code = table_of(handle, out);
    }
    if (handle != NULL) {
        (void)dlclose(handle); /* stays loaded: RTLD_NODELETE */
    }
    return code;
}
