/* tests/engines/api: every optimizer through the public header: a run that goes on from a checkpoint under
 * another strategy is the uninterrupted one, and a checkpoint of another optimizer is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "tests/engines/api/api_runs.h"
#include "tests/support/temp_folder.h"

static const char *const optimizers[] = {"adam", "lion", "adagrad", "sgd", "lamb"};

static void
set_up(api_run *r, const char *strategy, const char *optimizer)
{
    api_run_init(r, strategy, 2);
    r->o.optimizer = optimizer;
    r->o.momentum = strcmp(optimizer, "sgd") == 0 ? 0.9 : SHL_LAB_OWN;
    r->o.weight_decay = 0.02;
}

static void
test_api_optim_goes_on_as_uninterrupted(void **state)
{
    SHL_UNUSED(state);
    for (size_t i = 0; i < SHL_ARRAY_LEN(optimizers); i++) {
        char dir[64];
        api_run whole, first, next;
        (void)snprintf(dir, sizeof(dir), "%s/%s", folder, optimizers[i]);
        set_up(&whole, "ddp", optimizers[i]);
        whole.steps = 5;
        assert_int_equal(api_run_told(&whole), SHL_LAB_OK);
        set_up(&first, "zero3", optimizers[i]);
        first.save_dir = dir;
        assert_int_equal(api_run_told(&first), SHL_LAB_OK);
        set_up(&next, "zero1", optimizers[i]);
        next.load_dir = dir;
        next.first_step = 3;
        next.steps = 2;
        assert_int_equal(api_run_told(&next), SHL_LAB_OK);
        assert_true(first.losses[2] == whole.losses[2] && next.losses[1] == whole.losses[4]);
        assert_true(next.hash == whole.hash && whole.hash != first.hash);
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

static void
test_api_optim_refuses_another(void **state)
{
    SHL_UNUSED(state);
    char dir[64];
    api_run saved, r;
    (void)snprintf(dir, sizeof(dir), "%s/lion-only", folder);
    set_up(&saved, "zero2", "lion");
    saved.save_dir = dir;
    assert_int_equal(api_run_told(&saved), SHL_LAB_OK);
    for (int what = 0; what < 3; what++) {
        static const char *const words[] = {"optimizer is lion in the checkpoint and adamw here",
                                            "optimizer is lion in the checkpoint and sgd here",
                                            "betas"};
        shl_lab_error e = {.struct_bytes = sizeof(e)};
        set_up(&r, "fsdp", what == 0 ? "adamw" : what == 1 ? "sgd" : "lion");
        r.o.beta2 = what == 2 ? 0.5 : r.o.beta2;
        r.load_dir = dir;
        assert_int_equal(api_run_do(&r), SHL_LAB_E_CONFIG);
        shl_lab_error_get(NULL, &e);
        if (!strstr(e.what, words[what]) && !strstr(e.because, words[what])) {
            fail_msg("%s: %s", e.what, e.because);
        }
    }
    assert_int_equal(shl_heap_live_blocks(), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_optim_goes_on_as_uninterrupted),
        cmocka_unit_test(test_api_optim_refuses_another),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
