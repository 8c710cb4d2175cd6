/* kernels/cpu: dropout whose mask is a pure function of the element's place in the global batch.
 * Random words are drawn a thousand at a time and compared with the bound; no mask is kept. */
#include "kernels/cpu/cpu_random.h"
#include "kernels/cpu/cpu_slots.h"
#include "kernels/cpu/cpu_typed.h"

#define RUN 1024

/* Elements [begin, begin + n), n <= RUN. */
static void
drop_run(const shl_dropout_args *a, uint32_t bound, float scale, int64_t begin, int64_t n)
{
    uint32_t room[RUN + CPU_RANDOM_SLACK];
    const uint32_t *word =
        cpu_random_words(a->seed, a->stream, (uint64_t)(a->first + begin), n, room);
    float wide[RUN];
    bool f32 = a->y.dtype == SHL_F32;
    const float *x = cpu_floats(a->x.dtype, a->x.data, begin, n, wide);
    float *y = f32 ? (float *)a->y.data + begin : wide;
    for (int64_t i = 0; i < n; i++) {
        float kept = x[i] * scale;
        y[i] = word[i] >= bound ? kept : 0.0f;
    }
    if (!f32) {
        cpu_narrow(a->y.dtype, wide, a->y.data, begin, n);
    }
}

shl_code
SHL_K(shl_cpu_dropout)(shl_stream *s, const void *args, void *work)
{
    const shl_dropout_args *a = args;
    SHL_UNUSED(work);
    uint32_t bound = shl_op_dropout_bound(a->p);
    float scale = (float)(1.0 / (1.0 - a->p));
    int64_t n = shl_tensor_elems(&a->x);
    int threads = cpu_threads(s, n);
    SHL_PARALLEL_FOR(threads)
    for (int64_t begin = 0; begin < n; begin += CPU_CHUNK) {
        int64_t end = cpu_chunk_end(begin, n);
        for (int64_t i = begin; i < end; i += RUN) {
            drop_run(a, bound, scale, i, end - i < RUN ? end - i : RUN);
        }
    }
    return SHL_OK;
}
