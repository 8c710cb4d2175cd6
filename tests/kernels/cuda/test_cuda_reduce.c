/* tests/kernels/cuda: what the op cases do not reach of the kernels that add: any partition, all
 * tokens equal or all different, rows longer than shared memory, any place of an element. The
 * CPU's kernels are the reference, to the bit where the contract says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/half.h"
#include "kernels/base/rng.h"
#include "kernels/ops/ops.h"

#define SEED 20251121u
#define MAX_BUFS 8

/* A device with the tensors of one experiment. */
typedef struct bench {
    shl_device *d;
    shl_stream *s;
    shl_buf buf[MAX_BUFS];
    int n;
} bench;

static const char *const kinds[2] = {"cpu", "cuda"};
static const shl_dtype floats[3] = {SHL_F32, SHL_BF16, SHL_F16};

static void
bench_open(bench *b, const char *kind, bool tf32)
{
    shl_device_config cfg = {.kind = kind, .threads = 1, .tf32 = tf32};
    *b = (bench){0};
    assert_int_equal(shl_device_open(&cfg, &b->d), SHL_OK);
    b->s = shl_device_stream(b->d, SHL_STREAM_COMPUTE);
}

static void
bench_clear(bench *b)
{
    while (b->n > 0) {
        shl_device_free(b->d, &b->buf[--b->n]);
    }
}

static void
bench_close(bench *b)
{
    bench_clear(b);
    assert_int_equal(shl_device_close(&b->d), SHL_OK);
}

/* [rows, cols] of a dtype, or [cols] where rows is 0, `offset` elements behind an aligned
 * address, from `host`. */
static shl_tensor
put(bench *b, shl_dtype dtype, int64_t rows, int64_t cols, int64_t offset, const void *host)
{
    size_t elem = shl_dtype_bytes(dtype), bytes = (size_t)((rows > 0 ? rows : 1) * cols) * elem;
    shl_buf *buf = &b->buf[b->n++];
    assert_true(b->n <= MAX_BUFS);
    assert_int_equal(shl_device_alloc(b->d, bytes + (size_t)offset * elem, SHL_TIER_DEVICE,
                                      SHL_TAG_ACT, 0, "test", buf),
                     SHL_OK);
    void *at = shl_elem_ptr(buf->data, dtype, offset);
    assert_int_equal(shl_device_upload(b->d, at, host, bytes), SHL_OK);
    return rows == 0 ? shl_tensor_1d(at, dtype, cols) : shl_tensor_2d(at, dtype, rows, cols);
}

static void
get(bench *b, const shl_tensor *t, void *host)
{
    assert_int_equal(shl_device_download(b->d, host, t->data, shl_tensor_bytes(t)), SHL_OK);
}

static uint64_t
word(const char *stream, int64_t i)
{
    return shl_rng_u64(SEED, shl_rng_stream(stream), (uint64_t)i);
}

/* n elements of a dtype: normal, times `spread` powers of two up and down. */
static void *
draw(const char *stream, shl_dtype dtype, int64_t n, int spread)
{
    void *out = calloc((size_t)n, shl_dtype_bytes(dtype));
    assert_non_null(out);
    for (int64_t i = 0; i < n; i++) {
        int up = spread > 0 ? (int)(word(stream, i) % (2 * (uint64_t)spread)) - spread : 0;
        float z = shl_rng_normal(SEED, shl_rng_stream(stream), (uint64_t)i);
        shl_float_put(dtype, out, i, ldexpf(z, up));
    }
    return out;
}

/* Squares of x[cut[k], cut[k + 1]) one after the other, added to a sum that is about to carry. */
static void
norm_of(bench *b, const shl_tensor *x, const int64_t *cut, int parts, int quantum, uint64_t sum[2])
{
    const uint64_t first[2] = {UINT64_MAX - 5, 3};
    shl_norm_args a = {.quantum_log2 = quantum};
    a.out_sum = put(b, SHL_I64, 0, 2, 0, first);
    for (int k = 0; k < parts; k++) {
        a.x = shl_tensor_1d(shl_elem_ptr(x->data, x->dtype, cut[k]), x->dtype, cut[k + 1] - cut[k]);
        assert_int_equal(shl_op_norm_sum(b->s, &a), SHL_OK);
    }
    get(b, &a.out_sum, sum);
}

