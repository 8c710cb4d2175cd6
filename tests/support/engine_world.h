/* tests/support: runs one engine configuration over a world of rank threads, or on the virtual device,
 * with inputs and initial values of the test's choice, and keeps everything that properties are
 * stated about: every loss and norm, final state by name, ledgers, counters. */
#ifndef SHL_TESTS_ENGINE_WORLD_H
#define SHL_TESTS_ENGINE_WORLD_H

#include "engines/engine.h"
#include "models/family.h"

#define EW_MAX_RANKS 8
#define EW_MAX_STEPS 32

typedef struct ew_config {
    shl_model_config model;
    shl_tune_config tune;
    shl_engine_config engine;
    int ranks, threads, steps;
    const char
        *device;    /* "cpu", "cuda" (ranks share a card), "virtual" (one rank of `ranks` is run) */
    const char *as; /* what virtual stands for; NULL: cpu */
    int virtual_rank;
    size_t device_memory, host_memory; /* limits per rank; 0 none */
    size_t pin_limit;
    double link_bytes_per_s;
    /* One global batch per step: [steps][ranks * accum * batch][seq]; NULL: seeded synthetic. */
    const int32_t *tokens, *targets;
    const int64_t *valid; /* [steps] non-ignored targets; NULL: all */
    /* Initial values by name, whole tensor; NULL: the engine's own. */
    const float *(*initial)(void *ctx, const char *name);
    void *initial_ctx;
    int64_t alpha_ns; /* communicator cost */
    double wire_bytes_per_s, flops_per_s, bytes_per_s;
    bool sim_sleep;
    int fail_rank; /* this rank's device allocation number fail_alloc fails; -1 none */
    int64_t fail_alloc;
    int64_t timeout_ms;
    bool keep_state; /* copy final parameters and moments out */
} ew_config;

/* Whole tensors after the last step, gathered from all ranks' shards. */
typedef struct ew_tensor {
    char name[64];
    char kind[8];
    int64_t elems;
    float *values;
} ew_tensor;

typedef struct ew_result {
    shl_code code; /* of the world */
    char what[512];
    shl_code rank_code[EW_MAX_RANKS];
    char rank_what[EW_MAX_RANKS][512];
    shl_step_report reports[EW_MAX_STEPS]; /* rank 0 */
    uint64_t param_hash;
    shl_ledger_tier device[EW_MAX_RANKS]; /* per rank; [0] on virtual */
    shl_ledger_tier host[EW_MAX_RANKS];
    size_t pinned_peak[EW_MAX_RANKS];
    int64_t moved[EW_MAX_RANKS][SHL_MOVE_COUNT];   /* by the steps */
    size_t reserved[EW_MAX_RANKS][SHL_TIER_COUNT]; /* by the arenas, after the last step */
    uint64_t trace_hash[EW_MAX_RANKS];
    shl_comm_stats comm[EW_MAX_RANKS]; /* of all steps, engine open not included */
    shl_engine_info info;
    ew_tensor *tensors;
    int n_tensors;
} ew_result;

/* A small model and engine configuration that every property test starts from: gpt 67 x 16 x 20
 * (uneven sizes), 3 layers, AdamW, seed printed by the caller. */
void ew_config_init(ew_config *c, shl_strategy s, int ranks);

/* The same with a LLaMA in the place of the gpt: grouped heads, biases, untied. */
void ew_config_llama(ew_config *c);

/* Resolves reduce_every AUTO, runs, fills *r. Never asserts: r->code tells. */
void ew_run(const ew_config *c, ew_result *r);
void ew_result_fini(ew_result *r);

/* Rank threads of a test may not assert: a message for the main thread when two runs differ in
 * losses, norms or final parameters, "" when all bits agree. steps from a. */
const char *ew_bits_differ(const ew_result *a, const ew_result *b, int steps);

#endif
