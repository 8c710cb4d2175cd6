/* kernels/device: the explicit list of backends. The tables are declared here, in the interface's
 * room, so that the list includes nothing from above. */
#ifndef SHL_DEVICE_REGISTRY_H
#define SHL_DEVICE_REGISTRY_H

#include "kernels/device/device.h"

extern const shl_device_ops shl_cpu_device_ops;     /* kernels/cpu */
extern const shl_device_ops shl_virtual_device_ops; /* kernels/virtual */
extern const shl_device_ops shl_cuda_device_ops; /* kernels/cuda; its object is loaded when asked */

/* kernels/cpu: the ops of the host's processor; static storage. */
const struct shl_op_table *shl_cpu_op_table(void);

/* The ops of the processor that this runs on, for what lies in host memory; static storage. */
const struct shl_op_table *shl_device_registry_host_table(void);

/* The table of a kind. Errors: SHL_E_USAGE, as shl_device_open says. */
shl_code shl_device_registry_find(const char *kind, const shl_device_ops **out) SHL_MUST_USE;

#endif
