/* tests/support: faults. The engines' registry is replaced in programs that link this file: each engine's
 * table is copied, and the slots and hooks of the copy strike before they call the engine's own. */
#include "tests/support/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "engines/engine_registry.h"
#include "kernels/base/clock.h"

extern const shl_engine_ops shl_zero_bucketed_engine;
extern const shl_engine_ops shl_zero_stage3_engine;
extern const shl_engine_ops shl_fsdp_engine;

#define STRIKE_AT 3 /* calls of a hook in the phase: gathers and reductions are in flight */
#define HOUR_NS INT64_C(3600000000000)

static const shl_engine_ops *const engines[] = {&shl_zero_bucketed_engine, &shl_zero_stage3_engine,
                                                &shl_fsdp_engine};
static shl_engine_ops copies[SHL_ARRAY_LEN(engines)];
static shl_hooks hooks[SHL_ARRAY_LEN(engines)];

static struct {
    int kind, place, rank;
    char path[256];
    atomic_int calls, struck;
} plan;

void
fault_plan(fault_kind kind, fault_place place, int rank, const char *path)
{
    char text[320];
    (void)snprintf(text, sizeof text, "%d,%d,%d,%s", (int)kind, (int)place, rank, path);
    (void)setenv("SHL_FAULT", text, 1);
}

int64_t
fault_struck_ns(const char *path)
{
    long long ns = 0;
    FILE *f = fopen(path, "r");
    if (f == NULL) {
        return 0;
    }
    int n = fscanf(f, "%lld\n", &ns);
    (void)fclose(f);
    return n == 1 ? (int64_t)ns : 0;
}

static void
tell_time(void)
{
    char text[32];
    int len = snprintf(text, sizeof text, "%lld\n", (long long)shl_clock_ns());
    int fd = open(plan.path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, (size_t)len) != len) {
        _exit(99);
    }
    (void)close(fd);
}

/* A read that the system refuses: page 0 of this process is never there. */
static shl_code
failing_read(void)
{
    char byte;
    int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    ssize_t n = pread(fd, &byte, 1, 0);
    int reason = errno;
    (void)close(fd);
    if (n == 1) {
        return SHL_OK;
    }
    (void)SHL_RAISE(SHL_E_IO, "cannot read /proc/self/mem");
    return shl_err_because("%s", strerror(reason));
}

/* In a process of its own the rank's next writes fail; threads would all be hit. */
static shl_code
fail_writes(const shl_engine *e)
{
    struct rlimit none = {0, 0};
    const shl_comm_config *c = &e->mesh.world->config;
    if (plan.place != FAULT_SAVE || c->rank_world == NULL ||
        !shl_world_is_processes(c->rank_world)) {
        return failing_read();
    }
    (void)signal(SIGXFSZ, SIG_IGN);
    return setrlimit(RLIMIT_FSIZE, &none) == 0 ? SHL_OK : SHL_E_SYSTEM;
}

/* Every allocation from now on is above the limit; where the phase makes none, one is made here. */
static shl_code
run_out_of_memory(shl_engine *e)
{
    shl_buf buf = {0};
    shl_ledger_limit(e->device->ledger, SHL_TIER_DEVICE, 1);
    if (plan.place <= FAULT_BACKWARD) {
        return SHL_OK;
    }
    return shl_device_alloc(e->device, 4096, SHL_TIER_DEVICE, SHL_TAG_WORK, 0, "fault", &buf);
}

static shl_code
strike(shl_engine *e, fault_place place, int64_t step, int at_call)
{
    if (plan.kind == FAULT_NONE || plan.place != (int)place || e->step != step ||
        shl_comm_rank(e->mesh.world) != plan.rank || atomic_fetch_add(&plan.calls, 1) < at_call ||
        atomic_exchange(&plan.struck, 1) != 0) {
        return SHL_OK;
    }
    tell_time();
    switch ((fault_kind)plan.kind) {
    case FAULT_KILL:
        (void)kill(getpid(), SIGKILL);
        break;
    case FAULT_STOP:
        (void)kill(getpid(), SIGSTOP);
        break;
    case FAULT_EXIT:
        _exit(0);
    case FAULT_OOM:
        return run_out_of_memory(e);
    case FAULT_IO:
        return fail_writes(e);
    case FAULT_HANG:
        shl_clock_sleep_ns(HOUR_NS);
        break;
    case FAULT_NONE:
        break;
    }
    return SHL_OK;
}

