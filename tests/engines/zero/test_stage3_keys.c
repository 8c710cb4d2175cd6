/* tests/engines/zero: DeepSpeed's keys of stage 3: each moves bytes and never bits, what moves is what the
 * key says, and calls and payloads are those that DeepSpeed itself was seen to make. */
#include "tests/support/engine_twin.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"

#define LARGE INT64_C(1000000000)

/* DeepSpeed's defaults, without persistence. */
static void
set_keys(ew_config *c)
{
    c->engine.zero = (shl_zero_options){.given = true,
                                        .prefetch_elems = 50000000,
                                        .model_persistence_elems = INT64_MAX,
                                        .max_live_elems = LARGE,
                                        .max_reuse_elems = LARGE,
                                        .predivide = 1.0};
}

static void
start(ew_config *c, int ranks)
{
    ew_config_init(c, SHL_ZERO3, ranks);
    c->engine.bucket_elems = 1000000;
    set_keys(c);
}

static const shl_comm_counter *
gathers(const ew_result *r)
{
    return &r->comm[0].kind[SHL_COLL_ALL_GATHER];
}

/* The model, world and settings whose collectives were counted in DeepSpeed 0.19: 682,496 bytes of fp32
 * parameters in 40 tensors of 21 modules. */
static void
test_stage3_keys_calls_are_those_of_deepspeed(void **state)
{
    static const struct {
        int64_t persistence, prefetch, live, reuse;
        int64_t calls, bytes;
    } cells[] = {
        {0, 50000000, LARGE, LARGE, 2, 682496},
        {100000, 50000000, LARGE, LARGE, 40, 682496},
        {0, 0, LARGE, LARGE, 21, 682496},
        {0, 50000000, 0, 0, 42, 1364992},
    };
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(cells); ++i) {
        ew_config c;
        ew_result r;
        start(&c, 2);
        c.model = (shl_model_config){
            .vocab = 257, .context = 64, .layers = 3, .width = 64, .heads = 4, .tied = true};
        c.engine.batch = 2;
        c.engine.seq = 64;
        c.steps = 2;
        c.device = "virtual";
        c.engine.zero.persistence_elems = cells[i].persistence;
        c.engine.zero.prefetch_elems = cells[i].prefetch;
        c.engine.zero.max_live_elems = cells[i].live;
        c.engine.zero.max_reuse_elems = cells[i].reuse;
        et_run(&c, &r);
        assert_int_equal(gathers(&r)->calls, c.steps * cells[i].calls);
        assert_int_equal(gathers(&r)->bytes, c.steps * cells[i].bytes);
        const shl_comm_counter *reduced = &r.comm[0].kind[SHL_COLL_REDUCE_SCATTER];
        assert_int_equal(reduced->calls, c.steps);
        assert_int_equal(reduced->bytes, c.steps * 682496);
    }
}

/* Every key that only moves bytes, alone and together with others. */
static void
vary(ew_config *c, int i)
{
    shl_zero_options *z = &c->engine.zero;
    switch (i) {
    case 0:
        break;
    case 1:
        z->persistence_elems = 400;
        break;
    case 2:
        z->persistence_elems = LARGE;
        z->model_persistence_elems = 3000;
        break;
    case 3:
        z->prefetch_elems = 0;
        z->max_reuse_elems = 0;
        break;
    case 4:
        z->prefetch_elems = 2000;
        z->max_reuse_elems = 3000;
        break;
    case 5:
        z->max_live_elems = 2500;
        z->max_reuse_elems = 0;
        break;
    case 6:
        z->granularity_elems = 1000;
        z->max_reuse_elems = 0;
        break;
    case 7:
        z->gather_sequential = true;
        z->max_reuse_elems = 0;
        break;
    case 8:
        snprintf(z->leaf_names, sizeof(z->leaf_names), "transformer.h.1,h.2.mlp");
        snprintf(z->leaf_suffixes, sizeof(z->leaf_suffixes), "attn");
        z->prefetch_elems = 1500;
        z->max_reuse_elems = 0;
        break;
    default:
        z->persistence_elems = 25;
        z->prefetch_elems = 1;
        z->max_live_elems = 4000;
        z->max_reuse_elems = 1;
        c->engine.accum = 2;
        c->tune.recompute = SHL_RECOMPUTE_FULL;
        break;
    }
}
#define N_VARIANTS 10

