/* tests/bench: the order of data and validation: what is held out is never trained on, a run that goes on
 * at another world size serves each sample once, and an evaluation changes no bit of training. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/session.h"
#include "bench/tokens.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "tests/support/temp_folder.h"

#define SEQ 16
#define WINDOWS 40

static char text_path[128];

/* WINDOWS windows of SEQ + 1 bytes; the first byte of each is its number. */
static int
write_text(void **state)
{
    unsigned char text[WINDOWS * (SEQ + 1)];
    SHL_UNUSED(state);
    if (make_folder(NULL) != 0) {
        return -1;
    }
    for (size_t i = 0; i < sizeof(text); i++) {
        text[i] = i % (SEQ + 1) == 0 ? (unsigned char)(i / (SEQ + 1))
                                     : (unsigned char)(shl_rng_u64(11, 3, i) % 256);
    }
    (void)snprintf(text_path, sizeof(text_path), "%s/text", folder);
    FILE *f = fopen(text_path, "wb");
    bool whole = f && fwrite(text, 1, sizeof(text), f) == sizeof(text);
    return f && fclose(f) == 0 && whole ? 0 : -1;
}

static void
small(shl_session_config *c, shl_strategy s, int ranks)
{
    shl_session_config_init(c);
    c->shape.layers = 2;
    c->shape.width = 32;
    c->shape.heads = 2;
    c->shape.context = SEQ;
    c->engine.seq = SEQ;
    c->engine.batch = 2;
    c->engine.strategy = s;
    assert_int_equal(shl_reduce_every_resolve(s, SHL_REDUCE_AUTO, &c->engine.reduce_every), SHL_OK);
    c->ranks = ranks;
    c->steps = 4;
    c->data = text_path;
    c->timeout_ms = 20000;
}

/* ---- the order ---- */

static int
window_number(const shl_tokens *t, int64_t sample)
{
    int32_t x[SEQ], y[SEQ];
    assert_int_equal(shl_tokens_row(t, sample, x, y), SHL_OK);
    return x[0];
}

static void
test_validation_split_is_disjoint_and_at_the_end(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        double fraction;
        int64_t held_out;
    } cases[] = {{0.0, 0}, {0.001, 1}, {0.1, 4}, {0.25, 10}, {0.5, 20}, {0.97, 39}};
    for (size_t c = 0; c < SHL_ARRAY_LEN(cases); c++) {
        for (int shuffle = 0; shuffle < 2; shuffle++) {
            shl_tokens *t = NULL;
            int32_t x[SEQ], y[SEQ];
            assert_int_equal(shl_tokens_open(text_path, 256, SEQ, 5, &t), SHL_OK);
            assert_int_equal(shl_tokens_hold_out(t, cases[c].fraction), SHL_OK);
            shl_tokens_shuffle(t, shuffle == 1);
            int64_t n = shl_tokens_samples(t);
            assert_int_equal(shl_tokens_held_out(t), cases[c].held_out);
            assert_int_equal(n + cases[c].held_out, WINDOWS);
            for (int64_t epoch = 0; epoch < 3; epoch++) {
                int seen[WINDOWS] = {0};
                for (int64_t i = 0; i < n; i++) {
                    int at = window_number(t, epoch * n + i);
                    assert_true(at < n && (shuffle || at == i));
                    assert_int_equal(seen[at]++, 0);
                }
            }
            for (int64_t w = 0; w < WINDOWS; w++) {
                assert_int_equal(shl_tokens_window(t, w, x, y), SHL_OK);
                assert_int_equal(x[0], w);
            }
            assert_int_equal(shl_tokens_window(t, WINDOWS, x, y), SHL_E_BUG);
            shl_tokens_close(&t);
        }
    }
}

static void
test_validation_split_that_leaves_nothing_is_refused(void **state)
{
    SHL_UNUSED(state);
    static const double bad[] = {0.99, 1.0, 1.5, -0.1, (double)NAN};
    shl_tokens *t = NULL;
    assert_int_equal(shl_tokens_open(text_path, 256, SEQ, 5, &t), SHL_OK);
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        assert_int_equal(shl_tokens_hold_out(t, bad[i]), SHL_E_USAGE);
        assert_int_equal(shl_tokens_samples(t), WINDOWS);
    }
    shl_tokens_close(&t);
}

