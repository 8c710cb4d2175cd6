/* engines/api: gpt2-tiny under ZeRO stage 2 on two ranks, as threads of this program. Build it with
 * cc example_train.c $(pkg-config --cflags --libs shardlab) */
#include <shardlab.h>
#include <stdio.h>

static int
train(shl_lab_world *world, void *ctx)
{
    int32_t text[4 * 64 + 1],
        rank = shl_lab_world_rank(world); /* the ranks' own parts of a batch */
    shl_lab_options options;
    shl_lab_step_report report = {.struct_bytes = sizeof(report)};
    shl_lab *lab = NULL;
    for (int i = 0; i <= 4 * 64; i++) {
        text[i] = (7 * i + rank) % 50;
    }
    shl_lab_options_init(&options, sizeof(options));
    options.strategy = "zero2";
    options.batch = 4;
    options.seq = 64;
    int code = shl_lab_initialize(&options, world, &lab);
    while (code == SHL_LAB_OK && report.step < *(const int *)ctx) {
        if ((code = shl_lab_forward(lab, text, text + 1, NULL)) == SHL_LAB_OK &&
            (code = shl_lab_backward(lab)) == SHL_LAB_OK &&
            (code = shl_lab_step(lab, &report)) == SHL_LAB_OK && rank == 0) {
            printf("step %2d  loss %.6f\n", (int)report.step, report.loss);
        }
    }
    int closed = shl_lab_close(&lab);
    return code != SHL_LAB_OK ? code : closed;
}

int
main(void)
{
    int steps = 10;
    shl_lab_world_options world = {.struct_bytes = sizeof(world), .ranks = 2};
    return shl_lab_run_threads(&world, train, &steps); /* shl_lab_error_get tells what failed */
}
