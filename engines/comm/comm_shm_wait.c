/* engines/comm: waiting in a shared control block: barriers on futexes with a deadline, the abort
 * note, exchange of small values, agreement on one error. */
#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engines/comm/world_impl.h"
#include "engines/comm/world_wire.h"
#include "kernels/base/clock.h"
#include "kernels/base/str.h"

/* A waiter spins this long before it sleeps, and only when every rank has a core. */
#define SPIN_NS 20000

void
shl_shm_sleep_on(_Atomic uint32_t *word, uint32_t value, int64_t ns)
{
    struct timespec ts = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    (void)syscall(SYS_futex, word, FUTEX_WAIT, value, &ts, NULL, 0);
}

void
shl_shm_wake(_Atomic uint32_t *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE, 0x7fffffff, NULL, NULL, 0);
}

static void
ring(shl_shm_lane *lane)
{
    atomic_fetch_add_explicit(&lane->bell, 1, memory_order_release);
    shl_shm_wake(&lane->bell);
}

void
shl_shm_bells(shl_shm_block *b)
{
    uint64_t used = atomic_load_explicit(&b->groups, memory_order_acquire);
    for (int g = 0; g < SHL_SHM_GROUPS; g++) {
        if ((used >> g & 1) != 0) {
            ring(&shl_shm_group_at(b, g)->lane[SHL_SHM_DATA]);
            ring(&shl_shm_group_at(b, g)->lane[SHL_SHM_CONTROL]);
        }
    }
}

/* Every text about another rank starts with "rank N ". */
bool
shl_shm_is_report(const shl_err *err, int rank)
{
    int named = -1;
    return sscanf(err->what, "rank %d ", &named) == 1 && named != rank;
}

void
shl_shm_describe(int rank, const char *where, shl_code code, const shl_err *err, shl_err *out)
{
    *out = *err;
    if (err->code != code) { /* the code came without a text of its own */
        memset(out, 0, sizeof *out);
        shl_strf(out->what, sizeof out->what, "%s", shl_code_text(code));
    }
    out->code = code;
    out->trace[0] = '\0';
    if (!shl_shm_is_report(out, rank)) {
        char own[sizeof out->what];
        shl_strf(own, sizeof own, "%s", out->what);
        shl_strf(out->what, sizeof out->what, "rank %d failed in %s: %s", rank, where, own);
    }
}

/* What a rank returns for another's code: kinds that the user can act on stay what they are. */
static shl_code
peer_code(shl_code code)
{
    bool kept = code == SHL_E_OOM || code == SHL_E_INTERRUPTED || code == SHL_E_USAGE ||
                code == SHL_E_CONFIG || code == SHL_E_VERIFY || code == SHL_E_IO;
    return kept ? code : SHL_E_PEER;
}

void
shl_shm_note(shl_shm_block *b, int writer, int culprit, const shl_err *text)
{
    shl_shm_rank *r = &b->rank[writer];
    uint32_t free_note = 0;
    if (!atomic_compare_exchange_strong(&r->note_taken, &free_note, 1)) {
        return;
    }
    r->note_rank = culprit;
    r->note = *text;
    uint32_t none = 0;
    atomic_compare_exchange_strong(&b->aborted, &none, (uint32_t)writer + 1);
    shl_shm_bells(b);
}

shl_code
shl_shm_check(shl_world *w)
{
    uint32_t first = atomic_load_explicit(&w->block->aborted, memory_order_acquire);
    if (first == 0) {
        return SHL_OK;
    }
    const shl_shm_rank *r = &w->block->rank[first - 1];
    shl_err err = r->note;
    if (r->note_rank != w->rank) {
        err.code = peer_code(err.code);
    }
    return shl_err_put(&err);
}

void
shl_shm_world_note(shl_world *w, int culprit, const shl_err *text)
{
    bool first = atomic_load(&w->block->rank[w->rank].note_taken) == 0;
    shl_shm_note(w->block, w->rank, culprit, text);
    if (first && w->wire != NULL) {
        shl_wire_note(w, culprit, text);
    }
}

void
shl_shm_abort(shl_world *w, const char *where)
{
    const shl_err *err = shl_err_get();
    shl_err text;
    shl_code code = err->code != SHL_OK ? err->code : SHL_E_PEER;
    shl_shm_describe(w->rank, where, code, err, &text);
    shl_shm_world_note(w, w->rank, &text);
}

