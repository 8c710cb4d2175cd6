/* kernels/cuda/object: tensor cores by name: products of bf16 tiles with fp32 sums, loads of their
 * fragments from shared memory, copies into shared memory that run beside the work. One function per
 * instruction (PTX ISA, sm_80 on); the tests' emulation has the same. */
#ifndef SHL_CUDA_MMA_CUH
#define SHL_CUDA_MMA_CUH

#include "kernels/cuda/object/cuda_common.cuh"

#ifdef SHL_EMULATED
#include <emulate_mma.h>
#endif

/* d[16 x 8] += a[16 x 16] b[16 x 8], a warp together. Lane 4 g + c holds of a rows g, g + 8 (words 0, 1) at
 * columns 2c, 2c + 1, and at 2c + 8, 2c + 9 (words 2, 3); of b column g at the same rows as a's columns;
 * of d rows g (0, 1) and g + 8 (2, 3) at columns 2c, 2c + 1. */
static __device__ __forceinline__ void
mma_bf16(float *d, const uint32_t *a, const uint32_t *b)
{
#ifdef SHL_EMULATED
    emulate::mma_bf16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* Four matrices of 8 x 8 16-bit elements from shared memory, a warp together: lane 8 m + r gives the
 * address of row r of matrix m; lane 4 g + c gets row g, columns 2c and 2c + 1 of each (transposed:
 * column g, rows 2c and 2c + 1). */
template <bool TRANSPOSED>
static __device__ __forceinline__ void
load_matrices(uint32_t *to, const bf16 *row)
{
#ifdef SHL_EMULATED
    emulate::load_matrices(to, row, TRANSPOSED);
#else
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(at)
                     : "memory");
    }
#endif
}

/* A thread's copies of 16 bytes, or of a word, from global to shared memory, zeros where not `real`
 * (nothing is read there): they have arrived, for this thread, when their group is waited for. */
struct async_copies {
#ifdef SHL_EMULATED
    emulate::copies queue;
#endif
    __device__ __forceinline__ void
    copy(void *to, const void *from, bool real)
    {
#ifdef SHL_EMULATED
        queue.copy<16>(to, from, real);
#else
        uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                     "r"(real ? 16 : 0)
                     : "memory");
#endif
    }
    __device__ __forceinline__ void
    copy_word(float *to, const float *from, bool real)
    {
#ifdef SHL_EMULATED
        queue.copy<4>(to, from, real);
#else
        uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from),
                     "r"(real ? 4 : 0)
                     : "memory");
#endif
    }
    __device__ __forceinline__ void
    commit()
    {
#ifdef SHL_EMULATED
        queue.commit();
#else
        asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    }
    /* Until all groups but the last LEFT have arrived. */
    template <int LEFT>
    __device__ __forceinline__ void
    wait_but()
    {
#ifdef SHL_EMULATED
        queue.wait(LEFT);
#else
        asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
    }
    __device__ __forceinline__ void
    wait()
    {
        wait_but<0>();
    }
};

#endif
