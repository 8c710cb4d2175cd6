/* kernels/cpu: elementwise ops: add, scale, sums over ranks, initial values. */
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_simd.h"
#include "kernels/cpu/cpu_slots.h"

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

shl_code
SHL_K(shl_cpu_add)(shl_stream *s, const void *args, void *work)
{
    const shl_add_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->x1.dtype, SHL_OP_ADD));
    int64_t n = shl_tensor_elems(&a->x1);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        add_range(a->x1.data, a->x2.data, a->y.data, begin, cpu_chunk_end(begin, n));
    }
    return SHL_OK;
}

shl_code
SHL_K(shl_cpu_scale)(shl_stream *s, const void *args, void *work)
{
    const shl_scale_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->x.dtype, SHL_OP_SCALE));
    float *x = a->x.data, factor = a->factor;
    int64_t n = shl_tensor_elems(&a->x);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        int64_t end = cpu_chunk_end(begin, n);
        for (int64_t i = begin; i < end; i++) {
            x[i] *= factor;
        }
    }
    return SHL_OK;
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
    SHL_TRY(cpu_need_f32(a->dst.dtype, SHL_OP_SUM_RANKS));
    float *dst = a->dst.data;
    int64_t n = shl_tensor_elems(&a->dst);
    float total[RUN];
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

shl_code
SHL_K(shl_cpu_init)(shl_stream *s, const void *args, void *work)
{
    const shl_init_args *a = args;
    SHL_UNUSED(work);
    SHL_TRY(cpu_need_f32(a->dst.dtype, SHL_OP_INIT));
    float *dst = a->dst.data, std = (float)a->std, value = (float)a->value;
    int64_t n = shl_tensor_elems(&a->dst);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        int64_t end = cpu_chunk_end(begin, n);
        if (a->kind == SHL_INIT_NORMAL) {
            shl_rng_normal_fill(a->seed, a->stream, (uint64_t)(a->begin + begin), dst + begin,
                                end - begin);
        }
        for (int64_t i = begin; i < end; i++) {
            dst[i] = a->kind == SHL_INIT_NORMAL ? std * dst[i] : value;
        }
    }
    return SHL_OK;
}
