/* kernels/device: the ledger: who holds which bytes, now and at the peak, per tier and tag.
 * Every byte that our code asks for is posted here by the device that gives it; peaks are events
 * with a phase and a culprit, not samples. One ledger per rank; used by that rank's thread only. */
#ifndef SHL_DEVICE_LEDGER_H
#define SHL_DEVICE_LEDGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/err.h"

typedef enum shl_tier {
    SHL_TIER_DEVICE = 0,
    SHL_TIER_HOST,
    SHL_TIER_NVME,
    SHL_TIER_COUNT
} shl_tier;

/* param: resident parameters or shards; gather: temporary unsharded parameters; grad: what survives
 * to the step; master, optim: fp32 copies and moments; act: activations and their gradients;
 * bucket: gradients not yet reduced, and collective buffers; staging: transport and offload copies;
 * work: op scratch; ckpt: checkpoint staging. */
typedef enum shl_tag {
    SHL_TAG_PARAM = 0,
    SHL_TAG_GATHER,
    SHL_TAG_GRAD,
    SHL_TAG_MASTER,
    SHL_TAG_OPTIM,
    SHL_TAG_ACT,
    SHL_TAG_BUCKET,
    SHL_TAG_STAGING,
    SHL_TAG_WORK,
    SHL_TAG_CKPT,
    SHL_TAG_COUNT
} shl_tag;

typedef enum shl_mark {
    SHL_MARK_INIT = 0,
    SHL_MARK_FORWARD,
    SHL_MARK_BACKWARD,
    SHL_MARK_STEP,
    SHL_MARK_SAVE,
    SHL_MARK_EVAL,
    SHL_MARK_COUNT
} shl_mark;

const char *shl_tier_name(shl_tier tier); /* "device", "host", "nvme" */
const char *shl_tag_name(shl_tag tag);    /* "param", "gather", ... */
const char *shl_mark_name(shl_mark mark); /* "init", "forward", ... */

/* What one tier looked like. All bytes as requested (layout padding included, allocator rounding
 * not: that is `reserved`, see device.h). */
typedef struct shl_ledger_tier {
    size_t now_bytes;
    size_t now_tag_bytes[SHL_TAG_COUNT];
    size_t peak_bytes;                       /* largest total ever */
    size_t peak_tag_bytes[SHL_TAG_COUNT];    /* each tag's own largest */
    size_t at_peak_tag_bytes[SHL_TAG_COUNT]; /* the tags at the moment of peak_bytes; sum to it */
    size_t phase_peak_bytes[SHL_MARK_COUNT]; /* largest total inside each phase */
    size_t phase_tag_bytes[SHL_MARK_COUNT][SHL_TAG_COUNT]; /* each tag's own largest inside it */
    shl_mark peak_mark;  /* phase of the first moment that reached peak_bytes */
    char peak_owner[96]; /* owner of the allocation that reached it */
    size_t limit_bytes;  /* 0: none */
} shl_ledger_tier;

/* One event of the memory time line. `at` counts events from 0. delta > 0 allocates. */
typedef struct shl_ledger_event {
    int64_t at;
    int64_t delta_bytes;
    shl_tier tier;
    shl_tag tag;
    shl_mark mark;
    size_t total_bytes;
    char owner[48];
} shl_ledger_event;

typedef struct shl_ledger shl_ledger;

/* A new empty ledger. Owner: caller, shl_ledger_close. */
shl_code shl_ledger_open(shl_ledger **out) SHL_MUST_USE;

/* Frees *l. Errors: SHL_E_BUG when bytes are still held: `because` names up to four owners with tag
 * and bytes (the ledger is freed all the same). NULL is fine. */
shl_code shl_ledger_close(shl_ledger **l) SHL_MUST_USE;

/* A limit for one tier; 0 removes it. */
void shl_ledger_limit(shl_ledger *l, shl_tier tier, size_t limit_bytes);

/* The n-th post from now (1 = the next) fails once with SHL_E_OOM; -1 switches off. */
void shl_ledger_fail_at(shl_ledger *l, int64_t n);

/* The phase that later events belong to. */
void shl_ledger_set_mark(shl_ledger *l, shl_mark mark);
shl_mark shl_ledger_get_mark(const shl_ledger *l);

/* From now on the phase is also written to *word (borrowed; NULL: no longer), where other ranks can
 * read how far this one had come when it died. */
#ifndef __cplusplus /* the kernels of a GPU, which read this header for its types */
void shl_ledger_share_mark(shl_ledger *l, _Atomic uint32_t *word);
#endif

/* Whether a post would stay within the limit: SHL_OK, or the SHL_E_OOM that the post would give. A
 * device asks before it takes memory from the system. */
shl_code shl_ledger_admit(const shl_ledger *l, shl_tier tier, shl_tag tag, size_t bytes,
                          const char *owner) SHL_MUST_USE;

/* Posts `bytes` for `owner` (borrowed until the matching drop; a static or model-lifetime string).
 * *id names the entry. Errors: SHL_E_OOM naming phase, tag, owner, bytes asked, held and limit;
 * nothing is posted then. For devices only. */
shl_code shl_ledger_post(shl_ledger *l, shl_tier tier, shl_tag tag, size_t bytes, const char *owner,
                         int64_t *id) SHL_MUST_USE;
void shl_ledger_drop(shl_ledger *l, int64_t id);

/* Reads one tier; borrowed, valid until the next event. */
const shl_ledger_tier *shl_ledger_get(const shl_ledger *l, shl_tier tier);

/* Forgets peaks: they restart from the bytes held now, with an empty peak_owner. */
void shl_ledger_reset_peaks(shl_ledger *l);

/* Records events from now on (at most `cap`, later ones are dropped and counted). */
shl_code shl_ledger_timeline_start(shl_ledger *l, size_t cap) SHL_MUST_USE;
size_t shl_ledger_timeline_get(const shl_ledger *l, const shl_ledger_event **events);
int64_t shl_ledger_timeline_dropped(const shl_ledger *l);

/* Order-sensitive hash of every event since open (tier, tag, bytes, mark, owner): two ranks with
 * equal hashes went through the same schedule. */
uint64_t shl_ledger_trace_hash(const shl_ledger *l);

#endif