void
shl_shm_tell(shl_world *w, int culprit)
{
    shl_err text = *shl_err_get();
    text.trace[0] = '\0';
    shl_shm_world_note(w, culprit, &text);
}

/* First member that has not arrived, and how many; *left: it never will. */
static int
find_missing(const shl_shm_port *p, uint32_t target, int *n_missing, bool *left)
{
    shl_shm_lane *lane = &p->group->lane[p->lane];
    shl_shm_block *b = p->world->block;
    int first = -1;
    *n_missing = 0;
    *left = false;
    for (int m = 0; m < p->size; m++) {
        uint32_t state =
            atomic_load_explicit(&b->rank[p->world_rank[m]].state, memory_order_acquire);
        uint32_t phase = atomic_load_explicit(&lane->arrived[m], memory_order_acquire);
        if ((int32_t)(phase - target) >= 0) {
            continue;
        }
        (*n_missing)++;
        bool gone = state == SHL_SHM_LEFT;
        if (first < 0 || (gone && !*left)) {
            first = m;
            *left = gone;
        }
    }
    return first;
}

static shl_code
give_up(shl_shm_port *p, shl_shm_label label, int missing, int n_missing, bool left)
{
    int culprit = p->world_rank[missing];
    shl_err text = {.code = SHL_E_PEER};
    const char *verb = label.leaving ? "finished" : "arrived at";
    if (left) {
        shl_strf(text.what, sizeof text.what, "rank %d left before it %s %s #%llu", culprit, verb,
                 label.name, (unsigned long long)label.seq);
    } else {
        shl_strf(text.what, sizeof text.what, "rank %d has not %s %s #%llu within %.1f s", culprit,
                 verb, label.name, (unsigned long long)label.seq, (double)p->timeout_ms / 1e3);
    }
    shl_strf(text.because, sizeof text.because, "%d of %d ranks are missing", n_missing, p->size);
    if (!left) {
        shl_strf(text.advice, sizeof text.advice, "a longer timeout, if rank %d is only slow",
                 culprit);
    }
    shl_shm_world_note(p->world, culprit, &text);
    return shl_shm_check(p->world);
}

static bool
passed(shl_shm_lane *lane, uint32_t target)
{
    uint32_t now = atomic_load_explicit(&lane->generation, memory_order_acquire);
    return (int32_t)(now - target) >= 0;
}

static bool
spin(const shl_shm_block *b, shl_shm_lane *lane, uint32_t target, int64_t start_ns)
{
    if (b->ranks * b->threads_per_rank > b->cores) {
        return passed(lane, target);
    }
    do {
        for (int i = 0; i < 64; i++) {
            if (passed(lane, target)) {
                return true;
            }
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#endif
        }
    } while (shl_clock_ns() - start_ns < SPIN_NS);
    return false;
}

static shl_code
wait_passed(shl_shm_port *p, shl_shm_lane *lane, uint32_t target, shl_shm_label label)
{
    int64_t start_ns = shl_clock_ns();
    int64_t deadline_ns = start_ns + p->timeout_ms * 1000000;
    if (spin(p->world->block, lane, target, start_ns)) {
        return SHL_OK;
    }
    for (;;) {
        /* The bell is read first: whatever rings after this line ends the sleep below. */
        uint32_t bell = atomic_load_explicit(&lane->bell, memory_order_acquire);
        if (passed(lane, target)) {
            return SHL_OK; /* before the abort: everybody was here */
        }
        SHL_TRY(shl_shm_check(p->world));
        int n_missing = 0;
        bool left = false;
        int missing = find_missing(p, target, &n_missing, &left);
        int64_t rest_ns = deadline_ns - shl_clock_ns();
        if (missing >= 0 && (left || rest_ns <= 0)) {
            return give_up(p, label, missing, n_missing, left);
        }
        /* Nobody missing: the last one is between its arrival and the ring. */
        shl_shm_sleep_on(&lane->bell, bell, rest_ns > 1000000 ? rest_ns : 1000000);
    }
}

void
shl_shm_arrive(shl_shm_lane *lane, int member, int size, uint32_t target)
{
    atomic_store_explicit(&lane->arrived[member], target, memory_order_release);
    if (atomic_fetch_add_explicit(&lane->count, 1, memory_order_acq_rel) + 1 < (uint32_t)size) {
        return;
    }
    atomic_store_explicit(&lane->count, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&lane->generation, 1, memory_order_release);
    ring(lane);
}

