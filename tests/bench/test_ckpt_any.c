/* tests/bench: a checkpoint of any strategy and world is loaded by any other: every tensor with its bits,
 * and the losses behind it bit for bit where the order of reduction is the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/session.h"
#include "checkpoints/ckpt.h"
#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/base/str.h"
#include "kernels/device/sanitize.h"
#include "tests/engines/api/api_runs.h"

#define WORLDS 4
#define PLACES (SHL_STRATEGY_COUNT * WORLDS)
#define SAVED_STEP 2
#define LAST_STEP 4
#define GLOBAL_ROWS 12 /* shared by 1, 2, 3 and 4 ranks */

static char folder[64];
static uint64_t seed;

/* A strategy and a world. */
typedef struct place {
    shl_strategy strategy;
    int ranks;
} place;

static place
place_at(int i)
{
    return (place){(shl_strategy)(i / WORLDS), 1 + i % WORLDS};
}

static void
configure(shl_session_config *c, place p, int64_t steps)
{
    shl_session_config_init(c);
    c->shape.layers = 1;
    c->shape.width = 32;
    c->shape.heads = 2;
    c->shape.context = 16;
    c->engine.seq = 16;
    c->engine.batch = GLOBAL_ROWS / p.ranks;
    c->engine.strategy = p.strategy;
    assert_int_equal(shl_reduce_every_resolve(p.strategy, SHL_REDUCE_AUTO, &c->engine.reduce_every),
                     SHL_OK);
    c->engine.bucket_elems = 5000; /* several buckets, cut inside rows */
    c->engine.optim.clip = 1.0;
    c->ranks = p.ranks;
    c->steps = steps;
    c->timeout_ms = 60000;
}

static void
run(const shl_session_config *c, const shl_session_sink *sink, shl_session_result *r)
{
    shl_code code = shl_session_run(c, sink, r);
    if (code != SHL_OK) {
        const shl_err *e = shl_err_get();
        fail_msg("%s on %d ranks: %s (%s)", shl_strategy_name(c->engine.strategy), c->ranks,
                 e->what, e->because);
    }
}

/* --- saving again what was loaded --------------------------------------------------------- */

typedef struct again {
    const char *dir;
    shl_ckpt_meta meta;
    shl_ckpt_file files[WORLDS];
    uint64_t param_hash; /* of the loaded parameters */
} again;

typedef struct put_context {
    shl_ckpt_writer *writer;
    shl_device *device;
} put_context;

static shl_code
put_shard(void *ctx, const shl_shard *shard)
{
    put_context *put = ctx;
    return shl_ckpt_put(put->writer, put->device, shard);
}

/* On every rank's thread, before the first step after a resume. */
static shl_code
save_loaded(void *ctx, int rank, shl_engine *e)
{
    again *a = ctx;
    put_context put = {NULL, e->device};
    uint64_t hash = 0;
    SHL_TRY(shl_engine_param_hash(e, &hash));
    if (rank == 0) {
        a->param_hash = hash;
    }
    SHL_TRY(shl_ckpt_save_begin(a->dir, &a->meta, rank, a->meta.world, &put.writer));
    shl_code code = shl_engine_visit_state(e, SHL_VISIT_READ, put_shard, &put);
    if (code != SHL_OK) {
        shl_ckpt_save_abort(&put.writer);
        return code;
    }
    return shl_ckpt_save_finish(&put.writer, &a->files[rank]);
}

static void
commit_again(const again *a, const shl_ckpt_reader *from)
{
    int n = shl_ckpt_n_tensors(from);
    shl_ckpt_tensor *list = calloc((size_t)n, sizeof *list);
    assert_non_null(list);
    for (int i = 0; i < n; i++) {
        list[i] = shl_ckpt_tensor_at(from, i);
    }
    shl_code code = shl_ckpt_save_commit(a->dir, &a->meta, list, n, a->files, a->meta.world);
    free(list);
    assert_int_equal(code, SHL_OK);
}

/* --- sources, and what follows them ------------------------------------------------------- */

typedef struct source {
    char dir[128];
    uint64_t param_hash;
} source;

static source sources[PLACES];

/* Losses of the steps behind the saved one, by the world that saved and the world that goes on. */
static struct {
    bool known;
    double loss[LAST_STEP - SAVED_STEP];
} follows[WORLDS + 1][WORLDS + 1];

static const source *
get_source(int i)
{
    shl_session_config c;
    shl_session_result r;
    source *s = &sources[i];
    if (s->dir[0] != '\0') {
        return s;
    }
    place p = place_at(i);
    (void)snprintf(s->dir, sizeof s->dir, "%s/from-%d", folder, i);
    configure(&c, p, SAVED_STEP);
    c.ckpt_dir = s->dir;
    run(&c, NULL, &r);
    s->param_hash = r.param_hash;
    shl_session_result_fini(&r);
    return s;
}