static void
test_cuda_reduce_norm_sums_are_the_cpus_for_any_partition(void **state)
{
    enum { N = 9001, PARTS = 5 };
    static const int quanta[] = {-200, -120, -40, 30};
    bench side[2];
    (void)state;
    for (int k = 0; k < 2; k++) {
        bench_open(&side[k], kinds[k], false);
    }
    for (int t = 0; t < 3; t++) {
        void *x = draw("norm", floats[t], N, t == 2 ? 6 : 40);
        shl_float_put(floats[t], x, 77, INFINITY);
        shl_float_put(floats[t], x, 4001, NAN);
        for (size_t q = 0; q < SHL_ARRAY_LEN(quanta); q++) {
            int64_t cut[PARTS + 1] = {0};
            uint64_t whole[2], parts[2];
            for (int k = 1; k < PARTS; k++) {
                cut[k] = cut[k - 1] + (int64_t)(word("cut", k + 10 * (int64_t)q) % (N / PARTS));
            }
            cut[PARTS] = N;
            shl_tensor at = put(&side[0], floats[t], 0, N, 0, x);
            norm_of(&side[0], &at, (const int64_t[]){0, N}, 1, quanta[q], whole);
            at = put(&side[1], floats[t], 0, N, 3, x);
            norm_of(&side[1], &at, cut, PARTS, quanta[q], parts);
            assert_memory_equal(whole, parts, sizeof(whole));
            bench_clear(&side[0]);
            bench_clear(&side[1]);
        }
        free(x);
    }
    bench_close(&side[0]);
    bench_close(&side[1]);
}

typedef struct rows_case {
    const char *name;
    int64_t batch, seq, width, vocab;
    shl_dtype dtype, grad;
    int kind; /* of tokens: 0 all equal, 1 all different, 2 any */
    bool accumulate;
} rows_case;

static void
fill_tokens(const rows_case *c, int32_t *token)
{
    for (int64_t r = 0; r < c->batch * c->seq; r++) {
        uint64_t any = word("token", r) % (uint64_t)c->vocab;
        /* 7919 and the sizes below have no common divisor */
        int64_t other = r * 7919 % c->vocab;
        token[r] = (int32_t)(c->kind == 0 ? c->vocab - 1 : c->kind == 1 ? other : (int64_t)any);
    }
}

/* Gradients of both tables on a side; outputs into wte and wpe. */
static void
run_rows(bench *b, const rows_case *c, int64_t offset, const int32_t *token, const void *dy,
         void *wte, void *wpe)
{
    int64_t rows = c->batch * c->seq;
    shl_embedding_args a = {.tokens = put(b, SHL_I32, 0, rows, 0, token),
                            .dy = put(b, c->dtype, rows, c->width, offset, dy),
                            .dwte = put(b, c->grad, c->vocab, c->width, offset, wte),
                            .dwpe = put(b, c->grad, c->seq + 3, c->width, offset, wpe),
                            .seq = c->seq,
                            .accumulate_wte = c->accumulate,
                            .accumulate_wpe = c->accumulate};
    assert_int_equal(shl_op_embedding_backward(b->s, &a), SHL_OK);
    get(b, &a.dwte, wte);
    get(b, &a.dwpe, wpe);
    bench_clear(b);
}

