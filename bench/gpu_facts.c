/* bench: the cards of this machine in words and as JSON. */
#include "bench/gpu_facts.h"

#include <string.h>

#include <jansson.h>

#include "kernels/base/types.h"

static void
spell_version(int version, char *dst, size_t dst_bytes)
{
    shl_strf(dst, dst_bytes, version > 0 ? "%d.%d" : "none", version / 1000, version % 1000 / 10);
}

shl_code
shl_gpu_facts_lines(const char *kind, const char *between, shl_str *out)
{
    shl_device_survey s;
    char driver[16], runtime[16];
    SHL_TRY(shl_device_survey_get(kind, &s));
    if (s.n_cards == 0) {
        shl_str_add(out, "a %s, which is no card", kind);
        return SHL_OK;
    }
    for (int i = 0; i < s.n_cards; i++) {
        shl_device_card c;
        SHL_TRY(shl_device_card_get(kind, i, &c));
        shl_str_add(out, "card %d: %s, %.1f GiB, capability %d.%d, %d multiprocessors%s", i,
                    c.identity.name, (double)c.total_bytes / 0x1p30, c.major, c.minor,
                    c.multiprocessors, between);
    }
    spell_version(s.driver_version, driver, sizeof(driver));
    spell_version(s.runtime_version, runtime, sizeof(runtime));
    shl_str_add(out, "driver for CUDA %s, runtime %s%s%s", driver, runtime,
                s.libraries[0] ? ", " : "", s.libraries);
    return SHL_OK;
}

/* NULL when memory is out. */
static json_t *
card_json(const shl_device_card *c)
{
    char capability[16];
    shl_strf(capability, sizeof(capability), "%d.%d", c->major, c->minor);
    return json_pack("{ss sI ss si}", "name", c->identity.name, "bytes", (json_int_t)c->total_bytes,
                     "capability", capability, "multiprocessors", c->multiprocessors);
}

shl_code
shl_gpu_facts_json(const char *kind, json_t **out)
{
    shl_device_survey s;
    char driver[16], runtime[16];
    *out = json_null();
    if (shl_device_survey_get(kind, &s) != SHL_OK || s.n_cards == 0) {
        shl_err_clear();
        return SHL_OK;
    }
    json_t *cards = json_array();
    for (int i = 0; i < s.n_cards; i++) {
        shl_device_card c;
        if (shl_device_card_get(kind, i, &c) != SHL_OK) {
            shl_err_clear();
            continue;
        }
        if (json_array_append_new(cards, card_json(&c)) != 0) {
            json_decref(cards);
            return SHL_RAISE(SHL_E_HEAP, "out of host memory for the facts of a card");
        }
    }
    spell_version(s.driver_version, driver, sizeof(driver));
    spell_version(s.runtime_version, runtime, sizeof(runtime));
    *out = json_pack("{so ss ss ss}", "cards", cards, "driver", driver, "runtime", runtime,
                     "libraries", s.libraries);
    return *out ? SHL_OK : SHL_RAISE(SHL_E_HEAP, "out of host memory for the facts of a card");
}

shl_code
shl_gpu_facts_need(const char *kind, shl_device_survey *out)
{
    SHL_TRY(shl_device_survey_get(kind, out));
    if (strcmp(kind, "cuda") == 0 && out->n_cards == 0) {
        SHL_RAISE(SHL_E_USAGE, "no GPU");
        shl_err_because("the driver shows no device of kind '%s'", kind);
        return shl_err_advice("nvidia-smi, and CUDA_VISIBLE_DEVICES; --device cpu tries the way");
    }
    return SHL_OK;
}

shl_code
shl_gpu_facts_enough(const char *kind, int ranks, bool share)
{
    shl_device_survey s;
    if (strcmp(kind, "cuda") != 0) {
        return SHL_OK;
    }
    SHL_TRY(shl_gpu_facts_need(kind, &s));
    if (ranks > s.n_cards && !share) {
        SHL_RAISE(SHL_E_USAGE, "%d ranks and %d GPU%s", ranks, s.n_cards,
                  s.n_cards == 1 ? "" : "s");
        shl_err_because("each rank has one of its own unless they are told to share");
        return shl_err_advice("--ranks %d, --share-gpu, or --comm local for threads on one",
                              s.n_cards);
    }
    return SHL_OK;
}
