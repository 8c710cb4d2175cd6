/* kernels/cpu: AdamW (Loshchilov & Hutter 2019), formulas as torch.optim.AdamW; a memory-bound
 * sweep over four arrays. An element's bits depend on its own four values only. */
#include "kernels/cpu/cpu_block.h"
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

/* One block of each array in turn. */
static inline void
adamw_lanes(const adamw_constants *k, float *p, const float *g, float *m, float *v)
{
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vstore(m + j, adamw_m(k, vload(g + j), vload(m + j)));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vstore(v + j, adamw_v(k, vload(g + j), vload(v + j)));
    }
    for (int j = 0; j < CPU_BLOCK; j += VL) {
        vstore(p + j, adamw_p(k, vload(p + j), vload(m + j), vload(v + j)));
    }
}

/* One array after the other: loads from arrays that start at the same place of a page would
 * otherwise wait for each other's stores, which halves the speed. */
static inline void
adamw_block(const adamw_constants *k, float *p, const float *g, float *m, float *v)
{
    for (int j = CPU_AHEAD; j < CPU_AHEAD + CPU_BLOCK; j += CPU_LINE) {
        __builtin_prefetch(p + j, 1);
        __builtin_prefetch(g + j, 0);
        __builtin_prefetch(m + j, 1);
        __builtin_prefetch(v + j, 1);
    }
    adamw_lanes(k, p, g, m, v);
}

static void
adamw_range(const adamw_constants *k, float *p, const float *g, float *m, float *v, int64_t begin,
            int64_t end)
{
    int64_t i = begin;
    for (; i + CPU_BLOCK <= end; i += CPU_BLOCK) {
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

/* The same for any types; what lies behind the end of a part-filled room is of no interest. */
static void
adamw_mixed(const adamw_constants *k, const shl_adamw_args *a, int64_t begin, int64_t end)
{
    float room[4][CPU_BLOCK] = {{0}};
    for (int64_t i = begin; i < end; i += CPU_BLOCK) {
        int64_t n = end - i < CPU_BLOCK ? end - i : CPU_BLOCK;
        const float *g = cpu_block_in(&a->grad, i, n, room[0]);
        float *p = cpu_block_in(&a->param, i, n, room[1]);
        float *m = cpu_block_in(&a->m, i, n, room[2]), *v = cpu_block_in(&a->v, i, n, room[3]);
        adamw_lanes(k, p, g, m, v);
        cpu_block_out(&a->param, i, n, p, room[1]);
        cpu_block_out(&a->m, i, n, m, room[2]);
        cpu_block_out(&a->v, i, n, v, room[3]);
        if (a->rounded.data != NULL) {
            cpu_narrow(a->rounded.dtype, p, a->rounded.data, i, n);
        }
    }
}

static bool
adamw_is_f32(const shl_adamw_args *a)
{
    return a->param.dtype == SHL_F32 && a->grad.dtype == SHL_F32 && a->m.dtype == SHL_F32 &&
           a->v.dtype == SHL_F32 && a->rounded.data == NULL;
}

shl_code
SHL_K(shl_cpu_adamw)(shl_stream *s, const void *args, void *work)
{
    const shl_adamw_args *a = args;
    SHL_UNUSED(work);
    bool f32 = adamw_is_f32(a);
    double c1 = a->uncorrected ? 1.0 : 1.0 - pow(a->beta1, (double)a->step);
    double c2 = a->uncorrected ? 1.0 : 1.0 - pow(a->beta2, (double)a->step);
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
        if (f32) {
            adamw_range(&k, a->param.data, a->grad.data, a->m.data, a->v.data, begin, end);
        } else {
            adamw_mixed(&k, a, begin, end);
        }
    }
    return SHL_OK;
}
