/* tests/kernels/ops: arguments that break a contract come back as SHL_E_BUG, types too, a token out of range as SHL_E_CONFIG; nothing is written or left allocated. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "kernels/ops/op_cases.h"

static void
spoil_update(shl_op op, shl_op_any_args *a)
{
    if (op == SHL_OP_ADAMW) {
        a->adamw.step = 0;
    } else {
        a->optim.step = 0;
    }
}

/* Rows that are said to lie apart overlap then; false: op has none that do. */
static bool
spoil_stride(shl_op op, shl_op_any_args *a)
{
    bool linear = op == SHL_OP_LINEAR_FORWARD || op == SHL_OP_LINEAR_BACKWARD_INPUT ||
                  op == SHL_OP_LINEAR_BACKWARD_WEIGHT;
    int64_t *stride = linear                       ? &a->linear.stride
                      : op == SHL_OP_CROSS_ENTROPY ? &a->loss.stride
                                                   : NULL;
    if (stride == NULL || *stride == 0) {
        return false;
    }
    *stride = (linear ? op == SHL_OP_LINEAR_FORWARD ? a->linear.y.dims[1] : a->linear.dy.dims[1]
                      : a->loss.logits.dims[1]) -
              1;
    return true;
}

/* A change to sound arguments that no op may accept. */
static void
spoil(shl_op op, shl_op_any_args *a)
{
    switch (op) {
    case SHL_OP_LINEAR_FORWARD:
        a->linear.w.dims[0]++;
        break;
    case SHL_OP_LINEAR_BACKWARD_INPUT:
        a->linear.dx.dims[0]--;
        break;
    case SHL_OP_LINEAR_BACKWARD_WEIGHT:
        a->linear.db.dims[0]++;
        break;
    case SHL_OP_LAYERNORM_FORWARD:
        a->layernorm.w.dims[0]++;
        break;
    case SHL_OP_LAYERNORM_BACKWARD:
        a->layernorm.rstd.data = NULL;
        break;
    case SHL_OP_GELU_FORWARD:
        a->gelu.y.dims[0]--;
        break;
    case SHL_OP_GELU_BACKWARD:
        a->gelu.dy.dtype = SHL_F64;
        break;
    case SHL_OP_EMBEDDING_FORWARD:
        a->embedding.tokens.dtype = SHL_I64;
        break;
    case SHL_OP_EMBEDDING_BACKWARD:
        a->embedding.seq = 7777;
        break;
    case SHL_OP_ATTENTION_FORWARD:
        a->attention.kv_heads = a->attention.heads + 1;
        break;
    case SHL_OP_ATTENTION_BACKWARD:
        a->attention.dk = NULL;
        break;
    case SHL_OP_ADD:
    case SHL_OP_CAST: /* begins with two tensors too */
        a->add.x2.dims[0]++;
        break;
    case SHL_OP_SCALE:
        a->scale.x.data = NULL;
        break;
    case SHL_OP_CROSS_ENTROPY:
        a->loss.loss_sum.dtype = SHL_F32;
        break;
    case SHL_OP_ADAMW:
    case SHL_OP_OPTIM:
        spoil_update(op, a);
        break;
    case SHL_OP_NORM_MAX:
    case SHL_OP_NORM_SUM:
        a->norm.out_max.dims[0] = 2;
        a->norm.quantum_log2 = 100000;
        break;
    case SHL_OP_SUM_RANKS:
        a->sum.n = 0;
        break;
    case SHL_OP_INIT:
        a->init.begin = -1;
        break;
    case SHL_OP_RMSNORM_FORWARD:
        a->rmsnorm.rstd.dims[0]++;
        break;
    case SHL_OP_RMSNORM_BACKWARD:
        a->rmsnorm.dw.dims[0]++;
        break;
    case SHL_OP_ROPE:
        a->rope.head_dim--;
        break;
    case SHL_OP_SILU_MUL_FORWARD:
        a->silu.stride = a->silu.cols - 1;
        break;
    case SHL_OP_SILU_MUL_BACKWARD:
        a->silu.dup = NULL;
        break;
    case SHL_OP_DROPOUT:
        a->dropout.p = 1.0;
        break;
    case SHL_OP_COUNT:
        break;
    }
}

static shl_device *
open_device(const char *kind)
{
    shl_device_config cfg = {.kind = kind, .stands_for = "cpu", .threads = 1};
    shl_device *d = NULL;
    assert_int_equal(shl_device_open(&cfg, &d), SHL_OK);
    return d;
}

