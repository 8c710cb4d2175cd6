/* tests/kernels/device: the ledger: its peaks against a plain model, limits, leaks, the trace. */
#include "kernels/device/ledger.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/heap.h"
#include "kernels/base/rng.h"
#include "kernels/base/types.h"

#define N_OWNERS 5
static const char *const owners[N_OWNERS] = {"wte.weight", "h.0.attn", "h.0.mlp", "ln_f", "engine"};

typedef struct held {
    int64_t id;
    size_t bytes;
    shl_tier tier;
    shl_tag tag;
} held;

/* What the ledger should say, worked out from all held entries at every event. */
typedef struct model {
    held held[64];
    size_t n;
    size_t peak[SHL_TIER_COUNT];
    size_t peak_tag[SHL_TIER_COUNT][SHL_TAG_COUNT];
    size_t at_peak[SHL_TIER_COUNT][SHL_TAG_COUNT];
    size_t phase_peak[SHL_TIER_COUNT][SHL_MARK_COUNT];
    size_t phase_tag[SHL_TIER_COUNT][SHL_MARK_COUNT][SHL_TAG_COUNT];
    shl_mark peak_mark[SHL_TIER_COUNT];
    const char *peak_owner[SHL_TIER_COUNT];
} model;

static void
model_look(model *m, shl_mark mark, const char *owner)
{
    for (int t = 0; t < SHL_TIER_COUNT; t++) {
        size_t tags[SHL_TAG_COUNT] = {0}, total = 0;
        for (size_t i = 0; i < m->n; i++) {
            if ((int)m->held[i].tier == t) {
                tags[m->held[i].tag] += m->held[i].bytes;
                total += m->held[i].bytes;
            }
        }
        for (int g = 0; g < SHL_TAG_COUNT; g++) {
            size_t *in_phase = &m->phase_tag[t][mark][g];
            m->peak_tag[t][g] = tags[g] > m->peak_tag[t][g] ? tags[g] : m->peak_tag[t][g];
            *in_phase = tags[g] > *in_phase ? tags[g] : *in_phase;
        }
        if (total > m->phase_peak[t][mark]) {
            m->phase_peak[t][mark] = total;
        }
        if (total > m->peak[t]) {
            m->peak[t] = total;
            memcpy(m->at_peak[t], tags, sizeof(tags));
            m->peak_mark[t] = mark;
            m->peak_owner[t] = owner;
        }
    }
}

static void
assert_equals_model(const shl_ledger *l, const model *m)
{
    for (int t = 0; t < SHL_TIER_COUNT; t++) {
        const shl_ledger_tier *got = shl_ledger_get(l, (shl_tier)t);
        size_t sum = 0;
        assert_int_equal(got->peak_bytes, m->peak[t]);
        assert_memory_equal(got->peak_tag_bytes, m->peak_tag[t], sizeof(m->peak_tag[t]));
        assert_memory_equal(got->at_peak_tag_bytes, m->at_peak[t], sizeof(m->at_peak[t]));
        assert_memory_equal(got->phase_peak_bytes, m->phase_peak[t], sizeof(m->phase_peak[t]));
        assert_memory_equal(got->phase_tag_bytes, m->phase_tag[t], sizeof(m->phase_tag[t]));
        for (int g = 0; g < SHL_TAG_COUNT; g++) {
            sum += got->at_peak_tag_bytes[g];
        }
        assert_int_equal(sum, got->peak_bytes);
        if (m->peak_owner[t] != NULL) {
            assert_int_equal(got->peak_mark, m->peak_mark[t]);
            assert_string_equal(got->peak_owner, m->peak_owner[t]);
        }
    }
}

static void
test_ledger_agrees_with_a_plain_model(void **state)
{
    static model m;
    shl_ledger *l = NULL;
    uint64_t seed = 20240611, draw = 0;
    SHL_UNUSED(state);
    printf("seed %llu\n", (unsigned long long)seed);
    memset(&m, 0, sizeof(m));
    assert_int_equal(shl_ledger_open(&l), SHL_OK);
    for (int i = 0; i < 4000; i++) {
        uint64_t r = shl_rng_u64(seed, 1, draw++);
        if (r % 37 == 0) {
            shl_ledger_set_mark(l, (shl_mark)(r / 64 % SHL_MARK_COUNT));
            model_look(&m, shl_ledger_get_mark(l), "");
        } else if (m.n > 0 && (m.n == SHL_ARRAY_LEN(m.held) || r % 2 == 0)) {
            size_t at = (size_t)(r >> 8) % m.n;
            shl_ledger_drop(l, m.held[at].id);
            m.held[at] = m.held[--m.n];
        } else {
            held *h = &m.held[m.n++];
            const char *owner = owners[(r >> 40) % N_OWNERS];
            h->bytes = (size_t)(r >> 8) % 1000 + 1;
            h->tier = (shl_tier)((r >> 20) % SHL_TIER_COUNT);
            h->tag = (shl_tag)((r >> 30) % SHL_TAG_COUNT);
            assert_int_equal(shl_ledger_post(l, h->tier, h->tag, h->bytes, owner, &h->id), SHL_OK);
            model_look(&m, shl_ledger_get_mark(l), owner);
        }
        assert_equals_model(l, &m);
    }
    while (m.n > 0) {
        shl_ledger_drop(l, m.held[--m.n].id);
    }
    assert_int_equal(shl_ledger_close(&l), SHL_OK);
    assert_null(l);
}