static void
test_cuda_reduce_embedding_rows_are_added_in_row_order(void **state)
{
    static const rows_case cases[] = {
        {"all equal", 5, 230, 12, 30, SHL_F32, SHL_F32, 0, true},
        {"all equal, bf16", 3, 400, 7, 300, SHL_BF16, SHL_BF16, 0, false},
        {"all different", 3, 700, 4, 2101, SHL_F32, SHL_F32, 1, false},
        {"three digits", 2, 1030, 4, 66000, SHL_BF16, SHL_F32, 2, true},
        {"two digits, wide", 1, 40, 1100, 300, SHL_F16, SHL_F16, 2, true},
        {"one row", 1, 1, 5, 3, SHL_F32, SHL_F32, 2, false},
    };
    bench side[2];
    (void)state;
    for (int k = 0; k < 2; k++) {
        bench_open(&side[k], kinds[k], false);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        const rows_case *c = &cases[i];
        int64_t rows = c->batch * c->seq, n[2] = {c->vocab * c->width, (c->seq + 3) * c->width};
        int32_t *token = calloc((size_t)rows, sizeof(*token));
        void *dy = draw("dy", c->dtype, rows * c->width, 4), *wte[2], *wpe[2];
        assert_non_null(token);
        fill_tokens(c, token);
        for (int k = 0; k < 2; k++) {
            wte[k] = draw("wte", c->grad, n[0], 0);
            wpe[k] = draw("wpe", c->grad, n[1], 0);
            run_rows(&side[k], c, k, token, dy, wte[k], wpe[k]);
        }
        print_message("%s\n", c->name);
        assert_memory_equal(wte[0], wte[1], (size_t)n[0] * shl_dtype_bytes(c->grad));
        assert_memory_equal(wpe[0], wpe[1], (size_t)n[1] * shl_dtype_bytes(c->grad));
        for (int k = 0; k < 2; k++) {
            free(wte[k]);
            free(wpe[k]);
        }
        free(dy);
        free(token);
    }
    bench_close(&side[0]);
    bench_close(&side[1]);
}

/* One cross-entropy; logits into x, the sum into *loss. */
static void
run_loss(bench *b, shl_dtype dtype, int64_t rows, int64_t vocab, int64_t offset,
         const int32_t *target, void *x, double *loss)
{
    shl_cross_entropy_args a = {.logits = put(b, dtype, rows, vocab, offset, x),
                                .targets = put(b, SHL_I32, 0, rows, 0, target),
                                .loss_sum = put(b, SHL_F64, 0, 1, 0, loss),
                                .dloss = 0.25f,
                                .want_grad = true};
    assert_int_equal(shl_op_cross_entropy(b->s, &a), SHL_OK);
    get(b, &a.logits, x);
    get(b, &a.loss_sum, loss);
    bench_clear(b);
}

/* Logits of rows; the first ones of the first row, more than the packs that all threads take first,
 * are hidden. */
static void *
draw_logits(shl_dtype dtype, int64_t n)
{
    void *x = draw("logits", dtype, n, 0);
    for (int64_t i = 0; i < 5000; i++) {
        shl_float_put(dtype, x, i, -INFINITY);
    }
    return x;
}

/* Beyond shared memory, at two addresses, of which one row each is aligned: near the CPU's values, and
 * the same bits at each address. */
static void
test_cuda_reduce_rows_beyond_shared_memory(void **state)
{
    enum { ROWS = 2, VOCAB = 130003 };
    const int32_t target[ROWS] = {VOCAB - 1, 3};
    bench side[2];
    (void)state;
    for (int k = 0; k < 2; k++) {
        bench_open(&side[k], kinds[k], false);
    }
    for (int t = 0; t < 2; t++) {
        size_t bytes = (size_t)ROWS * VOCAB * shl_dtype_bytes(floats[t]);
        void *want = draw_logits(floats[t], ROWS * VOCAB), *first = NULL;
        double want_loss = 0.5, first_loss = 0.5;
        run_loss(&side[0], floats[t], ROWS, VOCAB, 0, target, want, &want_loss);
        for (int64_t offset = 0; offset < 6; offset += 5) {
            void *x = draw_logits(floats[t], ROWS * VOCAB);
            double loss = 0.5;
            run_loss(&side[1], floats[t], ROWS, VOCAB, offset, target, x, &loss);
            for (int64_t i = 0; offset == 0 && i < ROWS * VOCAB; i++) {
                double g = (double)shl_float_at(floats[t], x, i);
                double w = (double)shl_float_at(floats[t], want, i);
                assert_true(fabs(g - w) <= fabs(w) * (t == 0 ? 1e-5 : 0.008) + 1e-30);
            }
            assert_true(fabs(loss - want_loss) < 2e-5);
            if (first == NULL) {
                first = x;
                first_loss = loss;
                continue;
            }
            assert_memory_equal(first, x, bytes);
            assert_true(loss == first_loss);
            free(x);
        }
        free(first);
        free(want);
    }
    bench_close(&side[0]);
    bench_close(&side[1]);
}

