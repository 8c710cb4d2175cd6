/* tests/support: the simplest possible engine: every parameter and gradient has its own buffer,
 * there from beginning to end, no hooks. For tests of the models and of the engines' oracles. */
#ifndef SHL_TESTS_PLAIN_MODEL_H
#define SHL_TESTS_PLAIN_MODEL_H

#include "models/module.h"

typedef struct shl_plain {
    shl_device *device;
    shl_model *model;
    shl_buf *bufs; /* data and gradient of parameter i at 2 i and 2 i + 1 */
} shl_plain;

/* Allocates and initialises (shl_op_init) everything. Borrows both. Owner: caller, close. */
shl_code shl_plain_open(shl_device *d, shl_model *m, uint64_t seed, shl_plain *out) SHL_MUST_USE;
void shl_plain_close(shl_plain *p);

/* The next backward overwrites every gradient. */
void shl_plain_zero_grad(shl_plain *p);

/* Host copies: values into / gradient out of parameter i, elems floats. */
shl_code shl_plain_set(shl_plain *p, int i, const float *values) SHL_MUST_USE;
shl_code shl_plain_get(const shl_plain *p, int i, float *values) SHL_MUST_USE;
shl_code shl_plain_grad(const shl_plain *p, int i, float *values) SHL_MUST_USE;

/* One micro-batch on the device with its run and tape. */
typedef struct shl_plain_batch {
    shl_buf tokens, targets, loss;
    shl_tape tape;
    shl_run run;
} shl_plain_batch;

/* tokens, targets: B*T host integers (targets NULL: none). dloss = 1 / valid targets. want_grad is
 * true; the caller may change the run. */
shl_code shl_plain_batch_open(shl_device *d, int64_t batch, int64_t seq, const int32_t *tokens,
                              const int32_t *targets, shl_plain_batch *out) SHL_MUST_USE;
void shl_plain_batch_close(shl_device *d, shl_plain_batch *b);
/* Sum of the losses so far. */
shl_code shl_plain_loss_sum(shl_device *d, const shl_plain_batch *b, double *out) SHL_MUST_USE;

#endif
