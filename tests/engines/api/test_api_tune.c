/* tests/engines/api: frozen parts, adapters, recomputation and dropout through shardlab.h: resumed runs are
 * the uninterrupted ones, and nothing but recomputation may change between them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "tests/engines/api/api_runs.h"
#include "tests/support/temp_folder.h"

static const char *
sub_folder(const char *name, int i)
{
    static char path[256];
    (void)snprintf(path, sizeof(path), "%s/%s%d", folder, name, i);
    return path;
}

/* Ways to train, each with another strategy before and after, and another recomputation after. */
typedef struct way {
    const char *first, *next, *recompute;
    const char *freeze;
    int64_t train_last, lora_rank;
    const char *targets;
    double dropout;
} way;

static const way ways[] = {
    {"ddp", "zero3", "full", "h.0,wpe", 0, 0, "", 0.0},
    {"zero1", "fsdp", "selective", "", 1, 0, "", 0.1},
    {"zero3", "zero2", "none", "", 0, 2, "c_attn", 0.0},
    {"fsdp", "ddp", "full", "", 2, 3, "", 0.2},
    {"fsdp-grad-op", "zero1", "full", "*.bias", 0, 0, "", 0.3},
};

static void
set_way(api_run *r, const way *w, bool next)
{
    api_run_init(r, next ? w->next : w->first, 2);
    r->o.recompute = next ? w->recompute : "none";
    r->o.freeze = w->freeze;
    r->o.train_last = w->train_last;
    r->o.lora_rank = w->lora_rank;
    r->o.lora_targets = w->targets;
    r->o.dropout = w->dropout;
}

static void
test_api_tune_resumed_is_uninterrupted(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(ways); i++) {
        api_run whole, first, next;
        set_way(&whole, &ways[i], false);
        whole.steps = 5;
        assert_int_equal(api_run_told(&whole), SHL_LAB_OK);
        set_way(&first, &ways[i], false);
        first.save_dir = sub_folder("run", (int)i);
        assert_int_equal(api_run_told(&first), SHL_LAB_OK);
        set_way(&next, &ways[i], true);
        next.load_dir = first.save_dir;
        next.first_step = 3;
        next.steps = 2;
        assert_int_equal(api_run_told(&next), SHL_LAB_OK);
        assert_true(next.hash_at_start == first.hash && first.hash != 0);
        assert_true(next.losses[0] == whole.losses[3] && next.losses[1] == whole.losses[4]);
        assert_true(next.norms[1] == whole.norms[4] && next.hash == whole.hash);
        assert_true(whole.hash != first.hash);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_tune_refuses_other_training(void **state)
{
    SHL_UNUSED(state);
    static const char *const words[] = {"freeze", "lora-alpha", "dropout", "train-last"};
    api_run saved;
    set_way(&saved, &ways[2], false);
    saved.save_dir = sub_folder("own", 0);
    assert_int_equal(api_run_told(&saved), SHL_LAB_OK);
    for (int what = 0; what < 4; what++) {
        shl_lab_error e = {.struct_bytes = sizeof(e)};
        api_run r;
        set_way(&r, &ways[2], true);
        r.load_dir = saved.save_dir;
        r.o.freeze = what == 0 ? "h.0" : "";
        r.o.lora_alpha = what == 1 ? 9.0 : 0.0;
        r.o.dropout = what == 2 ? 0.1 : 0.0;
        r.o.train_last = what == 3 ? 3 : 0;
        assert_int_equal(api_run_do(&r), SHL_LAB_E_CONFIG);
        shl_lab_error_get(NULL, &e);
        assert_non_null(strstr(e.what, words[what]));
    }
}

#define SHAPE                                                                                      \
    "\"model\": \"small\", \"shape\": {\"vocab\": 67, \"context\": 16, \"layers\": 3, \"width\": " \
    "20, \"heads\": 5}, \"batch\": 1, \"seq\": 16, \"seed\": 1234, \"bucket\": 4000"

/* The same run by options and by JSON; a key in the wrong place, and settings that say nothing. */
static void
test_api_tune_by_json(void **state)
{
    SHL_UNUSED(state);
    static const char *const bad[][2] = {{"{\"lora-rank\": 2}", "lora-rank"},
                                         {"{\"tune\": {\"loraRank\": 2}}", "loraRank"},
                                         {"{\"tune\": {\"recompute\": \"ful\"}}", "ful"},
                                         {"{\"tune\": {\"lora-alpha\": 2}}", "rank"},
                                         {"{\"tune\": {\"freeze\": \"*\"}}", "nothing"}};
    api_run a, b;
    set_way(&a, &ways[3], false);
    assert_int_equal(api_run_told(&a), SHL_LAB_OK);
    api_run_init(&b, "fsdp", 2);
    b.json = "{" SHAPE ", \"strategy\": \"fsdp\", \"tune\": {\"train-last\": 2, \"lora-rank\": 3, "
             "\"dropout\": 0.2, \"recompute\": \"full\", \"recompute-every\": 2}}";
    assert_int_equal(api_run_told(&b), SHL_LAB_OK);
    assert_true(a.hash == b.hash && a.losses[2] == b.losses[2]);
    for (size_t i = 0; i < SHL_ARRAY_LEN(bad); i++) {
        shl_lab *lab = NULL;
        shl_lab_error e = {.struct_bytes = sizeof(e)};
        assert_int_equal(shl_lab_initialize_json(bad[i][0], NULL, &lab), SHL_LAB_E_USAGE);
        assert_null(lab);
        shl_lab_error_get(NULL, &e);
        assert_non_null(strstr(e.what, bad[i][1]));
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_tune_resumed_is_uninterrupted),
        cmocka_unit_test(test_api_tune_refuses_other_training),
        cmocka_unit_test(test_api_tune_by_json),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
