/* bench: DeepSpeed's collectives of a step, by the rules that it was seen to follow (0.19, two ranks: stages
 * 0 to 3, and four settings of stage 3), beside those of a virtual run. */
#include "bench/ds_calls.h"

#include "engines/shared/order.h"
#include "kernels/base/heap.h"

static const shl_coll order[] = {SHL_COLL_REDUCE_SCATTER, SHL_COLL_ALL_REDUCE, SHL_COLL_ALL_GATHER,
                                 SHL_COLL_CONTROL};

/* Reductions of one backward: a bucket is sent before the tensor that would take it beyond its size. */
static shl_code
count_buckets(const shl_session_config *cfg, int64_t *n, int64_t *elems)
{
    shl_model *model = NULL;
    int *params = NULL;
    int64_t used = 0;
    shl_code code;
    *n = *elems = 0;
    SHL_TRY(shl_model_new(&cfg->shape, &model));
    SHL_TRY_TO(code, out, shl_model_tune(model, &cfg->tune));
    SHL_TRY_TO(code, out, shl_heap_alloc((size_t)model->n_params, sizeof(*params), &params));
    shl_order_backward(model, params);
    for (int i = 0; i < model->n_params; i++) {
        const shl_param *p = model->params[params[i]];
        if (!p->trainable) {
            continue;
        }
        bool opens = *n == 0 || used + p->elems > cfg->engine.bucket_elems;
        *n += opens;
        used = (opens ? 0 : used) + p->elems;
        *elems += p->elems;
    }
out:
    shl_heap_free(&params);
    shl_model_free(&model);
    return code;
}

static void
put(shl_comm_stats *s, shl_coll kind, int64_t calls, int64_t bytes, int ranks)
{
    s->kind[kind] = (shl_comm_counter){calls, bytes, shl_comm_wire_bytes(kind, ranks, bytes)};
}

/* Stages 0 to 2: everything is all-reduced, stage 2 after each micro-step; the flat space, a multiple of twice
 * the ranks, is gathered in one call. */
static shl_code
whole_stages(const shl_session_config *cfg, shl_comm_stats *theirs)
{
    const shl_engine_config *e = &cfg->engine;
    int64_t n = 0, elems = 0, k = e->strategy == SHL_ZERO2 ? e->accum : 1;
    int64_t size = (int64_t)shl_dtype_bytes(e->reduce_dtype);
    SHL_TRY(count_buckets(cfg, &n, &elems));
    put(theirs, SHL_COLL_ALL_REDUCE, k * n, k * elems * size, cfg->ranks);
    if (e->strategy != SHL_DDP) {
        size = (int64_t)shl_dtype_bytes(e->compute_dtype);
        put(theirs, SHL_COLL_ALL_GATHER, 1, shl_round_up(elems, 2 * (int64_t)cfg->ranks) * size,
            cfg->ranks);
    }
    /* A norm, and in 16 bits a byte that tells of an overflow. */
    bool flag = e->strategy != SHL_DDP && e->compute_dtype != SHL_F32;
    put(theirs, SHL_COLL_CONTROL, 1 + flag, 4 + flag, cfg->ranks);
    return SHL_OK;
}

/* Stage 3: with its keys the schedule is DeepSpeed's already. */
static shl_code
stage3(const shl_output_row *row, shl_comm_stats *theirs)
{
    shl_session_config cfg = *row->cfg;
    shl_session_result result = {0};
    *theirs = row->record.comm;
    if (!cfg.engine.zero.given) {
        shl_zero_options_init(&cfg.engine.zero);
        shl_zero_options_format(&cfg.engine.zero, cfg.zero_text, sizeof(cfg.zero_text));
        SHL_TRY(shl_session_run(&cfg, NULL, &result));
        *theirs = result.comm_step;
        shl_session_result_fini(&result);
    }
    put(theirs, SHL_COLL_CONTROL, 1, 8, cfg.ranks);
    return SHL_OK;
}

static const char *
why(const shl_engine_config *e, shl_coll kind, const shl_comm_counter *ours,
    const shl_comm_counter *theirs)
{
    bool same = ours->calls == theirs->calls && ours->bytes == theirs->bytes;
    if (same) {
        return ours->calls > 0 ? "the same" : "";
    }
    switch (kind) {
    case SHL_COLL_REDUCE_SCATTER:
        return e->strategy == SHL_ZERO3
                   ? "buckets of another size"
                   : "by design: a rank gets the sum of its own part, half of what an all-reduce "
                     "sends";
    case SHL_COLL_ALL_REDUCE:
        return ours->calls == 0 ? "see reduce_scatter" : "buckets, and tensors at multiples of 8";
    case SHL_COLL_ALL_GATHER:
        return e->strategy == SHL_ZERO3
                   ? "DeepSpeed's default keys against ours: nothing resident, released after use"
                   : "a call for each bucket; tensors at multiples of 8";
    case SHL_COLL_CONTROL:
        return "ours: loss, targets, agreement and a norm that no order changes; its: a norm";
    case SHL_COLL_BROADCAST:
    case SHL_COLL_COUNT:
        break;
    }
    return "";
}

static void
add_counter(shl_str *out, const shl_comm_counter *c)
{
    if (c->calls == 0) {
        shl_str_add(out, " %8s   %-15s", "-", "");
    } else {
        shl_str_add(out, " %8lld x %-15lld", (long long)c->calls, (long long)c->bytes);
    }
}

shl_code
shl_ds_calls_add(const shl_output_row *row, shl_str *out)
{
    const shl_engine_config *e = &row->cfg->engine;
    const shl_comm_stats *ours = &row->record.comm;
    shl_comm_stats theirs = {0};
    int64_t sent[2] = {0, 0};
    if (e->strategy > SHL_ZERO3) {
        return SHL_OK;
    }
    SHL_TRY(e->strategy == SHL_ZERO3 ? stage3(row, &theirs) : whole_stages(row->cfg, &theirs));
    shl_str_add(out, "    collectives of a step, calls x bytes in all\n    %-15s %-26s %-26s %s\n",
                "", "     ours", "     DeepSpeed", "why");
    for (size_t i = 0; i < SHL_ARRAY_LEN(order); i++) {
        const shl_comm_counter *a = &ours->kind[order[i]], *b = &theirs.kind[order[i]];
        sent[0] += a->wire_bytes;
        sent[1] += b->wire_bytes;
        if (a->calls == 0 && b->calls == 0) {
            continue;
        }
        shl_str_add(out, "    %-15s", shl_coll_name(order[i]));
        add_counter(out, a);
        add_counter(out, b);
        shl_str_add(out, " %s\n", why(e, order[i], a, b));
    }
    shl_str_add(out, "    %-15s %-26lld %-26lld bytes, by a ring\n", "a rank sends",
                (long long)sent[0], (long long)sent[1]);
    return SHL_OK;
}
