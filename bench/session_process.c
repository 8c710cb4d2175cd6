/* bench: ranks as processes. Rank 0 sends each step's report, and at last the result, through a pipe to
 * the parent, so that the caller of a session sees the same whatever the ranks are. Both ends are the
 * same program, hence plain structs. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bench/session_impl.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "kernels/base/types.h"

typedef enum frame_kind { FRAME_STEP = 1, FRAME_EVAL, FRAME_EVENT, FRAME_RESULT } frame_kind;

typedef struct frame {
    int64_t kind;
    union {
        shl_step_report step;
        shl_eval_report eval;
        shl_ledger_event event;
        shl_session_result result; /* pointers in it mean nothing here */
    } u;
} frame;

static shl_code
send_frame(int fd, const frame *f)
{
    const char *at = (const char *)f;
    size_t left = sizeof(*f);
    while (left > 0) {
        ssize_t n = write(fd, at, left);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            SHL_RAISE(SHL_E_IO, "the parent of this rank does not take its results");
            return shl_err_because("%s", strerror(errno));
        }
        at += n;
        left -= (size_t)n;
    }
    return SHL_OK;
}

/* False at the end of the pipe, which may also come in the middle of a frame. */
static bool
take_frame(int fd, frame *f)
{
    char *at = (char *)f;
    size_t left = sizeof(*f);
    while (left > 0) {
        ssize_t n = read(fd, at, left);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        at += n;
        left -= (size_t)n;
    }
    return true;
}

/* --- a rank ------------------------------------------------------------------------------ */

static shl_code
send_step(void *ctx, const shl_step_report *report)
{
    frame f;
    memset(&f, 0, sizeof(f));
    f.kind = FRAME_STEP;
    f.u.step = *report;
    return send_frame(*(const int *)ctx, &f);
}

static shl_code
send_eval(void *ctx, const shl_eval_report *report)
{
    frame f;
    memset(&f, 0, sizeof(f));
    f.kind = FRAME_EVAL;
    f.u.eval = *report;
    return send_frame(*(const int *)ctx, &f);
}

static shl_code
send_result(int fd, const shl_session_result *out)
{
    frame f;
    memset(&f, 0, sizeof(f));
    f.kind = FRAME_EVENT;
    for (int64_t i = 0; i < out->timeline.n_events; i++) {
        f.u.event = out->timeline.events[i];
        SHL_TRY(send_frame(fd, &f));
    }
    memset(&f, 0, sizeof(f));
    f.kind = FRAME_RESULT;
    f.u.result = *out;
    return send_frame(fd, &f);
}

shl_code
shl_session_run_rank(const shl_session_config *cfg, shl_world *world, int result_fd)
{
    shl_session_result out = {0};
    shl_session_sink sink = {.on_step = send_step, .on_eval = send_eval, .ctx = &result_fd};
    shl_session_rank r = {
        .cfg = cfg,
        .sink = &sink,
        .out = &out,
        .world = world,
        .rank = shl_world_rank(world),
    };
    SHL_TRY(shl_session_config_check(cfg));
    shl_code code = shl_session_rank_run(&r);
    bool told = code == SHL_OK || (code == SHL_E_INTERRUPTED && out.n_steps > 0);
    if (r.rank == 0 && told) {
        shl_err failure = *shl_err_get();
        shl_code sent = send_result(result_fd, &out);
        code = sent == SHL_OK && code != SHL_OK ? shl_err_put(&failure) : sent;
    }
    shl_session_result_fini(&out);
    return code;
}

/* --- the parent -------------------------------------------------------------------------- */

typedef struct reader {
    int fd; /* closed by the reader itself */
    const shl_session_sink *sink;
    shl_session_result *out;
    int64_t steps_cap, evals_cap, events_cap;
    bool complete; /* the result has come */
    shl_err err;   /* of the first report that could not be kept or passed on */
} reader;

static shl_code
take_step(reader *rd, const shl_step_report *report)
{
    SHL_TRY(shl_session_keep_step(rd->out, &rd->steps_cap, report));
    if (rd->sink && rd->sink->on_step) {
        SHL_TRY(rd->sink->on_step(rd->sink->ctx, report));
    }
    return SHL_OK;
}

static shl_code
take_eval(reader *rd, const shl_eval_report *report)
{
    SHL_TRY(shl_session_keep_eval(rd->out, &rd->evals_cap, report));
    if (rd->sink && rd->sink->on_eval) {
        SHL_TRY(rd->sink->on_eval(rd->sink->ctx, report));
    }
    return SHL_OK;
}

static shl_code
take_event(reader *rd, const shl_ledger_event *event)
{
    shl_session_timeline *t = &rd->out->timeline;
    if (t->n_events == rd->events_cap) {
        int64_t more = rd->events_cap > 0 ? 2 * rd->events_cap : 256;
        SHL_TRY(
            shl_heap_grow(&t->events, (size_t)rd->events_cap, (size_t)more, sizeof(*t->events)));
        rd->events_cap = more;
    }
    t->events[t->n_events++] = *event;
    return SHL_OK;
}

