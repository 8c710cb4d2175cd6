/* tests/engines/api: published weights of every family: golden logits, and the same bits under every
 * strategy, world and dtype policy, from one file and from shards. */
#include "tests/checkpoints/weight_files.h"

#include <math.h>
#include <stdatomic.h>

#include "engines/api/lab.h"
#include "engines/comm/world.h"
#include "kernels/base/types.h"
#include "tests/support/golden.h"
#include "tests/support/golden_model.h"
#include "tests/support/plain_model.h"

#define LOGITS_TOL 2e-5 /* as the golden files' notes suggest */

typedef struct job {
    const char *h5, *from;
    shl_model_config shape;
    shl_strategy strategy;
    shl_dtype compute, master;
    bool frozen; /* no optimizer, so no master weights */
    int ranks;
    double *logits; /* to compare with; or NULL */
    size_t n_logits;
    const int32_t *tokens;
    double worst; /* difference of logits */
    uint64_t hash;
    _Atomic int64_t bytes;
} job;

static shl_code
compare_logits(shl_lab *lab, job *j)
{
    int64_t rows = (int64_t)j->n_logits / j->shape.vocab, seq = j->shape.context;
    shl_plain_batch batch;
    shl_buf logits = {0};
    float *ours = NULL;
    SHL_TRY(shl_plain_batch_open(lab->device, rows / seq, seq, j->tokens, NULL, &batch));
    batch.run.want_grad = false;
    batch.run.logits_out = &logits;
    shl_code code = shl_model_forward(lab->model, &batch.run);
    if (code == SHL_OK) {
        code = shl_heap_alloc(j->n_logits, sizeof *ours, &ours);
    }
    if (code == SHL_OK) {
        code = shl_device_download(lab->device, ours, logits.data, logits.bytes);
    }
    for (size_t i = 0; code == SHL_OK && i < j->n_logits; i++) {
        j->worst = fmax(j->worst, fabs((double)ours[i] - j->logits[i]));
    }
    shl_heap_free(&ours);
    shl_device_free(lab->device, &logits);
    shl_plain_batch_close(lab->device, &batch);
    return code;
}

static shl_code
load_and_look(shl_lab *lab, job *j, int rank)
{
    shl_engine_config c;
    uint64_t hash = 0;
    shl_engine_config_init(&c);
    c.strategy = j->strategy;
    SHL_TRY(shl_reduce_every_resolve(c.strategy, SHL_REDUCE_AUTO, &c.reduce_every));
    c.prefetch = shl_prefetch_resolve(c.strategy, SHL_PREFETCH_AUTO);
    c.batch = 1;
    c.seq = j->shape.context;
    c.bucket_elems = 3000;
    c.compute_dtype = j->compute;
    c.master_dtype = j->master;
    c.no_optimizer = j->frozen;
    c.scale.kind = j->compute == SHL_F16 ? SHL_SCALE_DYNAMIC : SHL_SCALE_NONE;
    SHL_TRY(shl_model_new(&j->shape, &lab->model));
    shl_model_set_dtype(lab->model, j->compute);
    shl_mesh_of(c.strategy, lab->comm, &lab->mesh);
    SHL_TRY(shl_engine_open(&c, lab->model, lab->device, &lab->mesh, &lab->engine));
    SHL_TRY(shl_lab_load_weights(lab, j->from));
    j->bytes += lab->weight_bytes;
    SHL_TRY(shl_engine_param_hash(lab->engine, &hash));
    if (rank == 0) {
        j->hash = hash;
    }
    return j->logits ? compare_logits(lab, j) : SHL_OK;
}

/* As shl_lab_initialize, for a shape and policy of the test's choice. */
static shl_code
run_rank(shl_world *w, void *arg)
{
    job *j = arg;
    int rank = w ? shl_world_rank(w) : 0;
    shl_lab lab = {.world = w};
    shl_device_config d = {.kind = "cpu", .rank = rank, .threads = 1};
    d.comm_arena = w ? shl_world_comm_arena(w) : NULL;
    shl_comm_config c = {
        .kind = w ? "shm" : "self", .rank = rank, .world = j->ranks, .rank_world = w};
    lab.setup.rank = rank;
    lab.setup.shape = j->shape;
    shl_code code = shl_device_open(&d, &lab.device);
    if (code == SHL_OK) {
        code = shl_comm_open(&c, lab.device, &lab.comm);
    }
    if (code == SHL_OK) {
        code = load_and_look(&lab, j, rank);
    }
    shl_engine_close(&lab.engine);
    shl_comm_close(&lab.comm);
    shl_model_free(&lab.model);
    shl_code closed = shl_device_close(&lab.device);
    return code != SHL_OK ? code : closed;
}

