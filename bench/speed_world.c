/* bench: speed and memory of worlds of two ranks: collectives over shared memory against memcpy, and
 * the resident set of a rank under full sharding. */
#include <string.h>

#include "bench/session.h"
#include "bench/speed.h"
#include "engines/comm/comm.h"
#include "kernels/base/clock.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

/* ---- collectives ---- */

enum { RANKS = 2, N_KINDS = 3 };

static const struct {
    const char *name, *what;
    shl_coll kind;
} COLLECTIVES[N_KINDS] = {
    {"shm_all_reduce", "256 MiB, 2 ranks / one-way memcpy", SHL_COLL_ALL_REDUCE},
    {"shm_reduce_scatter", "the same", SHL_COLL_REDUCE_SCATTER},
    {"shm_all_gather", "the same", SHL_COLL_ALL_GATHER},
};

typedef struct comm_job {
    const shl_speed_config *config;
    shl_speed_probes probes; /* used by rank 0 while the other waits */
    shl_speed_rounds rounds[N_KINDS];
    int64_t elems; /* of the payload */
} comm_job;

typedef struct comm_rank {
    comm_job *job;
    shl_device *device;
    shl_comm *comm;
    shl_buf buf;
    int rank;
} comm_rank;

/* In place, as the engines use them: a rank's own piece lies where it belongs. */
static shl_code
run_collective(comm_rank *r, shl_coll kind)
{
    int64_t elems = r->job->elems, piece = elems / RANKS;
    float *all = r->buf.data, *own = all + r->rank * piece;
    shl_stream *stream = shl_device_stream(r->device, SHL_STREAM_COMPUTE);
    shl_comm_seg whole = {all, all, elems, 0}, gather = {own, all, piece, 0},
                 scatter = {all, own, piece, 0};
    if (kind == SHL_COLL_ALL_REDUCE) {
        return shl_comm_all_reduce(r->comm, &whole, 1, SHL_F32, stream, NULL);
    }
    if (kind == SHL_COLL_ALL_GATHER) {
        return shl_comm_all_gather(r->comm, &gather, 1, SHL_F32, stream, NULL);
    }
    return shl_comm_reduce_scatter(r->comm, &scatter, 1, SHL_F32, stream, NULL);
}

static shl_code
time_collective(comm_rank *r, shl_coll kind, double *gb_per_s)
{
    double bytes = (double)r->job->elems * 4;
    SHL_TRY(shl_comm_barrier(r->comm));
    int64_t begin = shl_clock_ns();
    SHL_TRY(run_collective(r, kind));
    SHL_TRY(shl_comm_barrier(r->comm));
    *gb_per_s = bytes / (double)(shl_clock_ns() - begin);
    return SHL_OK;
}

/* The payload once from one buffer to the other, by one thread, while the peer sleeps. */
static double
time_memcpy(const shl_buf *to, const shl_buf *from)
{
    int64_t begin = shl_clock_ns();
    memcpy(to->data, from->data, to->bytes);
    return (double)to->bytes / (double)(shl_clock_ns() - begin);
}

static shl_code
comm_rounds(comm_rank *r, const shl_buf *copy)
{
    comm_job *job = r->job;
    for (int round = -1; round < job->config->rounds; round++) {
        int at = round < 0 ? 0 : round; /* round -1 warms up and is overwritten */
        for (int k = 0; k < N_KINDS; k++) {
            shl_speed_rounds *rounds = &job->rounds[k];
            double rate = 0;
            SHL_TRY(shl_device_fill(r->device, r->buf.data, 0, r->buf.bytes, NULL));
            SHL_TRY(time_collective(r, COLLECTIVES[k].kind, &rate));
            if (r->rank == 0) {
                rounds->value[at] = rate;
                rounds->reference[at] = time_memcpy(copy, &r->buf);
                rounds->ratio[at] = rate / rounds->reference[at];
                shl_speed_probe(&job->probes, rounds, at);
                rounds->n = job->config->rounds;
            }
            SHL_TRY(shl_comm_barrier(r->comm));
        }
    }
    return SHL_OK;
}

static shl_code
comm_main(shl_world *world, void *arg)
{
    comm_rank r = {.job = arg, .rank = shl_world_rank(world)};
    shl_buf copy = {.data = NULL};
    size_t bytes = (size_t)r.job->elems * 4;
    shl_device_config device = {
        .kind = "cpu", .rank = r.rank, .threads = 1, .comm_arena = shl_world_comm_arena(world)};
    shl_comm_config comm = {.kind = "shm", .rank = r.rank, .world = RANKS, .rank_world = world};
    SHL_TRY(shl_device_open(&device, &r.device));
    shl_code code, closed;
    SHL_TRY_TO(code, out, shl_comm_open(&comm, r.device, &r.comm));
    SHL_TRY_TO(code, out,
               shl_device_alloc(r.device, bytes, SHL_TIER_DEVICE, SHL_TAG_WORK, SHL_MEM_COMM,
                                "bench", &r.buf));
    if (r.rank == 0) {
        SHL_TRY_TO(
            code, out,
            shl_device_alloc(r.device, bytes, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "bench", &copy));
    }
    code = comm_rounds(&r, &copy);
out:
    if (code != SHL_OK && r.comm) {
        shl_comm_abort(r.comm, "bench");
    }
    shl_comm_close(&r.comm);
    shl_device_free(r.device, &r.buf);
    shl_device_free(r.device, &copy);
    closed = shl_device_close(&r.device);
    return code != SHL_OK ? code : closed;
}

