/* bench: what this machine offers against what a run needs. Facts are gathered first and judged after,
 * so that every judgement can be tried on a machine that is not at hand. */
#ifndef SHL_BENCH_DOCTOR_H
#define SHL_BENCH_DOCTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/err.h"

#define SHL_UNKNOWN INT64_C(-1)
#define SHL_UNLIMITED INT64_MAX

/* What the run is to be. */
typedef struct shl_doctor_ask {
    int ranks;
    const char *model;
    int64_t params;
    const char *out; /* folder for results; need not exist */
} shl_doctor_ask;

/* What there is; SHL_UNKNOWN or an empty text where the system does not tell. */
typedef struct shl_doctor_facts {
    int cores;                             /* this process may run on */
    double quota;                          /* cores' worth of time; 0: no limit */
    int64_t ram_bytes, available_bytes;    /* machine */
    int64_t limit_bytes, used_bytes;       /* tightest control group */
    int64_t shm_bytes;                     /* free in /dev/shm */
    int64_t memlock_bytes, open_files;     /* limits of this process */
    int shared_error;                      /* errno of an anonymous shared file */
    char folder[4096];                     /* where the probe was written: out or above it */
    int folder_error, direct_error;        /* errno; 0: it worked */
    int64_t folder_bytes;                  /* free there */
    char gnuplot[64], gnuplot_formats[32]; /* version; "svg png" as far as it can */
    bool h5_is_threadsafe;
    char h5_version[32];
    char isa[32], features[128];
    double load; /* of one minute; < 0: unknown */
    char omp_threads[32], omp_wait[32], omp_bind[64];
    char gpu[256]; /* cards, driver, libraries; or why none can be used */
    char gpu_fix[256];
    int n_cards;
    bool gpu_fails;      /* there is a half for cards, and something keeps it from working */
    char huge_pages[64]; /* the chosen word: always, madvise, never */
} shl_doctor_facts;

typedef enum shl_verdict { SHL_VERDICT_OK = 0, SHL_VERDICT_WARN, SHL_VERDICT_FAIL } shl_verdict;
const char *shl_verdict_name(shl_verdict v);

typedef struct shl_check {
    const char *name;
    shl_verdict verdict;
    char value[192], needed[192]; /* found against needed */
    char fix[256];                /* a command or a change; "" when OK */
} shl_check;

#define SHL_MAX_CHECKS 24
typedef struct shl_doctor {
    shl_check checks[SHL_MAX_CHECKS];
    int n;
} shl_doctor;

/* Asks the machine. root stands before /proc, /sys and /dev ("" for the real ones). Never fails: what
 * cannot be found is unknown. Writes and removes one small file in the target folder. */
void shl_doctor_gather(const shl_doctor_ask *ask, const char *root, shl_doctor_facts *out);

/* Judges facts; pure. */
void shl_doctor_judge(const shl_doctor_ask *ask, const shl_doctor_facts *f, shl_doctor *out);

/* How many checks have this verdict. */
int shl_doctor_count(const shl_doctor *d, shl_verdict v);

#endif