/* With a learning rate of 0 the loss of a step tells which samples it had: the mean of theirs. A run of
 * single samples has the loss of each; runs that change ranks, batch and accumulation at random, each
 * going on from the one before, must give the means of its parts, in order, through several epochs. */
static void
test_validation_resumed_worlds_serve_each_sample_once(void **state)
{
    SHL_UNUSED(state);
    enum { SAMPLES = 3 * WINDOWS };
    const uint64_t seed = 90210;
    shl_session_config c;
    shl_session_result single, part;
    char dir[160];
    printf("seed %llu\n", (unsigned long long)seed);
    for (int order = 0; order < 2; order++) {
        small(&c, SHL_DDP, 1);
        c.engine.batch = 1;
        c.engine.optim.lr = 0.0;
        c.data_seed = 77;
        c.in_order = order == 1;
        c.val_split = 0.1;
        c.steps = SAMPLES;
        assert_int_equal(shl_session_run(&c, NULL, &single), SHL_OK);
        (void)snprintf(dir, sizeof(dir), "%s/served-%d", folder, order);
        c.ckpt_dir = dir;
        c.steps = 0;
        for (int64_t at = 0, run = 0; at < SAMPLES - 36; run++) {
            uint64_t r = shl_rng_u64(seed, (uint64_t)order, (uint64_t)run);
            c.ranks = 1 + (int)(r % 3);
            c.engine.batch = 1 + (int64_t)(r >> 8) % 3;
            c.engine.accum = 1 + (int64_t)(r >> 16) % 2;
            c.engine.strategy = (shl_strategy)((r >> 24) % SHL_STRATEGY_COUNT);
            assert_int_equal(shl_reduce_every_resolve(c.engine.strategy, SHL_REDUCE_AUTO,
                                                      &c.engine.reduce_every),
                             SHL_OK);
            c.steps += 1 + (int64_t)(r >> 32) % 2;
            assert_int_equal(shl_session_run(&c, NULL, &part), SHL_OK);
            for (int64_t s = 0; s < part.n_steps; s++) {
                int64_t rows = shl_session_global_rows(&c);
                double mean = 0.0;
                for (int64_t i = 0; i < rows; i++) {
                    mean += single.steps[at + i].loss / (double)rows;
                }
                at += rows;
                assert_true(fabs(part.steps[s].loss - mean) < 1e-7);
            }
            shl_session_result_fini(&part);
            c.resume = true;
        }
        shl_session_result_fini(&single);
    }
}

/* ---- evaluations ---- */

static void
test_validation_loss_has_the_same_bits_for_any_ranks(void **state)
{
    SHL_UNUSED(state);
    /* 10 sequences in batches of 2: 5 batches, no multiple of 2 or 3 ranks; of 4: the last is not full. */
    for (int batch = 2; batch <= 4; batch += 2) {
        double first = 0.0;
        for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
            for (int ranks = 1; ranks <= 3; ranks++) {
                shl_session_config c;
                shl_session_result r;
                small(&c, (shl_strategy)s, ranks);
                c.engine.batch = batch;
                c.engine.optim.lr = 0.0; /* training on more ranks is another training */
                c.steps = 1;
                c.val_split = 0.25;
                c.eval_every = 1;
                assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
                assert_int_equal(r.n_evals, 1);
                assert_int_equal(r.evals[0].tokens, 10 * SEQ);
                first = s == 0 && ranks == 1 ? r.evals[0].loss : first;
                assert_memory_equal(&r.evals[0].loss, &first, sizeof(first));
                shl_session_result_fini(&r);
            }
        }
        assert_true(first > 4.0 && first < 8.0);
    }
}