shl_code
shl_shm_barrier(shl_shm_port *p, shl_shm_label label)
{
    SHL_TRY(shl_shm_check(p->world));
    if (p->size == 1) {
        return SHL_OK;
    }
    shl_shm_lane *lane = &p->group->lane[p->lane];
    uint32_t target = ++p->phase;
    if (p->world->wire != NULL) {
        SHL_TRY(shl_wire_arrive(p, target));
    } else {
        shl_shm_arrive(lane, p->rank, p->size, target);
    }
    return passed(lane, target) ? SHL_OK : wait_passed(p, lane, target, label);
}

/* The text and code that a member brings to an agreement. */
typedef struct agree_word {
    int32_t code;
    shl_err text;
} agree_word;
_Static_assert(sizeof(agree_word) <= SHL_SHM_SLOT_BYTES, "an error fits a control slot");

static const shl_shm_slot *
slot_of(const shl_shm_port *p, int member)
{
    return &p->group->member[member].slot[p->seq & 1];
}

const void *
shl_shm_said(const shl_shm_port *p, int member)
{
    return slot_of(p, member)->data;
}

/* Puts the error of the lowest failing member of an agreement; SHL_OK when there is none. */
static shl_code
lowest_failure(const shl_shm_port *p)
{
    for (int m = 0; m < p->size; m++) {
        const agree_word *word = (const agree_word *)shl_shm_said(p, m);
        if (slot_of(p, m)->op == SHL_SHM_AGREE && word->code != SHL_OK) {
            shl_err err = word->text;
            err.code = peer_code((shl_code)word->code);
            return shl_err_put(&err);
        }
    }
    return SHL_OK;
}

static shl_code
same_call(shl_shm_port *p)
{
    const shl_shm_slot *zero = slot_of(p, 0);
    for (int m = 1; m < p->size; m++) {
        const shl_shm_slot *s = slot_of(p, m);
        if (s->op == zero->op && s->bytes == zero->bytes && s->seq == zero->seq) {
            continue;
        }
        /* A rank that failed goes to its agreement ahead of the others. */
        shl_code code = lowest_failure(p);
        if (code == SHL_OK) {
            code =
                SHL_RAISE(SHL_E_BUG,
                          "ranks disagree: rank %d entered %s #%llu (operation %d, %d bytes), "
                          "rank %d entered %s #%llu (operation %d, %d bytes)",
                          p->world_rank[0], shl_shm_control_name(zero->op),
                          (unsigned long long)zero->seq, zero->op, zero->bytes, p->world_rank[m],
                          shl_shm_control_name(s->op), (unsigned long long)s->seq, s->op, s->bytes);
        }
        shl_shm_abort(p->world, "control");
        return code;
    }
    return SHL_OK;
}

shl_code
shl_shm_exchange(shl_shm_port *p, int op, const char *name, const void *data, int bytes)
{
    SHL_ASSERT(bytes >= 0 && bytes <= SHL_SHM_SLOT_BYTES);
    if (shl_shm_check(p->world) != SHL_OK) {
        shl_shm_refuse(p->world, p->lane, op, p->seq + 1);
        return shl_err_get()->code; /* a slot of a lost world may still be read by its peers */
    }
    p->seq++;
    shl_shm_enter(p->world, p->lane, op, p->seq);
    shl_shm_slot *mine = &p->group->member[p->rank].slot[p->seq & 1];
    mine->seq = p->seq;
    mine->op = op;
    mine->bytes = bytes;
    if (bytes > 0) {
        memcpy(mine->data, data, (size_t)bytes);
    }
    SHL_TRY(shl_shm_barrier(p, (shl_shm_label){name, p->seq, false}));
    SHL_TRY(same_call(p));
    shl_shm_exit(p->world, p->lane);
    return SHL_OK;
}

shl_code
shl_shm_agree(shl_shm_port *p, shl_code mine, const char *where)
{
    agree_word word = {.code = (int32_t)mine};
    shl_err own = *shl_err_get();
    if (mine != SHL_OK) {
        shl_shm_describe(p->world->rank, where, mine, &own, &word.text);
    }
    char name[64];
    shl_strf(name, sizeof name, "agree (%s)", where);
    shl_code code = shl_shm_exchange(p, SHL_SHM_AGREE, name, &word, (int)sizeof word);
    if (mine != SHL_OK) {
        /* A rank that failed keeps its own error, whatever became of the exchange. */
        if (own.code == mine) {
            (void)shl_err_put(&own);
        }
        return mine;
    }
    return code != SHL_OK ? code : lowest_failure(p);
}
