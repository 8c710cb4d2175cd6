/* tests/models: the tape, the hooks, and what is left when anything fails half-way. */
#include "models/family.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "tests/support/plain_model.h"

#define BATCH 2
#define SEQ 4
#define ROWS (BATCH * SEQ)

static const shl_model_config gpt = {
    .vocab = 11, .context = 6, .layers = 2, .width = 8, .heads = 2, .tied = true};
static const shl_model_config llama = {.family = SHL_FAMILY_LLAMA,
                                       .vocab = 11,
                                       .context = 6,
                                       .layers = 2,
                                       .width = 8,
                                       .heads = 4,
                                       .kv_heads = 2,
                                       .inner = 12,
                                       .tied = true};
static const shl_model_config *config = &gpt; /* of the group that runs */
static const int32_t tokens_a[ROWS] = {1, 2, 3, 4, 5, 6, 7, 8};
static const int32_t tokens_b[ROWS] = {10, 0, 10, 3, 3, 2, 9, 0};

typedef struct bench {
    shl_device *device;
    shl_model *model;
    shl_plain plain;
    shl_plain_batch batch[2];
} bench;

static void
bench_open(bench *b, const char *kind)
{
    shl_device_config cfg = {.kind = kind, .stands_for = "cpu", .threads = 1};
    assert_int_equal(shl_device_open(&cfg, &b->device), SHL_OK);
    assert_int_equal(shl_model_new(config, &b->model), SHL_OK);
    assert_int_equal(shl_plain_open(b->device, b->model, 7, &b->plain), SHL_OK);
    for (int i = 0; i < 2; i++) {
        const int32_t *in = i == 0 ? tokens_a : tokens_b, *out = i == 0 ? tokens_b : tokens_a;
        assert_int_equal(shl_plain_batch_open(b->device, BATCH, SEQ, in, out, &b->batch[i]),
                         SHL_OK);
    }
}

static void
bench_close(bench *b)
{
    for (int i = 0; i < 2; i++) {
        shl_plain_batch_close(b->device, &b->batch[i]);
    }
    shl_plain_close(&b->plain);
    shl_model_free(&b->model);
    assert_int_equal(shl_device_close(&b->device), SHL_OK);
    shl_err_clear();
}

static size_t
now_bytes(const bench *b, shl_tag tag)
{
    return shl_ledger_get(b->device->ledger, SHL_TIER_DEVICE)->now_tag_bytes[tag];
}

static shl_code
forward_backward(bench *b)
{
    shl_run *run = &b->batch[0].run;
    SHL_TRY(shl_model_forward(b->model, run));
    return shl_model_backward(b->model, run);
}

/* Fails at every n until nothing fails any more; returns how many n failed. */
static int64_t
fail_everywhere(bench *b, shl_code (*work)(bench *b), bool heap)
{
    for (int64_t n = 1;; n++) {
        int64_t blocks = shl_heap_live_blocks();
        if (heap) {
            shl_heap_fail_at(n);
        } else {
            shl_ledger_fail_at(b->device->ledger, n);
        }
        shl_code code = work(b);
        shl_heap_fail_at(-1);
        shl_ledger_fail_at(b->device->ledger, -1);
        shl_tape_fini(&b->batch[0].tape, b->device);
        assert_int_equal(now_bytes(b, SHL_TAG_ACT), 0);
        assert_int_equal(now_bytes(b, SHL_TAG_WORK), 0);
        assert_int_equal(shl_heap_live_blocks(), blocks);
        if (code == SHL_OK) {
            return n - 1;
        }
        assert_int_equal(code, heap ? SHL_E_HEAP : SHL_E_OOM);
    }
}

static shl_code
evaluate(bench *b)
{
    shl_run run = b->batch[0].run;
    shl_buf logits = {0};
    run.want_grad = false;
    run.logits_out = &logits;
    shl_code code = shl_model_forward(b->model, &run);
    assert_true(code == SHL_OK || logits.data == NULL);
    shl_device_free(b->device, &logits);
    return code;
}

static void
test_model_tape_device_memory_fails_at_every_allocation(void **state)
{
    SHL_UNUSED(state);
    static const char *const kinds[] = {"virtual", "cpu"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(kinds); i++) {
        bench b;
        bench_open(&b, kinds[i]);
        assert_true(fail_everywhere(&b, forward_backward, false) >= 2 * 10 + 3);
        assert_true(fail_everywhere(&b, evaluate, false) >= 2 * 10 + 3);
        bench_close(&b);
    }
}

