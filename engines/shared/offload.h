/* engines/shared: the end of an update whose states lie in host memory, sub-group by sub-group: what was
 * made there is copied to the parameters while the next sub-group is made, and a whole parameter is
 * gathered when all of it is there (Ren et al., ZeRO-Offload, USENIX ATC 2021, section 4.2). */
#ifndef SHL_SHARED_OFFLOAD_H
#define SHL_SHARED_OFFLOAD_H

#include "engines/shared/state.h"

/* Makes the new values of a fragment where its master weights lie. rounded: where its parameters are wanted
 * in their own dtype too; data NULL: the master weights are read as they are. */
typedef shl_code (*shl_publish_fn)(shl_state *st, const shl_fragment *f, const shl_tensor *rounded,
                                   void *ctx);

/* Calls fn for every trainable fragment, cut at sub-groups, and brings the parameters to where they are
 * held; gather: of all ranks (full stores). Behind it the compute stream may read. COLLECTIVE over
 * the shard group when gathering. */
shl_code shl_offload_publish(shl_state *st, bool gather, shl_publish_fn fn, void *ctx) SHL_MUST_USE;

/* Elements of a flat's piece before this one have their gradients in device memory, those from it on in host
 * memory; 0 to piece_elems. */
int64_t shl_offload_near_elems(const shl_state *st, int flat);

/* The fields of engine info on host memory. */
void shl_offload_info(const shl_state *st, shl_engine_info *out);

#endif
