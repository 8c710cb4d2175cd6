/* tests/bench: fine-tuning from the command line: what is frozen, adapted, recomputed and dropped is the
 * same run after a resume in another world, costs what the virtual device says, and bad words are
 * refused with their reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "bench/record.h"
#include "kernels/base/heap.h"
#include "tests/support/temp_folder.h"

static const shl_tune_config tunes[] = {
    {.recompute = SHL_RECOMPUTE_SELECTIVE, .freeze = "wte,h.0,*.bias"},
    {.recompute = SHL_RECOMPUTE_FULL, .recompute_every = 2, .train_last = 1, .dropout = 0.1},
    {.recompute = SHL_RECOMPUTE_FULL, .lora_rank = 2, .lora_alpha = 6.0, .lora_targets = "c_attn"},
    {.lora_rank = 3, .lora_base = true, .dropout = 0.2, .attention_dropout = 0.1},
};

static void
small(shl_session_config *c, shl_strategy s, int ranks, const shl_tune_config *tune)
{
    shl_session_config_init(c);
    c->shape.layers = 3;
    c->shape.width = 32;
    c->shape.heads = 2;
    c->shape.context = 16;
    c->engine.seq = 16;
    c->engine.batch = 4 / ranks;
    c->engine.strategy = s;
    assert_int_equal(shl_reduce_every_resolve(s, SHL_REDUCE_AUTO, &c->engine.reduce_every), SHL_OK);
    c->tune = *tune;
    c->ranks = ranks;
    c->val_split = 0.01;
    c->eval_every = 1;
    c->eval_batches = 3;
    c->steps = 6;
    c->timeout_ms = 20000;
}

/* Resumed after an evaluation: by the same strategy the same bits; another strategy of two ranks as well. */
static void
test_tuning_resume_repeats_the_bits(void **state)
{
    SHL_UNUSED(state);
    for (size_t t = 0; t < SHL_ARRAY_LEN(tunes); t++) {
        char dir[160];
        shl_session_config c;
        shl_session_result whole, first, second;
        shl_strategy from = (shl_strategy)(t % SHL_STRATEGY_COUNT), to = SHL_FSDP;
        small(&c, from, 2, &tunes[t]);
        assert_int_equal(shl_session_run(&c, NULL, &whole), SHL_OK);
        (void)snprintf(dir, sizeof(dir), "%s/resume-%zu", folder, t);
        c.ckpt_dir = dir;
        c.steps = 3;
        assert_int_equal(shl_session_run(&c, NULL, &first), SHL_OK);
        small(&c, to, 2, &tunes[t]);
        c.ckpt_dir = dir;
        c.resume = true;
        assert_int_equal(shl_session_run(&c, NULL, &second), SHL_OK);
        assert_int_equal(second.first_step, 3);
        for (int i = 0; i < 6; i++) {
            const shl_session_result *part = i < 3 ? &first : &second;
            assert_memory_equal(&part->steps[i % 3].loss, &whole.steps[i].loss, sizeof(double));
            assert_memory_equal(&part->evals[i % 3].loss, &whole.evals[i].loss, sizeof(double));
        }
        assert_true(second.param_hash == whole.param_hash && first.param_hash != whole.param_hash);
        shl_session_result_fini(&whole);
        shl_session_result_fini(&first);
        shl_session_result_fini(&second);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* The same samples on one rank and on two: the same masks, so the same losses to rounding. */
static void
test_tuning_masks_do_not_depend_on_ranks(void **state)
{
    SHL_UNUSED(state);
    const shl_tune_config drop = {.dropout = 0.3, .attention_dropout = 0.2};
    const shl_tune_config none = {.dropout = 0.0};
    shl_session_config c;
    shl_session_result one, two, plain;
    small(&c, SHL_DDP, 1, &drop);
    assert_int_equal(shl_session_run(&c, NULL, &one), SHL_OK);
    small(&c, SHL_ZERO3, 2, &drop);
    assert_int_equal(shl_session_run(&c, NULL, &two), SHL_OK);
    small(&c, SHL_DDP, 1, &none);
    assert_int_equal(shl_session_run(&c, NULL, &plain), SHL_OK);
    for (int i = 0; i < 6; i++) {
        double d = one.steps[i].loss - two.steps[i].loss;
        assert_true(d < 1e-5 && d > -1e-5);
        assert_true(one.steps[i].loss != plain.steps[i].loss);
    }
    shl_session_result_fini(&one);
    shl_session_result_fini(&two);
    shl_session_result_fini(&plain);
}

/* What a record says by the closed forms, against what was counted; layouts add their padding. */
static void
expect_formulas(const shl_session_config *c, const shl_session_result *r)
{
    shl_run_record record;
    shl_run_record_fill(&record, c, r, 0);
    const shl_comm_counter *kind = r->comm_step.kind;
    double padding = 2.0 * 4.0 * (double)(c->engine.accum * r->info.padding_elems);
    double gathered = (double)kind[SHL_COLL_ALL_GATHER].bytes - record.formula_gather_bytes;
    double scattered = (double)kind[SHL_COLL_REDUCE_SCATTER].bytes - record.formula_scatter_bytes;
    double reduced = (double)kind[SHL_COLL_ALL_REDUCE].bytes - record.formula_reduce_bytes;
    assert_true(gathered >= 0.0 && gathered <= padding);
    assert_true(scattered >= 0.0 && scattered <= padding);
    assert_true(reduced >= 0.0 && reduced <= padding);
    assert_true(record.formula_gather_bytes > 0.0 || c->engine.strategy == SHL_DDP);
    assert_int_equal(record.frozen_params, (int64_t)r->size.frozen);
}

static void
test_tuning_virtual_tells_the_same_bytes(void **state)
{
    SHL_UNUSED(state);
    for (size_t t = 0; t < SHL_ARRAY_LEN(tunes); t++) {
        for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
            shl_session_config c;
            shl_session_result real, plan;
            small(&c, (shl_strategy)s, 2, &tunes[t]);
            c.steps = 2;
            assert_int_equal(shl_session_run(&c, NULL, &real), SHL_OK);
            c.device = "virtual";
            assert_int_equal(shl_session_run(&c, NULL, &plan), SHL_OK);
            assert_memory_equal(plan.tiers, real.tiers, sizeof(real.tiers));
            assert_memory_equal(&plan.comm_step, &real.comm_step, sizeof(real.comm_step));
            assert_int_equal(plan.trainable_params, real.trainable_params);
            assert_true(real.trainable_params > 0 && real.trainable_params <= real.params);
            assert_memory_equal(&plan.size, &real.size, sizeof(real.size));
            expect_formulas(&c, &plan);
            shl_session_result_fini(&real);
            shl_session_result_fini(&plan);
        }
    }
}

/* A checkpoint goes on only as what it is; what only changes memory may differ. */
static void
test_tuning_checkpoint_refuses_another_tuning(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        shl_tune_config tune;
        const char *what;
    } others[] = {
        {{.lora_rank = 2, .dropout = 0.1}, "dropout differs"},
        {{.lora_rank = 2, .lora_alpha = 4.0}, "lora-alpha differs"},
        {{.lora_rank = 3}, "lora-rank differs"},
        {{.lora_rank = 2, .freeze = "wpe"}, "freeze differs"},
        {{.train_last = 1}, "train-last differs"},
    };
    const shl_tune_config lora = {.lora_rank = 2};
    const shl_tune_config same = {.lora_rank = 2, .recompute = SHL_RECOMPUTE_FULL};
    char dir[160];
    shl_session_config c;
    shl_session_result r;
    (void)snprintf(dir, sizeof(dir), "%s/other", folder);
    small(&c, SHL_ZERO1, 1, &lora);
    c.ckpt_dir = dir;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    shl_session_result_fini(&r);
    c.resume = true;
    c.steps = 8;
    for (size_t i = 0; i < SHL_ARRAY_LEN(others); i++) {
        c.tune = others[i].tune;
        assert_int_equal(shl_session_run(&c, NULL, &r), SHL_E_CONFIG);
        if (!strstr(shl_err_get()->what, others[i].what)) {
            fail_msg("\"%s\" and not \"%s\"", shl_err_get()->what, others[i].what);
        }
    }
    c.tune = same;
    assert_int_equal(shl_session_run(&c, NULL, &r), SHL_OK);
    shl_session_result_fini(&r);
}

