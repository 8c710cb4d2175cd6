/* kernels/cuda/object: all optimizers, one element after the other and all arrays of an element
 * at once, in the formulas and the order of operations of the CPU's kernels, so that the bits
 * are the same. */
#include "kernels/cuda/object/cuda_pack.cuh"

#include <cmath>

#define BLOCK 256
#define WAVES 64 /* blocks per multiprocessor: many, so that the last ones cost little */
#define PACK 4

/* AdamW beside the rules of shl_optim_rule. */
#define RULE_ADAMW SHL_RULE_COUNT

struct optim_constants {
    float grad_scale, decay, keep, rate, step_size, b1, one_minus_b1, b2, one_minus_b2, inv_c1,
        inv_sqrt_c2, eps, damp;
    bool nesterov;
};

/* One update of flat arrays; m, v, rounded may be NULL. */
struct optim_update {
    int rule;
    optim_constants k;
    void *param, *grad, *m, *v, *rounded;
    shl_dtype rounded_dtype;
    bool packs; /* every array may be read in packs */
    int64_t n;
};

static __device__ __forceinline__ float
first_moment(const optim_constants &k, float g, float m)
{
    return fmaf(k.one_minus_b1, g - m, m);
}

static __device__ __forceinline__ float
second_moment(const optim_constants &k, float g, float v)
{
    return fmaf(k.one_minus_b2 * g, g, v * k.b2);
}

static __device__ __forceinline__ float
denominator(const optim_constants &k, float v)
{
    return fmaf(sqrtf(v), k.inv_sqrt_c2, k.eps);
}

/* 1, -1, or c itself where it is 0 or NaN. */
static __device__ __forceinline__ float
sign_of(float c)
{
    return c > 0.0f ? 1.0f : c < 0.0f ? -1.0f : c;
}

/* One element; formulas and papers in kernels/ops/ops.h. */
static __device__ __forceinline__ void
update_one(int rule, const optim_constants &k, bool momentum, float &p, float &g, float &m,
           float &v)
{
    float scaled = g * k.grad_scale, coupled = fmaf(k.decay, p, scaled);
    switch (rule) {
    case RULE_ADAMW:
        m = first_moment(k, scaled, m);
        v = second_moment(k, scaled, v);
        p = p * k.keep - k.step_size * m / denominator(k, v);
        break;
    case SHL_RULE_ADAM:
        m = first_moment(k, coupled, m);
        v = second_moment(k, coupled, v);
        p = p - k.rate * k.inv_c1 * m / denominator(k, v);
        break;
    case SHL_RULE_LION:
        p = p * k.keep - k.rate * sign_of(first_moment(k, scaled, m));
        m = fmaf(k.one_minus_b2, scaled - m, m);
        break;
    case SHL_RULE_ADAGRAD:
        v = fmaf(coupled, coupled, v);
        p = p - k.rate * coupled / (sqrtf(v) + k.eps);
        break;
    case SHL_RULE_SGD:
        m = momentum ? fmaf(k.b1, m, k.damp * coupled) : coupled;
        p = p - k.rate * (momentum && k.nesterov ? fmaf(k.b1, m, coupled) : m);
        break;
    default: /* LAMB's first half */
        m = first_moment(k, scaled, m);
        v = second_moment(k, scaled, v);
        g = fmaf(k.decay, p, k.inv_c1 * m / denominator(k, v));
        break;
    }
}

template <int N, typename T>
static __device__ __forceinline__ void
store_rounded(void *to, int64_t i, const float *x)
{
    pack<T, N> out;
    for (int j = 0; j < N; j++) {
        narrow(x[j], &out.at[j]);
    }
    store_pack<N>(static_cast<T *>(to) + i, out);
}

/* Elements [i, i + N). All loads stand before all arithmetic, so that they are under way
 * together. */
template <int N, typename P, typename G, typename M, typename V>
static __device__ __forceinline__ void
update_pack(const optim_update &u, int64_t i)
{
    pack<P, N> rp = load_pack<N>(static_cast<const P *>(u.param) + i);
    pack<G, N> rg = load_pack<N>(static_cast<const G *>(u.grad) + i);
    pack<M, N> rm = {};
    pack<V, N> rv = {};
    if (u.m != nullptr) {
        rm = load_pack<N>(static_cast<const M *>(u.m) + i);
    }
    if (u.v != nullptr) {
        rv = load_pack<N>(static_cast<const V *>(u.v) + i);
    }
    float p[N];
    for (int j = 0; j < N; j++) {
        float g = widen(rg.at[j]), m = widen(rm.at[j]), v = widen(rv.at[j]);
        p[j] = widen(rp.at[j]);
        update_one(u.rule, u.k, u.m != nullptr, p[j], g, m, v);
        narrow(p[j], &rp.at[j]);
        narrow(g, &rg.at[j]);
        narrow(m, &rm.at[j]);
        narrow(v, &rv.at[j]);
    }
    if (u.m != nullptr) {
        store_pack<N>(static_cast<M *>(u.m) + i, rm);
    }
    if (u.v != nullptr) {
        store_pack<N>(static_cast<V *>(u.v) + i, rv);
    }
    if (u.rule == SHL_RULE_LAMB) {
        store_pack<N>(static_cast<G *>(u.grad) + i, rg);
        return;
    }
    store_pack<N>(static_cast<P *>(u.param) + i, rp);
    if (u.rounded != nullptr && u.rounded_dtype == SHL_BF16) {
        store_rounded<N, bf16>(u.rounded, i, p);
    } else if (u.rounded != nullptr && u.rounded_dtype == SHL_F16) {
        store_rounded<N, f16>(u.rounded, i, p);
    } else if (u.rounded != nullptr) {
        store_rounded<N, float>(u.rounded, i, p);
    }
}

