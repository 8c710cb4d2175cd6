/* engines/comm: who started this process as a rank: our own variables, torchrun, Open MPI, MPICH, Slurm. */
#ifndef SHL_COMM_LAUNCH_H
#define SHL_COMM_LAUNCH_H

#include <stdint.h>

#include "engines/comm/world.h"

typedef struct shl_launch {
    const char *launcher; /* "torchrun", ...; NULL: nobody did */
    int rank, ranks;
    int local_rank; /* among the ranks of this machine */
    char address[256];
    int port;
    uint64_t job; /* alike on all ranks of one run */
} shl_launch;

/* Reads the variables of launchers. launcher NULL (and SHL_OK) when there are none, or for a single rank.
 * Lookup order: SHL_RANK, SHL_RANKS, SHL_LOCAL_RANK, SHL_MASTER (host:port); torchrun's RANK, WORLD_SIZE,
 * LOCAL_RANK, MASTER_ADDR, MASTER_PORT (one more when torchrun's own store listens there); Open MPI's
 * OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK; MPICH's PMI_RANK, PMI_SIZE, MPI_LOCALRANKID; Slurm's SLURM_PROCID,
 * SLURM_NTASKS, SLURM_LOCALID. The last three meet at MASTER_ADDR:MASTER_PORT when these are set, else at
 * the first host of SLURM_STEP_NODELIST and a port made of the job's number, or on this machine when all
 * ranks are on it. Errors: SHL_E_USAGE: a value that is no number, two launchers that disagree, no
 * meeting point. Local. */
shl_code shl_launch_find(shl_launch *out) SHL_MUST_USE;

/* What NCCL and CUDA read in the environment of several ranks on one card, "NAME=value". */
#define SHL_SHARE_SETTINGS 12
#define SHL_SHARE_CHARS 32
extern const char shl_share_settings[SHL_SHARE_SETTINGS][SHL_SHARE_CHARS];

/* Sets them in this process, and an NCCL_HOSTID of the rank; what the user has set stays. Own ranks
 * have them from their beginning. Before a device is opened and other threads start. */
void shl_launch_share_gpu(int rank);

/* Joins the world that a launcher describes: rank 0 listens, the others connect, and the connections stay as
 * the channel of control calls. COLLECTIVE. Communicators: nccl, nccl-ordered, self. timeout_ms 0: 30000.
 * Owner: caller, shl_world_leave. Errors: SHL_E_PEER: who has not come; SHL_E_USAGE: another run answers
 * at the meeting point, or a rank came twice; SHL_E_SYSTEM. */
shl_code shl_world_meet(const shl_launch *l, int64_t timeout_ms, shl_world **out) SHL_MUST_USE;

#endif
