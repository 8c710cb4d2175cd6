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

#define SHL_CPU_SLOTS(X)                                                                           \
    X(LINEAR_FORWARD, shl_cpu_linear_forward)                                                      \
    X(LINEAR_BACKWARD_INPUT, shl_cpu_linear_backward_input)                                        \
    X(LINEAR_BACKWARD_WEIGHT, shl_cpu_linear_backward_weight)                                      \
    X(LAYERNORM_FORWARD, shl_cpu_layernorm_forward)                                                \
    X(LAYERNORM_BACKWARD, shl_cpu_layernorm_backward)                                              \
    X(GELU_FORWARD, shl_cpu_gelu_forward)                                                          \
    X(GELU_BACKWARD, shl_cpu_gelu_backward)                                                        \
    X(EMBEDDING_FORWARD, shl_cpu_embedding_forward)                                                \
    X(EMBEDDING_BACKWARD, shl_cpu_embedding_backward)                                              \
    X(ATTENTION_FORWARD, shl_cpu_attention_forward)                                                \
    X(ATTENTION_BACKWARD, shl_cpu_attention_backward)                                              \
    X(ADD, shl_cpu_add)                                                                            \
    X(SCALE, shl_cpu_scale)                                                                        \
    X(CROSS_ENTROPY, shl_cpu_cross_entropy)                                                        \
    X(ADAMW, shl_cpu_adamw)                                                                        \
    X(NORM_MAX, shl_cpu_norm_max)                                                                  \
    X(NORM_SUM, shl_cpu_norm_sum)                                                                  \
    X(SUM_RANKS, shl_cpu_sum_ranks)                                                                \
    X(INIT, shl_cpu_init)                                                                          \
    X(RMSNORM_FORWARD, shl_cpu_rmsnorm_forward)                                                    \
    X(RMSNORM_BACKWARD, shl_cpu_rmsnorm_backward)                                                  \
    X(ROPE, shl_cpu_rope)                                                                          \
    X(SILU_MUL_FORWARD, shl_cpu_silu_mul_forward)                                                  \
    X(SILU_MUL_BACKWARD, shl_cpu_silu_mul_backward)                                                \
    X(DROPOUT, shl_cpu_dropout)                                                                    \
    X(CAST, shl_cpu_cast)                                                                          \
    X(OPTIM, shl_cpu_optim)

#define X(op, name) shl_code SHL_K(name)(shl_stream * s, const void *args, void *work) SHL_MUST_USE;
SHL_CPU_SLOTS(X)
#undef X

#endif
