/* tests/models: dropout: masks are drawn by the place of an element in the global batch, the same in
 * backward and in recomputation, and none in evaluation. */
#include <stdio.h>

#include "tests/models/tune_bench.h"

static const shl_tune_config ways[] = {
    {.dropout = 0.3, .attention_dropout = 0.2, .recompute = SHL_RECOMPUTE_SELECTIVE},
    {.dropout = 0.3, .attention_dropout = 0.2, .recompute = SHL_RECOMPUTE_FULL},
    {.dropout = 0.3,
     .attention_dropout = 0.2,
     .recompute = SHL_RECOMPUTE_FULL,
     .recompute_every = 2},
};

static void
test_model_dropout_is_the_same_when_recomputed(void **state)
{
    SHL_UNUSED(state);
    shl_tune_config tune = {.dropout = 0.3, .attention_dropout = 0.2};
    bench a;
    bench_open(&a, "cpu", &tune);
    double first = loss_of(&a, true);
    for (size_t i = 0; i < SHL_ARRAY_LEN(ways); i++) {
        bench b;
        bench_open(&b, "cpu", &ways[i]);
        double again = loss_of(&b, true);
        assert_memory_equal(&first, &again, sizeof first);
        for (int k = 0; k < a.model->n_params; k++) {
            float x[MAX_ELEMS], y[MAX_ELEMS];
            grad_of(&a, a.model->params[k]->name, x);
            grad_of(&b, a.model->params[k]->name, y);
            assert_memory_equal(x, y, (size_t)a.model->params[k]->elems * sizeof(float));
        }
        bench_close(&b);
    }
    bench_close(&a);
}

/* Another step or another place in the global batch drops others; evaluation drops nothing. */
static void
test_model_dropout_is_drawn_by_step_and_place(void **state)
{
    SHL_UNUSED(state);
    shl_tune_config tune = {.attention_dropout = 0.3}, nothing = {0};
    bench plain, b;
    bench_open(&plain, "cpu", &nothing);
    bench_open(&b, "cpu", &tune);
    double whole = loss_of(&plain, true), first = loss_of(&b, true);
    assert_true(first != whole && loss_of(&b, false) == whole);
    assert_true(loss_of(&b, true) == first);
    b.batch.run.dropout_seed = 1;
    assert_true(loss_of(&b, true) != first);
    b.batch.run.dropout_seed = 0;
    b.batch.run.first_row = 1;
    assert_true(loss_of(&b, true) != first);
    bench_close(&plain);
    bench_close(&b);
}

/* With its mask held the loss is smooth, and its slopes in training are the gradients. */
static void
test_model_dropout_matches_finite_differences(void **state)
{
    SHL_UNUSED(state);
    bench b;
    shl_tune_config tune = {.dropout = 0.25, .attention_dropout = 0.25};
    print_message("seed %u\n", SEED);
    bench_open(&b, "cpu", &tune);
    for (int i = 0; i < b.model->n_params; i++) {
        shl_plain_zero_grad(&b.plain);
        (void)loss_of(&b, true);
        check_slope(&b, i, i % 2 == 0, true);
    }
    bench_close(&b);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model_dropout_is_the_same_when_recomputed),
        cmocka_unit_test(test_model_dropout_is_drawn_by_step_and_place),
        cmocka_unit_test(test_model_dropout_matches_finite_differences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
