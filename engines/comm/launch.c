/* engines/comm: reading the variables of launchers. */
#include "engines/comm/launch.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/base/option.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

/* Several ranks on one card: NCCL takes them for ranks of different machines (NCCL_HOSTID of each its
 * own), which talk by sockets over loopback, with few blocks and small buffers, because their kernels take
 * turns. What the user has set stays. */
const char shl_share_settings[SHL_SHARE_SETTINGS][SHL_SHARE_CHARS] = {
    "NCCL_SOCKET_IFNAME==lo", "NCCL_NET=Socket",    "NCCL_IB_DISABLE=1",
    "NCCL_MNNVL_ENABLE=0",    "NCCL_NVLS_ENABLE=0", "NCCL_RAS_ENABLE=0",
    "NCCL_ALGO=Ring",         "NCCL_PROTO=Simple",  "NCCL_MAX_CTAS=4",
    "NCCL_BUFFSIZE=1048576",  "NCCL_DEBUG=WARN",    "CUDA_MODULE_LOADING=EAGER",
};

/* One launcher's words for a place in a world; job: any that is alike on all ranks of one run. */
typedef struct words {
    const char *name, *rank, *ranks, *local_rank, *local_ranks, *job;
} words;

static const words launchers[] = {
    {"SHL_RANK", "SHL_RANK", "SHL_RANKS", "SHL_LOCAL_RANK", NULL, "SHL_JOB"},
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE"},
    {"MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", NULL},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", NULL, "SLURM_JOB_ID"},
};

static shl_code
read_number(const char *name, int64_t low, int64_t high, int64_t fallback, int64_t *out)
{
    const char *text = name == NULL ? NULL : shl_env(name);
    *out = fallback;
    if (text == NULL) {
        return SHL_OK;
    }
    if (shl_parse_int(text, low, high, out) != SHL_OK) {
        SHL_RAISE(SHL_E_USAGE, "%s is \"%s\"", name, text);
        return shl_err_because("a launcher sets it to a number from %lld to %lld", (long long)low,
                               (long long)high);
    }
    return SHL_OK;
}

/* The place that one launcher's variables name; out->ranks 0: none. */
static shl_code
read_place(const words *w, shl_launch *out)
{
    int64_t rank = -1, ranks = 0, local = 0;
    SHL_TRY(read_number(w->ranks, 1, 1 << 20, 0, &ranks));
    SHL_TRY(read_number(w->rank, 0, ranks > 0 ? ranks - 1 : 0, -1, &rank));
    SHL_TRY(read_number(w->local_rank, 0, ranks > 0 ? ranks - 1 : 0, rank < 0 ? 0 : rank, &local));
    *out = (shl_launch){.launcher = w->name, .rank = (int)rank, .local_rank = (int)local};
    out->ranks = rank >= 0 ? (int)ranks : 0;
    return SHL_OK;
}

/* "node[01-04,7],other" begins with node01. */
static void
first_host(const char *list, char *out, size_t cap)
{
    size_t n = strcspn(list, "[,");
    const char *bracket = list[n] == '[' ? list + n + 1 : "";
    shl_strf(out, cap, "%.*s%.*s", (int)n, list, (int)strcspn(bracket, "-,]"), bracket);
}

static uint64_t
hash_text(uint64_t h, const char *text)
{
    for (; text != NULL && *text != '\0'; text++) {
        h = (h ^ (unsigned char)*text) * UINT64_C(1099511628211);
    }
    return h;
}

static shl_code
split_master(const char *text, shl_launch *out)
{
    const char *colon = strrchr(text, ':');
    int64_t port = 0;
    if (colon == NULL || colon == text || shl_parse_int(colon + 1, 1, 65535, &port) != SHL_OK) {
        SHL_RAISE(SHL_E_USAGE, "SHL_MASTER is \"%s\"", text);
        return shl_err_because("it is the host and port where rank 0 listens: node1:29600");
    }
    shl_strf(out->address, sizeof out->address, "%.*s", (int)(colon - text), text);
    out->port = (int)port;
    return SHL_OK;
}

