/* bench: a part in a process of its own: this program again, its lines passed on as they come. */
#include "bench/gpu_process.h"

#include <limits.h>
#include <string.h>

#include "bench/child.h"
#include "bench/cli.h"
#include "bench/locate.h"

/* Longer than its own children have, which lead groups of their own: nobody else ends those. */
#define GRACE_MS 5000

/* What was written behind the last end of a line. */
typedef struct line_taker {
    shl_gpu_process *process;
    shl_str begun;
    shl_code code; /* of the first line that could not be printed */
    shl_err failure;
} line_taker;

static void
take_line(line_taker *t)
{
    const char *line = shl_str_get(&t->begun);
    bool print = t->process->take(t->process->ctx, line);
    if (!print && line[0] != '\0') {
        char *words = t->process->last_words;
        size_t len = strncmp(line, "error: ", 7) == 0 ? 0 : strlen(words);
        shl_strf(words + len, sizeof(t->process->last_words) - len, "%s%s", len ? "; " : "", line);
    } else if (print) {
        t->process->last_words[0] = '\0';
    }
    if (print && t->code == SHL_OK) {
        shl_str whole = {0};
        shl_str_add(&whole, "%s\n", line);
        t->code = shl_cli_print(&whole);
        t->failure = *shl_err_get();
        shl_str_fini(&whole);
    }
    shl_str_fini(&t->begun);
}

static void
take_data(void *ctx, const char *data, size_t len)
{
    line_taker *t = ctx;
    for (size_t at = 0; at < len;) {
        const char *end = memchr(data + at, '\n', len - at);
        size_t n = end ? (size_t)(end - data) - at : len - at;
        shl_str_add_text(&t->begun, data + at, n);
        at += n;
        if (end) {
            take_line(t);
            at++;
        }
    }
}

void
shl_gpu_process_end(const shl_gpu_process *p, char *dst, size_t dst_bytes)
{
    const char *words = p->last_words[0] ? p->last_words : "it said nothing";
    if (p->timed_out) {
        shl_strf(dst, dst_bytes, "ended by force after %.0f s: %s", p->limit_s, words);
    } else if (p->status > 128) {
        shl_strf(dst, dst_bytes, "its process was killed by signal %d (%s): %s", p->status - 128,
                 strsignal(p->status - 128), words);
    } else {
        shl_strf(dst, dst_bytes, "its process ended with exit code %d: %s", p->status, words);
    }
}

shl_code
shl_gpu_process_run(shl_gpu_report *r, shl_gpu_process *p)
{
    char program[PATH_MAX];
    const char *words[SHL_GPU_MAX_WORDS + 2] = {shl_locate_program(program, sizeof(program))};
    line_taker taker = {.process = p};
    p->last_words[0] = '\0';
    for (int i = 0; p->words[i]; i++) {
        SHL_ASSERT(i < SHL_GPU_MAX_WORDS);
        words[i + 1] = p->words[i];
    }
    shl_child c = {.argv = words,
                   .timeout_ms = (int64_t)(p->limit_s * 1e3),
                   .grace_ms = GRACE_MS,
                   .stop = r->stop,
                   .on_data = take_data,
                   .ctx = &taker};
    shl_code code = shl_child_run(&c);
    p->status = c.status;
    p->timed_out = c.timed_out;
    if (shl_str_get(&taker.begun)[0] != '\0') {
        take_line(&taker); /* without an end */
    }
    if (code == SHL_OK && (c.timed_out || c.status != 0)) {
        shl_gpu_keep_output(r, "process", shl_str_get(&c.output));
    }
    if (code == SHL_OK && c.stopped) {
        code = SHL_RAISE(SHL_E_INTERRUPTED, "interrupted");
    } else if (code == SHL_OK && taker.code != SHL_OK) {
        code = shl_err_put(&taker.failure);
    }
    shl_str_fini(&taker.begun);
    shl_child_fini(&c);
    return code;
}