static void
run(job *j)
{
    shl_world_config w = {.ranks = j->ranks, .threads_per_rank = 1, .timeout_ms = 20000};
    shl_code code = j->ranks == 1 ? run_rank(NULL, j) : shl_world_run_threads(&w, run_rank, j);
    if (code != SHL_OK) {
        fail_msg("%s, %s on %d: %s (%s)", j->from, shl_strategy_name(j->strategy), j->ranks,
                 shl_err_get()->what, shl_err_get()->because);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static job
job_of(const char *h5, const char *from, shl_strategy s, int ranks)
{
    hid_t f = shl_golden_open(h5);
    job j = {.h5 = h5, .from = weight_golden(from), .strategy = s, .ranks = ranks};
    j.shape = shl_golden_model_config(f);
    shl_golden_close(f);
    return j;
}

/* What a golden set may export of a model "x.h5", and the bytes of an element there. */
static const struct {
    const char *ending;
    size_t bytes;
} exports[] = {{".safetensors", 4}, {"-sharded", 4}, {"-bf16.safetensors", 2}};

/* Calls fn for every export of every model; the tests' own set has four, one from elsewhere may have none. */
static void
on_every_export(void (*fn)(const char *h5, const char *from, size_t bytes))
{
    char names[16][64], from[96];
    int n = shl_golden_models(NULL, names, 16), found = 0;
    for (int i = 0; i < n; i++) {
        for (size_t e = 0; e < SHL_ARRAY_LEN(exports); e++) {
            (void)snprintf(from, sizeof from, "%.*s%s", (int)strlen(names[i]) - 3, names[i],
                           exports[e].ending);
            if (access(weight_golden(from), R_OK) == 0) {
                fn(names[i], from, exports[e].bytes);
                found++;
            }
        }
    }
    if (shl_env("SHL_GOLDEN_DIR") == NULL) {
        assert_int_equal(found, 4);
    } else if (found == 0) {
        skip();
    }
}

static void
check_logits(const char *h5, const char *from, size_t bytes)
{
    if (bytes != sizeof(float)) {
        return; /* rounded weights have other logits */
    }
    job j = job_of(h5, from, SHL_DDP, 1);
    hid_t f = shl_golden_open(h5);
    size_t n = 0, n_logits = 0;
    double *logits = shl_golden_f64(f, "/step0/f64/logits", &n_logits);
    int32_t *tokens = shl_golden_i32(f, "/batch/tokens", &n);
    int64_t blocks = shl_heap_live_blocks();
    j.logits = logits;
    j.n_logits = n_logits;
    j.tokens = tokens;
    assert_int_equal(run_rank(NULL, &j), SHL_OK);
    assert_int_equal(shl_heap_live_blocks(), blocks);
    print_message("%s: logits differ by at most %.2e\n", from, j.worst);
    assert_true(j.worst > 0.0 && j.worst <= LOGITS_TOL);
    shl_heap_free(&logits);
    shl_heap_free(&tokens);
    shl_golden_close(f);
}

static void
test_weights_golden_logits(void **state)
{
    (void)state;
    on_every_export(check_logits);
}

static void
check_worlds(const char *h5, const char *from, size_t file_bytes)
{
    static const struct {
        shl_dtype compute, master;
        bool frozen;
    } policies[] = {{SHL_F32, SHL_F32, false},  {SHL_BF16, SHL_F32, false},
                    {SHL_F16, SHL_F32, false},  {SHL_BF16, SHL_BF16, false},
                    {SHL_BF16, SHL_BF16, true}, {SHL_F16, SHL_F16, true}};
    /* One file and shards of the same weights follow each other: the same bits. */
    static uint64_t hashes[SHL_ARRAY_LEN(policies)];
    static char of[64];
    bool again = strcmp(of, h5) == 0 && file_bytes == sizeof(float);
    (void)snprintf(of, sizeof of, "%s", h5);
    for (size_t p = 0; p < SHL_ARRAY_LEN(policies); p++) {
        uint64_t hash = again ? hashes[p] : 0;
        for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
            for (int ranks = 1; ranks <= 3; ranks++) {
                job j = job_of(h5, from, (shl_strategy)s, ranks);
                j.compute = policies[p].compute;
                j.master = policies[p].master;
                j.frozen = policies[p].frozen;
                run(&j);
                hash = hash ? hash : j.hash;
                assert_true(j.hash == hash && hash != 0);
                int64_t elems = shl_model_formula_params(&j.shape);
                assert_int_equal(j.bytes, elems * (int64_t)file_bytes * (s == SHL_DDP ? ranks : 1));
            }
        }
        hashes[p] = hash;
    }
}

static void
test_weights_golden_same_bits_under_every_policy(void **state)
{
    (void)state;
    on_every_export(check_worlds);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_golden_logits),
        cmocka_unit_test(test_weights_golden_same_bits_under_every_policy),
    };
    return cmocka_run_group_tests(tests, weight_folder_make, weight_folder_remove);
}
