/* tests/bench: a ds_config.json through the program: hostfiles and selections, the generated key table of
 * engines/zero/README.md, what flags may stand beside a file, and the codes that `check` leaves. */
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

#include "bench/ds_options.h"
#include "kernels/base/types.h"

static char program[4096], out[1 << 16];

/* Exit status of `shardlab WORDS`; stdout and stderr in out. */
static int
run(const char *words)
{
    char line[8192];
    shl_strf(line, sizeof(line), "%s %s 2>&1", program, words);
    FILE *f = popen(line, "r");
    assert_non_null(f);
    size_t n = fread(out, 1, sizeof(out) - 1, f);
    out[n] = '\0';
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
expect(const char *words, int status, const char *text)
{
    int is = run(words);
    if (is != status || !strstr(out, text)) {
        fail_msg("%s: exit %d, no \"%s\" in: %s", words, is, text, out);
    }
}

static void
test_ds_program_hosts(void **state)
{
    (void)state;
    static const struct {
        shl_ds_options o;
        const char *text;
        int64_t ranks; /* -1: refused */
    } rows[] = {
        {{0}, NULL, 0},
        {{.num_slots = 4}, NULL, 4},
        {{.num_slots = 4, .num_nodes = 1}, NULL, 4},
        {{.num_nodes = 2}, NULL, -1},
        {{.include = "a:0"}, NULL, -1},
        {{.include = "localhost:0,1"}, NULL, 2},
        {{.include = "localhost"}, NULL, -1},
        {{.include = "localhost:0", .num_slots = 2}, NULL, -1},
        {{.exclude = "localhost:0"}, NULL, -1},
        {{0}, "a slots=4\n", 4},
        {{.num_slots = 3}, "# hosts\n\na slots=4 # here\n", 3},
        {{0}, "a slots=4\nb slots=2\n", -1},
        {{.num_nodes = 1}, "a slots=4\nb slots=2\n", 4},
        {{.include = "b"}, "a slots=4\nb slots=2\n", 2},
        {{.include = "a:0,2"}, "a slots=4\nb slots=2\n", 2},
        {{.include = "a:0,2@b:1"}, "a slots=4\nb slots=2\n", -1},
        {{.exclude = "b"}, "a slots=4\nb slots=2\n", 4},
        {{.exclude = "a:3@b"}, "a slots=4\nb slots=2\n", 3},
        {{.exclude = "a@b"}, "a slots=4\nb slots=2\n", -1},
        {{.include = "c"}, "a slots=4\n", -1},
        {{.include = "a:4"}, "a slots=4\n", -1},
        {{.include = "a", .exclude = "a"}, "a slots=4\n", -1},
        {{.include = "a", .num_slots = 1}, "a slots=4\n", -1},
        {{0}, "a slots=0\n", -1},
        {{0}, "a\n", -1},
        {{0}, "a slots=1\na slots=1\n", -1},
        {{0}, "", -1},
    };
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        int64_t ranks = -2;
        shl_code code = shl_ds_hosts(&rows[i].o, rows[i].text, &ranks);
        if (rows[i].ranks >= 0 ? code != SHL_OK || ranks != rows[i].ranks : code == SHL_OK) {
            fail_msg("row %zu: %s, %lld ranks", i, shl_code_name(code), (long long)ranks);
        }
        assert_true(code == SHL_OK || shl_err_get()->because[0] != '\0');
    }
}

static void
test_ds_program_readme_has_the_table(void **state)
{
    (void)state;
    static char page[1 << 17];
    FILE *f = fopen("engines/zero/README.md", "rb");
    assert_non_null(f);
    page[fread(page, 1, sizeof(page) - 1, f)] = '\0';
    (void)fclose(f);
    shl_str table = {0};
    shl_str_add(&table, "<!-- keys -->\n");
    shl_ds_keys_markdown(&table);
    shl_str_add(&table, "<!-- end of keys -->\n");
    if (!strstr(page, shl_str_get(&table))) {
        fail_msg("the table is another one: make keys");
    }
    shl_str_fini(&table);
}

