/* engines/config: the memory that DeepSpeed's own estimators print for ZeRO-2 and ZeRO-3, to stand beside
 * ours. They know model states only: no activations, buckets, gathers or whole-tensor holds. */
#ifndef SHL_CONFIG_DS_ESTIMATE_H
#define SHL_CONFIG_DS_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct shl_ds_estimate_ask {
    int64_t total_params;         /* P >= 0 */
    int64_t largest_layer_params; /* L: of one leaf module; ZeRO-3 only */
    int ranks_per_node, nodes;    /* g, n >= 1 */
    bool offload, offload_params, zero_init;
    double additional_buffer_factor; /* f; DeepSpeed's default is 1.5 */
} shl_ds_estimate_ask;

typedef struct shl_ds_estimate {
    int64_t host_bytes;   /* per node, as DeepSpeed counts (ZeRO-2 with offload: the whole job) */
    int64_t device_bytes; /* per rank */
    int64_t largest_layer_bytes; /* 4 L; ZeRO-3 only */
} shl_ds_estimate;

/* estimate_zero2_model_states_mem_needs and estimate_zero3_...: exact, products from left to right in
 * doubles as written there, truncated. */
shl_ds_estimate shl_ds_estimate_zero2(const shl_ds_estimate_ask *ask);
shl_ds_estimate shl_ds_estimate_zero3(const shl_ds_estimate_ask *ask);

#endif
