/* kernels/ops: sizes and shapes of op scratch, shared by the size function and by the kernels that
 * carve it. They do not depend on the instruction set, so that a plan equals every run. */
#ifndef SHL_OPS_WORK_H
#define SHL_OPS_WORK_H

#include "kernels/ops/ops.h"

/* Attention on a cpu walks tiles of WORK_Q queries by WORK_K keys; a score row is padded off a
 * power of two. Widths are padded to WORK_PAD, the widest pair of vectors. */
#define SHL_WORK_Q 96
#define SHL_WORK_K 128
#define SHL_WORK_SCORES (SHL_WORK_K + 16)
#define SHL_WORK_PAD 32

/* Threads that attention can use: its tasks are (sequence, head) pairs, (sequence, key/value head)
 * pairs in backward. */
int shl_work_attention_threads(const shl_attention_args *a, bool backward, int threads);

/* True when backward sums dk and dv over a group's heads in scratch: a 16-bit result is rounded once. */
bool shl_work_attention_sums(const shl_attention_args *a);

/* f32 elements of scratch per thread of attention on a cpu. */
int64_t shl_work_attention_elems(const shl_attention_args *a, bool backward);

/* A product of 16-bit matrices C[m,n] = A[m,k] B[k,n] on a cpu is widened to fp32 panel by panel: mc
 * x kc of A, kc x nc of B and, where C is not fp32, mc x nc of it. None is longer than WORK_PANEL, so
 * that an element that is widened is used some hundred times and the panels stay in the cache. */
#define SHL_WORK_PANEL 1024
typedef struct shl_work_panels {
    int64_t mc, nc, kc;
    int64_t elems; /* of all panels, fp32 */
} shl_work_panels;

/* Panels of a linear op; elems is 0 in fp32 and where only db is asked for. */
shl_work_panels shl_work_linear(shl_op op, const shl_linear_args *a);

/* Runs of rows whose layernorm weight gradients are summed apart: at most 16. */
#define SHL_WORK_LAYERNORM_RUNS 16
int64_t shl_work_layernorm_rows(int64_t rows);

/* A GPU sorts the rows of an embedding by token, SORT_ROWS to a block, SORT_DIGITS values of a digit at
 * a time: two lists of (token, row) and a count per block and digit. */
#define SHL_WORK_SORT_ROWS 1024
#define SHL_WORK_SORT_DIGITS 256
size_t shl_work_sort_bytes(int64_t rows);

/* A GPU sums columns over runs of this many rows first, at most 256 runs, in fp32. */
static inline int64_t
shl_work_column_rows(int64_t rows)
{
    int64_t run = shl_ceil_div(rows, 256);
    return run < 32 ? 32 : run;
}
size_t shl_work_column_bytes(int64_t rows, int64_t cols);

/* What layernorm and rmsnorm sum apart on a GPU: runs of rows, one per block of threads. Rows up to WORK_NORM_WARP_BYTES go to one
 * warp each, 8 to a block; wider ones to a block each. As many blocks as three (fewer where the sums of 8
 * rows, `sums` floats per column, fill shared memory) on each of 132 multiprocessors, however many the
 * device has: the bits of a result do not tell. */
#define SHL_WORK_NORM_WARP_BYTES 4096
#define SHL_WORK_NORM_ROWS 8
#define SHL_WORK_NORM_BLOCKS 132
static inline int64_t
shl_work_norm_runs(int64_t rows, int64_t cols, shl_dtype dtype, int sums)
{
    const int64_t shared = 220 << 10; /* bytes of it that a multiprocessor has for blocks */
    int64_t row = cols * (dtype == SHL_F32 ? 4 : 2), at_once = 1, resident = 3;
    if (row <= SHL_WORK_NORM_WARP_BYTES) {
        int64_t block = SHL_WORK_NORM_ROWS * cols * sums * 4 + 1024;
        at_once = SHL_WORK_NORM_ROWS;
        resident = shared / block < resident ? shared / block : resident;
    }
    int64_t most = shl_ceil_div(rows, at_once), runs = resident * SHL_WORK_NORM_BLOCKS;
    return most < runs ? most : runs;
}

#endif