static void
test_ledger_keeps_the_first_moment_of_equal_peaks(void **state)
{
    shl_ledger *l = NULL;
    int64_t a, b;
    SHL_UNUSED(state);
    assert_int_equal(shl_ledger_open(&l), SHL_OK);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_HOST, SHL_TAG_ACT, 100, "first", &a), SHL_OK);
    shl_ledger_drop(l, a);
    shl_ledger_set_mark(l, SHL_MARK_STEP);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_HOST, SHL_TAG_WORK, 100, "second", &b), SHL_OK);
    const shl_ledger_tier *t = shl_ledger_get(l, SHL_TIER_HOST);
    assert_string_equal(t->peak_owner, "first");
    assert_int_equal(t->peak_mark, SHL_MARK_INIT);
    assert_int_equal(t->at_peak_tag_bytes[SHL_TAG_ACT], 100);
    assert_int_equal(t->at_peak_tag_bytes[SHL_TAG_WORK], 0);
    shl_ledger_drop(l, b);
    shl_ledger_reset_peaks(l);
    assert_int_equal(t->peak_bytes, 0);
    assert_string_equal(t->peak_owner, "");
    assert_int_equal(shl_ledger_close(&l), SHL_OK);
}

static void
test_ledger_tells_its_phase_to_a_shared_word(void **state)
{
    shl_ledger *l = NULL;
    _Atomic uint32_t word = 99;
    SHL_UNUSED(state);
    assert_int_equal(shl_ledger_open(&l), SHL_OK);
    shl_ledger_set_mark(l, SHL_MARK_FORWARD);
    shl_ledger_share_mark(l, &word);
    assert_int_equal(atomic_load(&word), SHL_MARK_FORWARD);
    shl_ledger_set_mark(l, SHL_MARK_SAVE);
    assert_int_equal(atomic_load(&word), SHL_MARK_SAVE);
    shl_ledger_share_mark(l, NULL);
    shl_ledger_set_mark(l, SHL_MARK_STEP);
    assert_int_equal(atomic_load(&word), SHL_MARK_SAVE);
    assert_int_equal(shl_ledger_close(&l), SHL_OK);
}

static void
test_ledger_limit_names_phase_tag_owner_and_sizes(void **state)
{
    shl_ledger *l = NULL;
    int64_t a, b;
    SHL_UNUSED(state);
    assert_int_equal(shl_ledger_open(&l), SHL_OK);
    shl_ledger_limit(l, SHL_TIER_DEVICE, 1000);
    shl_ledger_set_mark(l, SHL_MARK_BACKWARD);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_DEVICE, SHL_TAG_PARAM, 700, "wte", &a), SHL_OK);
    uint64_t before = shl_ledger_trace_hash(l);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_DEVICE, SHL_TAG_GATHER, 301, "h.3.mlp", &b),
                     SHL_E_OOM);
    assert_int_equal(b, 0);
    const shl_err *err = shl_err_get();
    assert_string_equal(err->what,
                        "out of device memory in backward: h.3.mlp asked for 301 bytes of gather");
    assert_string_equal(err->because,
                        "700 bytes are held of a limit of 1000 (300 left): param 700");
    assert_true(strlen(err->advice) > 0);
    assert_int_equal(shl_ledger_trace_hash(l), before);
    assert_int_equal(shl_ledger_get(l, SHL_TIER_DEVICE)->peak_bytes, 700);
    /* The other tier has no limit, and the last byte still fits. */
    assert_int_equal(shl_ledger_post(l, SHL_TIER_HOST, SHL_TAG_OPTIM, SIZE_MAX / 4, "o", &b),
                     SHL_OK);
    shl_ledger_drop(l, b);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_DEVICE, SHL_TAG_GATHER, 300, "h.3.mlp", &b),
                     SHL_OK);
    shl_ledger_drop(l, a);
    shl_ledger_drop(l, b);
    assert_int_equal(shl_ledger_close(&l), SHL_OK);
}

static void
test_ledger_fails_the_planned_post_once(void **state)
{
    shl_ledger *l = NULL;
    int64_t id[4];
    SHL_UNUSED(state);
    assert_int_equal(shl_ledger_open(&l), SHL_OK);
    shl_ledger_fail_at(l, 3);
    for (int i = 0; i < 4; i++) {
        shl_code code = shl_ledger_post(l, SHL_TIER_DEVICE, SHL_TAG_ACT, 8, "h.0", &id[i]);
        assert_int_equal(code, i == 2 ? SHL_E_OOM : SHL_OK);
    }
    assert_non_null(strstr(shl_err_get()->what, "h.0 asked for 8 bytes of act"));
    shl_ledger_fail_at(l, 1);
    shl_ledger_fail_at(l, -1);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_DEVICE, SHL_TAG_ACT, 8, "h.0", &id[2]), SHL_OK);
    for (int i = 0; i < 4; i++) {
        shl_ledger_drop(l, id[i]);
    }
    assert_int_equal(shl_ledger_close(&l), SHL_OK);
}