/* The mean over the windows themselves, one by one. */
static void
test_validation_loss_is_the_mean_over_what_is_held_out(void **state)
{
    SHL_UNUSED(state);
    char path[256];
    shl_session_config c;
    shl_session_result all, each;
    small(&c, SHL_ZERO1, 2);
    c.engine.optim.lr = 0.0;
    c.val_split = 0.1;
    c.eval_every = 4;
    assert_int_equal(shl_session_run(&c, NULL, &all), SHL_OK);
    /* The last four windows as a file of their own, trained on in order without learning. */
    (void)snprintf(path, sizeof(path), "tail -c %d '%s' > '%s/tail'", 4 * (SEQ + 1), text_path,
                   folder);
    assert_int_equal(system(path), 0);
    (void)snprintf(path, sizeof(path), "%s/tail", folder);
    small(&c, SHL_DDP, 1);
    c.engine.optim.lr = 0.0;
    c.engine.batch = 1;
    c.data = path;
    assert_int_equal(shl_session_run(&c, NULL, &each), SHL_OK);
    double mean = 0.0;
    for (int i = 0; i < 4; i++) {
        mean += each.steps[i].loss / 4.0;
    }
    assert_true(fabs(all.evals[0].loss - mean) < 1e-5);
    shl_session_result_fini(&each);
    /* The same file as validation data gives the same bits; as training data as well it is refused. */
    small(&c, SHL_FSDP, 3);
    c.engine.optim.lr = 0.0;
    c.val_data = path;
    c.eval_every = 4;
    assert_int_equal(shl_session_run(&c, NULL, &each), SHL_OK);
    assert_memory_equal(&each.evals[0].loss, &all.evals[0].loss, sizeof(double));
    shl_session_result_fini(&each);
    c.data = path;
    c.engine.batch = 1;
    assert_int_equal(shl_session_run(&c, NULL, &each), SHL_E_USAGE);
    assert_non_null(strstr(shl_err_get()->what, "is the training data"));
    shl_session_result_fini(&all);
}

static void
test_validation_batches_are_counted_over_all_ranks(void **state)
{
    SHL_UNUSED(state);
    double first = 0.0;
    for (int ranks = 1; ranks <= 3; ranks++) {
        shl_session_config c;
        shl_session_result r;
        small(&c, SHL_ZERO3, ranks);
        c.engine.optim.lr = 0.0;
        c.steps = 5;
        c.val_split = 0.5;
        c.eval_every = 2;
        c.eval_batches = 4;
        assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
        assert_int_equal(r.n_evals, 3); /* 2, 4, and the last */
        for (int i = 0; i < 3; i++) {
            assert_int_equal(r.evals[i].step, i < 2 ? 2 * i + 2 : 5);
            assert_int_equal(r.evals[i].tokens, 4 * 2 * SEQ);
            first = ranks == 1 && i == 0 ? r.evals[0].loss : first;
            assert_memory_equal(&r.evals[i].loss, &first, sizeof(first));
        }
        shl_session_result_fini(&r);
    }
}

static void
test_validation_changes_no_bit_of_training(void **state)
{
    SHL_UNUSED(state);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        char dir[160];
        shl_session_config c;
        shl_session_result plain, first, second;
        small(&c, (shl_strategy)s, 2);
        c.engine.accum = 2;
        c.engine.optim.clip = 1.0;
        c.val_split = 0.25;
        c.steps = 6;
        assert_int_equal(shl_session_run(&c, NULL, &plain), SHL_OK);
        (void)snprintf(dir, sizeof(dir), "%s/eval-%d", folder, s);
        c.ckpt_dir = dir;
        c.eval_every = 1;
        c.steps = 3;
        assert_int_equal(shl_session_run(&c, NULL, &first), SHL_OK);
        c.steps = 6;
        c.resume = true;
        assert_int_equal(shl_session_run(&c, NULL, &second), SHL_OK);
        for (int i = 0; i < 6; i++) {
            const shl_step_report *r = i < 3 ? &first.steps[i] : &second.steps[i - 3];
            assert_memory_equal(&r->loss, &plain.steps[i].loss, sizeof(double));
            assert_memory_equal(&r->grad_norm, &plain.steps[i].grad_norm, sizeof(double));
        }
        assert_true(second.param_hash == plain.param_hash);
        assert_int_equal(second.n_evals, 3);
        assert_true(second.evals[2].loss != second.evals[1].loss);
        shl_session_result_fini(&plain);
        shl_session_result_fini(&first);
        shl_session_result_fini(&second);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* Forward only: gradients as the state holds them between steps, no bucket, fewer activations. And the
 * virtual device tells the same bytes. */
static void
test_validation_holds_no_gradients(void **state)
{
    SHL_UNUSED(state);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        for (int ranks = 1; ranks <= 2; ranks++) {
            shl_session_config c;
            shl_session_result real, plan;
            small(&c, (shl_strategy)s, ranks);
            c.engine.bucket_elems = 4000;
            c.val_split = 0.25;
            c.eval_every = 1;
            c.timeline = true;
            assert_int_equal(shl_session_run(&c, NULL, &real), SHL_OK);
            const shl_ledger_tier *t = &real.tiers[SHL_TIER_DEVICE];
            const size_t *tags = t->phase_tag_bytes[SHL_MARK_EVAL];
            size_t between = (size_t)real.timeline.held_bytes[SHL_TIER_DEVICE][SHL_TAG_GRAD];
            assert_true(t->phase_peak_bytes[SHL_MARK_EVAL] > 0);
            assert_true(t->phase_peak_bytes[SHL_MARK_EVAL] < t->peak_bytes);
            assert_int_equal(tags[SHL_TAG_GRAD], between);
            assert_int_equal(tags[SHL_TAG_BUCKET], 0);
            assert_true(tags[SHL_TAG_ACT] > 0);
            assert_true(tags[SHL_TAG_ACT] < t->phase_tag_bytes[SHL_MARK_FORWARD][SHL_TAG_ACT]);
            c.device = "virtual";
            c.val_split = 0.0;
            c.eval_batches = 0;
            assert_int_equal(shl_session_run(&c, NULL, &plan), SHL_OK);
            assert_memory_equal(plan.tiers, real.tiers, sizeof(real.tiers));
            assert_int_equal(plan.n_evals, real.n_evals);
            shl_session_result_fini(&real);
            shl_session_result_fini(&plan);
        }
    }
}