/* Where the ranks meet. */
static shl_code
find_meeting(const words *w, shl_launch *out)
{
    const char *master = shl_env("SHL_MASTER"), *address = shl_env("MASTER_ADDR");
    const char *nodes = shl_env("SLURM_STEP_NODELIST"),
               *store = shl_env("TORCHELASTIC_USE_AGENT_STORE");
    const char *job = w->job == NULL ? NULL : shl_env(w->job);
    bool slurm = strcmp(w->name, "Slurm") == 0;
    int64_t port = 0, here = 0;
    out->job = hash_text(UINT64_C(14695981039346656037), job);
    out->job = hash_text(out->job, slurm ? shl_env("SLURM_STEP_ID") : NULL);
    if (master != NULL) {
        return split_master(master, out);
    }
    SHL_TRY(read_number("MASTER_PORT", 1, 65534, 0, &port));
    SHL_TRY(read_number(w->local_ranks, 1, 1 << 20, 0, &here));
    if (port != 0 && store != NULL && strcmp(store, "True") == 0) {
        port++; /* torchrun's own store listens at the port that it names */
    }
    if (port == 0 && job != NULL) {
        port = 20000 + (int64_t)(out->job % 20000);
    }
    out->port = (int)port;
    if (address != NULL) {
        shl_strf(out->address, sizeof out->address, "%s", address);
    } else if (slurm && nodes != NULL) {
        first_host(nodes, out->address, sizeof out->address);
    } else if (here == out->ranks) {
        shl_strf(out->address, sizeof out->address, "127.0.0.1");
    }
    if (out->address[0] == '\0' || port == 0) {
        SHL_RAISE(SHL_E_USAGE, "%s does not say where its %d ranks meet", w->name, out->ranks);
        shl_err_because("neither SHL_MASTER nor MASTER_ADDR with MASTER_PORT is set");
        return shl_err_advice("SHL_MASTER=<host of rank 0>:<free port> for every rank");
    }
    return SHL_OK;
}

shl_code
shl_launch_find(shl_launch *out)
{
    const words *chosen = NULL;
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < SHL_ARRAY_LEN(launchers); i++) {
        shl_launch place;
        SHL_TRY(read_place(&launchers[i], &place));
        bool slurm = strcmp(launchers[i].name, "Slurm") == 0;
        if (place.ranks == 0 || (chosen != NULL && slurm)) {
            continue; /* what mpirun starts in a batch script sees the script's own Slurm rank */
        }
        if (chosen == NULL) {
            chosen = &launchers[i];
            *out = place;
        } else if (place.rank != out->rank || place.ranks != out->ranks) {
            SHL_RAISE(SHL_E_USAGE, "two launchers disagree about this rank");
            shl_err_because("%s says %d of %d, %s says %d of %d", chosen->name, out->rank,
                            out->ranks, place.launcher, place.rank, place.ranks);
            return shl_err_advice("one launcher, or SHL_RANK, SHL_RANKS and the others unset");
        }
    }
    if (chosen == NULL || out->ranks == 1) {
        memset(out, 0, sizeof *out);
        return SHL_OK;
    }
    return find_meeting(chosen, out);
}

void
shl_launch_share_gpu(int rank)
{
    char name[SHL_SHARE_CHARS], host[32];
    for (size_t i = 0; i < SHL_SHARE_SETTINGS; i++) {
        const char *set = shl_share_settings[i];
        size_t n = strcspn(set, "=");
        shl_strf(name, sizeof name, "%.*s", (int)n, set);
        (void)setenv(name, set + n + 1, 0);
    }
    shl_strf(host, sizeof host, "t%d", rank);
    (void)setenv("NCCL_HOSTID", host, 0);
}
