/* kernels/cpu: AdamW (Loshchilov & Hutter 2019), formulas as torch.optim.AdamW; a memory-bound
 * sweep over four arrays. An element's bits depend on its own four values only. */
#include "kernels/cpu/cpu_simd.h"
#include "kernels/cpu/cpu_slots.h"

typedef struct adamw_constants {
    vf grad_scale, keep, one_minus_b1, b2, one_minus_b2, step_size, inv_sqrt_c2, eps;
} adamw_constants;

static inline void
adamw_lanes(const adamw_constants *k, vf *p, vf g, vf *m, vf *v)
{
    g *= k->grad_scale;
    *m = vfma(k->one_minus_b1, g - *m, *m);
    *v = vfma(k->one_minus_b2 * g, g, *v * k->b2);
    vf denom = vfma(vsqrt(*v), k->inv_sqrt_c2, k->eps);
    *p = *p * k->keep - k->step_size * *m / denom;
}

static void
adamw_range(const adamw_constants *k, float *p, const float *g, float *m, float *v, int64_t begin,
            int64_t end)
{
    enum { AHEAD = 512, GROUP = 64 / 4 }; /* 2 KiB ahead, one line at a time */
    int64_t i = begin;
    for (; i + GROUP <= end; i += GROUP) {
        __builtin_prefetch(p + i + AHEAD, 1);
        __builtin_prefetch(g + i + AHEAD, 0);
        __builtin_prefetch(m + i + AHEAD, 1);
        __builtin_prefetch(v + i + AHEAD, 1);
        for (int64_t j = i; j < i + GROUP; j += VL) {
            vf vp = vload(p + j), vm = vload(m + j), vv = vload(v + j);
            adamw_lanes(k, &vp, vload(g + j), &vm, &vv);
            vstore(p + j, vp);
            vstore(m + j, vm);
            vstore(v + j, vv);
        }
    }
    while (i < end) {
        int64_t n = end - i < VL ? end - i : VL;
        vf vp = vload_n(p + i, n), vm = vload_n(m + i, n), vv = vload_n(v + i, n);
        adamw_lanes(k, &vp, vload_n(g + i, n), &vm, &vv);
        vstore_n(p + i, vp, n);
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