/* Row by row into one sum, or all at once: the same double. */
static void
test_cuda_reduce_losses_are_added_in_row_order(void **state)
{
    enum { ROWS = 30, VOCAB = 9 };
    static const double start[] = {1e6, 0.1, 1e9}; /* sums without rounding, and with */
    int32_t target[ROWS];
    bench b;
    (void)state;
    bench_open(&b, "cuda", false);
    for (size_t i = 0; i < SHL_ARRAY_LEN(start); i++) {
        float *all = draw("rows", SHL_F32, (int64_t)ROWS * VOCAB, 3), row[VOCAB];
        double one_by_one = start[i], together = start[i];
        for (int r = 0; r < ROWS; r++) {
            target[r] = r % 7 == 3 ? SHL_IGNORE_INDEX : r % VOCAB;
            memcpy(row, all + (size_t)r * VOCAB, sizeof(row));
            run_loss(&b, SHL_F32, 1, VOCAB, 0, &target[r], row, &one_by_one);
        }
        run_loss(&b, SHL_F32, ROWS, VOCAB, 0, target, all, &together);
        assert_true(one_by_one == together && together > start[i] + 20.0);
        free(all);
    }
    bench_close(&b);
}

/* A token and a target outside the vocabulary are told at the next wait, and once; the rest of
 * the memory is as it was. */
static void
test_cuda_reduce_what_is_outside_the_vocabulary_is_told(void **state)
{
    const int32_t token[4] = {0, -1, 5, 2}, target[2] = {9, 1};
    float dy[4 * 3] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, w[7 * 3] = {0}, x[2 * 4] = {0};
    double loss = 0.0;
    bench b;
    (void)state;
    bench_open(&b, "cuda", false);
    /* a table of five rows with a row before it and one behind */
    shl_tensor table = put(&b, SHL_F32, 7, 3, 0, w);
    shl_embedding_args a = {.tokens = put(&b, SHL_I32, 0, 4, 0, token),
                            .dy = put(&b, SHL_F32, 4, 3, 0, dy),
                            .dwte = shl_tensor_2d((float *)table.data + 3, SHL_F32, 5, 3),
                            .accumulate_wte = true};
    assert_int_equal(shl_op_embedding_backward(b.s, &a), SHL_OK);
    assert_int_equal(shl_device_download(b.d, w, table.data, sizeof(w)), SHL_E_CONFIG);
    get(&b, &table, w);
    for (int r = 0; r < 7; r++) {
        assert_true(w[3 * r + 1] == (r == 1 || r == 3 ? 1.0f : 0.0f));
    }
    shl_cross_entropy_args c = {.logits = put(&b, SHL_F32, 2, 4, 0, x),
                                .targets = put(&b, SHL_I32, 0, 2, 0, target),
                                .loss_sum = put(&b, SHL_F64, 0, 1, 0, &loss),
                                .dloss = 1.0f,
                                .want_grad = true};
    assert_int_equal(shl_op_cross_entropy(b.s, &c), SHL_OK);
    assert_int_equal(shl_device_download(b.d, x, c.logits.data, sizeof(x)), SHL_E_CONFIG);
    get(&b, &c.logits, x);
    assert_true(x[0] == 0.0f && x[4] == 0.25f && x[5] == -0.75f);
    bench_close(&b);
}

/* One update of [begin, end) of five arrays. */
static void
update(bench *b, const shl_tensor t[5], int rule, int64_t begin, int64_t end)
{
    shl_tensor part[5];
    for (int k = 0; k < 5; k++) {
        void *at = t[k].data == NULL ? NULL : shl_elem_ptr(t[k].data, t[k].dtype, begin);
        part[k] = shl_tensor_1d(at, t[k].dtype, at == NULL ? 0 : end - begin);
    }
    if (rule == SHL_RULE_COUNT) {
        shl_adamw_args a = {.param = part[0],
                            .grad = part[1],
                            .m = part[2],
                            .v = part[3],
                            .rounded = part[4],
                            .lr = 1e-3,
                            .beta1 = 0.9,
                            .beta2 = 0.95,
                            .eps = 1e-8,
                            .weight_decay = 0.1,
                            .grad_scale = 0.3,
                            .step = 4};
        assert_int_equal(shl_op_adamw(b->s, &a), SHL_OK);
        return;
    }
    shl_optim_args a = {.rule = (shl_optim_rule)rule,
                        .param = part[0],
                        .grad = part[1],
                        .rounded = part[4],
                        .lr = 1e-3,
                        .beta1 = 0.9,
                        .beta2 = 0.95,
                        .eps = 1e-8,
                        .weight_decay = 0.1,
                        .grad_scale = 0.3,
                        .step = 4,
                        .dampening = rule == SHL_RULE_SGD && t[2].dtype == SHL_F32 ? 0.25 : 0.0,
                        .nesterov = rule == SHL_RULE_SGD && t[2].dtype != SHL_F32};
    if (shl_rule_has_m(a.rule)) {
        a.m = part[2];
    }
    if (shl_rule_has_v(a.rule)) {
        a.v = part[3];
    }
    assert_int_equal(shl_op_optim(b->s, &a), SHL_OK);
}

