/* engines/shared: writes the schedule of gathers down as it happens: the listener sees the same calls that
 * the run makes, so that there is nothing to keep in step with it. */
#include "engines/shared/gather_log.h"

#include <string.h>

static const char *const phase_names[SHL_GATHERS_PHASES] = {"forward", "backward",
                                                            "after the update"};

void
shl_gather_log_init(shl_gather_log *s, int64_t step)
{
    memset(s, 0, sizeof(*s));
    s->step = step;
    shl_str_init(&s->text);
}

void
shl_gather_log_fini(shl_gather_log *s)
{
    shl_str_fini(&s->text);
}

/* NULL: nobody listens now. */
static shl_gather_log *
listener(const shl_gatherer *g)
{
    const shl_engine *e = g->st->engine;
    shl_gather_log *s = e->gather_log;
    bool first = e->micro == 0 || e->micro == e->config.accum;
    return s != NULL && s->step == e->step && first ? s : NULL;
}

static int64_t
padded_bytes(const shl_gatherer *g, const shl_gather_group *group)
{
    int64_t elems = 0;
    for (int i = 0; i < group->n_flats; ++i) {
        elems += g->st->layout->flats[group->flats[i]].flat_elems;
    }
    return elems * (int64_t)shl_dtype_bytes(g->st->engine->config.compute_dtype);
}

static void
add_call(shl_gather_log *s, shl_gather_phase phase, int calls, int64_t elems, int64_t bytes)
{
    s->calls[phase] += calls;
    s->elems[phase] += elems;
    s->bytes[phase] += bytes;
}

void
shl_gather_log_phase_begins(const shl_gatherer *g)
{
    shl_gather_log *s = listener(g);
    if (s == NULL) {
        return;
    }
    shl_str_add(&s->text, "%s\n", phase_names[g->in_backward]);
    if (!g->in_backward) {
        for (int i = 0; i < g->n_groups; ++i) {
            s->resident_elems += g->groups[i].resident ? g->groups[i].elems : 0;
        }
        shl_str_add(&s->text, "  %-8s %13lld elements on every rank\n", "resident",
                    (long long)s->resident_elems);
        return;
    }
    s->at_boundary_elems = g->live_elems;
    shl_str_add(&s->text, "  %-8s %13lld elements kept from forward\n", "live",
                (long long)g->live_elems);
}

void
shl_gather_log_issue(const shl_gatherer *g, int n)
{
    shl_gather_log *s = listener(g);
    shl_gather_phase phase = g->in_backward ? SHL_GATHERS_BACKWARD : SHL_GATHERS_FORWARD;
    int64_t elems = 0, bytes = 0;
    int calls = 0;
    if (s == NULL) {
        return;
    }
    for (int i = 0; i < n; ++i) {
        const shl_gather_group *group = &g->groups[g->batch[i]];
        elems += group->elems;
        bytes += padded_bytes(g, group);
        calls += group->n_flats;
    }
    calls = g->policy.per_tensor ? calls : 1;
    add_call(s, phase, calls, elems, bytes);
    s->most_live_elems = g->live_elems > s->most_live_elems ? g->live_elems : s->most_live_elems;
    shl_str_add(&s->text, "  %-8s %13lld elements %14lld bytes  live %13lld  %s",
                g->groups[g->batch[0]].ahead ? "ahead" : "gather", (long long)elems,
                (long long)bytes, (long long)g->live_elems, g->groups[g->batch[0]].owner);
    if (n > 1) {
        shl_str_add(&s->text, " to %s (%d groups)", g->groups[g->batch[n - 1]].owner, n);
    }
    shl_str_add(&s->text, "%s\n", calls > 1 ? ", a call each tensor" : "");
}

void
shl_gather_log_wait(const shl_gatherer *g, int group, const char *module)
{
    shl_gather_log *s = listener(g);
    if (s == NULL) {
        return;
    }
    s->n_waits[g->in_backward]++;
    shl_str_add(&s->text, "  %-8s %13lld elements %*s  live %13lld  %s for %s\n", "wait",
                (long long)g->groups[group].elems, 20, "", (long long)g->live_elems, module,
                g->groups[group].owner);
}

void
shl_gather_log_release(const shl_gatherer *g, int group)
{
    shl_gather_log *s = listener(g);
    if (s != NULL) {
        shl_str_add(&s->text, "  %-8s %13lld elements %*s  live %13lld  %s\n", "release",
                    (long long)g->groups[group].elems, 20, "", (long long)g->live_elems,
                    g->groups[group].owner);
    }
}

void
shl_gather_log_refresh(const shl_gatherer *g, int flat)
{
    shl_gather_log *s = listener(g);
    const shl_layout *l = g->st->layout;
    const shl_layout_slot *slot = &l->slots[l->flats[flat].first_slot];
    int64_t bytes =
        l->flats[flat].flat_elems * (int64_t)shl_dtype_bytes(g->st->engine->config.compute_dtype);
    if (s == NULL) {
        return;
    }
    if (s->calls[SHL_GATHERS_STEP] == 0) {
        shl_str_add(&s->text, "%s\n", phase_names[SHL_GATHERS_STEP]);
    }
    add_call(s, SHL_GATHERS_STEP, 1, slot->elems, bytes);
    shl_str_add(&s->text, "  %-8s %13lld elements %14lld bytes  %s\n", "refresh",
                (long long)slot->elems, (long long)bytes,
                g->st->engine->model->params[slot->param]->name);
}

shl_code
shl_gather_log_print(const shl_gather_log *s, shl_str *out)
{
    int64_t calls = 0, bytes = 0;
    shl_str_add(out,
                "schedule of the gathers of a micro-step (bytes: whole buffers, padding "
                "included)\n%s",
                shl_str_get(&s->text));
    shl_str_add(out, "totals\n");
    for (int p = 0; p < SHL_GATHERS_PHASES; ++p) {
        shl_str_add(out, "  %-16s %6lld gathers %14lld elements %15lld bytes\n", phase_names[p],
                    (long long)s->calls[p], (long long)s->elems[p], (long long)s->bytes[p]);
        calls += s->calls[p];
        bytes += s->bytes[p];
    }
    shl_str_add(out, "  %-16s %6lld gathers %*s %15lld bytes\n", "together", (long long)calls, 23,
                "", (long long)bytes);
    shl_str_add(out, "  most live %lld elements, at the start of backward %lld, resident %lld\n",
                (long long)s->most_live_elems, (long long)s->at_boundary_elems,
                (long long)s->resident_elems);
    return s->text.failed || out->failed
               ? SHL_RAISE(SHL_E_HEAP, "out of host memory for a schedule")
               : SHL_OK;
}
