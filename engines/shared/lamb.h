/* engines/shared: LAMB's trust ratios (You et al., ICLR 2020): norms of whole tensors over their shards,
 * the same bits for any partition. */
#ifndef SHL_SHARED_LAMB_H
#define SHL_SHARED_LAMB_H

#include "engines/shared/state.h"

/* The memory of the norms, 64 bytes per parameter (tag work); nothing for another optimizer. */
shl_code shl_lamb_init(shl_state *st) SHL_MUST_USE;
void shl_lamb_fini(shl_state *st);

/* Once per update, before any of shl_update_apply: moments of all fragments, the update in the place of
 * the spent gradients, and from the norms of both the ratio of every tensor. COLLECTIVE over the
 * shard group, blocking. coef as shl_update_apply. */
shl_code shl_lamb_prepare(shl_state *st, double coef) SHL_MUST_USE;

#endif
