/* kernels/device: the explicit list of backends: a new one is its folder and one line here. */
#include "kernels/device/device_registry.h"

#include <string.h>

#include "kernels/base/str.h"

typedef struct registry_row {
    const char *kind;
    const shl_device_ops *ops; /* NULL: known, but not in this build */
    const char *missing;       /* what a build without it lacks */
} registry_row;

static const registry_row rows[] = {
    {"cpu", &shl_cpu_device_ops, NULL},
    {"virtual", &shl_virtual_device_ops, NULL},
    {"cuda", NULL, "this build has no CUDA backend"},
};

static const char *const kinds[] = {"cpu", "virtual", NULL};

const char *const *
shl_device_kinds(void)
{
    return kinds;
}

shl_code
shl_device_registry_find(const char *kind, const shl_device_ops **out)
{
    *out = NULL;
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        if (kind == NULL || strcmp(kind, rows[i].kind) != 0) {
            continue;
        }
        if (rows[i].ops != NULL) {
            *out = rows[i].ops;
            return SHL_OK;
        }
        SHL_RAISE(SHL_E_USAGE, "device '%s' is not available", kind);
        shl_err_because("%s", rows[i].missing);
        return shl_err_advice("device cpu, or device virtual standing for %s", kind);
    }
    const char *near = kind == NULL ? NULL : shl_nearest(kind, kinds, SHL_ARRAY_LEN(kinds) - 1);
    SHL_RAISE(SHL_E_USAGE, "unknown device '%s'", kind == NULL ? "" : kind);
    shl_err_because("the known devices are cpu, virtual and cuda");
    return near == NULL ? shl_err_advice("device cpu") : shl_err_advice("device %s", near);
}
