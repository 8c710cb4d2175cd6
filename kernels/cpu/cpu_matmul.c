/* kernels/cpu: products by oneDNN's matmul primitive, over our pointers. The library keeps what it
 * compiled in a cache of its own, so that a primitive is cheap to make again. */
#include "kernels/cpu/cpu_matmul.h"

#include <dnnl.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#if DNNL_VERSION_MAJOR == 2

bool
shl_cpu_matmul_is_native(shl_dtype dtype)
{
    unsigned has = (unsigned)dnnl_get_effective_cpu_isa();
    unsigned need = (unsigned)dnnl_cpu_isa_avx512_core_bf16;
    return dtype == SHL_BF16 && (has & need) == need;
}

enum { ARG_A = 0, ARG_B, ARG_BIAS, ARG_C, N_ARGS };

/* Everything that one call makes; all are NULL until made. */
typedef struct matmul_call {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t post_ops;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[N_ARGS];
    dnnl_memory_desc_t md[N_ARGS];
} matmul_call;

static dnnl_data_type_t
library_type(shl_dtype dtype)
{
    if (dtype == SHL_BF16) {
        return dnnl_bf16;
    }
    return dtype == SHL_F16 ? dnnl_f16 : dnnl_f32;
}

static dnnl_status_t
describe(dnnl_memory_desc_t *md, shl_dtype dtype, int64_t rows, int64_t cols, int64_t ld,
         bool transposed)
{
    dnnl_dims_t dims = {rows, cols}, strides = {transposed ? 1 : ld, transposed ? ld : 1};
    return dnnl_memory_desc_init_by_strides(md, 2, dims, library_type(dtype), strides);
}

#define STEP(call)                                                                                 \
    do {                                                                                           \
        dnnl_status_t step_status = (call);                                                        \
        if (step_status != dnnl_success) {                                                         \
            return step_status;                                                                    \
        }                                                                                          \
    } while (0)

static dnnl_status_t
make(matmul_call *c, const shl_cpu_matmul *p)
{
    dnnl_matmul_desc_t d;
    STEP(dnnl_engine_create(&c->engine, dnnl_cpu, 0));
    STEP(dnnl_stream_create(&c->stream, c->engine, dnnl_stream_default_flags));
    STEP(describe(&c->md[ARG_A], p->dtype, p->m, p->k, p->lda, p->ta));
    STEP(describe(&c->md[ARG_B], p->dtype, p->k, p->n, p->ldb, p->tb));
    STEP(describe(&c->md[ARG_BIAS], p->dtype, 1, p->n, p->n, false));
    STEP(describe(&c->md[ARG_C], p->c_dtype, p->m, p->n, p->ldc, false));
    STEP(dnnl_matmul_desc_init(&d, &c->md[ARG_A], &c->md[ARG_B],
                               p->bias != NULL ? &c->md[ARG_BIAS] : NULL, &c->md[ARG_C]));
    STEP(dnnl_primitive_attr_create(&c->attr));
    if (p->add) {
        STEP(dnnl_post_ops_create(&c->post_ops));
        STEP(dnnl_post_ops_append_sum(c->post_ops, 1.0f));
        STEP(dnnl_primitive_attr_set_post_ops(c->attr, c->post_ops));
    }
    STEP(dnnl_primitive_desc_create(&c->desc, &d, c->attr, c->engine, NULL));
    return dnnl_primitive_create(&c->primitive, c->desc);
}

/* The library's handles are not const; it only reads A, B and the bias. */
static void *
handle(const void *data)
{
    union {
        const void *in;
        void *out;
    } u = {data};
    return u.out;
}

static dnnl_status_t
run(matmul_call *c, const shl_cpu_matmul *p)
{
    static const int names[N_ARGS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST};
    const void *data[N_ARGS] = {p->a, p->b, p->bias, p->c};
    dnnl_exec_arg_t args[N_ARGS];
    int n = 0;
    STEP(make(c, p));
    for (int i = 0; i < N_ARGS; i++) {
        if (data[i] != NULL) {
            STEP(dnnl_memory_create(&c->memory[i], &c->md[i], c->engine, handle(data[i])));
            args[n++] = (dnnl_exec_arg_t){names[i], c->memory[i]};
        }
    }
    STEP(dnnl_primitive_execute(c->primitive, c->stream, n, args));
    return dnnl_stream_wait(c->stream);
}

static void
drop(matmul_call *c)
{
    for (int i = 0; i < N_ARGS; i++) {
        (void)dnnl_memory_destroy(c->memory[i]);
    }
    (void)dnnl_primitive_destroy(c->primitive);
    (void)dnnl_primitive_desc_destroy(c->desc);
    (void)dnnl_post_ops_destroy(c->post_ops);
    (void)dnnl_primitive_attr_destroy(c->attr);
    (void)dnnl_stream_destroy(c->stream);
    (void)dnnl_engine_destroy(c->engine);
}

shl_code
shl_cpu_matmul_run(const shl_cpu_matmul *p, int threads)
{
    matmul_call c = {0};
#if defined(_OPENMP)
    if (omp_get_max_threads() != threads) {
        omp_set_num_threads(threads);
    }
#else
    SHL_UNUSED(threads);
#endif
    dnnl_status_t st = run(&c, p);
    drop(&c);
    return st == dnnl_success ? SHL_OK
                              : SHL_RAISE(SHL_E_SYSTEM, "oneDNN's matmul gave status %d", (int)st);
}

#else

/* The primitive's interface is that of oneDNN 2; with another one products are widened to fp32. */
bool
shl_cpu_matmul_is_native(shl_dtype dtype)
{
    SHL_UNUSED(dtype);
    return false;
}

shl_code
shl_cpu_matmul_run(const shl_cpu_matmul *p, int threads)
{
    SHL_UNUSED(p);
    SHL_UNUSED(threads);
    return SHL_RAISE(SHL_E_SYSTEM, "this build has no matmul primitive");
}

#endif
