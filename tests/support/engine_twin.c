/* tests/support: a run on the cpu against the same run on the virtual device, rank by rank. */
#include "tests/support/engine_twin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "models/shape.h"

static void
expect_equal_tier(const char *label, const shl_ledger_tier *v, const shl_ledger_tier *r)
{
    if (memcmp(v->peak_tag_bytes, r->peak_tag_bytes, sizeof(v->peak_tag_bytes)) != 0 ||
        memcmp(v->at_peak_tag_bytes, r->at_peak_tag_bytes, sizeof(v->at_peak_tag_bytes)) != 0 ||
        memcmp(v->now_tag_bytes, r->now_tag_bytes, sizeof(v->now_tag_bytes)) != 0 ||
        memcmp(v->phase_peak_bytes, r->phase_peak_bytes, sizeof(v->phase_peak_bytes)) != 0 ||
        v->peak_bytes != r->peak_bytes || v->peak_mark != r->peak_mark ||
        strcmp(v->peak_owner, r->peak_owner) != 0) {
        for (int t = 0; t < SHL_TAG_COUNT; ++t) {
            print_error("%-8s virtual %zu (at peak %zu), cpu %zu (at peak %zu)\n",
                        shl_tag_name((shl_tag)t), v->peak_tag_bytes[t], v->at_peak_tag_bytes[t],
                        r->peak_tag_bytes[t], r->at_peak_tag_bytes[t]);
        }
        fail_msg("%s: virtual peak %zu in %s by %s, cpu %zu in %s by %s", label, v->peak_bytes,
                 shl_mark_name(v->peak_mark), v->peak_owner, r->peak_bytes,
                 shl_mark_name(r->peak_mark), r->peak_owner);
    }
}

void
et_label(const ew_config *c, char *label, size_t bytes)
{
    const shl_tune_config *t = &c->tune;
    const shl_model_config *m = &c->model;
    const shl_offload_config *o = &c->engine.offload;
    char policy[SHL_DTYPE_POLICY_TEXT_BYTES];
    shl_dtype_policy_text(&c->engine, policy, sizeof(policy));
    snprintf(
        label, bytes,
        "%s%s%s, %s, %s, ranks %d accum %lld clip %g bucket %lld prefetch %d recompute %s %lld "
        "freeze \"%.60s\" last %lld lora %lld%s dropout %g %g offload %s %s %s ratio %g group %lld",
        shl_family_name(m->family), m->tied ? "" : " untied", m->qkv_bias ? " with biases" : "",
        policy, shl_strategy_name(c->engine.strategy), c->ranks, (long long)c->engine.accum,
        c->engine.optim.clip, (long long)c->engine.bucket_elems, c->engine.prefetch,
        shl_recompute_name(t->recompute), (long long)t->recompute_every, t->freeze,
        (long long)t->train_last, (long long)t->lora_rank, t->lora_base ? " with base" : "",
        t->dropout, t->attention_dropout, shl_offload_name(o->optimizer),
        shl_offload_name(o->param), shl_offload_name(o->activations), o->ratio,
        (long long)o->sub_group_elems);
}

void
et_expect_twin(const ew_config *of, const ew_result *cpu, int rank, ew_result *virt)
{
    char label[ET_LABEL_BYTES];
    ew_config c = *of;
    c.device = "virtual";
    c.virtual_rank = rank;
    c.keep_state = false;
    et_label(&c, label, sizeof(label));
    ew_run(&c, virt);
    if (virt->code != SHL_OK) {
        fail_msg("%s: virtual: %s", label, virt->what);
    }
    expect_equal_tier(label, &virt->device[0], &cpu->device[rank]);
    expect_equal_tier(label, &virt->host[0], &cpu->host[rank]);
    if (memcmp(virt->moved[0], cpu->moved[rank], sizeof(virt->moved[0])) != 0 ||
        virt->pinned_peak[0] != cpu->pinned_peak[rank]) {
        fail_msg("%s: bytes between tiers, or pinned, differ", label);
    }
    if (virt->trace_hash[0] != cpu->trace_hash[rank]) {
        fail_msg("%s: same peaks, another order of events", label);
    }
    if (memcmp(&virt->comm[0], &cpu->comm[rank], sizeof(virt->comm[0])) != 0) {
        fail_msg("%s: collectives differ", label);
    }
}

