/* bench: a ds_config.json on the command line: what it changes in a run, how it is shown, and the words of
 * DeepSpeed's launcher. */
#ifndef SHL_BENCH_DS_OPTIONS_H
#define SHL_BENCH_DS_OPTIONS_H

#include "bench/session.h"
#include "engines/config/ds_config.h"
#include "kernels/base/option.h"

typedef struct shl_ds_options {
    const char *config, *trainer;
    int64_t dated;
    bool show, keys;
    const char *hostfile, *include, *exclude;
    int64_t num_slots, num_nodes;
    bool steps_given, seed_given; /* on the command line: they win */
    const char
        *optimizer_given; /* a flag of the optimizer or schedule that a file may decide; NULL */
    const char *schedule_given;
    char *found; /* config as the Trainer's arguments name it; owned */
} shl_ds_options;

void shl_ds_options_fini(shl_ds_options *o);

/* Names of the rows that the user gave, NULL behind the last: room for n + 1. */
void shl_ds_options_given(const shl_option *table, const shl_origin *origins, size_t n,
                          const char **given);

/* Finds the configuration (--config, or what the Trainer's arguments name), and refuses flags beside it
 * that it decides. given: names of the flags on the command line, NULL-terminated. *ranks: replaced when
 * the launcher's words name a number (text of at least 24 bytes). Errors: SHL_E_USAGE, SHL_E_CONFIG. */
shl_code shl_ds_options_resolve(shl_ds_options *o, const char *const *given, const char **ranks,
                                char *ranks_text) SHL_MUST_USE;

/* What "auto" and the checks know of a run. */
shl_ds_facts shl_ds_options_facts(const shl_session_config *c);

/* The file over *c: strategy, batch, dtypes, optimizer; steps and seed of the Trainer. */
shl_code shl_ds_options_apply(const shl_ds_options *o, bool data_follows, shl_session_config *c,
                              shl_str *notes) SHL_MUST_USE;

/* --show-config: all values, then what is refused. */
shl_code shl_ds_options_show(const shl_ds_options *o, const shl_session_config *c, bool json,
                             shl_str *out) SHL_MUST_USE;

/* Ranks that a hostfile and the selection leave; 0: no word of it. Errors: SHL_E_USAGE for several hosts
 * (one runs), SHL_E_CONFIG for a bad line. Params: text of the hostfile or NULL. */
shl_code shl_ds_hosts(const shl_ds_options *o, const char *text, int64_t *ranks) SHL_MUST_USE;

#endif
