/* engines/shared: LAMB's norms: those of shl_update_norm, but for every tensor at once. */
#include "engines/shared/lamb.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "engines/shared/update.h"
#include "kernels/base/heap.h"
#include "kernels/ops/ops.h"

/* Of a parameter: its own norm, then that of its update. */
typedef struct norm_slot {
    uint32_t max_bits;
    uint32_t none[3];
    int64_t sum[2];
} norm_slot;
_Static_assert(sizeof(norm_slot) == 32, "device memory is laid out as this");

#define CONTROL_BYTES 4096 /* most that a control call carries */

shl_code
shl_lamb_init(shl_state *st)
{
    const shl_engine_config *c = &st->engine->config;
    size_t n = (size_t)st->engine->model->n_params;
    if (c->no_optimizer || c->optim.kind != SHL_OPTIM_LAMB) {
        return SHL_OK;
    }
    SHL_TRY(shl_heap_alloc(n, sizeof(*st->lamb_ratio), &st->lamb_ratio));
    return shl_device_alloc(st->engine->device, 2 * n * sizeof(norm_slot), SHL_TIER_DEVICE,
                            SHL_TAG_WORK, 0, "lamb norms", &st->lamb_norms);
}

void
shl_lamb_fini(shl_state *st)
{
    shl_device_free(st->engine->device, &st->lamb_norms);
    shl_heap_free(&st->lamb_ratio);
}

/* One pass over parameters and updates: maxima, or sums of squares by each tensor's quantum. */
static shl_code
norm_pass(shl_state *st, const norm_slot *found)
{
    shl_stream *s = shl_device_stream(st->engine->device, SHL_STREAM_COMPUTE);
    for (int i = 0; i < st->n_train_frags; ++i) {
        const shl_fragment *f = &st->frags[i];
        const shl_store *stores[] = {shl_state_master_of(st, f), &st->grad};
        for (int k = 0; k < 2; ++k) {
            int slot = 2 * f->param + k;
            char *at = (char *)st->lamb_norms.data + (size_t)slot * sizeof(norm_slot);
            shl_norm_args a = {.x = shl_state_fragment(st, stores[k], f),
                               .out_max = shl_tensor_1d(at, SHL_I32, 1),
                               .out_sum = shl_tensor_1d(at + offsetof(norm_slot, sum), SHL_I64, 2)};
            if (found != NULL) {
                a.quantum_log2 = shl_update_norm_quantum(found[slot].max_bits);
            }
            SHL_TRY(found != NULL ? shl_op_norm_sum(s, &a) : shl_op_norm_max(s, &a));
        }
    }
    return SHL_OK;
}

/* Every slot's maximum, or sum, over the ranks of the shard group. */
static shl_code
over_ranks(shl_state *st, norm_slot *slots, int n, bool sums)
{
    union {
        uint32_t max[CONTROL_BYTES / sizeof(uint32_t)];
        int64_t sum[CONTROL_BYTES / (2 * sizeof(int64_t))][2];
    } part;
    int most = sums ? (int)SHL_ARRAY_LEN(part.sum) : (int)SHL_ARRAY_LEN(part.max);
    shl_comm *group = st->engine->mesh.shard;
    for (int at = 0; group != NULL && at < n; at += most) {
        int m = n - at < most ? n - at : most;
        for (int i = 0; i < m; ++i) {
            if (sums) {
                memcpy(part.sum[i], slots[at + i].sum, sizeof(part.sum[i]));
            } else {
                part.max[i] = slots[at + i].max_bits;
            }
        }
        SHL_TRY(
            shl_comm_control(group, sums ? SHL_CONTROL_SUM_I128 : SHL_CONTROL_MAX_U32, &part, m));
        for (int i = 0; i < m; ++i) {
            if (sums) {
                memcpy(slots[at + i].sum, part.sum[i], sizeof(part.sum[i]));
            } else {
                slots[at + i].max_bits = part.max[i];
            }
        }
    }
    return SHL_OK;
}

/* 1 where a norm is zero or not finite, as DeepSpeed's; else within its bounds. */
static double
ratio_of(const shl_optim_config *o, const norm_slot *max, const norm_slot *sum)
{
    double p = shl_update_norm_root(max[0].max_bits, sum[0].sum);
    double u = shl_update_norm_root(max[1].max_bits, sum[1].sum);
    if (!(p > 0.0) || !(u > 0.0) || !isfinite(p) || !isfinite(u)) {
        return 1.0;
    }
    return fmin(o->max_coeff, fmax(o->min_coeff, p / u));
}

/* max, sum: n slots each. The second download brings maxima of this rank alone again. */
static shl_code
find_ratios(shl_state *st, norm_slot *max, norm_slot *sum, int n)
{
    shl_device *d = st->engine->device;
    size_t bytes = (size_t)n * sizeof(norm_slot);
    SHL_TRY(shl_device_fill(d, st->lamb_norms.data, 0, bytes, NULL));
    SHL_TRY(norm_pass(st, NULL));
    SHL_TRY(shl_device_download(d, max, st->lamb_norms.data, bytes));
    SHL_TRY(over_ranks(st, max, n, false));
    SHL_TRY(norm_pass(st, max));
    SHL_TRY(shl_device_download(d, sum, st->lamb_norms.data, bytes));
    SHL_TRY(over_ranks(st, sum, n, true));
    for (int i = 0; i < n; i += 2) {
        st->lamb_ratio[i / 2] = ratio_of(&st->engine->config.optim, &max[i], &sum[i]);
    }
    return SHL_OK;
}

shl_code
shl_lamb_prepare(shl_state *st, double coef)
{
    int n = 2 * st->engine->model->n_params;
    norm_slot *slots = NULL;
    SHL_TRY(shl_update_lamb_moments(st, coef));
    SHL_TRY(shl_heap_alloc(2 * (size_t)n, sizeof(*slots), &slots));
    shl_code code = find_ratios(st, slots, slots + n, n);
    shl_heap_free(&slots);
    return code;
}
