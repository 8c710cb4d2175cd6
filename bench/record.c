/* bench: the field tables of records and how a record is filled. */
#include "bench/record.h"

#include <math.h>
#include <string.h>

#include <jansson.h>

#define STEP(path, type, member, help)                                                             \
    {                                                                                              \
        path, SHL_FIELD_##type, offsetof(shl_step_record, member), NULL, SHL_LOOK_PLAIN, help      \
    }
#define EVAL(path, type, member, help)                                                             \
    {                                                                                              \
        path, SHL_FIELD_##type, offsetof(shl_eval_record, member), NULL, SHL_LOOK_PLAIN, help      \
    }
#define EVENT(path, type, member, help)                                                            \
    {                                                                                              \
        path, SHL_FIELD_##type, offsetof(shl_event_record, member), NULL, SHL_LOOK_PLAIN, help     \
    }
#define RUN(path, type, member, heading, look, help)                                               \
    {                                                                                              \
        path, SHL_FIELD_##type, offsetof(shl_run_record, member), heading, SHL_LOOK_##look, help   \
    }

static const shl_field step_fields[] = {
    STEP("kind", TEXT, kind, "\"step\""),
    STEP("schema", INT, schema, "version of this layout; fields are only ever added"),
    STEP("strategy", TEXT, strategy, "strategy of the run"),
    STEP("ranks", INT, ranks, "ranks of the run"),
    STEP("dtypes", TEXT, dtypes, "dtype policy by role, in words"),
    STEP("step", INT, step, "global batches done, this one included"),
    STEP("loss", REAL, loss,
         "sum over valid targets / their number, global batch; null on virtual"),
    STEP("loss_bits", BITS, loss, "the 64 bits of the loss, for exact comparison"),
    STEP("grad_norm", REAL, grad_norm,
         "global L2 norm, unscaled, before clipping; null on virtual and when not finite"),
    STEP("loss_scale", REAL, loss_scale, "that gradients of this step carried; 1: none"),
    STEP("skipped", BOOL, skipped, "gradients were not finite: nothing was updated"),
    STEP("skipped_steps", INT, skipped_steps, "of all steps up to this one"),
    STEP("lr", REAL, lr, "learning rate of this update"),
    STEP("tokens", INT, tokens, "positions of the global batch"),
    STEP("step_ns", INT, step_ns, "nanoseconds of the device's clock"),
    STEP("h2d_bytes", INT, h2d_bytes, "from host to device memory, rank 0"),
    STEP("d2h_bytes", INT, d2h_bytes, "from device to host memory, rank 0"),
    STEP("exposed_move_ns", INT, exposed_move_ns, "compute waited for those copies"),
};

static const shl_field eval_fields[] = {
    EVAL("kind", TEXT, kind, "\"eval\""),
    EVAL("schema", INT, schema, "version of this layout; fields are only ever added"),
    EVAL("strategy", TEXT, strategy, "strategy of the run"),
    EVAL("ranks", INT, ranks, "ranks of the run"),
    EVAL("step", INT, step, "updates done"),
    EVAL("loss", REAL, loss, "mean over all validation targets; null on virtual"),
    EVAL("loss_bits", BITS, loss, "its 64 bits, the same for any number of ranks at one batch"),
    EVAL("perplexity", REAL, perplexity, "e to the loss"),
    EVAL("tokens", INT, tokens, "targets"),
    EVAL("ns", INT, ns, "nanoseconds of the device's clock"),
};

