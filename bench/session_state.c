/* bench: checkpoints of a session: the API's, with the whole configuration of the run beside its own. */
#include <inttypes.h>

#include <jansson.h>

#include "bench/session_impl.h"

/* What decides which sample comes at which position of the order. NULL: out of memory. Owner: caller. */
static json_t *
order_json(const shl_session_rank *r)
{
    const shl_session_config *c = r->cfg;
    int64_t windows = r->tokens ? shl_tokens_samples(r->tokens) : 0;
    return json_pack("{sI ss sf sI}", "data-seed", (json_int_t)c->data_seed, "shuffle",
                     c->in_order ? "off" : "on", "val-split", c->val_split, "data-windows",
                     (json_int_t)windows);
}

shl_code
shl_session_save(shl_session_rank *r)
{
    json_t *config = NULL;
    SHL_TRY(shl_session_config_json(r->cfg, &config));
    json_t *order = order_json(r);
    char *text =
        order && json_object_update(config, order) == 0 ? json_dumps(config, JSON_COMPACT) : NULL;
    json_decref(order);
    json_decref(config);
    if (!text) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration record");
    }
    int code = shl_lab_save(r->lab, r->cfg->ckpt_dir, r->data_sample, text);
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    release(text);
    r->out->save_ns = r->lab->save_ns;
    r->out->save_bytes = r->lab->save_bytes;
    return (shl_code)code;
}

/* The same on every rank. */
static shl_code
check_reach(const shl_session_rank *r)
{
    if (r->engine->step >= r->cfg->steps) {
        SHL_RAISE(SHL_E_USAGE, "nothing to do: the checkpoint is at step %" PRId64,
                  r->engine->step);
        shl_err_because("--steps is the step number to reach, and it is %" PRId64, r->cfg->steps);
        return shl_err_advice("--steps %" PRId64, r->engine->step + 10);
    }
    return SHL_OK;
}

shl_code
shl_session_resume(shl_session_rank *r)
{
    json_t *order = order_json(r);
    if (!order) {
        return SHL_RAISE(SHL_E_HEAP, "out of host memory for a configuration record");
    }
    r->lab->must_match = order;
    shl_code code = (shl_code)shl_lab_load(r->lab, r->cfg->ckpt_dir, &r->data_sample);
    r->lab->must_match = NULL;
    json_decref(order);
    SHL_TRY(code);
    return shl_lab_agree_code(r->lab, check_reach(r), "resume");
}