#define SMALL " --layers 1 --width 32 --heads 2 --context 16 --threads 1"

static void
test_ds_program_trains_from_a_file(void **state)
{
    (void)state;
    const char *file = "'{\"train_batch_size\":256,\"gradient_accumulation_steps\":4,\"fp16\":"
                       "{\"enabled\":true},\"zero_optimization\":{\"stage\":2,"
                       "\"offload_optimizer\":{\"device\":\"none\"},\"contiguous_gradients\":true,"
                       "\"overlap_comm\":true,\"reduce_scatter\":true},\"optimizer\":{\"type\":"
                       "\"AdamW\",\"params\":{\"lr\":1e-4,\"weight_decay\":0.01}}}'";
    char words[2048];
    shl_strf(words, sizeof(words), "train --config %s --ranks 2 --steps 1" SMALL, file);
    expect(words, 0, "accumulation 4");
    assert_non_null(strstr(out, "B 32, T 16"));
    assert_non_null(strstr(out, "is above the model"));
    shl_strf(words, sizeof(words), "train --config %s --show-config --ranks 8" SMALL, file);
    expect(words, 0, "train_micro_batch_size_per_gpu                                   8     ");
    shl_strf(words, sizeof(words), "train --config %s --batch 3" SMALL, file);
    expect(words, 2, "--batch beside --config");
    shl_strf(words, sizeof(words), "train --config %s --lr 0.1" SMALL, file);
    expect(words, 2, "--lr beside --config");
    shl_strf(words, sizeof(words), "train --config %s --offload-optimizer none" SMALL, file);
    expect(words, 2, "--offload-optimizer beside --config");
    expect("train --config '{\"train_batch_size\":4}' --optimizer lion --steps 1" SMALL, 0,
           "lion of the command line");
    shl_strf(words, sizeof(words), "train --config %s --ranks 3" SMALL, file);
    expect(words, 2, "256 sequences are not whole for 3 ranks");
    /* In processes, whose ranks read the same words; a schedule goes with a checkpoint. */
    expect("train --config '{\"train_batch_size\":4,\"scheduler\":{\"type\":\"WarmupLR\","
           "\"params\":{\"warmup_num_steps\":3}}}' --launch processes --ranks 2 --steps 2 "
           "--jsonl" SMALL,
           0, "WarmupLR(warmup_min_lr=0,");
    /* An optimizer's own defaults, and no other's parameters. */
    expect("train --show-config --config '{\"train_batch_size\":4,\"optimizer\":{\"type\":\"SGD\","
           "\"params\":{\"momentum\":0.9}}}'",
           0, "optimizer.params.dampening                                       0.0   ");
    assert_non_null(strstr(out, "optimizer.params.nesterov                                        "
                                "false                default"));
    assert_null(strstr(out, "betas"));
    assert_null(strstr(out, "adam_w_mode"));
    expect(
        "train --show-config --config '{\"train_batch_size\":4,\"optimizer\":{\"type\":\"Lion\"}}'",
        0, "[0.9,0.99] ");
    assert_null(strstr(out, "optimizer.params.eps"));
    expect("train --show-config --config '{\"train_batch_size\":4}' --optimizer adagrad", 0,
           "optimizer.params.eps                                             1e-10 ");
    expect("train --config '{\"train_batch_size\":4,\"optimizer\":{\"type\":\"SGD\"}}' --optimizer "
           "lion" SMALL,
           2, "--optimizer beside --config");
    expect("plan --config '{\"train_batch_size\":4,\"optimizer\":{\"type\":\"SGD\"}}' "
           "--eps 1e-9" SMALL,
           2, "--eps beside --config");
    expect("train --show-config", 2, "without a configuration");
    expect("train --trainer-args '{}'", 2, "without a configuration");
}

