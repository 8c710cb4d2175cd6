/* bench: records: what a step and a run were, in one schema for table, JSON, JSON lines, CSV and
 * Markdown. One row of a field table describes a value once: path, type, place, heading, meaning;
 * every form and bench/RECORDS.md come from these rows. */
#ifndef SHL_BENCH_RECORD_H
#define SHL_BENCH_RECORD_H

#include "bench/session.h"
#include "kernels/base/str.h"

struct json_t;

#define SHL_RECORD_SCHEMA 1
#define SHL_FIELD_NO_INT INT64_MIN /* a whole number that there is not: null */

typedef enum shl_field_type {
    SHL_FIELD_TEXT = 0, /* const char *; NULL: null */
    SHL_FIELD_INT,      /* int64_t, exact */
    SHL_FIELD_REAL,     /* double; not finite: null */
    SHL_FIELD_BITS,     /* double as 16 hex digits; not finite: null */
    SHL_FIELD_HASH,     /* uint64_t as 16 hex digits; 0: null */
    SHL_FIELD_BOOL,     /* bool */
    SHL_FIELD_JSON      /* struct json_t *, borrowed; NULL: null */
} shl_field_type;

/* How a table spells a number. */
typedef enum shl_field_look {
    SHL_LOOK_PLAIN = 0,
    SHL_LOOK_GIB,   /* bytes as GiB */
    SHL_LOOK_MIB,   /* bytes as MiB */
    SHL_LOOK_COUNT, /* 12.3k */
    SHL_LOOK_SHORT, /* a real with five digits */
    SHL_LOOK_VARIES /* plain; a column only when the rows differ in it */
} shl_field_look;

/* Dots in a path make nested objects; rows of one object stand together. */
typedef struct shl_field {
    const char *path;
    shl_field_type type;
    size_t offset;
    const char *heading; /* of a column in the table; NULL: not shown there */
    shl_field_look look;
    const char *help;
} shl_field;

typedef struct shl_step_record {
    const char *kind, *strategy;
    const char *dtypes; /* points to the next; a record is filled where it is used */
    char dtypes_text[SHL_DTYPE_POLICY_TEXT_BYTES];
    double loss_scale;
    bool skipped;
    int64_t skipped_steps;
    int64_t schema, ranks, step, tokens, step_ns;
    int64_t h2d_bytes, d2h_bytes, exposed_move_ns;
    double loss, grad_norm, lr;
} shl_step_record;

/* One evaluation. */
typedef struct shl_eval_record {
    const char *kind, *strategy;
    int64_t schema, ranks, step, tokens, ns;
    double loss, perplexity;
} shl_eval_record;

/* The memory of a tier behind one event. The first record of a tier has `at` 0 and no event: it says what
 * was held when the step began. */
typedef struct shl_event_record {
    const char *kind, *model, *strategy, *phase, *tier, *tag, *owner;
    int64_t schema, ranks, batch, seq, step, at, delta_bytes, total_bytes;
    int64_t tag_bytes[SHL_TAG_COUNT];
} shl_event_record;

typedef struct shl_record_tier {
    int64_t total, tags[SHL_TAG_COUNT];
} shl_record_tier;

typedef struct shl_run_record {
    const char *kind, *model, *strategy, *layout, *device, *peak_phase, *peak_owner, *time;
    const char *dtype; /* of computing */
    int64_t schema, ranks, threads, batch, seq, accum, steps, seed, data_seed, params;
    int64_t trainable_params, frozen_params;
    const char *recompute, *offload;
    struct json_t *dtypes, *config, *fingerprint, *argv;
    shl_record_tier peak[SHL_TIER_COUNT], at_peak[SHL_TIER_COUNT];
    shl_record_tier eval_peak; /* device tier, while evaluating */
    int64_t padding_bytes, limit_bytes, margin_bytes;
    const char *fits; /* "yes", "no"; NULL without a limit */
    shl_comm_stats comm;
    bool comm_uniform;
    double loss, grad_norm; /* of the last step */
    double val_loss, val_perplexity;
    double loss_scale;
    int64_t skipped_steps;
    double tokens_per_s;
    int64_t steps_done, cpu_ns_per_step, reserved_bytes, rss_bytes, residual_bytes;
    const char *card, *product, *attention_forward, *attention_backward; /* NULL: no card */
    const char *comm_memory; /* NULL where the communicator has nothing to tell */
    double useful_flops_per_s;
    int64_t driver_used_bytes, driver_base_bytes, driver_pool_bytes, driver_rest_bytes;
    int64_t save_ns, save_bytes;
    int64_t h2d_bytes, d2h_bytes, pinned_bytes; /* of the last step; per rank */
    double formula_host_bytes, formula_h2d_bytes, formula_d2h_bytes;
    double formula_state_bytes, formula_held_bytes, formula_paper_bytes;
    double formula_gather_bytes, formula_scatter_bytes, formula_reduce_bytes;
    uint64_t param_hash;
} shl_run_record;

const shl_field *shl_step_fields(size_t *n);
const shl_field *shl_eval_fields(size_t *n);
const shl_field *shl_event_fields(size_t *n);
const shl_field *shl_run_fields(size_t *n);

/* Fills *out; strings and JSON are borrowed from cfg, result and the arguments. fits and margin
 * compare the peak with limit_bytes (0: none). On a device without data loss and norm are NaN. */
void shl_step_record_fill(shl_step_record *out, const shl_session_config *cfg,
                          const shl_step_report *report, bool predicted);
void shl_eval_record_fill(shl_eval_record *out, const shl_session_config *cfg,
                          const shl_eval_report *report, bool predicted);
/* The first record of a tier; the record behind the one that *out holds. */
void shl_event_record_begin(shl_event_record *out, const shl_session_config *cfg,
                            const shl_session_timeline *timeline, shl_tier tier);
void shl_event_record_next(shl_event_record *out, const shl_ledger_event *event);
void shl_run_record_fill(shl_run_record *out, const shl_session_config *cfg,
                         const shl_session_result *result, size_t limit_bytes);

/* The record as nested JSON, keys in table order. Owner: caller. Errors: SHL_E_HEAP. */
shl_code shl_record_json(const shl_field *fields, size_t n, const void *record,
                         struct json_t **out) SHL_MUST_USE;

/* The dtypes of the policy; the words of the command line. Owner: caller. NULL: out of memory. */
struct json_t *shl_record_dtypes(const shl_engine_config *e);
struct json_t *shl_record_argv(int argc, const char *const *argv);

/* One line each: header of the paths, and the values (texts quoted where they must be). */
void shl_record_csv_header(const shl_field *fields, size_t n, shl_str *out);
void shl_record_csv_row(const shl_field *fields, size_t n, const void *record, shl_str *out);

/* A table of records (pointers) with the columns that have a heading; a column whose cells are all
 * empty is left out. markdown: with bars and a rule. */
shl_code shl_record_table(const shl_field *fields, size_t n, const void *const *records,
                          size_t n_records, bool markdown, shl_str *out) SHL_MUST_USE;

/* The text of bench/RECORDS.md. */
void shl_record_document(shl_str *out);

#endif
