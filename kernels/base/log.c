/* kernels/base: log lines on stderr, with a level per room. The levels are set once, before threads
 * start, and only read afterwards. */
#include "kernels/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define MAX_ROOMS 16
#define ROOM_BYTES 24

typedef struct levels {
    shl_log_level everywhere;
    int n_rooms;
    struct {
        char name[ROOM_BYTES];
        shl_log_level level;
    } rooms[MAX_ROOMS];
} levels;

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};
static levels active = {.everywhere = SHL_LOG_WARN};
static _Thread_local int thread_rank = -1;

static shl_code
raise_bad_word(const char *word, size_t len)
{
    char text[64];
    shl_strf(text, sizeof(text), "%.*s", (int)len, word);
    SHL_RAISE(SHL_E_USAGE, "bad log level \"%s\"", text);
    shl_err_because("a word is error, warn, info, debug or trace, or room=level (at most %d rooms)",
                    MAX_ROOMS);
    return shl_err_advice("SHL_LOG=info,comm=trace");
}

static bool
find_level(const char *word, size_t len, shl_log_level *out)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(level_names); i++) {
        if (strlen(level_names[i]) == len && memcmp(level_names[i], word, len) == 0) {
            *out = (shl_log_level)i;
            return true;
        }
    }
    return false;
}

/* One word between commas: "level" or "room=level". */
static shl_code
read_word(const char *word, size_t len, levels *out)
{
    const char *eq = memchr(word, '=', len);
    if (!eq) {
        return find_level(word, len, &out->everywhere) ? SHL_OK : raise_bad_word(word, len);
    }
    size_t room_len = (size_t)(eq - word);
    shl_log_level level;
    if (room_len == 0 || room_len >= ROOM_BYTES || out->n_rooms == MAX_ROOMS ||
        !find_level(eq + 1, len - room_len - 1, &level)) {
        return raise_bad_word(word, len);
    }
    shl_strf(out->rooms[out->n_rooms].name, ROOM_BYTES, "%.*s", (int)room_len, word);
    out->rooms[out->n_rooms].level = level;
    out->n_rooms++;
    return SHL_OK;
}

shl_code
shl_log_configure(const char *text)
{
    levels next = {.everywhere = SHL_LOG_WARN};
    while (text && *text) {
        size_t len = strcspn(text, ",");
        SHL_TRY(read_word(text, len, &next));
        text += len + (text[len] == ',');
    }
    active = next;
    return SHL_OK;
}

void
shl_log_set_rank(int rank)
{
    thread_rank = rank;
}

int
shl_log_rank(void)
{
    return thread_rank;
}

static bool
is_shown(shl_log_level level, const char *room)
{
    for (int i = 0; i < active.n_rooms; i++) {
        if (strcmp(active.rooms[i].name, room) == 0) {
            return level <= active.rooms[i].level;
        }
    }
    return level <= active.everywhere;
}

void
shl_log(shl_log_level level, const char *room, const char *fmt, ...)
{
    if (!is_shown(level, room)) {
        return;
    }
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    char rank[16] = "";
    if (thread_rank >= 0) {
        shl_strf(rank, sizeof(rank), "[%d]", thread_rank);
    }
    /* One call per line: lines of several threads do not mix. */
    fprintf(stderr, "shardlab%s %s %s: %s\n", rank, level_names[level], room, text);
}