shl_code
shl_speed_comm(const shl_speed_config *c, shl_speed_list *out)
{
    comm_job job = {.config = c, .elems = INT64_C(64) << 20};
    if (c->quick) {
        job.elems = INT64_C(8) << 20;
    }
    shl_world_config world = {.ranks = RANKS, .threads_per_rank = 1};
    shl_code code = shl_speed_probes_open(RANKS, &job.probes);
    if (code == SHL_OK) {
        code = shl_world_run_threads(&world, comm_main, &job);
    }
    for (int k = 0; k < N_KINDS && code == SHL_OK; k++) {
        shl_speed_add(out,
                      (shl_speed_row){.name = COLLECTIVES[k].name,
                                      .what = COLLECTIVES[k].what,
                                      .unit = "GB/s",
                                      .bound = 0.30,
                                      .threads = RANKS},
                      &job.rounds[k]);
    }
    shl_code closed = shl_speed_probes_close(&job.probes);
    return code != SHL_OK ? code : closed;
}

/* ---- resident set ---- */

/* One short run by two processes of this program. What a process of the tiny model holds beyond its
 * ledger is what every process starts with. */
static shl_code
run_memory(const char *model, const char *strategy, int seq, shl_session_result *out)
{
    char seq_word[16];
    shl_strf(seq_word, sizeof(seq_word), "%d", seq);
    const char *words[] = {
        "/proc/self/exe", "train",     "--model",   model, "--strategy", strategy,
        "--ranks",        "2",         "--threads", "1",   "--batch",    "1",
        "--seq",          seq_word,    "--steps",   "2",   "--data",     "synthetic",
        "--launch",       "processes", "--row=0",   NULL};
    shl_session_config config;
    shl_session_config_init(&config);
    const shl_preset *preset = shl_preset_find(model);
    SHL_ASSERT(preset);
    memcpy(config.model, preset->name, strlen(preset->name) + 1);
    config.shape = preset->config;
    config.engine.strategy = strcmp(strategy, "fsdp") == 0 ? SHL_FSDP : SHL_ZERO3;
    config.engine.reduce_every = SHL_REDUCE_MICRO;
    config.engine.batch = 1;
    config.engine.seq = seq;
    config.ranks = RANKS;
    config.threads = 1;
    config.processes = true;
    config.data = "synthetic";
    config.steps = 2;
    config.rank_argv = words;
    SHL_TRY(shl_session_config_check(&config));
    return shl_session_run(&config, NULL, out);
}

static shl_code
measure_memory(const char *strategy, shl_speed_rounds *r, int at)
{
    const double wanted = 13;
    shl_session_result tiny = {0}, full = {0};
    shl_code code = run_memory("gpt2-tiny", strategy, 128, &tiny);
    if (code == SHL_OK) {
        code = run_memory("gpt2-124m", strategy, 256, &full);
    }
    if (code == SHL_OK) {
        /* A resident set never falls: pages of the largest activations stay. */
        double act = (double)full.tiers[SHL_TIER_DEVICE].peak_tag_bytes[SHL_TAG_ACT];
        double above = (double)(full.rss_bytes - tiny.residual_bytes) - act;
        r->value[at] = above / (double)full.params;
        r->reference[at] = wanted;
        r->ratio[at] = wanted / r->value[at];
    }
    shl_session_result_fini(&tiny);
    shl_session_result_fini(&full);
    return code;
}

shl_code
shl_speed_memory(const shl_speed_config *c, shl_speed_list *out)
{
    static const struct {
        const char *name, *what, *strategy;
    } cases[] = {
        {"rss_zero3", "above start and activations, 2 ranks", "zero3"},
        {"rss_fsdp", "the same", "fsdp"},
    };
    int rounds = c->quick || c->rounds < 2 ? 1 : 2; /* bytes vary little */
    for (size_t i = 0; i < SHL_ARRAY_LEN(cases); i++) {
        shl_speed_rounds r = {.n = rounds};
        for (int at = 0; at < rounds; at++) {
            SHL_TRY(measure_memory(cases[i].strategy, &r, at));
        }
        shl_speed_add(out,
                      (shl_speed_row){.name = cases[i].name,
                                      .what = cases[i].what,
                                      .unit = "B/param",
                                      .bound = 1,
                                      .threads = RANKS},
                      &r);
    }
    return SHL_OK;
}
