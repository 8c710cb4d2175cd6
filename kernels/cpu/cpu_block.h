/* kernels/cpu: blocks of the optimizers' arrays as fp32, in place where they are that. Included only by
 * the *_k.c files. */
#ifndef SHL_CPU_CPU_BLOCK_H
#define SHL_CPU_CPU_BLOCK_H

#include "kernels/cpu/cpu_typed.h"
#include "kernels/device/tensor.h"

/* Elements: 2 KiB ahead, a cache line. */
enum { CPU_AHEAD = 512, CPU_BLOCK = 64, CPU_LINE = 64 / 4 };

/* Where a block is updated: in place where it is fp32 and whole, else in room. */
static inline float *
cpu_block_in(const shl_tensor *t, int64_t i, int64_t n, float *room)
{
    if (t->dtype == SHL_F32 && n == CPU_BLOCK) {
        float *x = (float *)t->data + i;
        for (int j = CPU_AHEAD; j < CPU_AHEAD + CPU_BLOCK; j += CPU_LINE) {
            __builtin_prefetch(x + j, 1);
        }
        return x;
    }
    cpu_widen(t->dtype, t->data, i, n, room);
    return room;
}

static inline void
cpu_block_out(const shl_tensor *t, int64_t i, int64_t n, const float *x, const float *room)
{
    if (x == room) {
        cpu_narrow(t->dtype, x, t->data, i, n);
    }
}

#endif
