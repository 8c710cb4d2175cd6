/* kernels/virtual: a device that accounts for everything and touches no data: allocations post to
 * the ledger and get addresses that fault when read, streams are clocks.
 *
 * Questions on data have fixed answers: a download gives zeros (a loss of 0, a norm of 0, finite).
 * The compute clock is also the host's: waiting for an event moves it there. */
#ifndef SHL_VIRTUAL_DEVICE_H
#define SHL_VIRTUAL_DEVICE_H

#include "kernels/device/device.h"
#include "kernels/ops/ops.h"

/* Rates when the configuration gives none: one core's round numbers, not a measurement. */
#define SHL_VIRTUAL_FLOPS_PER_S 1e11
#define SHL_VIRTUAL_BYTES_PER_S 2e10

/* Every op charges its stream's clock with shl_op_cost and does nothing else. */
extern const shl_op_table shl_virtual_op_table;

/* Advances the clock of s by the roofline time of a piece of work: the larger of
 * flops / flops_per_s and bytes / bytes_per_s. */
void shl_virtual_charge(shl_stream *s, double flops, double bytes);

#endif