static void
copy_tree(const char *from, const char *to)
{
    char command[512];
    (void)snprintf(command, sizeof command, "rm -rf '%s' && cp -r '%s' '%s'", to, from, to);
    assert_int_equal(system(command), 0);
}

static void
check_follow(const shl_session_result *r, int saved_by, int goes_on)
{
    assert_int_equal(r->first_step, SAVED_STEP);
    assert_int_equal(r->n_steps, LAST_STEP - SAVED_STEP);
    for (int k = 0; k < LAST_STEP - SAVED_STEP; k++) {
        double loss = r->steps[k].loss;
        if (!follows[saved_by][goes_on].known) {
            follows[saved_by][goes_on].loss[k] = loss;
        }
        assert_memory_equal(&follows[saved_by][goes_on].loss[k], &loss, sizeof loss);
        /* Another world sums in another order: the same batch to rounding. */
        double off = loss - follows[1][1].loss[k];
        assert_true(off < 1e-4 && off > -1e-4);
    }
    follows[saved_by][goes_on].known = true;
}

/* The run that was never interrupted fixes what an equal world must repeat. */
static void
run_straight(int ranks)
{
    shl_session_config c;
    shl_session_result r;
    configure(&c, (place){SHL_DDP, ranks}, LAST_STEP);
    run(&c, NULL, &r);
    for (int k = 0; k < LAST_STEP - SAVED_STEP; k++) {
        follows[ranks][ranks].loss[k] = r.steps[SAVED_STEP + k].loss;
    }
    follows[ranks][ranks].known = true;
    shl_session_result_fini(&r);
}

static void
check_pair(int from, int to)
{
    char dir[128];
    char back[128];
    shl_session_config c;
    shl_session_result r;
    shl_ckpt_reader *a = NULL;
    shl_ckpt_reader *b = NULL;
    again loaded;
    int n_differ = -1;
    const source *s = get_source(from);
    place p = place_at(to);
    (void)snprintf(dir, sizeof dir, "%s/to", folder);
    (void)snprintf(back, sizeof back, "%s/again", folder);
    copy_tree(s->dir, dir);
    memset(&loaded, 0, sizeof loaded);
    loaded.dir = back;
    assert_int_equal(shl_ckpt_open(s->dir, true, &a), SHL_OK);
    loaded.meta = *shl_ckpt_reader_meta(a);
    assert_int_equal(loaded.meta.step, SAVED_STEP);
    loaded.meta.world = p.ranks;
    assert_int_equal(shl_ckpt_save_prepare(back, &loaded.meta), SHL_OK);
    configure(&c, p, LAST_STEP);
    c.ckpt_dir = dir;
    c.resume = true;
    shl_session_sink sink = {.on_open = save_loaded, .ctx = &loaded};
    run(&c, &sink, &r);
    commit_again(&loaded, a);
    assert_int_equal(shl_ckpt_open(back, true, &b), SHL_OK);
    assert_int_equal(shl_ckpt_diff(a, b, NULL, NULL, &n_differ), SHL_OK);
    if (n_differ != 0 || loaded.param_hash != s->param_hash) {
        place q = place_at(from);
        print_error("%s x %d -> %s x %d\n", shl_strategy_name(q.strategy), q.ranks,
                    shl_strategy_name(p.strategy), p.ranks);
    }
    assert_int_equal(n_differ, 0);
    assert_true(loaded.param_hash == s->param_hash);
    check_follow(&r, place_at(from).ranks, p.ranks);
    shl_ckpt_close(&a);
    shl_ckpt_close(&b);
    shl_session_result_fini(&r);
}

/* A random permutation: each place saves once and loads once. */
static void
shuffle(int *list, int n, uint64_t stream)
{
    for (int i = 0; i < n; i++) {
        list[i] = i;
    }
    for (int i = n - 1; i > 0; i--) {
        int k = (int)(shl_rng_u64(seed, stream, (uint64_t)i) % (uint64_t)(i + 1));
        int keep = list[i];
        list[i] = list[k];
        list[k] = keep;
    }
}