/* ---- the program ---- */

static char seen[1 << 17];

/* Exit status; what stdout and stderr said, together, is in seen. */
static int
run(const char *words)
{
    char command[1024];
    const char *program = getenv("SHL_PROGRAM");
    (void)snprintf(command, sizeof(command), "'%s' %s 2>&1",
                   program ? program : "build/release/shardlab", words);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    seen[fread(seen, 1, sizeof(seen) - 1, f)] = '\0';
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define SMALL "--layers 2 --width 32 --heads 2 --context 16 --batch 2 --steps 2 --threads 1 "

static void
test_tuning_bad_words_are_refused_with_their_reason(void **state)
{
    SHL_UNUSED(state);
    static const struct {
        const char *words, *part;
    } bad[] = {
        {"--recompute som", "unknown \"som\""},
        {"--recompute none,none", "appears twice"},
        {"--recompute-every 2", "recompute full"},
        {"--recompute full --recompute-every 0", "--recompute-every"},
        {"--freeze wtx", "no parameter is called \"wtx\""},
        {"--freeze ''", "the value is empty"},
        {"--freeze '*'", "nothing is left to train"},
        {"--train-last 3", "3"},
        {"--lora-alpha 8", "without a rank"},
        {"--lora-rank 0", "--lora-rank"},
        {"--lora-rank 2 --lora-targets mlp.fc", "mlp.fc"},
        {"--dropout 1", "--dropout"},
        {"--dropout -0.1", "--dropout"},
        {"--attention-dropout nan", "--attention-dropout"},
        {"--val-split 1", "--val-split"},
        {"--val-split 0.1 --val-data x --eval-every 1", "two kinds"},
        {"--eval-every 1", "--val-split 0.1"},
        {"--eval-every 0", "--eval-every"},
        {"--eval-batches 3", "nothing says when"},
        {"--val-data x", "nothing says when"},
        {"--shuffle maybe", "--shuffle"},
        {"--data-seed x", "--data-seed"},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        char words[512];
        (void)snprintf(words, sizeof(words), "train " SMALL "%s", bad[i].words);
        int status = run(words);
        const char *error = strstr(seen, "error: ");
        if (status != 2 || error != seen || strstr(error + 1, "error: ") ||
            !strstr(seen, bad[i].part)) {
            fail_msg("%s: exit %d, \"%s\" expected in: %s", bad[i].words, status, bad[i].part,
                     seen);
        }
    }
}

static json_t *
run_json(const char *words)
{
    json_error_t error;
    if (run(words) != 0) {
        fail_msg("%s: %s", words, seen);
    }
    json_t *all = json_loads(seen, 0, &error);
    assert_non_null(all);
    return all;
}

static int64_t
whole(const json_t *record, const char *object, const char *key)
{
    const json_t *from = object ? json_object_get(record, object) : record;
    const json_t *value = json_object_get(from, key);
    assert_true(json_is_integer(value));
    return (int64_t)json_integer_value(value);
}

static void
test_tuning_program_writes_what_was_trained(void **state)
{
    SHL_UNUSED(state);
    json_t *all =
        run_json("train " SMALL "--ranks 2 --launch processes --strategy zero3 --lora-rank 2 "
                 "--recompute full --val-split 0.1 --eval-every 1 --eval-batches 3 --json");
    assert_int_equal(json_array_size(all), 5); /* two steps, two evaluations, the run */
    const json_t *eval = json_array_get(all, 1), *record = json_array_get(all, 4);
    assert_string_equal(json_string_value(json_object_get(eval, "kind")), "eval");
    assert_int_equal(whole(eval, NULL, "step"), 1);
    assert_int_equal(whole(eval, NULL, "tokens"), 3 * 2 * 16);
    assert_true(json_real_value(json_object_get(eval, "perplexity")) > 100.0);
    /* Per block and rank: c_attn 32+96, c_proj 32+32, c_fc 32+128, mlp.c_proj 128+32. */
    assert_int_equal(whole(record, NULL, "trainable_params"), 2 * 2 * (128 + 64 + 160 + 160));
    assert_int_equal(whole(record, NULL, "frozen_params"),
                     whole(record, NULL, "params") - whole(record, NULL, "trainable_params"));
    assert_string_equal(json_string_value(json_object_get(record, "recompute")), "full");
    assert_int_equal(whole(record, "eval_peak", "bucket"), 0);
    assert_true(whole(record, "eval_peak", "total") > 0);
    const json_t *tune = json_object_get(json_object_get(record, "config"), "tune");
    assert_int_equal(whole(tune, NULL, "lora-rank"), 2);
    assert_true(json_equal(json_object_get(record, "val_loss_bits"),
                           json_object_get(json_array_get(all, 3), "loss_bits")));
    json_decref(all);
}

static void
test_tuning_plan_sweeps_recomputation(void **state)
{
    SHL_UNUSED(state);
    json_t *all = run_json("plan --model gpt2-124m --recompute none,selective,full --strategy fsdp "
                           "--ranks 8 --eval-every 1 --json");
    assert_int_equal(json_array_size(all), 3);
    int64_t act = INT64_MAX, eval = 0;
    for (size_t i = 0; i < 3; i++) {
        const json_t *record = json_array_get(all, i);
        const json_t *peak = json_object_get(json_object_get(record, "peak_bytes"), "device");
        assert_true(whole(peak, NULL, "act") < act);
        act = whole(peak, NULL, "act");
        /* An evaluation keeps nothing, so there is nothing to make again. */
        assert_true(i == 0 || whole(record, "eval_peak", "act") == eval);
        eval = whole(record, "eval_peak", "act");
        assert_true(eval > 0 && eval < act);
    }
    json_decref(all);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tuning_resume_repeats_the_bits),
        cmocka_unit_test(test_tuning_masks_do_not_depend_on_ranks),
        cmocka_unit_test(test_tuning_virtual_tells_the_same_bytes),
        cmocka_unit_test(test_tuning_checkpoint_refuses_another_tuning),
        cmocka_unit_test(test_tuning_bad_words_are_refused_with_their_reason),
        cmocka_unit_test(test_tuning_program_writes_what_was_trained),
        cmocka_unit_test(test_tuning_plan_sweeps_recomputation),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