/* --- slots and hooks ----------------------------------------------------------------------- */

static size_t
index_of(const shl_engine *e)
{
    size_t i = 0;
    while (!engines[i]->runs(e->config.strategy)) {
        i++;
    }
    return i;
}

static const shl_engine_ops *
real(const shl_engine *e)
{
    return engines[index_of(e)];
}

static shl_code
faulty_attach(shl_engine *e)
{
    SHL_TRY(strike(e, FAULT_INIT, 0, 0));
    return real(e)->attach(e);
}

static void
faulty_detach(shl_engine *e)
{
    (void)strike(e, FAULT_CLOSE, e->step, 0);
    real(e)->detach(e);
}

static shl_code
faulty_end_step(shl_engine *e, shl_step_report *r)
{
    SHL_TRY(strike(e, FAULT_STEP, 1, 0));
    return real(e)->end_step(e, r);
}

static shl_code
faulty_after_forward(void *ctx, shl_module *m, shl_run *run)
{
    shl_engine *e = (shl_engine *)ctx;
    const shl_hooks *own = real(e)->hooks;
    SHL_TRY(strike(e, FAULT_FORWARD, 1, STRIKE_AT));
    return own->after_forward ? own->after_forward(ctx, m, run) : SHL_OK;
}

static shl_code
faulty_after_backward(void *ctx, shl_module *m, shl_run *run)
{
    shl_engine *e = (shl_engine *)ctx;
    const shl_hooks *own = real(e)->hooks;
    SHL_TRY(strike(e, FAULT_BACKWARD, 1, STRIKE_AT));
    return own->after_backward ? own->after_backward(ctx, m, run) : SHL_OK;
}

typedef struct visit {
    shl_engine *engine;
    shl_state_visitor own;
    void *ctx;
} visit;

static shl_code
faulty_visitor(void *ctx, const shl_shard *shard)
{
    visit *v = (visit *)ctx;
    if (plan.kind == FAULT_IO) {
        SHL_TRY(strike(v->engine, FAULT_SAVE, 2, 0));
        return v->own(v->ctx, shard);
    }
    SHL_TRY(v->own(v->ctx, shard)); /* the file of this rank is there, and not whole */
    return strike(v->engine, FAULT_SAVE, 2, 0);
}

static shl_code
faulty_visit_state(shl_engine *e, shl_visit_mode mode, shl_state_visitor v, void *ctx)
{
    visit faulty = {e, v, ctx};
    return mode == SHL_VISIT_READ ? real(e)->visit_state(e, mode, faulty_visitor, &faulty)
                                  : real(e)->visit_state(e, mode, v, ctx);
}

int
fault_load(void)
{
    const char *text = getenv("SHL_FAULT");
    if (text == NULL) {
        return 0;
    }
    if (sscanf(text, "%d,%d,%d,%255s", &plan.kind, &plan.place, &plan.rank, plan.path) != 4) {
        _exit(99);
    }
    for (size_t i = 0; i < SHL_ARRAY_LEN(engines); i++) {
        hooks[i] = *engines[i]->hooks;
        hooks[i].after_forward = faulty_after_forward;
        hooks[i].after_backward = faulty_after_backward;
        copies[i] = *engines[i];
        copies[i].attach = faulty_attach;
        copies[i].detach = faulty_detach;
        copies[i].end_step = faulty_end_step;
        copies[i].visit_state = faulty_visit_state;
        copies[i].hooks = &hooks[i];
    }
    return 1;
}

/* In the place of engines/engine_registry.c, which an archive leaves out when its only symbol is there. */
const shl_engine_ops *
shl_engine_find(shl_strategy s)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(engines); i++) {
        if (copies[i].runs(s)) {
            return &copies[i];
        }
    }
    return NULL;
}
