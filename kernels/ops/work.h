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

/* f32 elements of scratch per thread of attention on a cpu. */
int64_t shl_work_attention_elems(const shl_attention_args *a, bool backward);

/* Runs of rows whose layernorm weight gradients are summed apart: at most 16. */
#define SHL_WORK_LAYERNORM_RUNS 16
int64_t shl_work_layernorm_rows(int64_t rows);

#endif