/* Files as DeepSpeed's users have them, with everything in host memory, run as written. */
static void
test_ds_program_offloads_as_written(void **state)
{
    (void)state;
    expect("train --config '{\"zero_optimization\":{\"stage\":3,\"offload_optimizer\":{\"device\":"
           "\"cpu\",\"pin_memory\":true},\"offload_param\":{\"device\":\"cpu\",\"pin_memory\":"
           "true},\"overlap_comm\":true,\"contiguous_gradients\":true,\"sub_group_size\":1e9,"
           "\"reduce_bucket_size\":\"auto\",\"stage3_prefetch_bucket_size\":\"auto\","
           "\"stage3_param_persistence_threshold\":\"auto\",\"stage3_max_live_parameters\":1e9,"
           "\"stage3_max_reuse_distance\":1e9},\"bf16\":{\"enabled\":true},"
           "\"train_micro_batch_size_per_gpu\":1,\"gradient_accumulation_steps\":16}' "
           "--ranks 2 --steps 2" SMALL,
           0, "H2D MiB");
    assert_non_null(strstr(out, "accumulation 16"));
    expect("train --config '{\"zero_optimization\":{\"stage\":2,\"offload_optimizer\":{\"device\":"
           "\"cpu\"}}}' --trainer-args '{\"per_device_train_batch_size\":2,"
           "\"gradient_accumulation_steps\":2,\"learning_rate\":5e-4,\"bf16\":true,"
           "\"max_grad_norm\":1.0,\"max_steps\":3}' --ranks 2" SMALL,
           0, "D2H MiB");
    assert_non_null(strstr(out, "B 2, T 16, accumulation 2"));
}

/* The parameters after four steps under OneCycle: "param_hash":... */
static void
one_cycle_hash(const char *momentum, char *dst, size_t cap)
{
    char words[1024];
    shl_strf(words, sizeof(words),
             "train --config '{\"train_batch_size\":4,\"optimizer\":{\"type\":\"Adam\"},"
             "\"scheduler\":{\"type\":\"OneCycle\",\"params\":{\"cycle_min_lr\":0.001,"
             "\"cycle_max_lr\":0.01,\"cycle_first_step_size\":5,\"cycle_momentum\":%s}}}' "
             "--steps 4 --jsonl" SMALL,
             momentum);
    assert_int_equal(run(words), 0);
    const char *at = strstr(out, "\"param_hash\"");
    assert_non_null(at);
    shl_strf(dst, cap, "%.*s", (int)strcspn(at, ",}"), at);
}

/* OneCycle moves the betas too, and the update uses them. */
static void
test_ds_program_cycles_the_betas(void **state)
{
    (void)state;
    char moving[64], again[64], fixed[64];
    one_cycle_hash("true", moving, sizeof(moving));
    one_cycle_hash("true", again, sizeof(again));
    one_cycle_hash("false", fixed, sizeof(fixed));
    assert_string_equal(moving, again);
    assert_string_not_equal(moving, fixed);
}

static void
test_ds_program_check_leaves_a_code(void **state)
{
    (void)state;
    expect("check '{\"train_batch_size\":4}' --ranks 2" SMALL, 0, "4 = 2 (micro) x 1");
    expect("check '{\"train_batch_size\":4,\"steps_per_print\":1}' --ranks 2" SMALL, 0,
           "steps_per_print has no effect");
    expect("check '{\"zero_optimization\":{\"stage\":1,\"reduce_bucket_size\":\"auto\"}}' "
           "--trainer-args '{\"bf16\":true}' --ranks 2" SMALL,
           0, "reduce_bucket_size is 1024");
    expect("check '{\"train_batch_sise\":4}'", 2, "train_batch_size");
    expect("check '{\"train_batch_size\":4}' --device-memory 1KiB" SMALL, 3, "does not fit");
    expect("check", 2, "no configuration");
    expect("check '{\"train_batch_size\":4}' --ranks 1,2", 2, "one of each");
}