static void
take_result(reader *rd, const shl_session_result *result)
{
    shl_step_report *steps = rd->out->steps;
    shl_eval_report *evals = rd->out->evals;
    shl_ledger_event *events = rd->out->timeline.events;
    int64_t n_events = rd->out->timeline.n_events;
    *rd->out = *result;
    rd->out->steps = steps;
    rd->out->evals = evals;
    rd->out->timeline.events = events;
    rd->out->timeline.n_events = n_events; /* those that came: a failure to keep one ends the run */
    rd->complete = true;
}

static shl_code
take_report(reader *rd, const frame *f)
{
    switch (f->kind) {
    case FRAME_STEP:
        return take_step(rd, &f->u.step);
    case FRAME_EVAL:
        return take_eval(rd, &f->u.eval);
    case FRAME_EVENT:
        return take_event(rd, &f->u.event);
    default:
        take_result(rd, &f->u.result);
        return SHL_OK;
    }
}

/* After a failure nobody listens any more: rank 0 meets a closed pipe, and the run ends. */
static void *
read_frames(void *arg)
{
    reader *rd = (reader *)arg;
    frame f;
    while (rd->err.code == SHL_OK && take_frame(rd->fd, &f)) {
        if (take_report(rd, &f) != SHL_OK) {
            rd->err = *shl_err_get();
        }
    }
    (void)close(rd->fd);
    return NULL;
}

/* With all signals blocked: they belong to the thread that supervises the ranks. */
static shl_code
start_reader(pthread_t *thread, reader *rd)
{
    sigset_t all, old;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &old);
    int rc = pthread_create(thread, NULL, read_frames, rd);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        SHL_RAISE(SHL_E_SYSTEM, "cannot start a thread to read results");
        return shl_err_because("%s", strerror(rc));
    }
    return SHL_OK;
}

/* The command of a rank: the caller's words and where to send results. */
static shl_code
rank_words(const char *const *argv, int fd, char *fd_word, size_t fd_word_bytes, const char ***out)
{
    size_t n = 0;
    while (argv[n]) {
        n++;
    }
    const char **words = NULL;
    SHL_TRY(shl_heap_alloc(n + 2, sizeof(*words), &words));
    memcpy(words, argv, n * sizeof(*words));
    shl_strf(fd_word, fd_word_bytes, "--result-fd=%d", fd);
    words[n] = fd_word;
    *out = words;
    return SHL_OK;
}

static shl_code
run_world(const shl_session_config *cfg, reader *rd, int write_fd)
{
    char fd_word[32];
    const char **words = NULL;
    pthread_t thread;
    shl_world_config world = {
        .ranks = cfg->ranks,
        .threads_per_rank = cfg->threads,
        .timeout_ms = cfg->timeout_ms,
        .share_gpu = cfg->share_gpu,
    };
    shl_code code = rank_words(cfg->rank_argv, write_fd, fd_word, sizeof(fd_word), &words);
    if (code == SHL_OK) {
        code = start_reader(&thread, rd);
    }
    if (code != SHL_OK) {
        (void)close(rd->fd);
        (void)close(write_fd);
        shl_heap_free(&words);
        return code;
    }
    bool printed = false; /* ranks print nothing: their text comes back with the code */
    code = shl_world_run_processes(&world, words, &printed);
    /* With the last writer gone the reader meets the end of the pipe. */
    (void)close(write_fd);
    (void)pthread_join(thread, NULL);
    shl_heap_free(&words);
    return code;
}

shl_code
shl_session_run_processes(const shl_session_config *cfg, const shl_session_sink *sink,
                          shl_session_result *out)
{
    int ends[2];
    if (!cfg->rank_argv || !cfg->rank_argv[0]) {
        return SHL_RAISE(SHL_E_USAGE, "ranks as processes need the command of a rank");
    }
    if (pipe(ends) != 0 || fcntl(ends[0], F_SETFD, FD_CLOEXEC) != 0) {
        SHL_RAISE(SHL_E_SYSTEM, "cannot make a pipe for results");
        return shl_err_because("%s", strerror(errno));
    }
    reader rd = {.fd = ends[0], .sink = sink, .out = out};
    shl_code code = run_world(cfg, &rd, ends[1]);
    if (rd.err.code != SHL_OK) {
        return shl_err_put(&rd.err); /* what ended the ranks, whatever they said of it */
    }
    if (code == SHL_E_INTERRUPTED && !rd.complete) {
        out->n_steps = 0;
    }
    if (code == SHL_OK && !rd.complete) {
        return SHL_RAISE(SHL_E_PEER, "rank 0 ended without a result");
    }
    return code;
}