/* Floor: bytes. AdamW with an fp32 master, bf16 gradient, fp32 moments and the bf16 copy moves 4
 * + 4 + 4 read and written, 2 read, 2 written = 28 bytes per element over the copy rate; one
 * launch for all tensors of a flat range. */
template <typename P, typename G, typename M, typename V>
static __global__ void
__launch_bounds__(BLOCK) optim_kernel(optim_update u)
{
    int64_t packs = u.packs ? u.n / PACK : 0, rest = u.n - packs * PACK;
    SHL_GRID_LOOP(i, packs)
    {
        update_pack<PACK, P, G, M, V>(u, i * PACK);
    }
    SHL_GRID_LOOP(i, rest)
    {
        update_pack<1, P, G, M, V>(u, packs * PACK + i);
    }
}

/* A moment is fp32 or bf16; one that is missing is read nowhere. */
#define FOR_MOMENT(dtype, T, ...)                                                                  \
    do {                                                                                           \
        if ((dtype) == SHL_BF16) {                                                                 \
            using T = bf16;                                                                        \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            using T = float;                                                                       \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

static int
run_update(const shl_cuda_launch *l, const optim_update &u, shl_dtype p, shl_dtype g, shl_dtype m,
           shl_dtype v)
{
    unsigned grid = grid_for(l, u.packs ? shl_ceil_div(u.n, PACK) : u.n, BLOCK, WAVES);
    SHL_FOR_FLOAT(p, P,
                  SHL_FOR_FLOAT(g, G,
                                FOR_MOMENT(m, M,
                                           FOR_MOMENT(v, V,
                                                      SHL_LAUNCH((optim_kernel<P, G, M, V>), grid,
                                                                 BLOCK, 0, l->stream, u)))));
    return launch_status();
}

static void
set_arrays(optim_update *u, const shl_tensor *p, const shl_tensor *g, const shl_tensor *m,
           const shl_tensor *v, const shl_tensor *rounded)
{
    const shl_tensor *all[5] = {p, g, m, v, rounded};
    u->param = p->data;
    u->grad = g->data;
    u->m = m->data;
    u->v = v->data;
    u->rounded = rounded->data;
    u->rounded_dtype = rounded->dtype;
    u->n = elems_of(p);
    u->packs = true;
    for (int i = 0; i < 5; i++) {
        u->packs = u->packs && packs_fit(all[i]->data, all[i]->dtype, PACK);
    }
}

/* What both kinds of args have, in double until the end. */
template <typename A>
static optim_constants
constants_of(const A *a)
{
    double c1 = a->uncorrected ? 1.0 : 1.0 - pow(a->beta1, static_cast<double>(a->step));
    double c2 = a->uncorrected ? 1.0 : 1.0 - pow(a->beta2, static_cast<double>(a->step));
    optim_constants k;
    k.grad_scale = static_cast<float>(a->grad_scale);
    k.decay = static_cast<float>(a->weight_decay);
    k.keep = static_cast<float>(1.0 - a->lr * a->weight_decay);
    k.rate = static_cast<float>(a->lr);
    k.step_size = static_cast<float>(a->lr / c1);
    k.b1 = static_cast<float>(a->beta1);
    k.one_minus_b1 = static_cast<float>(1.0 - a->beta1);
    k.b2 = static_cast<float>(a->beta2);
    k.one_minus_b2 = static_cast<float>(1.0 - a->beta2);
    k.inv_c1 = static_cast<float>(1.0 / c1);
    k.inv_sqrt_c2 = static_cast<float>(1.0 / sqrt(c2));
    k.eps = static_cast<float>(a->eps);
    k.damp = 1.0f;
    k.nesterov = false;
    return k;
}

extern "C" int
shl_cuda_adamw(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_adamw_args *a = static_cast<const shl_adamw_args *>(args);
    optim_update u;
    SHL_UNUSED(work);
    u.rule = RULE_ADAMW;
    u.k = constants_of(a);
    set_arrays(&u, &a->param, &a->grad, &a->m, &a->v, &a->rounded);
    return run_update(l, u, a->param.dtype, a->grad.dtype, a->m.dtype, a->v.dtype);
}

extern "C" int
shl_cuda_optim(const shl_cuda_launch *l, const void *args, void *work)
{
    const shl_optim_args *a = static_cast<const shl_optim_args *>(args);
    optim_update u;
    SHL_UNUSED(work);
    u.rule = a->rule;
    u.k = constants_of(a);
    u.k.damp = a->step == 1 ? 1.0f : static_cast<float>(1.0 - a->dampening);
    u.k.nesterov = a->nesterov;
    set_arrays(&u, &a->param, &a->grad, &a->m, &a->v, &a->rounded);
    return run_update(l, u, a->param.dtype, a->grad.dtype, a->m.dtype, a->v.dtype);
}
