/* tests/engines/api: state through shardlab.h: checkpoints between strategies and worlds, pieces of state
 * where they lie, reports that add up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoints/ckpt.h"
#include "checkpoints/safetensors.h"
#include "kernels/base/half.h"
#include "kernels/base/heap.h"
#include "kernels/base/str.h"
#include "tests/engines/api/api_runs.h"
#include "tests/support/temp_folder.h"

static const char *const strategies[] = {"ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp-grad-op"};

static const char *
sub_folder(const char *name)
{
    static char path[256];
    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void
test_api_state_resumes_under_any_strategy_and_world(void **state)
{
    SHL_UNUSED(state);
    /* The uninterrupted run: five steps on two ranks. */
    api_run whole;
    api_run_init(&whole, "ddp", 2);
    whole.steps = 5;
    assert_int_equal(api_run_told(&whole), SHL_LAB_OK);
    for (size_t s = 0; s < SHL_ARRAY_LEN(strategies); s++) {
        api_run first;
        api_run_init(&first, strategies[s], 2);
        first.save_dir = sub_folder(strategies[s]);
        assert_int_equal(api_run_told(&first), SHL_LAB_OK);
        assert_true(first.losses[2] == whole.losses[2]);
        for (int ranks = 1; ranks <= 3; ranks++) {
            const char *other = strategies[(s + (size_t)ranks) % SHL_ARRAY_LEN(strategies)];
            api_run next;
            api_run_init(&next, other, ranks);
            next.load_dir = first.save_dir;
            next.first_step = 3;
            next.steps = 2;
            assert_int_equal(api_run_told(&next), SHL_LAB_OK);
            assert_true(next.hash_at_start == first.hash && first.hash != 0);
            assert_int_equal(next.cursor, 1003);
            assert_int_equal(next.report.step, 5);
            if (ranks == 2) {
                assert_true(next.losses[0] == whole.losses[3]);
                assert_true(next.losses[1] == whole.losses[4]);
                assert_true(next.norms[1] == whole.norms[4] && next.hash == whole.hash);
            }
        }
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

/* Every parameter of the checkpoint in `path`, rounded, is the file's, and the file has nothing else. */
static void
expect_weights(const char *path, shl_dtype dtype)
{
    char file[512];
    shl_ckpt_reader *saved = NULL;
    shl_safetensors *weights = NULL;
    int n = 0;
    assert_int_equal(shl_ckpt_open(path, true, &saved), SHL_OK);
    shl_strf(file, sizeof(file), "%s/model.safetensors", shl_ckpt_path(saved));
    assert_int_equal(shl_safetensors_open(file, &weights), SHL_OK);
    for (int i = 0; i < shl_ckpt_n_tensors(saved); i++) {
        static float want[8192], have[8192];
        shl_ckpt_tensor t = shl_ckpt_tensor_at(saved, i);
        if (strcmp(t.kind, "param") != 0) {
            continue;
        }
        int at = shl_safetensors_find(weights, t.name);
        assert_true(at >= 0);
        shl_safetensor s = shl_safetensors_at(weights, at);
        assert_string_equal(s.name, t.name);
        assert_string_equal(s.dtype, dtype == SHL_BF16 ? "BF16" : "F32");
        assert_int_equal(s.n_dims, t.n_dims);
        assert_memory_equal(s.dims, t.dims, (size_t)t.n_dims * sizeof(*t.dims));
        assert_true(s.elems <= 8192);
        assert_int_equal(shl_ckpt_read(saved, i, 0, s.elems, want), SHL_OK);
        assert_int_equal(shl_safetensors_read(weights, at, 0, s.elems, SHL_F32, have), SHL_OK);
        for (int64_t k = 0; k < s.elems; k++) {
            want[k] = shl_float_round(dtype, want[k]);
        }
        assert_memory_equal(want, have, (size_t)s.elems * sizeof(float));
        n++;
    }
    assert_int_equal(shl_safetensors_count(weights), n);
    shl_safetensors_close(&weights);
    shl_ckpt_close(&saved);
}

/* Whole weights beside the shards: those of the checkpoint, in the type that they are used in, and initial
 * ones of another run. */
static void
test_api_state_saves_whole_weights(void **state)
{
    static const char *const dtypes[] = {"bf16", "fp32"};
    SHL_UNUSED(state);
    for (int i = 0; i < 2; i++) {
        api_run r, next;
        char file[512];
        api_run_init(&r, "zero3", 3);
        r.o.dtype = dtypes[i];
        r.o.zero = "gather_16bit_weights_on_model_save=true";
        r.save_dir = sub_folder(i == 0 ? "whole-bf16" : "whole-fp32");
        assert_int_equal(api_run_told(&r), SHL_LAB_OK);
        expect_weights(r.save_dir, i == 0 ? SHL_BF16 : SHL_F32);
        shl_strf(file, sizeof(file), "%s/step-00000003/model.safetensors", r.save_dir);
        api_run_init(&next, "zero1", 2);
        next.o.init_from = file;
        next.steps = 0;
        assert_int_equal(api_run_told(&next), SHL_LAB_OK);
        assert_true(i == 0 || next.hash_at_start == r.hash);
        /* Without the key there is no such file, and a later save of the step takes it away. */
        r.o.zero = NULL;
        assert_int_equal(api_run_told(&r), SHL_LAB_OK);
        assert_int_not_equal(access(file, F_OK), 0);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_state_refuses_another_run(void **state)
{
    SHL_UNUSED(state);
    api_run saved;
    api_run_init(&saved, "zero2", 2);
    saved.save_dir = sub_folder("own");
    assert_int_equal(api_run_told(&saved), SHL_LAB_OK);
    for (int what = 0; what < 5; what++) {
        shl_lab_error e = {.struct_bytes = sizeof(e)};
        static const char *const words[] = {"model", "seed", "lr", "h.2", "betas"};
        api_run r;
        api_run_init(&r, "fsdp", what == 2 ? 1 : 2);
        r.load_dir = saved.save_dir;
        r.o.model = what == 0 ? "another" : r.o.model;
        r.o.seed = what == 1 ? 7 : r.o.seed;
        r.o.lr = what == 2 ? 0.5 : r.o.lr;
        r.o.layers = what == 3 ? 4 : r.o.layers;
        r.o.beta1 = what == 4 ? 0.8 : r.o.beta1;
        assert_int_equal(api_run_do(&r), SHL_LAB_E_CONFIG);
        shl_lab_error_get(NULL, &e);
        if (what != 3) {
            assert_non_null(strstr(e.what, words[what]));
        }
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_state_failed_save_leaves_the_handle_usable(void **state)
{
    SHL_UNUSED(state);
    api_run r;
    shl_lab *lab = NULL;
    uint64_t before = 0, after = 0;
    api_run_init(&r, "zero1", 1);
    assert_int_equal(shl_lab_initialize(&r.o, NULL, &lab), SHL_LAB_OK);
    assert_int_equal(api_run_step(&r, lab, 0, 0, true), SHL_LAB_OK);
    assert_int_equal(shl_lab_param_hash(lab, &before), SHL_LAB_OK);
    assert_int_equal(shl_lab_save(lab, "/proc/no/such/place", 0, NULL), SHL_LAB_E_IO);
    assert_int_equal(shl_lab_save(lab, sub_folder("x"), 0, "[1]"), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_save(lab, sub_folder("x"), 0, "{"), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_load(lab, sub_folder("nothing"), NULL), SHL_LAB_E_IO);
    assert_int_equal(shl_lab_param_hash(lab, &after), SHL_LAB_OK);
    assert_true(before == after);
    assert_int_equal(api_run_step(&r, lab, 0, 1, true), SHL_LAB_OK);
    assert_true(r.losses[1] != r.losses[0]);
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
}

/* --- pieces ------------------------------------------------------------------------------ */

typedef struct cover {
    api_run r;
    _Atomic int64_t elems[3]; /* per kind, each replica counted as its share */
    _Atomic int faults, pieces;
    uint64_t zero_hash;
} cover;

static int
kind_index(const char *kind)
{
    return strcmp(kind, "param") == 0   ? 0
           : strcmp(kind, "opt/m") == 0 ? 1
           : strcmp(kind, "opt/v") == 0 ? 2
                                        : -1;
}

static int
look(void *ctx, const shl_lab_tensor *t)
{
    cover *c = (cover *)ctx;
    int kind = kind_index(t->kind);
    int64_t full = 1, elems = 1, stride = 1;
    bool whole = true;
    for (int i = 0; i < t->full_n_dims; i++) {
        full *= t->full_shape[i];
    }
    for (int i = t->n_dims - 1; i >= 0; i--) {
        whole = whole && t->strides[i] == stride;
        stride *= t->shape[i];
        elems *= t->shape[i];
    }
    bool good = kind >= 0 && whole && elems == t->end - t->begin && t->begin >= 0 &&
                t->end <= full && t->replica < t->n_replicas && t->dtype_code == 2 &&
                t->dtype_bits == 32 && t->dtype_lanes == 1 && t->device_type == 1 &&
                t->byte_offset == 0 && t->struct_bytes == sizeof(*t) &&
                (t->n_dims == t->full_n_dims || elems < full) &&
                ((uintptr_t)t->data % sizeof(float) == 0) && (elems == 0 || t->data != NULL);
    c->faults += !good;
    c->pieces++;
    if (kind >= 0 && t->replica == 0) {
        c->elems[kind] += elems;
    }
    return SHL_LAB_OK;
}

static int
zero(void *ctx, const shl_lab_tensor *t)
{
    SHL_UNUSED(ctx);
    if (strcmp(t->kind, "param") == 0) {
        memset(t->data, 0, (size_t)(t->end - t->begin) * sizeof(float));
    }
    return SHL_LAB_OK;
}

static int
look_and_zero(shl_lab_world *world, void *ctx)
{
    cover *c = (cover *)ctx;
    shl_lab *lab = NULL;
    int rank = shl_lab_world_rank(world);
    uint64_t hash = 0;
    int code = shl_lab_initialize(&c->r.o, world, &lab);
    if (code == SHL_LAB_OK) {
        code = shl_lab_tensors(lab, SHL_LAB_READ, look, c);
    }
    if (code == SHL_LAB_OK) {
        code = shl_lab_tensors(lab, SHL_LAB_WRITE, zero, c);
    }
    if (code == SHL_LAB_OK) {
        code = shl_lab_param_hash(lab, &hash);
    }
    if (code == SHL_LAB_OK) {
        /* All logits are equal now, so the loss is that of guessing. */
        code = api_run_step(&c->r, lab, rank, 0, rank == 0);
    }
    if (rank == 0) {
        c->zero_hash = hash;
    }
    int closed = shl_lab_close(&lab);
    return code != SHL_LAB_OK ? code : closed;
}

static void
test_api_state_pieces_cover_every_element_once(void **state)
{
    SHL_UNUSED(state);
    uint64_t zero_hash = 0;
    for (size_t s = 0; s < SHL_ARRAY_LEN(strategies); s++) {
        for (int ranks = 1; ranks <= 3; ranks++) {
            cover c = {.faults = 0};
            shl_lab_world_options w = {
                .struct_bytes = sizeof(w), .ranks = ranks, .timeout_ms = 20000};
            api_run_init(&c.r, strategies[s], ranks);
            assert_int_equal(shl_lab_run_threads(&w, look_and_zero, &c), SHL_LAB_OK);
            assert_int_equal(c.faults, 0);
            assert_true(c.pieces > 0);
            /* 67*20 + 16*20 + 3 * (12*20*20 + 13*20) + 2*20, counted by hand */
            for (int k = 0; k < 3; k++) {
                assert_int_equal(c.elems[k], 1340 + 320 + 3 * (4800 + 260) + 40);
            }
            zero_hash = zero_hash ? zero_hash : c.zero_hash;
            assert_true(c.zero_hash == zero_hash && zero_hash != 0);
            double guess = 4.204692619390966; /* log 67 */
            assert_true(c.r.losses[0] - guess < 1e-6 && guess - c.r.losses[0] < 1e-6);
        }
    }
}

static int
stop_at_second(void *ctx, const shl_lab_tensor *t)
{
    SHL_UNUSED(t);
    return ++*(int *)ctx == 2 ? SHL_LAB_E_INTERRUPTED : SHL_LAB_OK;
}

static void
test_api_state_visitor_can_stop(void **state)
{
    SHL_UNUSED(state);
    api_run r;
    shl_lab *lab = NULL;
    int calls = 0;
    api_run_init(&r, "fsdp", 1);
    assert_int_equal(shl_lab_initialize(&r.o, NULL, &lab), SHL_LAB_OK);
    assert_int_equal(shl_lab_tensors(lab, SHL_LAB_READ, stop_at_second, &calls),
                     SHL_LAB_E_INTERRUPTED);
    assert_int_equal(calls, 2);
    assert_int_equal(api_run_step(&r, lab, 0, 0, true), SHL_LAB_OK);
    calls = 0;
    assert_int_equal(shl_lab_tensors(lab, SHL_LAB_WRITE, stop_at_second, &calls),
                     SHL_LAB_E_INTERRUPTED);
    /* Half written: only close is left. */
    assert_int_equal(api_run_step(&r, lab, 0, 0, true), SHL_LAB_E_USAGE);
    assert_int_equal(shl_lab_close(&lab), SHL_LAB_OK);
}

static void
test_api_state_report_adds_up(void **state)
{
    SHL_UNUSED(state);
    for (size_t s = 0; s < SHL_ARRAY_LEN(strategies); s++) {
        api_run r;
        api_run_init(&r, strategies[s], 2);
        assert_int_equal(api_run_told(&r), SHL_LAB_OK);
        const shl_lab_report *got = &r.report;
        assert_string_equal(got->strategy, strategies[s]);
        assert_string_equal(got->model, "small");
        assert_int_equal(got->rank, 0);
        assert_int_equal(got->ranks, 2);
        assert_int_equal(got->step, 3);
        assert_int_equal(got->params, 1340 + 320 + 3 * (4800 + 260) + 40);
        assert_int_equal(got->n_tiers, 3);
        for (int t = 0; t < got->n_tiers; t++) {
            const shl_lab_memory *m = &got->memory[t];
            uint64_t now = 0, at_peak = 0, largest = 0;
            for (int i = 0; i < got->n_tags; i++) {
                now += m->now_tag_bytes[i];
                at_peak += m->at_peak_tag_bytes[i];
                assert_true(m->peak_tag_bytes[i] >= m->at_peak_tag_bytes[i]);
            }
            for (int i = 0; i < got->n_phases; i++) {
                largest = m->phase_peak_bytes[i] > largest ? m->phase_peak_bytes[i] : largest;
            }
            assert_true(now == m->now_bytes && at_peak == m->peak_bytes);
            assert_true(largest == m->peak_bytes);
        }
        assert_true(got->memory[0].peak_bytes > 0 && got->memory[0].peak_owner[0] != '\0');
        int64_t bytes = 0;
        for (int i = 0; i < got->n_collectives; i++) {
            bytes += got->traffic[i].wire_bytes;
        }
        assert_true(bytes > 3 * 4 * got->params);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_state_resumes_under_any_strategy_and_world),
        cmocka_unit_test(test_api_state_saves_whole_weights),
        cmocka_unit_test(test_api_state_refuses_another_run),
        cmocka_unit_test(test_api_state_failed_save_leaves_the_handle_usable),
        cmocka_unit_test(test_api_state_pieces_cover_every_element_once),
        cmocka_unit_test(test_api_state_visitor_can_stop),
        cmocka_unit_test(test_api_state_report_adds_up),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