static void
test_model_tape_heap_fails_at_every_allocation(void **state)
{
    SHL_UNUSED(state);
    bench b;
    bench_open(&b, "cpu");
    assert_true(fail_everywhere(&b, forward_backward, true) >= 1);
    bench_close(&b);
}

static float *
all_grads(bench *b)
{
    float *out = NULL;
    assert_int_equal(shl_heap_alloc((size_t)b->model->n_elems, sizeof *out, &out), SHL_OK);
    int64_t at = 0;
    for (int i = 0; i < b->model->n_params; i++) {
        assert_int_equal(shl_plain_grad(&b->plain, i, out + at), SHL_OK);
        at += b->model->params[i]->elems;
    }
    return out;
}

/* Gradients do not care whether the other forward lies between a forward and its backward. */
static void
test_model_tape_two_forwards_before_two_backwards(void **state)
{
    SHL_UNUSED(state);
    bench b;
    bench_open(&b, "cpu");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(shl_model_forward(b.model, &b.batch[i].run), SHL_OK);
        assert_int_equal(shl_model_backward(b.model, &b.batch[i].run), SHL_OK);
    }
    float *one_by_one = all_grads(&b);
    shl_plain_zero_grad(&b.plain);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(shl_model_forward(b.model, &b.batch[i].run), SHL_OK);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(shl_model_backward(b.model, &b.batch[i].run), SHL_OK);
    }
    float *interleaved = all_grads(&b);
    assert_memory_equal(one_by_one, interleaved, (size_t)b.model->n_elems * sizeof(float));
    shl_heap_free(&one_by_one);
    shl_heap_free(&interleaved);
    bench_close(&b);
}

static void
test_model_tape_misuse_is_a_bug(void **state)
{
    SHL_UNUSED(state);
    bench b;
    bench_open(&b, "virtual");
    shl_run *run = &b.batch[0].run;
    assert_int_equal(shl_model_backward(b.model, run), SHL_E_BUG);
    shl_run bad = *run;
    bad.targets = (shl_tensor){0};
    assert_int_equal(shl_model_forward(b.model, &bad), SHL_E_BUG);
    bad = *run;
    bad.seq = SEQ - 1;
    assert_int_equal(shl_model_forward(b.model, &bad), SHL_E_BUG);
    bad.seq = config->context + 1;
    assert_int_equal(shl_model_forward(b.model, &bad), SHL_E_USAGE);
    bad.batch = INT64_MAX / 2;
    assert_int_equal(shl_model_forward(b.model, &bad), SHL_E_USAGE);
    bench_close(&b);
}

/* ---- hooks ---- */

/* An engine that lends each leaf's parameters only between the hooks around it, and counts. */
typedef struct lender {
    shl_buf *bufs;
    int64_t n_calls, fail_at;
    int depth, n_before, last_forward_id, last_backward_id, last_param_index;
    int n_ready[64];
    bool bad_order;
} lender;

static shl_code
count_call(lender *l)
{
    return ++l->n_calls == l->fail_at ? SHL_RAISE(SHL_E_PEER, "planned failure") : SHL_OK;
}

static void
lend(lender *l, shl_module *m, bool give)
{
    for (int i = 0; i < m->n_params; i++) {
        shl_param *p = m->params[i];
        p->data = give ? l->bufs[2 * p->index].data : NULL;
    }
}

static shl_code
on_before_forward(void *ctx, shl_module *m, shl_run *run)
{
    lender *l = ctx;
    l->bad_order |= m->id <= l->last_forward_id || run->phase != SHL_PHASE_FORWARD;
    l->bad_order |= l->depth != m->depth;
    l->last_forward_id = m->id;
    l->depth++;
    lend(l, m, true);
    return count_call(l);
}

static shl_code
on_before_backward(void *ctx, shl_module *m, shl_run *run)
{
    lender *l = ctx;
    l->bad_order |= l->depth != m->depth || run->phase != SHL_PHASE_BACKWARD;
    l->bad_order |= m->n_children == 0 && m->id >= l->last_backward_id;
    l->last_backward_id = m->n_children == 0 ? m->id : l->last_backward_id;
    l->last_param_index = m->n_params;
    l->depth++;
    lend(l, m, true);
    return count_call(l);
}

