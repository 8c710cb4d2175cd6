/* kernels/cpu: AdamW (Loshchilov & Hutter 2019), formulas as torch.optim.AdamW; a memory-bound
 * sweep over four arrays. An element's bits depend on its own four values only. */
#include "kernels/cpu/cpu_simd.h"
#include "kernels/cpu/cpu_slots.h"

typedef struct adamw_constants {
    vf grad_scale, keep, one_minus_b1, b2, one_minus_b2, step_size, inv_sqrt_c2, eps;
} adamw_constants;

static inline vf
adamw_m(const adamw_constants *k, vf g, vf m)
{
    return vfma(k->one_minus_b1, g * k->grad_scale - m, m);
}

static inline vf
adamw_v(const adamw_constants *k, vf g, vf v)
{
    g *= k->grad_scale;
    return vfma(k->one_minus_b2 * g, g, v * k->b2);
}

static inline vf
adamw_p(const adamw_constants *k, vf p, vf m, vf v)
{
    vf denom = vfma(vsqrt(v), k->inv_sqrt_c2, k->eps);
    return p * k->keep - k->step_size * m / denom;
}

enum { AHEAD = 512, BLOCK = 64, LINE = 64 / 4 }; /* elements: 2 KiB ahead, a cache line */

/* One array after the other: loads from arrays that start at the same place of a page would
 * otherwise wait for each other's stores, which halves the speed. */
static inline void
adamw_block(const adamw_constants *k, float *p, const float *g, float *m, float *v)
{
    for (int j = AHEAD; j < AHEAD + BLOCK; j += LINE) {
        __builtin_prefetch(p + j, 1);
        __builtin_prefetch(g + j, 0);
        __builtin_prefetch(m + j, 1);
        __builtin_prefetch(v + j, 1);
    }
    for (int j = 0; j < BLOCK; j += VL) {
        vstore(m + j, adamw_m(k, vload(g + j), vload(m + j)));
    }
    for (int j = 0; j < BLOCK; j += VL) {
        vstore(v + j, adamw_v(k, vload(g + j), vload(v + j)));
    }
    for (int j = 0; j < BLOCK; j += VL) {
        vstore(p + j, adamw_p(k, vload(p + j), vload(m + j), vload(v + j)));
    }
}

static void
adamw_range(const adamw_constants *k, float *p, const float *g, float *m, float *v, int64_t begin,
            int64_t end)
{
    int64_t i = begin;
    for (; i + BLOCK <= end; i += BLOCK) {
        adamw_block(k, p + i, g + i, m + i, v + i);
    }
    while (i < end) {
        int64_t n = end - i < VL ? end - i : VL;
        vf vg = vload_n(g + i, n);
        vf vm = adamw_m(k, vg, vload_n(m + i, n)), vv = adamw_v(k, vg, vload_n(v + i, n));
        vstore_n(p + i, adamw_p(k, vload_n(p + i, n), vm, vv), n);
        vstore_n(m + i, vm, n);
        vstore_n(v + i, vv, n);
        i += n;
    }
}

shl_code
SHL_K(shl_cpu_adamw)(shl_stream *s, const void *args, void *work)
{
    const shl_adamw_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->param.dtype, SHL_OP_ADAMW));
    double c1 = 1.0 - pow(a->beta1, (double)a->step);
    double c2 = 1.0 - pow(a->beta2, (double)a->step);
    const adamw_constants k = {
        .grad_scale = vdup((float)a->grad_scale),
        .keep = vdup((float)(1.0 - a->lr * a->weight_decay)),
        .one_minus_b1 = vdup((float)(1.0 - a->beta1)),
        .b2 = vdup((float)a->beta2),
        .one_minus_b2 = vdup((float)(1.0 - a->beta2)),
        .step_size = vdup((float)(a->lr / c1)),
        .inv_sqrt_c2 = vdup((float)(1.0 / sqrt(c2))),
        .eps = vdup((float)a->eps),
    };
    int64_t n = shl_tensor_elems(&a->param);
    int threads = cpu_threads(s, n);
    int64_t part = shl_round_up(shl_ceil_div(n, threads), CPU_CHUNK);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += part) {
        int64_t end = n - begin < part ? n : begin + part;
        adamw_range(&k, a->param.data, a->grad.data, a->m.data, a->v.data, begin, end);
    }
    return SHL_OK;
}
