/* engines/api: gpt2-tiny under ZeRO stage 2 on two ranks, as threads of this program. Build it with
 * cc example_train.c $(pkg-config --cflags --libs shardlab) */
#include <shardlab.h>
#include <stdio.h>

enum { BATCH = 4, SEQ = 64, STEPS = 10 };

static int
train(shl_lab_world *world, void *ctx)
{
    shl_lab_options options;
    shl_lab_step_report report = {.struct_bytes = sizeof(report)};
    int32_t tokens[BATCH * SEQ], targets[BATCH * SEQ];
    shl_lab *lab = NULL;
    int rank = shl_lab_world_rank(world);
    (void)ctx;
    shl_lab_options_init(&options, sizeof(options));
    options.model = "gpt2-tiny";
    options.strategy = "zero2";
    options.batch = BATCH;
    options.seq = SEQ;
    int code = shl_lab_initialize(&options, world, &lab);
    for (int step = 0; code == SHL_LAB_OK && step < STEPS; step++) {
        for (int i = 0; i < BATCH * SEQ; i++) { /* every rank its own part of the batch */
            tokens[i] = (7 * i + rank) % 50;
            targets[i] = (7 * i + rank + 7) % 50; /* the next token */
        }
        code = shl_lab_forward(lab, tokens, targets, NULL);
        if (code == SHL_LAB_OK) {
            code = shl_lab_backward(lab);
        }
        if (code == SHL_LAB_OK) {
            code = shl_lab_step(lab, &report);
        }
        if (code == SHL_LAB_OK && rank == 0) {
            printf("step %2d  loss %.6f\n", (int)report.step, report.loss);
        }
    }
    int closed = shl_lab_close(&lab);
    return code != SHL_LAB_OK ? code : closed;
}

int
main(void)
{
    shl_lab_world_options world = {.struct_bytes = sizeof(world), .ranks = 2};
    shl_lab_error error = {.struct_bytes = sizeof(error)};
    int code = shl_lab_run_threads(&world, train, NULL);
    if (code != SHL_LAB_OK) {
        shl_lab_error_get(NULL, &error);
        fprintf(stderr, "error: %s\nbecause: %s\n", error.what, error.because);
    }
    return code;
}