static void
test_ds_program_plan_speaks_deepspeed(void **state)
{
    (void)state;
    char words[2048];
    expect("plan --strategy zero2,ddp --ranks 4 --convention deepspeed" SMALL, 0,
           "optimizer offloaded");
    assert_non_null(strstr(out, "not in theirs: act"));
    assert_non_null(strstr(out, "ddp, 4 ranks: DeepSpeed has no estimator"));
    expect("plan --model gpt2-124m --strategy zero2 --ranks 8 --convention deepspeed", 0,
           "at most: 48242688 elements");
    expect("plan --strategy zero3 --ranks 4 --zero max_reuse_distance=0 --explain-schedule" SMALL,
           0, "refresh");
    expect("plan --strategy fsdp --ranks 4 --emit deepspeed" SMALL, 2, "no ds_config.json");
    expect("plan --strategy zero2 --ranks 2,4 --emit deepspeed" SMALL, 2, "2 rows");
    expect("plan --strategy zero2 --ranks 4 --batch 3 --emit deepspeed" SMALL, 0,
           "\"train_batch_size\": 12");
    shl_strf(words, sizeof(words), "check '%s' --ranks 4" SMALL, out);
    expect(words, 0, "12 = 3 (micro) x 1 (accumulation) x 4 (ranks)");
}

#define MEASURED                                                                                   \
    " --vocab 257 --context 64 --layers 3 --width 64 --heads 4 --seq 64 --ranks 2 --convention "   \
    "deepspeed"

/* The numbers are those that DeepSpeed 0.19 was seen to make on two ranks. */
static void
test_ds_program_plan_counts_deepspeeds_collectives(void **state)
{
    static const struct {
        const char *micro, *zero, *reduce, *gather;
    } rows[] = {
        {"2", "\"stage\":0", "all_reduce             1 x 682496                 1 x 682496 ", ""},
        {"2", "\"stage\":1", "all_reduce             -                          1 x 682496 ",
         "all_gather             1 x 682496                 1 x 682496 "},
        {"2", "\"stage\":2", "reduce_scatter         1 x 682496                 - ",
         "all_gather             1 x 682496                 1 x 682496 "},
        {"2,\"gradient_accumulation_steps\":2", "\"stage\":2",
         "all_reduce             -                          2 x 1364992 ",
         "reduce_scatter         2 x 1364992 "},
        {"2", "\"stage\":3,\"stage3_param_persistence_threshold\":0",
         "reduce_scatter         1 x 682496                 1 x 682496 ",
         "all_gather             2 x 682496                 2 x 682496 "},
        {"2", "\"stage\":3", "reduce_scatter         1 x 682496                 1 x 682496 ",
         "all_gather            40 x 682496                40 x 682496 "},
        {"2",
         "\"stage\":3,\"stage3_param_persistence_threshold\":0,\"stage3_prefetch_bucket_size\":0",
         "reduce_scatter         1 x 682496                 1 x 682496 ",
         "all_gather            21 x 682496                21 x 682496 "},
        {"2",
         "\"stage\":3,\"stage3_param_persistence_threshold\":0,\"stage3_max_live_parameters\":0,"
         "\"stage3_max_reuse_distance\":0",
         "reduce_scatter         1 x 682496                 1 x 682496 ",
         "all_gather            42 x 1364992               42 x 1364992 "},
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        char words[1024];
        shl_strf(words, sizeof(words),
                 "plan --config "
                 "'{\"train_micro_batch_size_per_gpu\":%s,\"zero_optimization\":{%s}}'" MEASURED,
                 rows[i].micro, rows[i].zero);
        expect(words, 0, rows[i].reduce);
        assert_non_null(strstr(out, rows[i].gather));
    }
    expect("plan --strategy zero2" MEASURED, 0, "by design: a rank gets the sum of its own part");
    expect("plan --strategy zero3" MEASURED, 0,
           "all_gather            42 x 1364992               40 x 682496 ");
}