void
et_run(const ew_config *c, ew_result *r)
{
    char label[ET_LABEL_BYTES];
    ew_run(c, r);
    if (r->code != SHL_OK) {
        et_label(c, label, sizeof(label));
        fail_msg("%s: %s", label, r->what);
    }
}

void
et_expect_same_run(const ew_config *of)
{
    ew_config c = *of;
    ew_result cpu, virt;
    c.device = "cpu";
    et_run(&c, &cpu);
    for (int rank = 0; rank < c.ranks; ++rank) {
        et_expect_twin(&c, &cpu, rank, &virt);
    }
}

void
et_expect_same_bits(const ew_config *c, const ew_result *a, const ew_result *b)
{
    char label[ET_LABEL_BYTES];
    const char *why = ew_bits_differ(a, b, c->steps);
    if (why[0] != '\0') {
        et_label(c, label, sizeof(label));
        fail_msg("%s: %s", label, why);
    }
}

void
et_size(const ew_config *c, shl_formula_size *out)
{
    shl_model *model = NULL;
    assert_int_equal(shl_model_new(&c->model, &model), SHL_OK);
    assert_true(model->n_elems == shl_model_formula_params(&c->model));
    assert_int_equal(shl_model_tune(model, &c->tune), SHL_OK);
    shl_formula_size_of(c->engine.strategy, model, c->ranks, out);
    out->stream = (double)c->model.width;
    assert_true(out->train == (double)shl_model_trainable_elems(model));
    assert_true(out->train + out->frozen == (double)model->n_elems);
    shl_model_free(&model);
}

static void
expect_bytes(const char *label, const char *what, int64_t got, double bytes, int steps)
{
    if ((double)got != bytes * steps) {
        fail_msg("%s: %s: %lld bytes, the formula says %.1f", label, what, (long long)got,
                 bytes * steps);
    }
}

void
et_expect_volume(const ew_config *c, const ew_result *r, const shl_formula_size *n)
{
    char label[ET_LABEL_BYTES];
    const shl_comm_counter *kind = r->comm[0].kind;
    shl_formula_size padded = {.train = (double)r->info.payload_elems,
                               .frozen = (double)r->info.frozen_elems,
                               .again = (double)r->info.again_elems,
                               .ranks = c->ranks};
    double padding = (double)r->info.padding_elems, again = padded.again - n->again;
    shl_engine_config e = c->engine;
    shl_formula_comm f;
    et_label(c, label, sizeof(label));
    if (padded.train + padded.frozen != n->train + n->frozen + padding || again < 0.0 ||
        again > padding) {
        fail_msg("%s: %.0f + %.0f elements, %.0f again; with padding %.0f: %.0f + %.0f, %.0f again",
                 label, n->train, n->frozen, n->again, padding, padded.train, padded.frozen,
                 padded.again);
    }
    assert_int_equal(shl_reduce_every_resolve(e.strategy, e.reduce_every, &e.reduce_every), SHL_OK);
    shl_formula_comm_bytes(&e, &padded, &f);
    expect_bytes(label, "all_gather", kind[SHL_COLL_ALL_GATHER].bytes, f.all_gather_bytes,
                 c->steps);
    expect_bytes(label, "reduce_scatter", kind[SHL_COLL_REDUCE_SCATTER].bytes,
                 f.reduce_scatter_bytes, c->steps);
    expect_bytes(label, "all_reduce", kind[SHL_COLL_ALL_REDUCE].bytes, f.all_reduce_bytes,
                 c->steps);
}

void
et_set_policy(ew_config *c, shl_dtype compute)
{
    shl_dtype_policy_set(&c->engine, compute);
    c->engine.scale.kind = compute == SHL_F16 ? SHL_SCALE_DYNAMIC : SHL_SCALE_NONE;
    c->engine.scale.scale = 1024.0;
}
