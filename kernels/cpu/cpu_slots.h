/* kernels/cpu: the slots of one instruction set, and what their files share: names, threads, dtype
 * check. Included only by the *_k.c files. */
#ifndef SHL_CPU_CPU_SLOTS_H
#define SHL_CPU_CPU_SLOTS_H

#include "kernels/ops/ops.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

/* SHL_ISA is base, avx2 or avx512, from the compiler's command line. */
#if !defined(SHL_ISA)
#define SHL_ISA base
#endif
#define SHL_K_JOIN(name, isa) name##_##isa
#define SHL_K_EXPAND(name, isa) SHL_K_JOIN(name, isa)
#define SHL_K(name) SHL_K_EXPAND(name, SHL_ISA)

/* Runs the next loop on `threads` threads; the loop's body must not care which thread runs it. */
#if defined(_OPENMP)
#define SHL_PRAGMA(text) _Pragma(#text)
#define SHL_PARALLEL_FOR(threads)                                                                  \
    SHL_PRAGMA(omp parallel for num_threads(threads) if (threads > 1) schedule(static))
#else
#define SHL_PARALLEL_FOR(threads) SHL_UNUSED(threads);
#endif

/* Number of the running thread inside a parallel loop. */
static inline int
cpu_thread(void)
{
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* Threads for `elems` elements of streaming work: waking a thread costs more than small work. */
static inline int
cpu_threads(const shl_stream *s, int64_t elems)
{
    return elems >= 32768 ? s->device->config.threads : 1;
}

#define CPU_CHUNK 16384 /* elements per turn of a streaming loop */

static inline int64_t
cpu_chunk_end(int64_t begin, int64_t n)
{
    return n - begin < CPU_CHUNK ? n : begin + CPU_CHUNK;
}

/* Errors: SHL_E_USAGE unless dtype is fp32. */
static inline shl_code
cpu_need_f32(shl_dtype dtype, shl_op op)
{
    if (dtype == SHL_F32) {
        return SHL_OK;
    }
    (void)SHL_RAISE(SHL_E_USAGE, "%s does not run in %s here", shl_op_name(op),
                    shl_dtype_name(dtype));
    (void)shl_err_because("the kernels of this device compute in fp32 only");
    return shl_err_advice("choose fp32, or a device that supports this type");
}

#define SHL_CPU_SLOT(op, name)                                                                     \
    shl_code SHL_K(shl_cpu_##name)(shl_stream * s, const void *args, void *work) SHL_MUST_USE;
SHL_OPS(SHL_CPU_SLOT)
#undef SHL_CPU_SLOT

#endif
