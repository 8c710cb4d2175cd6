/* engines/config: DeepSpeed's two estimators (deepspeed/runtime/zero/{stage_1_and_2,stage3}.py). 18 bytes
 * a parameter are 2 + 4 gradient, 4 master and 8 of Adam. */
#include "engines/config/ds_estimate.h"

static int64_t
most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* int(bytes / ranks) of Python: both become doubles first. */
static int64_t
shared(int64_t bytes, int64_t ranks)
{
    return (int64_t)((double)bytes / (double)ranks);
}

shl_ds_estimate
shl_ds_estimate_zero2(const shl_ds_estimate_ask *ask)
{
    int64_t ranks = (int64_t)ask->ranks_per_node * ask->nodes, p = ask->total_params;
    shl_ds_estimate e = {0};
    if (ask->offload) {
        e.device_bytes = 2 * p;
        e.host_bytes = (int64_t)((double)(p * most(4 * ranks, 16)) * ask->additional_buffer_factor);
    } else {
        e.device_bytes = 2 * p + shared(18 * p, ranks);
        e.host_bytes =
            (int64_t)((double)(p * 4 * ask->ranks_per_node) * ask->additional_buffer_factor);
    }
    return e;
}

/* Host bytes of offloaded states: `each` bytes a parameter, split over nodes. */
static int64_t
offloaded(const shl_ds_estimate_ask *ask, int64_t each)
{
    double share = 1.0 / (double)ask->nodes, f = ask->additional_buffer_factor;
    if (ask->zero_init) {
        return (int64_t)((double)(ask->total_params * each) * share * f);
    }
    double full = 4.0 * (double)ask->ranks_per_node, part = (double)each * share;
    return (int64_t)((double)ask->total_params * (full > part ? full : part) * f);
}

shl_ds_estimate
shl_ds_estimate_zero3(const shl_ds_estimate_ask *ask)
{
    int64_t ranks = (int64_t)ask->ranks_per_node * ask->nodes, p = ask->total_params;
    shl_ds_estimate e = {.largest_layer_bytes = 4 * ask->largest_layer_params};
    e.device_bytes = e.largest_layer_bytes;
    if (ask->offload && ask->offload_params) {
        e.host_bytes = offloaded(ask, 18);
    } else if (ask->offload) {
        e.device_bytes += shared(2 * p, ranks);
        e.host_bytes = offloaded(ask, 16);
    } else {
        int64_t held = ask->zero_init ? ask->largest_layer_params : p;
        e.device_bytes += shared(18 * p, ranks);
        e.host_bytes =
            (int64_t)((double)(held * 4 * ask->ranks_per_node) * ask->additional_buffer_factor);
    }
    return e;
}
