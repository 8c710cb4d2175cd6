/* engines/api: what a handle tells: bytes by tier and tag, traffic, and its state piece by piece. */
#include <string.h>

#include "engines/api/lab.h"
#include "kernels/base/str.h"

_Static_assert(SHL_TIER_COUNT <= SHL_LAB_MAX_TIERS, "room for every tier");
_Static_assert(SHL_TAG_COUNT <= SHL_LAB_MAX_TAGS, "room for every tag");
_Static_assert(SHL_MARK_COUNT <= SHL_LAB_MAX_PHASES, "room for every phase");
_Static_assert(SHL_COLL_COUNT <= SHL_LAB_MAX_COLLECTIVES, "room for every collective");
_Static_assert(SHL_MAX_DIMS == SHL_LAB_MAX_DIMS, "dimensions are copied one by one");

/* As DLPack numbers them: kDLCPU, kDLExtDev; kDLInt, kDLUInt, kDLFloat, kDLBfloat. */
#define ON_HOST 1
#define ON_NOTHING 12
enum { CODE_INT = 0, CODE_UINT = 1, CODE_FLOAT = 2, CODE_BFLOAT = 4 };

const char *
shl_lab_tier_name(int tier)
{
    return tier >= 0 && tier < (int)SHL_TIER_COUNT ? shl_tier_name((shl_tier)tier) : NULL;
}

const char *
shl_lab_tag_name(int tag)
{
    return tag >= 0 && tag < (int)SHL_TAG_COUNT ? shl_tag_name((shl_tag)tag) : NULL;
}

const char *
shl_lab_phase_name(int phase)
{
    return phase >= 0 && phase < (int)SHL_MARK_COUNT ? shl_mark_name((shl_mark)phase) : NULL;
}

const char *
shl_lab_collective_name(int collective)
{
    return collective >= 0 && collective < (int)SHL_COLL_COUNT ? shl_coll_name((shl_coll)collective)
                                                               : NULL;
}

static void
fill_memory(const shl_ledger_tier *tier, shl_lab_memory *out)
{
    out->now_bytes = tier->now_bytes;
    out->peak_bytes = tier->peak_bytes;
    for (int i = 0; i < SHL_TAG_COUNT; i++) {
        out->now_tag_bytes[i] = tier->now_tag_bytes[i];
        out->peak_tag_bytes[i] = tier->peak_tag_bytes[i];
        out->at_peak_tag_bytes[i] = tier->at_peak_tag_bytes[i];
    }
    for (int i = 0; i < SHL_MARK_COUNT; i++) {
        out->phase_peak_bytes[i] = tier->phase_peak_bytes[i];
    }
    out->peak_phase = (int32_t)tier->peak_mark;
    shl_strf(out->peak_owner, sizeof(out->peak_owner), "%s", tier->peak_owner);
}

static void
fill_traffic(const shl_comm_stats *stats, shl_lab_report *out)
{
    for (int i = 0; i < SHL_COLL_COUNT; i++) {
        out->traffic[i] = (shl_lab_traffic){
            .calls = stats->kind[i].calls,
            .bytes = stats->kind[i].bytes,
            .wire_bytes = stats->kind[i].wire_bytes,
        };
    }
    out->staged_bytes = stats->staged_bytes;
}

static void
fill_report(const shl_lab *lab, shl_lab_report *out)
{
    shl_engine_info info;
    shl_engine_info_get(lab->engine, &info);
    *out = (shl_lab_report){
        .rank = lab->setup.rank,
        .ranks = lab->setup.ranks,
        .threads = lab->setup.threads,
        .predicted = lab->device->caps.predicted,
        .step = lab->engine->step,
        .params = lab->model->n_elems,
        .padding_elems = info.padding_elems,
        .n_units = info.n_units,
        .padding_bytes = info.padding_bytes,
        .trace_hash = shl_ledger_trace_hash(lab->device->ledger),
        .n_tiers = SHL_TIER_COUNT,
        .n_tags = SHL_TAG_COUNT,
        .n_phases = SHL_MARK_COUNT,
        .n_collectives = SHL_COLL_COUNT,
        .save_ns = lab->save_ns,
        .save_bytes = lab->save_bytes,
        .skipped_steps = lab->engine->skipped,
        .loss_scale = lab->engine->scaler.scale,
        .pinned_peak_bytes = lab->device->pinned_peak_bytes,
    };
    shl_dtype_policy_text(&lab->setup.engine, out->dtypes, sizeof(out->dtypes));
    shl_strf(out->model, sizeof(out->model), "%s", lab->setup.model);
    shl_strf(out->strategy, sizeof(out->strategy), "%s",
             shl_strategy_name(lab->setup.engine.strategy));
    shl_strf(out->layout, sizeof(out->layout), "%s", info.layout);
    for (int i = 0; i < SHL_TIER_COUNT; i++) {
        fill_memory(shl_ledger_get(lab->device->ledger, (shl_tier)i), &out->memory[i]);
    }
    fill_traffic(shl_comm_stats_get(lab->comm), out);
}

