/* kernels/cpu: elementwise ops: add, scale, sums over ranks, initial values. */
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

enum {
    BLOCK = 1024
}; /* elements of other types that are widened at once: they stay in the cache */

/* y = x1 + x2 on [begin, end); y may be either. */
static inline void
add_range(const float *x1, const float *x2, float *y, int64_t begin, int64_t end)
{
    int64_t i = begin;
    for (; i + 4 * VL <= end; i += 4 * VL) {
        for (int j = 0; j < 4; j++) {
            vstore(y + i + j * VL, vload(x1 + i + j * VL) + vload(x2 + i + j * VL));
        }
    }
    for (; i < end; i++) {
        y[i] = x1[i] + x2[i];
    }
}

/* The same for any types, by way of fp32 blocks. */
static void
add_mixed(const shl_add_args *a, int64_t begin, int64_t end)
{
    float room1[BLOCK], room2[BLOCK];
    for (int64_t i = begin; i < end; i += BLOCK) {
        int64_t n = end - i < BLOCK ? end - i : BLOCK;
        const float *x1 = cpu_floats(a->x1.dtype, a->x1.data, i, n, room1);
        const float *x2 = cpu_floats(a->x2.dtype, a->x2.data, i, n, room2);
        add_range(x1, x2, room1, 0, n);
        cpu_narrow(a->y.dtype, room1, a->y.data, i, n);
    }
}

static bool
add_is_f32(const shl_add_args *a)
{
    return a->x1.dtype == SHL_F32 && a->x2.dtype == SHL_F32 && a->y.dtype == SHL_F32;
}

shl_code
SHL_K(shl_cpu_add)(shl_stream *s, const void *args, void *work)
{
    const shl_add_args *a = args;
    SHL_UNUSED(work);
    bool f32 = add_is_f32(a);
    int64_t n = shl_tensor_elems(&a->x1);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        int64_t end = cpu_chunk_end(begin, n);
        if (f32) {
            add_range(a->x1.data, a->x2.data, a->y.data, begin, end);
        } else {
            add_mixed(a, begin, end);
        }
    }
    return SHL_OK;
}

static inline CPU_ALWAYS void
scale_as(shl_dtype dtype, void *x, vf factor, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i += VL) {
        if (i + VL <= end) {
            vstore_as(dtype, x, i, vload_as(dtype, x, i) * factor);
        } else {
            vstore_as_n(dtype, x, i, vload_as_n(dtype, x, i, end - i) * factor, end - i);
        }
    }
}

shl_code
SHL_K(shl_cpu_scale)(shl_stream *s, const void *args, void *work)
{
    const shl_scale_args *a = args;
    SHL_UNUSED(work);
    shl_dtype dtype = a->x.dtype;
    void *x = a->x.data;
    vf factor = vdup(a->factor);
    int64_t n = shl_tensor_elems(&a->x);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        int64_t end = cpu_chunk_end(begin, n);
        if (dtype == SHL_F32) {
            scale_as(SHL_F32, x, factor, begin, end);
        } else if (dtype == SHL_BF16) {
            scale_as(SHL_BF16, x, factor, begin, end);
        } else {
            scale_as(SHL_F16, x, factor, begin, end);
        }
    }
    return SHL_OK;
}

/* The sum of a 16-bit type is kept in fp32 and rounded once. */
static void
sum_ranks_half(const shl_sum_ranks_args *a, int64_t begin, int64_t n)
{
    float total[BLOCK], room[BLOCK];
    shl_dtype dtype = a->dst.dtype;
    cpu_widen(dtype, a->srcs[0], begin, n, total);
    for (int k = 1; k < a->n; k++) {
        add_range(total, cpu_floats(dtype, a->srcs[k], begin, n, room), total, 0, n);
    }
    if (a->add_to_dst) {
        add_range(cpu_floats(dtype, a->dst.data, begin, n, room), total, total, 0, n);
    }
    cpu_narrow(dtype, total, a->dst.data, begin, n);
}

/* Sources stream once; the running sum stays in the first-level cache, 16 KiB at a time, because
 * dst may be one of the sources. */
shl_code
SHL_K(shl_cpu_sum_ranks)(shl_stream *s, const void *args, void *work)
{
    enum { RUN = 4096 };
    const shl_sum_ranks_args *a = args;
    SHL_UNUSED(s);
    SHL_UNUSED(work);
    float *dst = a->dst.data;
    int64_t n = shl_tensor_elems(&a->dst);
    float total[RUN];
    if (a->dst.dtype != SHL_F32) {
        for (int64_t begin = 0; begin < n; begin += BLOCK) {
            sum_ranks_half(a, begin, n - begin < BLOCK ? n - begin : BLOCK);
        }
        return SHL_OK;
    }
    if (a->n == 2 && !a->add_to_dst) { /* no running sum: dst may be either */
        add_range(a->srcs[0], a->srcs[1], dst, 0, n);
        return SHL_OK;
    }
    for (int64_t begin = 0; begin < n; begin += RUN) {
        int64_t m = n - begin < RUN ? n - begin : RUN;
        size_t bytes = (size_t)m * sizeof(float);
        const float *first = (const float *)a->srcs[0] + begin;
        if (a->n == 1) {
            memcpy(total, first, bytes);
        } else {
            add_range(first, (const float *)a->srcs[1] + begin, total, 0, m);
        }
        for (int k = 2; k < a->n; k++) {
            add_range(total, (const float *)a->srcs[k] + begin, total, 0, m);
        }
        if (a->add_to_dst) {
            add_range(dst + begin, total, dst + begin, 0, m);
        } else {
            memcpy(dst + begin, total, bytes);
        }
    }
    return SHL_OK;
}

/* dst[0..n) = initial values of elements [from, from + n) of the tensor. */
static void
init_range(const shl_init_args *a, float *dst, int64_t from, int64_t n)
{
    float std = (float)a->std, value = (float)a->value;
    if (a->kind == SHL_INIT_NORMAL) {
        shl_rng_normal_fill(a->seed, a->stream, (uint64_t)from, dst, n);
    }
    for (int64_t i = 0; i < n; i++) {
        dst[i] = a->kind == SHL_INIT_NORMAL ? std * dst[i] : value;
    }
}

static void
init_half(const shl_init_args *a, int64_t begin, int64_t end)
{
    float room[BLOCK];
    for (int64_t i = begin; i < end; i += BLOCK) {
        int64_t n = end - i < BLOCK ? end - i : BLOCK;
        init_range(a, room, a->begin + i, n);
        cpu_narrow(a->dst.dtype, room, a->dst.data, i, n);
    }
}

shl_code
SHL_K(shl_cpu_init)(shl_stream *s, const void *args, void *work)
{
    const shl_init_args *a = args;
    SHL_UNUSED(work);
    int64_t n = shl_tensor_elems(&a->dst);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        int64_t end = cpu_chunk_end(begin, n);
        if (a->dst.dtype == SHL_F32) {
            init_range(a, (float *)a->dst.data + begin, a->begin + begin, end - begin);
        } else {
            init_half(a, begin, end);
        }
    }
    return SHL_OK;
}