static void
test_ckpt_any_strategy_and_world_to_any(void **state)
{
    int to[PLACES];
    int pairs = 0;
    SHL_UNUSED(state);
    bool all = getenv("SHL_TEST_ALL") != NULL;
    bool slow = SHL_ASAN || SHL_TSAN;
    for (int ranks = 1; ranks <= WORLDS; ranks++) {
        run_straight(ranks);
    }
    shuffle(to, PLACES, 1);
    for (int i = 0; i < PLACES; i += slow ? 4 : 1) {
        for (int k = 0; k < (all ? PLACES : 1); k++, pairs++) {
            check_pair(i, all ? k : to[i]);
        }
    }
    /* Equal worlds: the losses must be those of the run that was never interrupted. */
    for (uint64_t i = 0; i < 6 && !all && !slow; i++, pairs++) {
        int ranks = (int)(shl_rng_u64(seed, 2, i) % WORLDS);
        int other = (int)(shl_rng_u64(seed, 3, i) % SHL_STRATEGY_COUNT);
        check_pair((int)i * WORLDS + ranks, other * WORLDS + ranks);
    }
    print_message("%d pairs of %d\n", pairs, PLACES * PLACES);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* A save is a phase of the ledger, with all that is held meanwhile; without one the phase is empty. */
static void
test_ckpt_any_save_is_a_phase_of_the_ledger(void **state)
{
    SHL_UNUSED(state);
    for (int s = 0; s < SHL_STRATEGY_COUNT; s++) {
        char dir[128];
        shl_session_config c;
        shl_session_result r;
        configure(&c, (place){(shl_strategy)s, 2}, 2);
        run(&c, NULL, &r);
        size_t peak = r.tiers[SHL_TIER_DEVICE].peak_bytes;
        assert_int_equal(r.tiers[SHL_TIER_DEVICE].phase_peak_bytes[SHL_MARK_SAVE], 0);
        shl_session_result_fini(&r);
        (void)snprintf(dir, sizeof dir, "%s/phase-%d", folder, s);
        c.ckpt_dir = dir;
        run(&c, NULL, &r);
        const shl_ledger_tier *t = &r.tiers[SHL_TIER_DEVICE];
        /* Held: at least this rank's part of parameters and moments; and a save adds nothing. */
        assert_true(t->phase_peak_bytes[SHL_MARK_SAVE] >= (size_t)r.params * 12 / 2);
        assert_true(t->phase_peak_bytes[SHL_MARK_SAVE] <= peak);
        assert_int_equal(t->peak_bytes, peak);
        shl_session_result_fini(&r);
    }
}

/* The program's session with the model and optimizer of api_run_init. */
static void
session_of(const api_run *r, shl_session_config *c)
{
    shl_session_config_init(c);
    (void)snprintf(c->model, sizeof(c->model), "%s", r->o.model);
    c->shape = (shl_model_config){.vocab = r->o.vocab,
                                  .context = r->o.context,
                                  .layers = r->o.layers,
                                  .width = r->o.width,
                                  .heads = r->o.heads,
                                  .tied = true};
    c->engine.seq = r->o.seq;
    c->engine.batch = r->o.batch;
    c->engine.seed = r->o.seed;
    c->data = "synthetic";
}

static void
test_ckpt_any_is_shared_with_the_api(void **state)
{
    SHL_UNUSED(state);
    shl_session_config c;
    shl_session_result first, second;
    api_run r;
    char dir[300];
    (void)snprintf(dir, sizeof(dir), "%s/shared", folder);
    api_run_init(&r, "fsdp", 2);
    session_of(&r, &c);
    c.ckpt_dir = dir;
    c.steps = 4;
    assert_int_equal(shl_session_run(&c, NULL, &first), SHL_OK);
    /* The program's checkpoint, two steps here, and the program again. */
    r.load_dir = r.save_dir = dir;
    r.steps = 2;
    assert_int_equal(api_run_told(&r), SHL_LAB_OK);
    assert_true(r.hash_at_start == first.param_hash && r.hash != first.param_hash);
    assert_int_equal(r.cursor, 4);
    assert_true(r.report.step == 6 && r.report.save_ns > 0);
    assert_true(r.report.save_bytes >= 12 * r.report.params);
    c.resume = true;
    c.steps = 7;
    assert_int_equal(shl_session_run(&c, NULL, &second), SHL_OK);
    assert_int_equal(second.first_step, 6);
    assert_int_equal(second.n_steps, 1);
    shl_session_result_fini(&first);
    shl_session_result_fini(&second);
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static int
make_folder(void **state)
{
    SHL_UNUSED(state);
    (void)snprintf(folder, sizeof folder, "%s/shl-any-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    return mkdtemp(folder) ? 0 : 1;
}

static int
remove_folder(void **state)
{
    SHL_UNUSED(state);
    char command[96];
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ckpt_any_strategy_and_world_to_any),
        cmocka_unit_test(test_ckpt_any_save_is_a_phase_of_the_ledger),
        cmocka_unit_test(test_ckpt_any_is_shared_with_the_api),
    };
    seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
