/* kernels/cpu: a tensor in another type: fp32, bf16, fp16. */
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

/* Between the two 16-bit types by way of fp32, which holds both exactly. */
static void
cast_range(const shl_cast_args *a, int64_t begin, int64_t n)
{
    shl_dtype to = a->dst.dtype, from = a->src.dtype;
    void *dst = a->dst.data;
    const void *src = a->src.data;
    if (to == SHL_F32) {
        cpu_widen(from, src, begin, n, (float *)dst + begin);
    } else if (from == SHL_F32) {
        cpu_narrow(to, (const float *)src + begin, dst, begin, n);
    } else if (to == SHL_BF16) {
        convert_as(SHL_BF16, SHL_F16, dst, begin, src, begin, n);
    } else {
        convert_as(SHL_F16, SHL_BF16, dst, begin, src, begin, n);
    }
}

/* A communicator's worker casts on its own thread only. */
shl_code
SHL_K(shl_cpu_cast)(shl_stream *s, const void *args, void *work)
{
    const shl_cast_args *a = args;
    SHL_UNUSED(work);
    int64_t n = shl_tensor_elems(&a->dst);
    int threads = s->kind == SHL_STREAM_COMPUTE ? cpu_threads(s, n) : 1;
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        cast_range(a, begin, cpu_chunk_end(begin, n) - begin);
    }
    return SHL_OK;
}