#define HELD(tag, name)                                                                            \
    EVENT("bytes." name, INT, tag_bytes[SHL_TAG_##tag], "of this tag, in this tier, behind it")

static const shl_field event_fields[] = {
    EVENT("kind", TEXT, kind, "\"event\""),
    EVENT("schema", INT, schema, "version of this layout; fields are only ever added"),
    EVENT("model", TEXT, model, "as in the run record"),
    EVENT("strategy", TEXT, strategy, "strategy of the run"),
    EVENT("ranks", INT, ranks, "ranks of the run"),
    EVENT("batch", INT, batch, "micro-batch per rank, sequences"),
    EVENT("seq", INT, seq, "positions per sequence"),
    EVENT("step", INT, step, "updates done, this one included"),
    EVENT("at", INT, at, "counts events of all tiers from 1; 0: before the first"),
    EVENT("phase", TEXT, phase, "forward, backward, step; null at 0"),
    EVENT("tier", TEXT, tier, "device, host or nvme"),
    EVENT("tag", TEXT, tag, "what the bytes are for; null at 0"),
    EVENT("owner", TEXT, owner, "who asked for them; null at 0"),
    EVENT("delta_bytes", INT, delta_bytes, "taken, or given back when negative; 0 at 0"),
    EVENT("total_bytes", INT, total_bytes, "held in this tier behind it; the sum of the tags"),
    HELD(PARAM, "param"),
    HELD(GATHER, "gather"),
    HELD(GRAD, "grad"),
    HELD(MASTER, "master"),
    HELD(OPTIM, "optim"),
    HELD(ACT, "act"),
    HELD(BUCKET, "bucket"),
    HELD(STAGING, "staging"),
    HELD(WORK, "work"),
    HELD(CKPT, "ckpt"),
};

#define TAG(object, array, tier, tier_name, tag, name)                                             \
    RUN(object "." tier_name "." name, INT, array[SHL_TIER_##tier].tags[SHL_TAG_##tag], NULL,      \
        PLAIN, "bytes")
/* Columns of the table come from the device tier, and one from the host. */
#define TIER_TOTAL(object, array, tier, tier_name, heading, look, help)                            \
    RUN(object "." tier_name ".total", INT, array[SHL_TIER_##tier].total, heading, look, help)
#define TIER(object, array, tier, tier_name)                                                       \
    TIER_TOTAL(object, array, tier, tier_name, NULL, PLAIN, "bytes"),                              \
        TIER_TAGS(object, array, tier, tier_name)
#define TIER_TAGS(object, array, tier, tier_name)                                                  \
    TAG(object, array, tier, tier_name, PARAM, "param"),                                           \
        TAG(object, array, tier, tier_name, GATHER, "gather"),                                     \
        TAG(object, array, tier, tier_name, GRAD, "grad"),                                         \
        TAG(object, array, tier, tier_name, MASTER, "master"),                                     \
        TAG(object, array, tier, tier_name, OPTIM, "optim"),                                       \
        TAG(object, array, tier, tier_name, ACT, "act"),                                           \
        TAG(object, array, tier, tier_name, BUCKET, "bucket"),                                     \
        TAG(object, array, tier, tier_name, STAGING, "staging"),                                   \
        TAG(object, array, tier, tier_name, WORK, "work"),                                         \
        TAG(object, array, tier, tier_name, CKPT, "ckpt")

#define EVAL_PEAK(tag, name)                                                                       \
    RUN("eval_peak." name, INT, eval_peak.tags[SHL_TAG_##tag], NULL, PLAIN,                        \
        "its own largest meanwhile, device tier")
#define PEAK(member, name, heading, help)                                                          \
    RUN("peak_bytes.device." name, INT, peak[SHL_TIER_DEVICE].member, heading, MIB, help)

#define COLL(coll, name, calls_heading, heading)                                                   \
    RUN("comm." name ".calls", INT, comm.kind[SHL_COLL_##coll].calls, calls_heading, PLAIN,        \
        "a coalesced call counts once"),                                                           \
        RUN("comm." name ".bytes", INT, comm.kind[SHL_COLL_##coll].bytes, heading, MIB,            \
            "full unsharded buffers with padding"),                                                \
        RUN("comm." name ".wire_bytes", INT, comm.kind[SHL_COLL_##coll].wire_bytes, NULL, PLAIN,   \
            "sent by a rank under a ring")

static const shl_field run_fields[] = {
    RUN("kind", TEXT, kind, NULL, PLAIN, "\"run\""),
    RUN("schema", INT, schema, NULL, PLAIN, "version of this layout; fields are only ever added"),
    RUN("model", TEXT, model, "model", PLAIN, "preset, or the shape spelled out"),
    RUN("strategy", TEXT, strategy, "strategy", PLAIN, "what is sharded"),
    RUN("layout", TEXT, layout, NULL, PLAIN, "how elements are dealt to ranks"),
    RUN("ranks", INT, ranks, "ranks", PLAIN, "data-parallel ranks"),
    RUN("threads", INT, threads, "threads", VARIES, "compute threads per rank"),
    RUN("device", TEXT, device, NULL, PLAIN, "device kind"),
    RUN("batch", INT, batch, "B", VARIES, "micro-batch per rank, sequences"),
    RUN("seq", INT, seq, "T", VARIES, "positions per sequence"),
    RUN("accum", INT, accum, "accum", VARIES, "micro-steps per step"),
    RUN("steps", INT, steps, NULL, PLAIN, "the step number to reach"),
    RUN("steps_done", INT, steps_done, NULL, PLAIN, "steps of this run; fewer after an interrupt"),
    RUN("seed", INT, seed, "seed", VARIES, "initial parameters and order of the data"),
    RUN("data_seed", INT, data_seed, "data seed", VARIES, "order of the data"),
    RUN("params", INT, params, NULL, PLAIN,
        "parameters of the model, ties once, adapters included"),
    RUN("trainable_params", INT, trainable_params, NULL, PLAIN, "of them, adapters included"),
    RUN("frozen_params", INT, frozen_params, "frozen", COUNT,
        "the others: no gradient, no optimizer state"),
    RUN("recompute", TEXT, recompute, "recompute", VARIES,
        "what backward makes again: none, selective, full"),
    RUN("offload", TEXT, offload, "offload", VARIES,
        "what is in host memory: none, or optimizer, param, activations with + between"),
    RUN("dtype", TEXT, dtype, "dtype", VARIES, "of computing"),
    RUN("dtypes", JSON, dtypes, NULL, PLAIN, "dtype policy by role"),
    RUN("loss", REAL, loss, "loss", SHORT, "of the last step; null on virtual"),
    RUN("loss_bits", BITS, loss, NULL, PLAIN, "its 64 bits"),
    RUN("grad_norm", REAL, grad_norm, "norm", SHORT, "of the last step, before clipping"),
    RUN("val_loss", REAL, val_loss, "val loss", SHORT,
        "of the last evaluation; null without one and on virtual"),
    RUN("val_loss_bits", BITS, val_loss, NULL, PLAIN, "its 64 bits"),
    RUN("val_perplexity", REAL, val_perplexity, NULL, PLAIN, "e to it"),
    RUN("loss_scale", REAL, loss_scale, NULL, PLAIN, "of the last step; 1: none"),
    RUN("skipped_steps", INT, skipped_steps, "skipped", VARIES,
        "since step 0, because gradients were not finite"),
    PEAK(total, "total", "peak MiB", "worst rank's largest total"),
    PEAK(tags[SHL_TAG_PARAM], "param", "param", "resident parameters or shards"),
    PEAK(tags[SHL_TAG_GATHER], "gather", "gather", "temporary unsharded parameters"),
    PEAK(tags[SHL_TAG_GRAD], "grad", "grad", "gradients that survive to the step"),
    PEAK(tags[SHL_TAG_MASTER], "master", "master",
         "weights that updates are made on, apart from param"),
    PEAK(tags[SHL_TAG_OPTIM], "optim", "optim", "optimizer moments"),
    PEAK(tags[SHL_TAG_ACT], "act", "act", "activations and their gradients"),
    PEAK(tags[SHL_TAG_BUCKET], "bucket", "bucket", "gradients not yet reduced, collective buffers"),
    PEAK(tags[SHL_TAG_STAGING], "staging", NULL, "transport and offload copies"),
    PEAK(tags[SHL_TAG_WORK], "work", NULL, "op scratch"),
    PEAK(tags[SHL_TAG_CKPT], "ckpt", NULL, "checkpoint staging"),
    TIER_TOTAL("peak_bytes", peak, HOST, "host", "host MiB", MIB,
               "what is offloaded: that rank's largest total"),
    TIER_TAGS("peak_bytes", peak, HOST, "host"),
    TIER("peak_bytes", peak, NVME, "nvme"),
    TIER("at_peak", at_peak, DEVICE, "device"),
    TIER("at_peak", at_peak, HOST, "host"),
    TIER("at_peak", at_peak, NVME, "nvme"),
    RUN("eval_peak.total", INT, eval_peak.total, "eval MiB", MIB,
        "that rank's largest total while evaluating; 0 without an evaluation"),
    EVAL_PEAK(PARAM, "param"),
    EVAL_PEAK(GATHER, "gather"),
    EVAL_PEAK(GRAD, "grad"),
    EVAL_PEAK(MASTER, "master"),
    EVAL_PEAK(OPTIM, "optim"),
    EVAL_PEAK(ACT, "act"),
    EVAL_PEAK(BUCKET, "bucket"),
    EVAL_PEAK(STAGING, "staging"),
    EVAL_PEAK(WORK, "work"),
    EVAL_PEAK(CKPT, "ckpt"),
    RUN("peak_phase", TEXT, peak_phase, "at", PLAIN, "phase of the first moment at the peak"),
    RUN("peak_owner", TEXT, peak_owner, NULL, PLAIN, "who asked for the bytes that reached it"),
    RUN("padding_bytes", INT, padding_bytes, NULL, PLAIN, "resident bytes that layouts add"),
    RUN("limit_bytes", INT, limit_bytes, NULL, PLAIN, "memory per rank; 0: none"),
    RUN("margin_bytes", INT, margin_bytes, "margin MiB", MIB, "limit - peak; null without a limit"),
    RUN("fits", TEXT, fits, "fits", PLAIN, "yes or no; null without a limit"),
    RUN("formula.state_bytes", REAL, formula_state_bytes, "formula", MIB,
        "param + grad + master + optim by the closed form, without padding"),
    RUN("formula.host_bytes", REAL, formula_host_bytes, NULL, PLAIN,
        "the same in host memory; formula.state_bytes is what stays on the device"),
    RUN("formula.h2d_bytes", REAL, formula_h2d_bytes, NULL, PLAIN, "per rank and step"),
    RUN("formula.d2h_bytes", REAL, formula_d2h_bytes, NULL, PLAIN, "per rank and step"),
    RUN("formula.held_bytes", REAL, formula_held_bytes, NULL, PLAIN,
        "whole gradients that fsdp holds until a boundary, beside it"),
    RUN("formula.paper_bytes", REAL, formula_paper_bytes, "2+2+12", MIB,
        "the same by the papers' convention for 16 bits, 2 + 2 + 12 bytes; null for fp32"),
    RUN("formula.all_gather_bytes", REAL, formula_gather_bytes, NULL, PLAIN,
        "per rank and step, frozen parts too where they are sharded, without padding"),
    RUN("formula.reduce_scatter_bytes", REAL, formula_scatter_bytes, NULL, PLAIN,
        "per rank and step, of what is trained"),
    RUN("formula.all_reduce_bytes", REAL, formula_reduce_bytes, NULL, PLAIN,
        "per rank and step, of what is trained"),
    COLL(ALL_GATHER, "all_gather", "AG", "AG MiB"),
    COLL(REDUCE_SCATTER, "reduce_scatter", "RS", "RS MiB"),
    COLL(ALL_REDUCE, "all_reduce", "AR", "AR MiB"),
    COLL(BROADCAST, "broadcast", NULL, NULL),
    COLL(CONTROL, "control", NULL, NULL),
    RUN("h2d_bytes", INT, h2d_bytes, "H2D MiB", MIB,
        "from host to device memory in the last step, rank 0; null without offload"),
    RUN("d2h_bytes", INT, d2h_bytes, "D2H MiB", MIB,
        "from device to host memory in the last step, rank 0; null without offload"),
    RUN("pinned_bytes", INT, pinned_bytes, NULL, PLAIN,
        "most locked host memory of a rank; null without offload"),
    RUN("comm_uniform", BOOL, comm_uniform, NULL, PLAIN, "every step had the same traffic"),
    RUN("tokens_per_s", REAL, tokens_per_s, "tok/s", COUNT, "tokens of a step / median step time"),
    RUN("cpu_ns_per_step", INT, cpu_ns_per_step, NULL, PLAIN, "CPU time of all ranks"),
    RUN("reserved_bytes", INT, reserved_bytes, NULL, PLAIN,
        "device arenas of the rank that took most: live peak, rounding and fragments"),
    RUN("rss_bytes", INT, rss_bytes, NULL, PLAIN,
        "largest resident set of a process; null on virtual"),
    RUN("residual_bytes", INT, residual_bytes, "rss-ledger", MIB,
        "rss_bytes - ledger peaks of the ranks in that process: code, libraries, allocators; null "
        "on virtual"),
    RUN("card", TEXT, card, NULL, PLAIN, "name of rank 0's GPU; null on a device that is none"),
    RUN("kernel.product", TEXT, product, "product", VARIES,
        "what ran on rank 0's GPU: cuBLASLt, of fp32 with (fp32) or (TF32); null without"),
    RUN("kernel.attention_forward", TEXT, attention_forward, "attention", VARIES,
        "likewise: own (tensor cores), own (CUDA cores), or cudnn with its version"),
    RUN("kernel.attention_backward", TEXT, attention_backward, NULL, PLAIN, "likewise"),
    RUN("comm_memory", TEXT, comm_memory, NULL, PLAIN,
        "nccl: where communication memory comes from and whether it is registered; else null"),
    RUN("useful_flops_per_s", REAL, useful_flops_per_s, NULL, PLAIN,
        "of a rank: 6 per matrix parameter and token, and causal attention, over the median step; "
        "null on virtual"),
    RUN("driver.used_bytes", INT, driver_used_bytes, NULL, PLAIN,
        "of rank 0's GPU by everybody, at the end, as its driver counts; null without a GPU"),
    RUN("driver.base_bytes", INT, driver_base_bytes, NULL, PLAIN,
        "of it before this run had any: the context, and other programs"),
    RUN("driver.pool_bytes", INT, driver_pool_bytes, NULL, PLAIN,
        "of it: fixed workspace of libraries"),
    RUN("driver.rest_bytes", INT, driver_rest_bytes, NULL, PLAIN,
        "of it: neither base nor arenas nor pool"),
    RUN("save_ns", INT, save_ns, NULL, PLAIN,
        "of the last checkpoint, until it is durable on every rank; null without one"),
    RUN("save_bytes", INT, save_bytes, NULL, PLAIN, "of its shard files, all ranks"),
    RUN("time", TEXT, time, NULL, PLAIN, "measured, or predicted by the virtual clock"),
    RUN("param_hash", HASH, param_hash, NULL, PLAIN,
        "sum over elements of mix(name, index, bits): equal for any sharding; null on virtual"),
    RUN("config", JSON, config, NULL, PLAIN, "resolved configuration, keys as the flags"),
    RUN("fingerprint", JSON, fingerprint, NULL, PLAIN, "machine, compiler, libraries, commit"),
    RUN("argv", JSON, argv, NULL, PLAIN, "the command line"),
};

const shl_field *
shl_step_fields(size_t *n)
{
    *n = SHL_ARRAY_LEN(step_fields);
    return step_fields;
}

const shl_field *
shl_eval_fields(size_t *n)
{
    *n = SHL_ARRAY_LEN(eval_fields);
    return eval_fields;
}

const shl_field *
shl_event_fields(size_t *n)
{
    *n = SHL_ARRAY_LEN(event_fields);
    return event_fields;
}

const shl_field *
shl_run_fields(size_t *n)
{
    *n = SHL_ARRAY_LEN(run_fields);
    return run_fields;
}

void
shl_step_record_fill(shl_step_record *out, const shl_session_config *cfg,
                     const shl_step_report *report, bool predicted)
{
    *out = (shl_step_record){
        .kind = "step",
        .schema = SHL_RECORD_SCHEMA,
        .strategy = shl_strategy_name(cfg->engine.strategy),
        .ranks = cfg->ranks,
        .step = report->step,
        .loss = predicted ? (double)NAN : report->loss,
        .grad_norm = predicted ? (double)NAN : report->grad_norm,
        .lr = report->lr,
        .tokens = report->tokens,
        .step_ns = report->step_ns,
        .h2d_bytes = report->moved_bytes[SHL_MOVE_TO_DEVICE],
        .d2h_bytes = report->moved_bytes[SHL_MOVE_TO_HOST],
        .exposed_move_ns = report->exposed_move_ns,
        .loss_scale = report->loss_scale,
        .skipped = report->skipped,
        .skipped_steps = report->skipped_steps,
    };
    shl_dtype_policy_text(&cfg->engine, out->dtypes_text, sizeof(out->dtypes_text));
    out->dtypes = out->dtypes_text;
}

void
shl_eval_record_fill(shl_eval_record *out, const shl_session_config *cfg,
                     const shl_eval_report *report, bool predicted)
{
    *out = (shl_eval_record){
        .kind = "eval",
        .schema = SHL_RECORD_SCHEMA,
        .strategy = shl_strategy_name(cfg->engine.strategy),
        .ranks = cfg->ranks,
        .step = report->step,
        .loss = predicted ? (double)NAN : report->loss,
        .perplexity = predicted ? (double)NAN : exp(report->loss),
        .tokens = report->tokens,
        .ns = report->ns,
    };
}

void
shl_event_record_begin(shl_event_record *out, const shl_session_config *cfg,
                       const shl_session_timeline *timeline, shl_tier tier)
{
    *out = (shl_event_record){
        .kind = "event",
        .schema = SHL_RECORD_SCHEMA,
        .model = cfg->model,
        .strategy = shl_strategy_name(cfg->engine.strategy),
        .ranks = cfg->ranks,
        .batch = cfg->engine.batch,
        .seq = cfg->engine.seq,
        .step = timeline->step,
        .tier = shl_tier_name(tier),
    };
    for (int tag = 0; tag < SHL_TAG_COUNT; tag++) {
        out->tag_bytes[tag] = timeline->held_bytes[tier][tag];
        out->total_bytes += out->tag_bytes[tag];
    }
}

void
shl_event_record_next(shl_event_record *out, const shl_ledger_event *event)
{
    out->at = event->at + 1;
    out->phase = shl_mark_name(event->mark);
    out->tag = shl_tag_name(event->tag);
    out->owner = event->owner;
    out->delta_bytes = event->delta_bytes;
    out->total_bytes = (int64_t)event->total_bytes;
    out->tag_bytes[event->tag] += event->delta_bytes;
}

static void
fill_peaks(shl_run_record *out, const shl_ledger_tier *tiers)
{
    for (int t = 0; t < SHL_TIER_COUNT; t++) {
        out->peak[t].total = (int64_t)tiers[t].peak_bytes;
        out->at_peak[t].total = (int64_t)tiers[t].peak_bytes;
        for (int g = 0; g < SHL_TAG_COUNT; g++) {
            out->peak[t].tags[g] = (int64_t)tiers[t].peak_tag_bytes[g];
            out->at_peak[t].tags[g] = (int64_t)tiers[t].at_peak_tag_bytes[g];
        }
    }
    const shl_ledger_tier *device = &tiers[SHL_TIER_DEVICE];
    out->eval_peak.total = (int64_t)device->phase_peak_bytes[SHL_MARK_EVAL];
    for (int g = 0; g < SHL_TAG_COUNT; g++) {
        out->eval_peak.tags[g] = (int64_t)device->phase_tag_bytes[SHL_MARK_EVAL][g];
    }
    out->peak_phase = shl_mark_name(tiers[SHL_TIER_DEVICE].peak_mark);
    out->peak_owner = tiers[SHL_TIER_DEVICE].peak_owner;
}

static void
fill_moves(shl_run_record *out, const shl_session_config *cfg, const shl_session_result *result)
{
    const shl_offload_config *o = &cfg->engine.offload;
    out->h2d_bytes = out->d2h_bytes = out->pinned_bytes = SHL_FIELD_NO_INT;
    if (shl_offload_any(o) && result->n_steps > 0) {
        const shl_step_report *last = &result->steps[result->n_steps - 1];
        out->h2d_bytes = last->moved_bytes[SHL_MOVE_TO_DEVICE];
        out->d2h_bytes = last->moved_bytes[SHL_MOVE_TO_HOST];
        out->pinned_bytes = result->pinned_bytes;
    }
}

static void
fill_formulas(shl_run_record *out, const shl_session_config *cfg, const shl_session_result *result)
{
    const shl_engine_config *e = &cfg->engine;
    shl_formula_comm comm = {0};
    shl_formula_move move = {0};
    shl_formula_size size = result->size;
    size.host = (double)result->info.host_elems;
    size.stream = (double)cfg->shape.width;
    shl_formula_comm_bytes(e, &size, &comm);
    shl_formula_move_bytes(e, &size, &move);
    out->formula_host_bytes = shl_formula_host_bytes(e, &size);
    out->formula_h2d_bytes = move.to_device_bytes;
    out->formula_d2h_bytes = move.to_host_bytes;
    out->formula_state_bytes = shl_formula_state_bytes(e, &size);
    out->formula_held_bytes = shl_formula_held_bytes(e, &size);
    out->formula_paper_bytes = shl_formula_paper_bytes(e, &size);
    out->formula_gather_bytes = comm.all_gather_bytes;
    out->formula_scatter_bytes = comm.reduce_scatter_bytes;
    out->formula_reduce_bytes = comm.all_reduce_bytes;
    if (e->strategy == SHL_ZERO3 && e->zero.given) {
        /* What stays and what is kept depends on the tensors, not on their sum. */
        out->formula_state_bytes = out->formula_gather_bytes = (double)NAN;
    }
}

static const char *
offload_text(const shl_offload_config *o)
{
    static const char *const names[] = {"none",
                                        "optimizer",
                                        "param",
                                        "optimizer+param",
                                        "activations",
                                        "optimizer+activations",
                                        "param+activations",
                                        "optimizer+param+activations"};
    return names[(o->optimizer != SHL_OFFLOAD_NONE) + 2 * (o->param != SHL_OFFLOAD_NONE) +
                 4 * (o->activations != SHL_OFFLOAD_NONE)];
}

/* Nothing of the kind ran, or nothing is to be told. */
static const char *
text_or_null(bool known, const char *text)
{
    return known && text[0] ? text : NULL;
}

static void
fill_card(shl_run_record *out, const shl_session_config *cfg, const shl_session_result *result)
{
    const shl_device_memory *m = &result->driver;
    const shl_engine_config *e = &cfg->engine;
    bool is_card = m->total_bytes > 0;
    double tokens = (double)(e->batch * e->seq) * cfg->ranks * (double)e->accum;
    double flops = shl_model_formula_step_flops(&cfg->shape, e->batch, e->seq) * (double)e->accum;
    out->card = is_card ? result->card.name : NULL;
    out->product = text_or_null(is_card, result->ran.product);
    out->attention_forward = text_or_null(is_card, result->ran.attention_forward);
    out->attention_backward = text_or_null(is_card, result->ran.attention_backward);
    out->comm_memory = text_or_null(true, result->comm_memory);
    out->useful_flops_per_s =
        result->predicted ? (double)NAN : flops * result->tokens_per_s / tokens;
    out->driver_used_bytes = is_card ? (int64_t)m->used_bytes : SHL_FIELD_NO_INT;
    out->driver_base_bytes = is_card ? (int64_t)m->base_bytes : SHL_FIELD_NO_INT;
    out->driver_pool_bytes = is_card ? (int64_t)m->pool_bytes : SHL_FIELD_NO_INT;
    out->driver_rest_bytes =
        is_card
            ? (int64_t)m->used_bytes - (int64_t)(m->base_bytes + m->reserved_bytes + m->pool_bytes)
            : SHL_FIELD_NO_INT;
}

void
shl_run_record_fill(shl_run_record *out, const shl_session_config *cfg,
                    const shl_session_result *result, size_t limit_bytes)
{
    const shl_engine_config *e = &cfg->engine;
    bool has_loss = !result->predicted && result->n_steps > 0;
    const shl_step_report *last = has_loss ? &result->steps[result->n_steps - 1] : NULL;
    memset(out, 0, sizeof(*out));
    out->kind = "run";
    out->schema = SHL_RECORD_SCHEMA;
    out->model = cfg->model;
    out->strategy = shl_strategy_name(e->strategy);
    out->layout = result->layout_name;
    out->device = cfg->device;
    out->ranks = cfg->ranks;
    out->threads = cfg->threads;
    out->batch = e->batch;
    out->seq = e->seq;
    out->accum = e->accum;
    out->steps = cfg->steps;
    out->steps_done = result->n_steps;
    out->seed = (int64_t)e->seed;
    out->data_seed = (int64_t)cfg->data_seed;
    out->params = result->params;
    out->trainable_params = result->trainable_params;
    out->frozen_params = result->params - result->trainable_params;
    out->recompute = shl_recompute_name(cfg->tune.recompute);
    out->offload = offload_text(&cfg->engine.offload);
    out->loss = last ? last->loss : (double)NAN;
    out->grad_norm = last ? last->grad_norm : (double)NAN;
    bool has_eval = has_loss && result->n_evals > 0;
    out->val_loss = has_eval ? result->evals[result->n_evals - 1].loss : (double)NAN;
    out->val_perplexity = exp(out->val_loss);
    out->dtype = shl_dtype_name(e->compute_dtype);
    out->loss_scale = result->n_steps > 0 ? result->steps[result->n_steps - 1].loss_scale : 1.0;
    out->skipped_steps = result->n_steps > 0 ? result->steps[result->n_steps - 1].skipped_steps : 0;
    out->padding_bytes = (int64_t)result->info.padding_bytes;
    out->comm = result->comm_step;
    out->comm_uniform = result->comm_uniform;
    out->tokens_per_s = result->tokens_per_s;
    out->cpu_ns_per_step = result->cpu_ns_per_step;
    out->reserved_bytes = result->reserved_bytes;
    out->rss_bytes = result->predicted ? SHL_FIELD_NO_INT : result->rss_bytes;
    out->residual_bytes = result->predicted ? SHL_FIELD_NO_INT : result->residual_bytes;
    out->save_ns = result->save_bytes > 0 ? result->save_ns : SHL_FIELD_NO_INT;
    out->save_bytes = result->save_bytes > 0 ? result->save_bytes : SHL_FIELD_NO_INT;
    out->time = result->predicted ? "predicted" : "measured";
    out->param_hash = result->param_hash;
    fill_card(out, cfg, result);
    fill_peaks(out, result->tiers);
    fill_moves(out, cfg, result);
    fill_formulas(out, cfg, result);
    out->limit_bytes = (int64_t)limit_bytes;
    out->margin_bytes = SHL_FIELD_NO_INT;
    if (limit_bytes > 0) {
        out->margin_bytes = (int64_t)limit_bytes - out->peak[SHL_TIER_DEVICE].total;
        out->fits = out->margin_bytes >= 0 ? "yes" : "no";
    }
}

struct json_t *
shl_record_dtypes(const shl_engine_config *e)
{
    return json_pack("{ss ss ss ss ss}", "master", shl_dtype_name(e->master_dtype), "compute",
                     shl_dtype_name(e->compute_dtype), "reduce", shl_dtype_name(e->reduce_dtype),
                     "grad", shl_dtype_name(e->grad_dtype), "moment",
                     shl_dtype_name(e->moment_dtype));
}

struct json_t *
shl_record_argv(int argc, const char *const *argv)
{
    json_t *list = json_array();
    for (int i = 0; list && i < argc; i++) {
        /* A word that is not UTF-8 is kept as a mark, not as bytes that no reader takes. */
        json_t *word = json_string(argv[i]);
        if (json_array_append_new(list, word ? word : json_string("?")) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}