/* What was counted, and the configuration. */
static void
plan_of_out(char *dst, size_t cap)
{
    const char *counted = strstr(out, "\"peak_bytes\""), *config = strstr(out, "\"config\"");
    const char *rates = strstr(out, "\"tokens_per_s\""), *end = strstr(out, "\"fingerprint\"");
    assert_true(counted && rates && config && end);
    shl_strf(dst, cap, "%.*s%.*s", (int)(rates - counted), counted, (int)(end - config), config);
}

/* A file of everything is planned as it is trained, and the file that a plan emits is the same plan. */
static void
test_ds_program_plan_takes_a_file(void **state)
{
    static const char *const files[] = {
        "{\"train_micro_batch_size_per_gpu\":2,\"zero_optimization\":{\"stage\":3,"
        "\"reduce_bucket_size\":3000,\"stage3_param_persistence_threshold\":40,"
        "\"stage3_max_reuse_distance\":100,\"overlap_comm\":false,\"sub_group_size\":700,"
        "\"leaf_module\":{\"classes\":[\"GPT2MLP\"],\"names\":[\"ln_f\"]},"
        "\"stage3_gather_16bit_weights_on_model_save\":true,\"offload_optimizer\":{\"device\":"
        "\"cpu\",\"ratio\":0.5}},\"bf16\":{\"enabled\":true}}",
        "{\"train_micro_batch_size_per_gpu\":1,\"gradient_predivide_factor\":2.0,\"fp16\":"
        "{\"enabled\":true}}",
        "{\"train_micro_batch_size_per_gpu\":1,\"zero_optimization\":{\"stage\":2,"
        "\"reduce_scatter\":false},\"prescale_gradients\":true}",
        "{\"train_micro_batch_size_per_gpu\":1,\"zero_optimization\":{\"stage\":1},"
        "\"gradient_allreduce_op\":\"sum\"}",
    };
    static char emitted[1 << 14], table[1 << 14], again[1 << 14];
    char words[1 << 15];
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(files); i++) {
        shl_strf(words, sizeof(words), "plan --config '%s' --ranks 4 --jsonl" SMALL, files[i]);
        expect(words, 0, "\"peak_bytes\"");
        plan_of_out(table, sizeof(table));
        shl_strf(words, sizeof(words), "plan --config '%s' --ranks 4 --emit deepspeed" SMALL,
                 files[i]);
        expect(words, 0, "zero_optimization");
        shl_strf(emitted, sizeof(emitted), "%s", strchr(out, '{')); /* behind the notes */
        shl_strf(words, sizeof(words), "plan --config '%s' --ranks 4 --jsonl" SMALL, emitted);
        expect(words, 0, "\"peak_bytes\"");
        plan_of_out(again, sizeof(again));
        assert_string_equal(table, again);
    }
    expect("plan --config '{\"train_batch_size\":4}' --strategy zero1" SMALL, 2,
           "--strategy beside --config");
    expect("plan --config '{\"train_batch_size\":4}' --ranks 3" SMALL, 2, "not whole for 3 ranks");
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ds_program_hosts),
        cmocka_unit_test(test_ds_program_readme_has_the_table),
        cmocka_unit_test(test_ds_program_trains_from_a_file),
        cmocka_unit_test(test_ds_program_offloads_as_written),
        cmocka_unit_test(test_ds_program_cycles_the_betas),
        cmocka_unit_test(test_ds_program_check_leaves_a_code),
        cmocka_unit_test(test_ds_program_plan_speaks_deepspeed),
        cmocka_unit_test(test_ds_program_plan_counts_deepspeeds_collectives),
        cmocka_unit_test(test_ds_program_plan_takes_a_file),
    };
    char *slash;
    SHL_UNUSED(argc);
    /* Tests lie in <profile>/tests beside the program. */
    shl_strf(program, sizeof(program), "%s", argv[0]);
    slash = strrchr(program, '/');
    if (slash) {
        shl_strf(slash, sizeof(program) - (size_t)(slash - program), "/../shardlab");
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