static void
test_ledger_close_names_the_leaked_owners(void **state)
{
    shl_ledger *l = NULL;
    int64_t id;
    int64_t blocks = shl_heap_live_blocks();
    SHL_UNUSED(state);
    assert_int_equal(shl_ledger_open(&l), SHL_OK);
    for (int i = 0; i < N_OWNERS; i++) {
        size_t bytes = 10 * (size_t)(i + 1);
        assert_int_equal(shl_ledger_post(l, SHL_TIER_HOST, SHL_TAG_GRAD, bytes, owners[i], &id),
                         SHL_OK);
    }
    assert_int_equal(shl_ledger_close(&l), SHL_E_BUG);
    assert_null(l);
    assert_string_equal(shl_err_get()->what, "5 buffers with 150 bytes were never freed");
    const char *because = shl_err_get()->because;
    assert_non_null(strstr(because, "engine holds 50 bytes of grad (host)"));
    assert_non_null(strstr(because, "h.0.attn holds 20 bytes of grad"));
    assert_null(strstr(because, "wte.weight"));
    assert_int_equal(shl_heap_live_blocks(), blocks);
}

/* Posts a short schedule; `change` alters one thing about it. */
static uint64_t
hash_of_schedule(int change)
{
    shl_ledger *l = NULL;
    int64_t a, b;
    assert_int_equal(shl_ledger_open(&l), SHL_OK);
    shl_ledger_set_mark(l, change == 1 ? SHL_MARK_STEP : SHL_MARK_FORWARD);
    shl_tag tag = change == 2 ? SHL_TAG_BUCKET : SHL_TAG_GATHER;
    shl_tier tier = change == 3 ? SHL_TIER_HOST : SHL_TIER_DEVICE;
    size_t bytes = change == 4 ? 65 : 64;
    assert_int_equal(shl_ledger_post(l, tier, tag, bytes, change == 5 ? "h.1" : "h.0", &a), SHL_OK);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_DEVICE, SHL_TAG_ACT, 32, "ln", &b), SHL_OK);
    shl_ledger_drop(l, change == 6 ? b : a);
    shl_ledger_drop(l, change == 6 ? a : b);
    uint64_t hash = shl_ledger_trace_hash(l);
    assert_int_equal(shl_ledger_close(&l), SHL_OK);
    return hash;
}

static void
test_ledger_trace_hash_sees_every_change(void **state)
{
    SHL_UNUSED(state);
    assert_int_equal(hash_of_schedule(0), hash_of_schedule(0));
    for (int i = 0; i < 7; i++) {
        for (int j = 0; j < i; j++) {
            assert_true(hash_of_schedule(i) != hash_of_schedule(j));
        }
    }
}

static void
test_ledger_timeline_adds_up(void **state)
{
    shl_ledger *l = NULL;
    const shl_ledger_event *ev = NULL;
    int64_t a, b;
    SHL_UNUSED(state);
    assert_int_equal(shl_ledger_open(&l), SHL_OK);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_DEVICE, SHL_TAG_PARAM, 5, "early", &a), SHL_OK);
    assert_int_equal(shl_ledger_timeline_get(l, &ev), 0);
    assert_int_equal(shl_ledger_timeline_start(l, 2), SHL_OK);
    assert_int_equal(shl_ledger_post(l, SHL_TIER_DEVICE, SHL_TAG_ACT, 7, "h.0", &b), SHL_OK);
    shl_ledger_drop(l, a);
    shl_ledger_drop(l, b);
    assert_int_equal(shl_ledger_timeline_get(l, &ev), 2);
    assert_int_equal(shl_ledger_timeline_dropped(l), 1);
    assert_int_equal(ev[0].delta_bytes, 7);
    assert_int_equal(ev[0].total_bytes, 12);
    assert_string_equal(ev[0].owner, "h.0");
    assert_int_equal(ev[1].at, 1);
    assert_int_equal(ev[1].delta_bytes, -5);
    assert_int_equal(ev[1].total_bytes, 7);
    assert_int_equal(shl_ledger_close(&l), SHL_OK);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ledger_agrees_with_a_plain_model),
        cmocka_unit_test(test_ledger_keeps_the_first_moment_of_equal_peaks),
        cmocka_unit_test(test_ledger_tells_its_phase_to_a_shared_word),
        cmocka_unit_test(test_ledger_limit_names_phase_tag_owner_and_sizes),
        cmocka_unit_test(test_ledger_fails_the_planned_post_once),
        cmocka_unit_test(test_ledger_close_names_the_leaked_owners),
        cmocka_unit_test(test_ledger_trace_hash_sees_every_change),
        cmocka_unit_test(test_ledger_timeline_adds_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