static void
test_stage3_keys_never_change_bits(void **state)
{
    (void)state;
    for (int i = 0; i < N_VARIANTS; ++i) {
        ew_config plain, keyed;
        ew_result want, have, virt;
        start(&keyed, 1 + i % 4);
        keyed.engine.optim.clip = 0.5;
        vary(&keyed, i);
        plain = keyed;
        plain.engine.zero = (shl_zero_options){0};
        et_run(&plain, &want);
        et_run(&keyed, &have);
        et_expect_same_bits(&keyed, &want, &have);
        et_expect_twin(&keyed, &have, keyed.ranks - 1, &virt);
    }
}

/* 16-bit parameters over fp32 masters: residents are cast, then gathered; a skipped step gathers none. */
static void
test_stage3_keys_hold_in_16_bits(void **state)
{
    static const shl_dtype dtypes[] = {SHL_BF16, SHL_F16};
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(dtypes); ++i) {
        ew_config plain, keyed;
        ew_result want, have, virt;
        start(&keyed, 2);
        et_set_policy(&keyed, dtypes[i]);
        if (dtypes[i] == SHL_F16) {
            keyed.engine.scale.scale = exp2(40.0);
            keyed.engine.scale.hysteresis = 1;
        }
        vary(&keyed, 1);
        plain = keyed;
        plain.engine.zero = (shl_zero_options){0};
        et_run(&plain, &want);
        et_run(&keyed, &have);
        et_expect_same_bits(&keyed, &want, &have);
        if (dtypes[i] == SHL_BF16) {
            et_expect_twin(&keyed, &have, 1, &virt);
        }
    }
}

/* Shards in host memory are fetched for the gathers of residents too. */
static void
test_stage3_keys_hold_with_offload(void **state)
{
    (void)state;
    for (int i = 1; i < 3; ++i) {
        ew_config plain, keyed;
        ew_result want, have, virt;
        start(&keyed, 2);
        vary(&keyed, i);
        keyed.engine.offload.optimizer = SHL_OFFLOAD_HOST;
        keyed.engine.offload.param = SHL_OFFLOAD_HOST;
        plain = keyed;
        plain.engine.zero = (shl_zero_options){0};
        plain.engine.offload.optimizer = plain.engine.offload.param = SHL_OFFLOAD_NONE;
        et_run(&plain, &want);
        et_run(&keyed, &have);
        et_expect_same_bits(&keyed, &want, &have);
        et_expect_twin(&keyed, &have, 1, &virt);
        assert_true(have.info.resident_elems > 0);
    }
}

static void
run_virtual(ew_config *c, ew_result *r)
{
    c->device = "virtual";
    et_run(c, r);
}

static size_t
peak_of(const ew_result *r, shl_tag tag)
{
    return r->device[0].peak_tag_bytes[tag];
}

/* No key is dead: one more of it, and a counter or a peak is another. */
static void
test_stage3_keys_persistence_keeps_tensors_whole(void **state)
{
    ew_config c;
    ew_result none, some, capped;
    (void)state;
    start(&c, 4);
    c.engine.zero.max_reuse_elems = 0;
    run_virtual(&c, &none);
    c.engine.zero.persistence_elems = 80;
    run_virtual(&c, &some);
    c.engine.zero.model_persistence_elems = 200;
    run_virtual(&c, &capped);
    assert_int_equal(none.info.resident_elems, 0);
    assert_true(capped.info.resident_elems > 0);
    assert_true(capped.info.resident_elems <= 200 + 4 * capped.info.n_refresh);
    assert_true(some.info.resident_elems > capped.info.resident_elems);
    assert_int_equal(peak_of(&some, SHL_TAG_PARAM),
                     peak_of(&none, SHL_TAG_PARAM) + (size_t)some.info.resident_bytes);
    assert_true(gathers(&some)->bytes < gathers(&none)->bytes);
    /* Each resident tensor is gathered once a step instead of twice. */
    assert_int_equal(gathers(&none)->bytes - gathers(&some)->bytes,
                     c.steps * 4 * some.info.refresh_elems);
}