int
shl_lab_report_get(shl_lab *lab, shl_lab_report *out)
{
    shl_lab_report ours;
    if (!lab) {
        return shl_lab_leave(NULL, shl_lab_check(lab, "shl_lab_report_get"));
    }
    fill_report(lab, &ours); /* also of a handle that failed: its peaks say why */
    return shl_lab_leave(lab, shl_lab_give_sized(&ours, sizeof(ours), "shl_lab_report", out));
}

int
shl_lab_param_hash(shl_lab *lab, uint64_t *out)
{
    shl_code code = shl_lab_check_between(lab, "shl_lab_param_hash");
    if (code == SHL_OK && !out) {
        code = SHL_RAISE(SHL_E_USAGE, "shl_lab_param_hash: out is NULL");
    }
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    lab->agreed = false;
    return shl_lab_leave_collective(lab, shl_engine_param_hash(lab->engine, out), "hash");
}

/* --- state, piece by piece --------------------------------------------------------------- */

static void
fill_dtype(shl_dtype dtype, shl_lab_tensor *out)
{
    static const uint8_t codes[SHL_DTYPE_COUNT] = {
        [SHL_F32] = CODE_FLOAT, [SHL_BF16] = CODE_BFLOAT, [SHL_F16] = CODE_FLOAT,
        [SHL_F64] = CODE_FLOAT, [SHL_I32] = CODE_INT,     [SHL_I64] = CODE_INT,
        [SHL_U8] = CODE_UINT,
    };
    out->dtype_code = codes[dtype];
    out->dtype_bits = (uint8_t)(8 * shl_dtype_bytes(dtype));
    out->dtype_lanes = 1;
}

static void
fill_tensor(const shl_lab *lab, const shl_shard *shard, shl_lab_tensor *out)
{
    int64_t elems = 1;
    *out = (shl_lab_tensor){
        .struct_bytes = sizeof(*out),
        .name = shard->name,
        .kind = shard->kind,
        .data = shard->local.data,
        .device_type = lab->device->caps.has_bytes ? ON_HOST : ON_NOTHING,
        .full_n_dims = shard->n_dims,
        .begin = shard->begin,
        .end = shard->end,
        .replica = shard->replica,
        .n_replicas = shard->n_replicas,
        .n_dims = 1,
        .shape = {shard->end - shard->begin},
        .strides = {1},
    };
    fill_dtype(shard->local.dtype, out);
    for (int i = shard->n_dims - 1; i >= 0; i--) {
        out->full_shape[i] = shard->dims[i];
        elems *= shard->dims[i];
    }
    if (shard->begin == 0 && shard->end == elems) {
        out->n_dims = out->full_n_dims;
        int64_t stride = 1;
        for (int i = shard->n_dims - 1; i >= 0; i--) {
            out->shape[i] = out->full_shape[i];
            out->strides[i] = stride;
            stride *= out->full_shape[i];
        }
    }
}

typedef struct visit {
    const shl_lab *lab;
    shl_lab_tensor_fn fn;
    void *ctx;
} visit;

static shl_code
visit_shard(void *ctx, const shl_shard *shard)
{
    const visit *v = (const visit *)ctx;
    shl_lab_tensor tensor;
    fill_tensor(v->lab, shard, &tensor);
    shl_code code = shl_lab_code_from(v->fn(v->ctx, &tensor));
    if (code != SHL_OK && shl_err_get()->code != code) {
        return SHL_RAISE(code, "a visitor of the state stopped at %s", tensor.name);
    }
    return code;
}

int
shl_lab_tensors(shl_lab *lab, int mode, shl_lab_tensor_fn fn, void *ctx)
{
    visit v = {lab, fn, ctx};
    shl_code code = shl_lab_check_between(lab, "shl_lab_tensors");
    if (code == SHL_OK && (!fn || (mode != SHL_LAB_READ && mode != SHL_LAB_WRITE))) {
        code = fn ? SHL_RAISE(SHL_E_USAGE, "shl_lab_tensors: mode %d", mode)
                  : SHL_RAISE(SHL_E_USAGE, "shl_lab_tensors: the function is NULL");
    }
    if (code != SHL_OK) {
        return shl_lab_leave(lab, code);
    }
    if (mode == SHL_LAB_READ) {
        return shl_lab_leave(lab,
                             shl_engine_visit_state(lab->engine, SHL_VISIT_READ, visit_shard, &v));
    }
    /* After a failure half of the values are new, and the copies on other ranks are old. */
    lab->agreed = false;
    code = shl_engine_visit_state(lab->engine, SHL_VISIT_WRITE, visit_shard, &v);
    return shl_lab_leave_collective(lab, code, "tensors");
}
