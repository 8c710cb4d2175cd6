/* kernels/device: the explicit list of backends: a new one is its folder and one line here. */
#include "kernels/device/device_registry.h"

#include <string.h>

#include "kernels/base/str.h"

static const shl_device_ops *const rows[] = {
    &shl_cpu_device_ops,
    &shl_virtual_device_ops,
    &shl_cuda_device_ops,
};

static const char *const kinds[] = {"cpu", "virtual", "cuda", NULL};

const char *const *
shl_device_kinds(void)
{
    return kinds;
}

const struct shl_op_table *
shl_device_registry_host_table(void)
{
    return shl_cpu_op_table();
}

shl_code
shl_device_registry_find(const char *kind, const shl_device_ops **out)
{
    *out = NULL;
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        if (kind != NULL && strcmp(kind, rows[i]->kind) == 0) {
            *out = rows[i];
            return SHL_OK;
        }
    }
    const char *near = kind == NULL ? NULL : shl_nearest(kind, kinds, SHL_ARRAY_LEN(kinds) - 1);
    SHL_RAISE(SHL_E_USAGE, "unknown device '%s'", kind == NULL ? "" : kind);
    shl_err_because("the known devices are cpu, virtual and cuda");
    return near == NULL ? shl_err_advice("device cpu") : shl_err_advice("device %s", near);
}