static shl_code
on_after(void *ctx, shl_module *m, shl_run *run)
{
    lender *l = ctx;
    l->depth--;
    l->bad_order |= l->depth != m->depth;
    l->bad_order |= run->phase == SHL_PHASE_BACKWARD && m->n_params > 0 && l->last_param_index != 0;
    lend(l, m, false);
    return count_call(l);
}

static shl_code
on_grad_ready(void *ctx, shl_module *m, shl_param *p, shl_run *run)
{
    lender *l = ctx;
    SHL_UNUSED(run);
    l->last_param_index--;
    l->bad_order |= m->params[l->last_param_index] != p || !p->grad_accumulate;
    l->n_ready[p->index]++;
    return count_call(l);
}

static const shl_hooks lender_hooks = {
    .before_forward = on_before_forward,
    .after_forward = on_after,
    .before_backward = on_before_backward,
    .after_backward = on_after,
    .grad_ready = on_grad_ready,
};

static lender
lender_of(bench *b, int64_t fail_at)
{
    for (int i = 0; i < b->model->n_params; i++) {
        b->model->params[i]->data = NULL;
    }
    shl_plain_zero_grad(&b->plain);
    return (lender){.bufs = b->plain.bufs,
                    .fail_at = fail_at,
                    .last_forward_id = -1,
                    .last_backward_id = b->model->n_modules};
}

static void
test_model_tape_hooks_run_in_order_and_lend_what_is_read(void **state)
{
    SHL_UNUSED(state);
    bench b;
    bench_open(&b, "cpu");
    assert_int_equal(forward_backward(&b), SHL_OK);
    float *plain = all_grads(&b);
    lender l = lender_of(&b, -1);
    b.batch[0].run.hooks = &lender_hooks;
    b.batch[0].run.hooks_ctx = &l;
    assert_int_equal(forward_backward(&b), SHL_OK);
    assert_false(l.bad_order);
    assert_int_equal(l.depth, 0);
    assert_int_equal(l.last_forward_id, b.model->n_modules - 1);
    assert_int_equal(l.last_backward_id, 1);
    int64_t uses = 0;
    for (int i = 0; i < b.model->n_params; i++) {
        assert_int_equal(l.n_ready[i], b.model->params[i]->n_uses);
        uses += b.model->params[i]->n_uses;
    }
    assert_int_equal(l.n_calls, 4 * b.model->n_modules + uses);
    float *lent = all_grads(&b);
    assert_memory_equal(plain, lent, (size_t)b.model->n_elems * sizeof(float));
    shl_heap_free(&plain);
    shl_heap_free(&lent);
    bench_close(&b);
}

static void
test_model_tape_a_hook_fails_at_every_call(void **state)
{
    SHL_UNUSED(state);
    bench b;
    bench_open(&b, "virtual");
    int64_t n = 1;
    for (;; n++) {
        lender l = lender_of(&b, n);
        b.batch[0].run.hooks = &lender_hooks;
        b.batch[0].run.hooks_ctx = &l;
        shl_code code = forward_backward(&b);
        shl_tape_fini(&b.batch[0].tape, b.device);
        assert_int_equal(now_bytes(&b, SHL_TAG_ACT), 0);
        if (code == SHL_OK) {
            break;
        }
        assert_int_equal(code, SHL_E_PEER);
    }
    assert_true(n > 4 * b.model->n_modules);
    bench_close(&b);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_tape_device_memory_fails_at_every_allocation),
        cmocka_unit_test(test_model_tape_heap_fails_at_every_allocation),
        cmocka_unit_test(test_model_tape_two_forwards_before_two_backwards),
        cmocka_unit_test(test_model_tape_misuse_is_a_bug),
        cmocka_unit_test(test_model_tape_hooks_run_in_order_and_lend_what_is_read),
        cmocka_unit_test(test_model_tape_a_hook_fails_at_every_call),
    };
    int failed = cmocka_run_group_tests_name("model_tape gpt", tests, NULL, NULL);
    config = &llama;
    return failed + cmocka_run_group_tests_name("model_tape llama", tests, NULL, NULL);
}