static void
test_validation_fails_without_a_leak(void **state)
{
    SHL_UNUSED(state);
    shl_session_config c;
    shl_session_result r;
    char path[160];
    small(&c, SHL_ZERO2, 2);
    (void)snprintf(path, sizeof(path), "%s/absent", folder);
    c.val_data = path;
    c.eval_every = 1;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_IO);
    c.val_data = NULL;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_USAGE);
    c.val_split = 0.99;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_USAGE);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* ---- what a checkpoint remembers of the order ---- */

static void
expect_refused(const shl_session_config *c, const char *what, const char *theirs, const char *ours)
{
    shl_session_result r;
    assert_int_equal(shl_session_run(c, NULL, &r), SHL_E_CONFIG);
    assert_non_null(strstr(shl_err_get()->what, what));
    assert_non_null(strstr(shl_err_get()->because, theirs));
    assert_non_null(strstr(shl_err_get()->because, ours));
}

static void
test_validation_checkpoint_refuses_another_order(void **state)
{
    SHL_UNUSED(state);
    char dir[160];
    shl_session_config c;
    shl_session_result r;
    small(&c, SHL_DDP, 1);
    (void)snprintf(dir, sizeof(dir), "%s/order", folder);
    c.ckpt_dir = dir;
    c.data_seed = 41;
    c.val_split = 0.1;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    shl_session_result_fini(&r);
    c.resume = true;
    c.steps = 5;
    c.data_seed = 42;
    expect_refused(&c, "data-seed differs", "41", "42");
    c.data_seed = 41;
    c.in_order = true;
    expect_refused(&c, "shuffle differs", "\"on\"", "\"off\"");
    c.in_order = false;
    c.val_split = 0.2;
    expect_refused(&c, "val-split differs", "0.1", "0.2");
    c.val_split = 0.1;
    c.data = NULL; /* the bundled text */
    expect_refused(&c, "data-windows differs", "36", "");
    c.data = text_path;
    c.engine.seed = 1;
    expect_refused(&c, "seed differs", "0", "1");
    c.engine.seed = 0;
    c.ranks = 2;
    c.eval_every = 1;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    shl_session_result_fini(&r);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_validation_split_is_disjoint_and_at_the_end),
        cmocka_unit_test(test_validation_split_that_leaves_nothing_is_refused),
        cmocka_unit_test(test_validation_resumed_worlds_serve_each_sample_once),
        cmocka_unit_test(test_validation_loss_has_the_same_bits_for_any_ranks),
        cmocka_unit_test(test_validation_loss_is_the_mean_over_what_is_held_out),
        cmocka_unit_test(test_validation_batches_are_counted_over_all_ranks),
        cmocka_unit_test(test_validation_changes_no_bit_of_training),
        cmocka_unit_test(test_validation_holds_no_gradients),
        cmocka_unit_test(test_validation_fails_without_a_leak),
        cmocka_unit_test(test_validation_checkpoint_refuses_another_order),
    };
    return cmocka_run_group_tests(tests, write_text, remove_folder);
}