/* Whole at an aligned address, in odd pieces, and on the CPU: the same bits. */
static void
test_cuda_reduce_updates_do_not_depend_on_the_place(void **state)
{
    enum { N = 701 };
    static const shl_dtype types[3][5] = {
        {SHL_F32, SHL_BF16, SHL_F32, SHL_F32, SHL_BF16},
        {SHL_BF16, SHL_F32, SHL_BF16, SHL_F32, SHL_F16},
        {SHL_F16, SHL_F16, SHL_F32, SHL_BF16, SHL_F32},
    };
    static const int64_t cut[] = {0, 1, 6, 109, 110, 400, N};
    bench b[3];
    (void)state;
    for (int k = 0; k < 3; k++) {
        bench_open(&b[k], kinds[k > 0], false);
    }
    for (int i = 0; i < 3 * (SHL_RULE_COUNT + 1); i++) {
        const shl_dtype *type = types[i % 3];
        int rule = i / 3;
        static unsigned char got[3][5][N * sizeof(float)];
        memset(got, 0, sizeof(got));
        for (int k = 0; k < 3; k++) {
            shl_tensor t[5];
            static const char *const names[5] = {"p", "g", "m", "v", "r"};
            for (int j = 0; j < 5; j++) {
                void *x = draw(names[j], type[j], N, 0);
                for (int64_t e = 0; j == 3 && e < N; e++) { /* a sum of squares */
                    shl_float_put(type[j], x, e, fabsf(shl_float_at(type[j], x, e)));
                }
                t[j] = put(&b[k], type[j], 0, N, k == 2 ? 1 : 0, x);
                free(x);
            }
            t[4].data = rule == SHL_RULE_LAMB ? NULL : t[4].data;
            for (size_t c = 0; c + 1 < SHL_ARRAY_LEN(cut) && k == 2; c++) {
                update(&b[k], t, rule, cut[c], cut[c + 1]);
            }
            if (k < 2) {
                update(&b[k], t, rule, 0, N);
            }
            for (int j = 0; j < 5; j++) {
                if (t[j].data != NULL) {
                    get(&b[k], &t[j], got[k][j]);
                }
            }
            bench_clear(&b[k]);
        }
        assert_memory_equal(got[0], got[1], sizeof(got[0]));
        assert_memory_equal(got[1], got[2], sizeof(got[0]));
    }
    for (int k = 0; k < 3; k++) {
        bench_close(&b[k]);
    }
}

/* y of a product of small whole numbers, which every order of addition gives exactly. */
static void
whole_product(bench *b, int64_t rows, int64_t in, int64_t out, int64_t offset)
{
    float x[32 * 32], w[32 * 32], y[32 * 32] = {0};
    for (int64_t i = 0; i < rows * in; i++) {
        x[i] = (float)(i % 5 - 2);
    }
    for (int64_t i = 0; i < in * out; i++) {
        w[i] = (float)(i % 7 - 3);
    }
    shl_linear_args a = {.order = SHL_WEIGHT_IO};
    a.x = put(b, SHL_F32, rows, in, offset, x);
    a.w = put(b, SHL_F32, in, out, offset, w);
    a.y = put(b, SHL_F32, rows, out, offset, y);
    assert_int_equal(shl_op_linear_forward(b->s, &a), SHL_OK);
    get(b, &a.y, y);
    bench_clear(b);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t o = 0; o < out; o++) {
            float want = 0.0f;
            for (int64_t i = 0; i < in; i++) {
                want += x[r * in + i] * w[i * out + o];
            }
            assert_true(y[r * out + o] == want);
        }
    }
}

