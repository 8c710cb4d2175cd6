/* bench: validation between steps: forward only, over data that is never trained on. Batches are dealt to
 * ranks in turn and their sums are added in the order of the batches, so the loss has the same bits for
 * any number of ranks at one --batch; another batch size changes the order of a sum, not its terms. */
#include <string.h>

#include "bench/session_impl.h"
#include "kernels/base/heap.h"

static const shl_tokens *
source_of(const shl_session_rank *r, int64_t *first, int64_t *n)
{
    if (r->val_tokens) {
        *first = 0;
        *n = shl_tokens_samples(r->val_tokens);
        return r->val_tokens;
    }
    *first = shl_tokens_samples(r->tokens);
    *n = shl_tokens_held_out(r->tokens);
    return r->tokens;
}

shl_code
shl_session_eval_open(shl_session_rank *r)
{
    const shl_session_config *c = r->cfg;
    if (!c->val_data) {
        return SHL_OK;
    }
    SHL_TRY(
        shl_tokens_open(c->val_data, c->shape.vocab, c->engine.seq, c->data_seed, &r->val_tokens));
    if (r->tokens && shl_tokens_same_source(r->tokens, r->val_tokens)) {
        SHL_RAISE(SHL_E_USAGE, "the validation data is the training data");
        shl_err_because("--val-data and --data are the same");
        return shl_err_advice("--val-split 0.1 holds out a part of --data");
    }
    return SHL_OK;
}

/* Batch k of the n_sequences: rows behind the last one have no target that counts. */
static shl_code
fill_batch(shl_session_rank *r, int64_t k, int64_t n_sequences)
{
    const shl_engine_config *e = &r->cfg->engine;
    int64_t first, n;
    const shl_tokens *source = source_of(r, &first, &n);
    for (int64_t b = 0; b < e->batch; b++) {
        int32_t *ids = r->ids + b * e->seq, *targets = r->targets + b * e->seq;
        int64_t at = k * e->batch + b;
        if (at < n_sequences) {
            SHL_TRY(shl_tokens_window(source, first + at, ids, targets));
            continue;
        }
        for (int64_t i = 0; i < e->seq; i++) {
            ids[i] = 0;
            targets[i] = SHL_IGNORE_INDEX;
        }
    }
    return SHL_OK;
}

/* sums[k] of every batch, on every rank: a word that one rank has and the others leave 0 is handed to all
 * as it is. */
static shl_code
sum_batches(shl_session_rank *r, int64_t n_sequences, double *sums, int64_t n_batches)
{
    bool has_data = r->device->caps.has_bytes;
    int64_t ranks = shl_comm_size(r->comm);
    for (int64_t first = 0; first < n_batches; first += ranks) {
        double sum = 0.0;
        if (has_data) {
            SHL_TRY(fill_batch(r, first + r->rank, n_sequences));
        }
        SHL_TRY(shl_lab_eval_sum(r->lab, r->ids, r->targets, &sum));
        if (first + r->rank < n_batches) {
            sums[first + r->rank] = sum;
        }
    }
    _Static_assert(sizeof(double) == sizeof(int64_t), "a sum travels as a word");
    return shl_lab_sum_words(r->lab, (int64_t *)(void *)sums, n_batches);
}

/* A device without data has no file to count: it does what one batch per rank takes. */
static int64_t
sequences(const shl_session_rank *r)
{
    const shl_session_config *c = r->cfg;
    int64_t most = c->eval_batches * c->engine.batch, first, n;
    if (!r->device->caps.has_bytes) {
        return most > 0 ? most : c->engine.batch * c->ranks;
    }
    (void)source_of(r, &first, &n);
    return most > 0 && most < n ? most : n;
}

static shl_code
evaluate(shl_session_rank *r, shl_eval_report *out)
{
    int64_t batch = r->cfg->engine.batch, n = sequences(r);
    int64_t n_batches = (n + batch - 1) / batch, begun_ns = shl_device_now_ns(r->device, NULL);
    double *sums = NULL, total = 0.0;
    SHL_TRY(shl_heap_alloc((size_t)n_batches, sizeof(*sums), &sums));
    shl_code code = sum_batches(r, n, sums, n_batches);
    for (int64_t k = 0; k < n_batches; k++) {
        total += sums[k];
    }
    shl_heap_free(&sums);
    *out = (shl_eval_report){
        .step = r->engine->step,
        .loss = total / (double)(n * r->cfg->engine.seq),
        .tokens = n * r->cfg->engine.seq,
        .ns = shl_device_now_ns(r->device, NULL) - begun_ns,
    };
    return code;
}

shl_code
shl_session_eval_run(shl_session_rank *r)
{
    const shl_session_config *c = r->cfg;
    bool due =
        c->eval_every > 0 && (r->engine->step % c->eval_every == 0 || r->engine->step >= c->steps);
    shl_eval_report report;
    if (!due) {
        return SHL_OK;
    }
    SHL_TRY(evaluate(r, &report));
    shl_code code = SHL_OK;
    if (r->rank == 0) {
        code = shl_session_keep_eval(r->out, &r->evals_cap, &report);
        if (code == SHL_OK && r->sink && r->sink->on_eval) {
            code = r->sink->on_eval(r->sink->ctx, &report);
        }
    }
    return shl_lab_agree_code(r->lab, code, "eval");
}