static void
test_shapes_that_break_the_contract_are_refused(void **state)
{
    static const char *const kinds[] = {"cpu", "virtual"};
    size_t n = 0;
    const shl_op_case *c = shl_op_cases(&n);
    (void)state;
    for (size_t k = 0; k < SHL_ARRAY_LEN(kinds); k++) {
        shl_device *d = open_device(kinds[k]);
        for (size_t i = 0; i < n; i++) {
            shl_op_run *run = NULL;
            if ((c[i].flags & (SHL_CASE_SPEED | SHL_CASE_PLAIN)) != 0) {
                continue;
            }
            assert_int_equal(shl_op_run_open(d, &c[i], 1, 0, &run), SHL_OK);
            assert_int_equal(shl_op_run_call(run), SHL_OK);
            size_t held = shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->now_bytes;
            if (!spoil_stride(c[i].op, &run->args)) {
                spoil(c[i].op, &run->args);
            }
            assert_int_equal(shl_op_run_call(run), SHL_E_BUG);
            assert_non_null(strstr(shl_err_get()->what, shl_op_name(c[i].op)));
            assert_int_equal(shl_ledger_get(d->ledger, SHL_TIER_DEVICE)->now_bytes, held);
            shl_op_run_close(&run);
        }
        assert_int_equal(shl_device_close(&d), SHL_OK);
    }
}

static void
test_shapes_of_mixed_types_are_refused(void **state)
{
    uint16_t x[16] = {0};
    shl_device *d = open_device("cpu");
    shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
    shl_gelu_args a = {.x = shl_tensor_1d(x, SHL_BF16, 8), .y = shl_tensor_1d(x, SHL_F32, 8)};
    shl_linear_args l = {.x = shl_tensor_2d(x, SHL_BF16, 2, 2),
                         .dy = shl_tensor_2d(x, SHL_BF16, 2, 2),
                         .dw = shl_tensor_2d(x, SHL_F16, 2, 2)};
    shl_adamw_args w = {.param = shl_tensor_1d(x, SHL_F32, 4),
                        .grad = shl_tensor_1d(x, SHL_BF16, 4),
                        .m = shl_tensor_1d(x, SHL_F16, 4),
                        .v = shl_tensor_1d(x, SHL_F32, 4),
                        .step = 1};
    (void)state;
    assert_int_equal(shl_op_gelu_forward(s, &a), SHL_E_BUG);
    assert_int_equal(shl_op_linear_backward_weight(s, &l), SHL_E_BUG);
    assert_int_equal(shl_op_adamw(s, &w), SHL_E_BUG);
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

static void
test_shapes_tokens_out_of_range_are_refused(void **state)
{
    static const int32_t bad[] = {-1, 5, INT32_MAX, INT32_MIN, SHL_IGNORE_INDEX};
    float wte[10] = {0}, y[4], logits[10] = {0};
    double loss = 0.0;
    shl_device *d = open_device("cpu");
    shl_stream *s = shl_device_stream(d, SHL_STREAM_COMPUTE);
    (void)state;
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        int32_t tokens[2] = {4, bad[i]};
        shl_embedding_args e = {.tokens = shl_tensor_1d(tokens, SHL_I32, 2),
                                .wte = shl_tensor_2d(wte, SHL_F32, 5, 2),
                                .y = shl_tensor_2d(y, SHL_F32, 2, 2),
                                .dy = shl_tensor_2d(y, SHL_F32, 2, 2),
                                .dwte = shl_tensor_2d(wte, SHL_F32, 5, 2),
                                .seq = 2};
        assert_int_equal(shl_op_embedding_forward(s, &e), SHL_E_CONFIG);
        assert_int_equal(shl_op_embedding_backward(s, &e), SHL_E_CONFIG);
        shl_cross_entropy_args c = {.logits = shl_tensor_2d(logits, SHL_F32, 2, 5),
                                    .targets = shl_tensor_1d(tokens, SHL_I32, 2),
                                    .loss_sum = shl_tensor_1d(&loss, SHL_F64, 1),
                                    .dloss = 1.0f};
        assert_int_equal(shl_op_cross_entropy(s, &c),
                         bad[i] == SHL_IGNORE_INDEX ? SHL_OK : SHL_E_CONFIG);
    }
    assert_int_equal(shl_device_close(&d), SHL_OK);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes_that_break_the_contract_are_refused),
        cmocka_unit_test(test_shapes_of_mixed_types_are_refused),
        cmocka_unit_test(test_shapes_tokens_out_of_range_are_refused),
    };
    return cmocka_run_group_tests_name("ops_shapes", tests, NULL, NULL);
}