/* More shapes than algorithms are remembered; then one shape at addresses that allow less than it did. */
static void
test_cuda_reduce_products_of_more_shapes_than_are_remembered(void **state)
{
    bench b;
    (void)state;
    bench_open(&b, "cuda", false);
    for (int64_t i = 0; i < 230; i++) {
        whole_product(&b, 1 + i % 2, 1 + i / 2 % 15, 1 + i / 30, 0);
    }
    for (int64_t offset = 0; offset < 4; offset++) {
        whole_product(&b, 2, 3, 4, offset);
    }
    bench_close(&b);
}

/* Where the library has nothing, that is an error which says what was asked; other products go on. */
static void
test_cuda_reduce_product_without_an_algorithm_is_an_error(void **state)
{
    const unsigned short x[2 * 3] = {0}, w[3 * 4] = {0}, y[2 * 4] = {0};
    bench b;
    (void)state;
    setenv("SHL_EMULATED_NO_ALGORITHM", "4 2 3", 1);
    bench_open(&b, "cuda", false);
    for (int64_t offset = 0; offset < 2; offset++) {
        shl_linear_args a = {.x = put(&b, SHL_BF16, 2, 3, offset, x),
                             .w = put(&b, SHL_BF16, 3, 4, 0, w),
                             .y = put(&b, SHL_BF16, 2, 4, 0, y)};
        assert_int_equal(shl_op_linear_forward(b.s, &a), SHL_E_SYSTEM);
        const shl_err *e = shl_err_get();
        assert_string_equal(e->what, "no library kernel for linear_forward");
        assert_string_equal(e->because, offset == 0
                                            ? "cuBLASLt 13.0.2 has no algorithm for m 4, n 2, k 3: "
                                              "bf16 by bf16 to bf16, columns 4, 3 and 4 elements "
                                              "apart, addresses at multiples of 16 "
                                              "bytes, 32 MiB of workspace"
                                            : "cuBLASLt 13.0.2 has no algorithm for m 4, n 2, k 3: "
                                              "bf16 by bf16 to bf16, columns 4, 3 and 4 elements "
                                              "apart, addresses at multiples of 2 "
                                              "bytes, 32 MiB of workspace");
        assert_non_null(strstr(e->advice, "multiples of 8"));
        bench_clear(&b);
    }
    whole_product(&b, 2, 4, 3, 0);
    unsetenv("SHL_EMULATED_NO_ALGORITHM");
    bench_close(&b);
}

/* 1 + 2^-11 is a number of fp32 and not of TF32: the choice reaches the library, and only when
 * made. */
static void
test_cuda_reduce_tf32_is_a_choice(void **state)
{
    (void)state;
    for (int tf32 = 0; tf32 < 2; tf32++) {
        float x[4] = {1.00048828125f, 0, 0, 1.00048828125f}, w[4] = {1, 0, 0, 1}, y[4] = {0};
        bench b;
        bench_open(&b, "cuda", tf32 != 0);
        shl_linear_args a = {.x = put(&b, SHL_F32, 2, 2, 0, x),
                             .w = put(&b, SHL_F32, 2, 2, 0, w),
                             .y = put(&b, SHL_F32, 2, 2, 0, y)};
        assert_int_equal(shl_op_linear_forward(b.s, &a), SHL_OK);
        get(&b, &a.y, y);
        assert_true((y[0] == x[0]) == (tf32 == 0));
        bench_close(&b);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_reduce_norm_sums_are_the_cpus_for_any_partition),
        cmocka_unit_test(test_cuda_reduce_embedding_rows_are_added_in_row_order),
        cmocka_unit_test(test_cuda_reduce_rows_beyond_shared_memory),
        cmocka_unit_test(test_cuda_reduce_losses_are_added_in_row_order),
        cmocka_unit_test(test_cuda_reduce_what_is_outside_the_vocabulary_is_told),
        cmocka_unit_test(test_cuda_reduce_updates_do_not_depend_on_the_place),
        cmocka_unit_test(test_cuda_reduce_products_of_more_shapes_than_are_remembered),
        cmocka_unit_test(test_cuda_reduce_product_without_an_algorithm_is_an_error),
        cmocka_unit_test(test_cuda_reduce_tf32_is_a_choice),
    };
    printf("seed %u\n", SEED);
    return cmocka_run_group_tests_name("cuda_reduce", tests, NULL, NULL);
}