static void
test_stage3_keys_prefetch_and_live_bound_what_is_ahead(void **state)
{
    static const int64_t ahead[] = {0, 1500, 6000, LARGE};
    ew_config c;
    ew_result r[4], held;
    (void)state;
    for (int i = 0; i < 4; ++i) {
        start(&c, 4);
        c.engine.zero.max_reuse_elems = 0;
        c.engine.zero.prefetch_elems = ahead[i];
        run_virtual(&c, &r[i]);
        assert_int_equal(gathers(&r[i])->bytes, gathers(&r[0])->bytes);
        if (i > 0) {
            assert_true(peak_of(&r[i], SHL_TAG_GATHER) > peak_of(&r[i - 1], SHL_TAG_GATHER));
        }
    }
    assert_true(gathers(&r[3])->calls < gathers(&r[0])->calls);
    c.engine.zero.max_live_elems = 3000;
    run_virtual(&c, &held);
    assert_true(peak_of(&held, SHL_TAG_GATHER) < peak_of(&r[3], SHL_TAG_GATHER));
    assert_true(peak_of(&held, SHL_TAG_GATHER) > peak_of(&r[0], SHL_TAG_GATHER));
    assert_int_equal(gathers(&held)->bytes, gathers(&r[0])->bytes);
}

/* The distance from the end of forward: the last modules are kept first. */
static void
test_stage3_keys_reuse_keeps_the_end_of_forward(void **state)
{
    ew_config c;
    ew_result r;
    int64_t before = INT64_MAX;
    (void)state;
    for (int64_t reuse = 0; reuse <= 40000; reuse = reuse == 0 ? 200 : reuse * 200) {
        start(&c, 2);
        c.engine.zero.prefetch_elems = 0;
        c.engine.zero.max_reuse_elems = reuse;
        run_virtual(&c, &r);
        assert_true(gathers(&r)->bytes < before);
        before = gathers(&r)->bytes;
        assert_int_equal(gathers(&r)->calls,
                         c.steps * (r.info.n_gather_forward + r.info.n_gather_backward));
        assert_int_equal(gathers(&r)->bytes,
                         4 * c.steps * (r.info.payload_elems + r.info.again_elems));
    }
    assert_int_equal(r.info.n_gather_backward, 0);
}

