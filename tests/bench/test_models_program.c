/* tests/bench: models as a user names them: presets, sizes, files, shapes; what is printed about them and
 * what is refused. Runs the program. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "kernels/base/option.h"
#include "kernels/base/types.h"
#include "tests/support/program.h"

#define LLAMA "tests/golden/hf/llama-tiny.json"

static char text[1 << 17];

/* stdout and stderr together; the exit status. */
static int
run(const char *words)
{
    char command[8192];
    (void)snprintf(command, sizeof(command), "%s %s 2>&1", program, words);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    size_t len = fread(text, 1, sizeof(text) - 1, f);
    text[len] = '\0';
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
expect(int status, const char *part, const char *words)
{
    int seen = run(words);
    if (seen != status || !strstr(text, part)) {
        fail_msg("%s: exit %d, expected %d with \"%s\": %.600s", words, seen, status, part, text);
    }
}

static void
test_models_program_lists_presets(void **state)
{
    SHL_UNUSED(state);
    expect(0, "8030261248", "info models");
    assert_non_null(strstr(text, "7b = llama-2-7b"));
    assert_non_null(strstr(text, "ALiBi"));
    expect(0, "\"bloom-7b1\",\"BLOOM\",7077396480,7069016064,\"yes\",8380416", "info models --csv");
    expect(0, "| parameters ", "info models --md");
    assert_int_equal(run("info models --json"), 0);
    json_t *list = json_loads(text, 0, NULL);
    assert_true(json_array_size(list) > 50);
    json_decref(list);
    expect(0, "15480", "info models --model " LLAMA);
    expect(2, "--json, --csv", "info models --json --csv");
    expect(2, "info models", "info --csv");
}

static void
test_models_program_says_how_a_text_was_taken(void **state)
{
    SHL_UNUSED(state);
    expect(0, "7B: taken as llama-2-7b", "plan --model 7B --ranks 1024 --strategy fsdp --batch 1");
    expect(0, "opt-125m: approximated: ReLU", "plan --model opt-125m --ranks 2 --strategy fsdp");
    expect(2, "cannot be trained as the original", "train --model opt-125m --layers 1");
    expect(
        0, "approximated: ReLU",
        "train --model opt-125m --layers 1 --width 16 --heads 2 --vocab 256 --context 16 --inner 8"
        " --approximate --steps 1 --batch 1");
}

static void
test_models_program_trains_a_file(void **state)
{
    SHL_UNUSED(state);
    expect(0, "\"rope-theta\":", "train --model " LLAMA " --vocab 256 --steps 1 --json");
    assert_non_null(strstr(text, "llama-l3-w24-h6-kv2-i36-v256-c19"));
    expect(0, "llama3:2:1:4:19",
           "train --model " LLAMA " --vocab 256 --steps 1 --seq 38 --batch 1"
           " --rope-scaling llama3:2:1:4:19 --json");
}

static void
test_models_program_refuses_bad_shapes(void **state)
{
    SHL_UNUSED(state);
    expect(2, "do not divide", "train --model " LLAMA " --kv-heads 4");
    expect(2, "odd", "train --model " LLAMA " --head-dim 3");
    expect(2, "a sequence of 20", "train --model " LLAMA " --seq 20");
    expect(2, "a GPT has no kv-heads", "train --kv-heads 2");
    expect(2, "sliding_window", "plan --model mistral-7b --context 8192");
    expect(2, "no scaling of rotary angles", "train --model " LLAMA " --rope-scaling yarn:2");
    expect(5, "cannot read", "train --model ./nowhere");
    expect(2, "--model llama-2-7b", "plan --model llama-2-7");
}

static int
set_up(void **state)
{
    SHL_UNUSED(state);
    return find_program() ? 0 : 1;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models_program_lists_presets),
        cmocka_unit_test(test_models_program_says_how_a_text_was_taken),
        cmocka_unit_test(test_models_program_trains_a_file),
        cmocka_unit_test(test_models_program_refuses_bad_shapes),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
