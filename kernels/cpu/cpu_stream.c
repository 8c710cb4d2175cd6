/* kernels/cpu: a worker stream: a bounded ring of closures under one mutex. Sequence numbers always
 * advance, also past skipped work, so that nobody waits for ever. */
#include "kernels/cpu/cpu_stream.h"

#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels/base/heap.h"
#include "kernels/base/log.h"

#define RING_LEN 64u
#define ARG_BYTES 256u

typedef struct closure {
    shl_stream_fn fn;
    alignas(max_align_t) unsigned char arg[ARG_BYTES];
} closure;

struct shl_cpu_worker {
    pthread_mutex_t mutex;
    pthread_cond_t queued; /* work arrived, or stop */
    pthread_cond_t passed; /* one closure done or skipped */
    pthread_t thread;
    bool started;
    bool stop;
    int rank;
    uint64_t n_submitted;
    uint64_t n_done;
    uint64_t failed_seq; /* 0: no failure yet */
    shl_err failure;
    closure ring[RING_LEN];
};

/* Runs one closure outside the lock; a failure without a text gets one. */
static shl_code
run_closure(closure *c)
{
    shl_err_clear();
    shl_code code = c->fn(c->arg);
    if (code != SHL_OK && shl_err_get()->code != code) {
        SHL_RAISE(code, "work queued on a stream failed: %s", shl_code_text(code));
    }
    return code;
}

static void *
worker_main(void *arg)
{
    shl_cpu_worker *w = arg;
    shl_log_set_rank(w->rank);
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
    pthread_mutex_lock(&w->mutex);
    for (;;) {
        while (w->n_done == w->n_submitted && !w->stop) {
            pthread_cond_wait(&w->queued, &w->mutex);
        }
        if (w->n_done == w->n_submitted) {
            break;
        }
        if (w->failed_seq == 0) {
            /* The slot stays ours until n_done passes it. */
            closure *c = &w->ring[w->n_done % RING_LEN];
            pthread_mutex_unlock(&w->mutex);
            shl_code code = run_closure(c);
            pthread_mutex_lock(&w->mutex);
            if (code != SHL_OK) {
                w->failed_seq = w->n_done + 1;
                w->failure = *shl_err_get();
            }
        }
        w->n_done++;
        pthread_cond_broadcast(&w->passed);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

/* Signals stay with the threads that the program knows. */
static shl_code
start_thread(shl_cpu_worker *w)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        SHL_RAISE(SHL_E_SYSTEM, "cannot start a worker thread of rank %d", w->rank);
        return shl_err_because("pthread_create: %s", strerror(rc));
    }
    w->started = true;
    return SHL_OK;
}

shl_code
shl_cpu_worker_open(int rank, shl_cpu_worker **out)
{
    shl_cpu_worker *w = NULL;
    *out = NULL;
    SHL_TRY(shl_heap_alloc(1, sizeof(*w), &w));
    w->rank = rank;
    /* With default attributes these cannot fail on Linux. */
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->queued, NULL);
    pthread_cond_init(&w->passed, NULL);
    *out = w;
    return SHL_OK;
}

void
shl_cpu_worker_close(shl_cpu_worker **w_ptr)
{
    shl_cpu_worker *w = *w_ptr;
    if (w == NULL) {
        return;
    }
    if (w->started) {
        pthread_mutex_lock(&w->mutex);
        w->stop = true;
        pthread_cond_signal(&w->queued);
        pthread_mutex_unlock(&w->mutex);
        pthread_join(w->thread, NULL);
    }
    pthread_cond_destroy(&w->queued);
    pthread_cond_destroy(&w->passed);
    pthread_mutex_destroy(&w->mutex);
    shl_heap_free(w_ptr);
}

shl_code
shl_cpu_worker_submit(shl_cpu_worker *w, shl_stream_fn fn, const void *arg, size_t arg_bytes)
{
    SHL_ASSERT(arg_bytes <= ARG_BYTES);
    if (!w->started) {
        SHL_TRY(start_thread(w));
    }
    pthread_mutex_lock(&w->mutex);
    while (w->n_submitted - w->n_done == RING_LEN) {
        pthread_cond_wait(&w->passed, &w->mutex);
    }
    closure *c = &w->ring[w->n_submitted % RING_LEN];
    c->fn = fn;
    if (arg_bytes > 0) {
        memcpy(c->arg, arg, arg_bytes);
    }
    w->n_submitted++;
    pthread_cond_signal(&w->queued);
    pthread_mutex_unlock(&w->mutex);
    return SHL_OK;
}

uint64_t
shl_cpu_worker_seq(shl_cpu_worker *w)
{
    pthread_mutex_lock(&w->mutex);
    uint64_t seq = w->n_submitted;
    pthread_mutex_unlock(&w->mutex);
    return seq;
}

shl_code
shl_cpu_worker_wait(shl_cpu_worker *w, uint64_t seq)
{
    shl_code code = SHL_OK;
    pthread_mutex_lock(&w->mutex);
    SHL_ASSERT(seq <= w->n_submitted);
    while (w->n_done < seq) {
        pthread_cond_wait(&w->passed, &w->mutex);
    }
    if (w->failed_seq != 0 && w->failed_seq <= seq) {
        code = shl_err_put(&w->failure);
    }
    pthread_mutex_unlock(&w->mutex);
    return code;
}