static void
test_stage3_keys_units_and_calls(void **state)
{
    ew_config c;
    ew_result each, blocks, whole, leaf, single;
    (void)state;
    start(&c, 2);
    c.model.vocab = 301;
    c.engine.zero.prefetch_elems = 0;
    c.engine.zero.max_reuse_elems = 0;
    run_virtual(&c, &each);
    snprintf(c.engine.zero.leaf_suffixes, sizeof(c.engine.zero.leaf_suffixes), "mlp");
    run_virtual(&c, &leaf);
    assert_int_equal(leaf.info.n_gather_forward, each.info.n_gather_forward - 3);
    c.engine.zero.leaf_suffixes[0] = '\0';
    snprintf(c.engine.zero.leaf_names, sizeof(c.engine.zero.leaf_names), "transformer.h.0");
    run_virtual(&c, &leaf);
    assert_int_equal(leaf.info.n_gather_forward, each.info.n_gather_forward - 5);
    assert_true(peak_of(&leaf, SHL_TAG_GATHER) > peak_of(&each, SHL_TAG_GATHER));
    c.engine.zero.leaf_names[0] = '\0';
    snprintf(c.engine.zero.leaf_classes, sizeof(c.engine.zero.leaf_classes),
             "transformers.models.gpt2.modeling_gpt2.GPT2MLP");
    run_virtual(&c, &leaf);
    assert_int_equal(leaf.info.n_gather_forward, each.info.n_gather_forward - 3);
    snprintf(c.engine.zero.leaf_classes, sizeof(c.engine.zero.leaf_classes),
             "GPT2Block,GPT2Attention");
    run_virtual(&c, &leaf);
    assert_int_equal(leaf.info.n_gather_forward, each.info.n_gather_forward - 15);
    c.engine.zero.leaf_classes[0] = '\0';
    c.engine.zero.granularity_elems = 723; /* a block: 5060 elements in 7 modules */
    run_virtual(&c, &blocks);
    assert_int_equal(blocks.info.n_gather_forward, each.info.n_gather_forward - 15);
    c.engine.zero.granularity_elems = 100000;
    run_virtual(&c, &whole);
    assert_int_equal(whole.info.n_gather_forward, 1);
    c.engine.zero.granularity_elems = 0;
    c.engine.zero.gather_sequential = true;
    run_virtual(&c, &single);
    assert_int_equal(gathers(&single)->calls, c.steps * 2 * 40);
    assert_int_equal(gathers(&single)->bytes, gathers(&each)->bytes);
}

static void
test_stage3_keys_refuse_a_leaf_that_is_not_there(void **state)
{
    ew_config c;
    ew_result r;
    (void)state;
    start(&c, 2);
    c.device = "virtual";
    snprintf(c.engine.zero.leaf_names, sizeof(c.engine.zero.leaf_names), "h.0,h.7");
    ew_run(&c, &r);
    assert_int_equal(r.code, SHL_E_USAGE);
    assert_non_null(strstr(r.what, "h.7"));
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* A LLaMA's classes are others, and its MLP is two gathers into one. */
static void
test_stage3_keys_leaf_classes_are_the_familys(void **state)
{
    static const char *const classes[] = {"LlamaDecoderLayer", "Qwen2MLP", "GPT2Block", "LlamaMPL"};
    ew_config c;
    ew_result each, r;
    (void)state;
    start(&c, 2);
    ew_config_llama(&c);
    c.engine.zero.prefetch_elems = c.engine.zero.max_reuse_elems = 0;
    run_virtual(&c, &each);
    for (int i = 0; i < 4; ++i) {
        snprintf(c.engine.zero.leaf_classes, sizeof(c.engine.zero.leaf_classes), "%s", classes[i]);
        ew_run(&c, &r);
        if (i < 2) {
            assert_int_equal(r.code, SHL_OK);
            assert_true(r.info.n_gather_forward < each.info.n_gather_forward);
            assert_int_equal(gathers(&r)->bytes, gathers(&each)->bytes);
        } else {
            assert_int_equal(r.code, SHL_E_USAGE);
            assert_non_null(strstr(r.what, classes[i]));
            assert_non_null(strstr(r.what, "LlamaMLP")); /* the list */
        }
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage3_keys_calls_are_those_of_deepspeed),
        cmocka_unit_test(test_stage3_keys_never_change_bits),
        cmocka_unit_test(test_stage3_keys_hold_in_16_bits),
        cmocka_unit_test(test_stage3_keys_hold_with_offload),
        cmocka_unit_test(test_stage3_keys_persistence_keeps_tensors_whole),
        cmocka_unit_test(test_stage3_keys_prefetch_and_live_bound_what_is_ahead),
        cmocka_unit_test(test_stage3_keys_reuse_keeps_the_end_of_forward),
        cmocka_unit_test(test_stage3_keys_units_and_calls),
        cmocka_unit_test(test_stage3_keys_leaf_classes_are_the_familys),
        cmocka_unit_test(test_stage3_keys_refuse_a_leaf_that_is_not_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
