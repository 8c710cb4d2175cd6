/* engines/config: DeepSpeed's schedules, number by number (deepspeed/runtime/lr_schedules.py), and the
 * Trainer's. Order of operations is theirs, so that traces agree to the last digits. */
#include "engines/config/ds_schedules.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define PI 3.14159265358979323846
/* OneCycle sets both betas; the second has no parameter. */
#define ONE_CYCLE_BETA2 0.99
#define NONE ((double)NAN)

enum { RT_MIN, RT_SIZE, RT_RATE, RT_STAIRS };
enum {
    OC_MIN_LR,
    OC_MAX_LR,
    OC_DECAY_LR,
    OC_FIRST,
    OC_SECOND,
    OC_FIRST_STAIRS,
    OC_SECOND_STAIRS,
    OC_DECAY_SIZE,
    OC_MOMENTUM,
    OC_MIN_MOM,
    OC_MAX_MOM,
    OC_DECAY_MOM
};
enum { WU_MIN, WU_MAX, WU_STEPS, WU_TYPE, WU_TOTAL };
enum { WC_TOTAL, WC_MIN_RATIO, WC_STEPS, WC_COS_MIN, WC_TYPE };
enum { HF_WARMUP, HF_TOTAL };

/* clang-format off */
static const shl_ds_schedule_param range_test[] = {
    {"lr_range_test_min_lr", 1e-3, false, false},
    {"lr_range_test_step_size", 2000.0, false, true},
    {"lr_range_test_step_rate", 1.0, false, false},
    {"lr_range_test_staircase", 0.0, false, true},
};
static const shl_ds_schedule_param one_cycle[] = {
    {"cycle_min_lr", NONE, true, false},
    {"cycle_max_lr", NONE, true, false},
    {"decay_lr_rate", 0.0, false, false},
    {"cycle_first_step_size", 2000.0, false, true},
    {"cycle_second_step_size", NONE, false, true},
    {"cycle_first_stair_count", 0.0, false, true},
    {"cycle_second_stair_count", NONE, false, true},
    {"decay_step_size", 0.0, false, true},
    {"cycle_momentum", 1.0, false, true},
    {"cycle_min_mom", 0.8, false, false},
    {"cycle_max_mom", 0.9, false, false},
    {"decay_mom_rate", 0.0, false, false},
};
static const shl_ds_schedule_param warmup[] = {
    {"warmup_min_lr", 0.0, false, false},
    {"warmup_max_lr", NONE, false, false},
    {"warmup_num_steps", 1000.0, false, true},
    {"warmup_type", 0.0, false, true},
};
static const shl_ds_schedule_param warmup_decay[] = {
    {"warmup_min_lr", 0.0, false, false},
    {"warmup_max_lr", 0.001, false, false},
    {"warmup_num_steps", 1000.0, false, true},
    {"warmup_type", 0.0, false, true},
    {"total_num_steps", NONE, true, true},
};
static const shl_ds_schedule_param warmup_cosine[] = {
    {"total_num_steps", NONE, true, true},
    {"warmup_min_ratio", 0.0, false, false},
    {"warmup_num_steps", 1000.0, false, true},
    {"cos_min_ratio", 0.0001, false, false},
    {"warmup_type", 0.0, false, true},
};
static const shl_ds_schedule_param trainer[] = {
    {"num_warmup_steps", 0.0, false, true},
    {"num_training_steps", NONE, true, true},
};
static const struct {
    const char *name;
    const shl_ds_schedule_param *params;
    int n;
} kinds[SHL_DS_SCHEDULE_COUNT] = {
    [SHL_DS_LR_RANGE_TEST] = {"LRRangeTest", range_test, (int)SHL_ARRAY_LEN(range_test)},
    [SHL_DS_ONE_CYCLE] = {"OneCycle", one_cycle, (int)SHL_ARRAY_LEN(one_cycle)},
    [SHL_DS_WARMUP_LR] = {"WarmupLR", warmup, (int)SHL_ARRAY_LEN(warmup)},
    [SHL_DS_WARMUP_DECAY_LR] = {"WarmupDecayLR", warmup_decay, (int)SHL_ARRAY_LEN(warmup_decay)},
    [SHL_DS_WARMUP_COSINE_LR] = {"WarmupCosineLR", warmup_cosine, (int)SHL_ARRAY_LEN(warmup_cosine)},
    [SHL_HF_CONSTANT] = {"hf-constant", trainer, (int)SHL_ARRAY_LEN(trainer)},
    [SHL_HF_LINEAR] = {"hf-linear", trainer, (int)SHL_ARRAY_LEN(trainer)},
    [SHL_HF_COSINE] = {"hf-cosine", trainer, (int)SHL_ARRAY_LEN(trainer)},
};
/* clang-format on */

const char *
shl_ds_schedule_name(shl_ds_schedule_kind kind)
{
    SHL_ASSERT((int)kind >= 0 && kind < SHL_DS_SCHEDULE_COUNT);
    return kinds[kind].name;
}

bool
shl_ds_schedule_find(const char *name, shl_ds_schedule_kind *out)
{
    for (int i = 0; i < SHL_DS_SCHEDULE_COUNT; i++) {
        if (strcmp(name, kinds[i].name) == 0) {
            *out = (shl_ds_schedule_kind)i;
            return true;
        }
    }
    return false;
}

const shl_ds_schedule_param *
shl_ds_schedule_params(shl_ds_schedule_kind kind, int *n)
{
    *n = kinds[kind].n;
    return kinds[kind].params;
}

int
shl_ds_schedule_param_index(shl_ds_schedule_kind kind, const char *name)
{
    for (int i = 0; i < kinds[kind].n; i++) {
        if (strcmp(name, kinds[kind].params[i].name) == 0) {
            return i;
        }
    }
    return -1;
}

void
shl_ds_schedule_init(shl_ds_schedule_kind kind, shl_ds_schedule *out)
{
    memset(out, 0, sizeof(*out));
    out->kind = kind;
    for (int i = 0; i < kinds[kind].n; i++) {
        out->p[i] = kinds[kind].params[i].fallback;
    }
}

static shl_code
raise_param(const shl_ds_schedule *s, int i, const char *limit)
{
    SHL_RAISE(SHL_E_USAGE, "%s: %s is %g", kinds[s->kind].name, kinds[s->kind].params[i].name,
              s->p[i]);
    return shl_err_because("%s", limit);
}

static shl_code
check_param(const shl_ds_schedule *s, int i)
{
    const shl_ds_schedule_param *row = &kinds[s->kind].params[i];
    double v = s->p[i];
    if (isnan(v)) {
        if (!row->required) {
            return SHL_OK;
        }
        SHL_RAISE(SHL_E_USAGE, "%s without %s", kinds[s->kind].name, row->name);
        return shl_err_because("it has no default");
    }
    if (!isfinite(v) || v < 0.0 || v > 1e15) {
        return raise_param(s, i, "it must be a number from 0");
    }
    if (row->whole && v != floor(v)) {
        return raise_param(s, i, "it must be whole");
    }
    return SHL_OK;
}

shl_code
shl_ds_schedule_check(const shl_ds_schedule *s)
{
    for (int i = 0; i < kinds[s->kind].n; i++) {
        SHL_TRY(check_param(s, i));
    }
    const char *positive[] = {"warmup_num_steps", "lr_range_test_step_size",
                              "cycle_first_step_size"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(positive); i++) {
        int at = shl_ds_schedule_param_index(s->kind, positive[i]);
        if (at >= 0 && s->p[at] < 1.0) {
            return raise_param(s, at, "it must be at least 1, as DeepSpeed asks");
        }
    }
    const char *switches[] = {"warmup_type", "lr_range_test_staircase", "cycle_momentum"};
    for (size_t i = 0; i < SHL_ARRAY_LEN(switches); i++) {
        int at = shl_ds_schedule_param_index(s->kind, switches[i]);
        if (at >= 0 && s->p[at] > 1.0) {
            return raise_param(s, at, "it is 0 or 1");
        }
    }
    if (s->kind != SHL_DS_ONE_CYCLE || s->p[OC_MOMENTUM] == 0.0) {
        return SHL_OK;
    }
    for (int i = OC_MIN_MOM; i <= OC_MAX_MOM; i++) {
        if (s->p[i] >= 1.0) {
            return raise_param(s, i, "a beta lies below 1");
        }
    }
    return SHL_OK;
}

static double
range_test_lr(const double *p, double t)
{
    double interval = (t + 1.0) / p[RT_SIZE];
    return p[RT_MIN] * (1.0 + p[RT_RATE] * (p[RT_STAIRS] > 0.0 ? floor(interval) : interval));
}

static double
one_cycle_scale(const double *p, double t)
{
    double first = p[OC_FIRST], second = isnan(p[OC_SECOND]) ? first : p[OC_SECOND];
    double total = first + second, at = t + 1.0, ratio = first / total;
    double x = 1.0 + at / total - floor(1.0 + at / total);
    bool rising = x <= ratio;
    double stairs = rising || isnan(p[OC_SECOND_STAIRS]) ? p[OC_FIRST_STAIRS] : p[OC_SECOND_STAIRS];
    if (stairs > 0.0) {
        double in_cycle = fmod(at, total);
        double position =
            in_cycle <= first ? in_cycle * stairs / first : (total - in_cycle) * stairs / second;
        return floor(position) / stairs;
    }
    return rising ? x / ratio : (x - 1.0) / (ratio - 1.0);
}

/* Batches of decay after the cycle; 0: still in it. */
static double
one_cycle_decay(const double *p, double t)
{
    double total = p[OC_FIRST] + (isnan(p[OC_SECOND]) ? p[OC_FIRST] : p[OC_SECOND]);
    return t < total ? 0.0 : t - total + 1.0;
}

static double
one_cycle_lr(const double *p, double t)
{
    double decay = one_cycle_decay(p, t);
    if (t < 0.0) {
        return p[OC_MIN_LR];
    }
    if (decay == 0.0) {
        return p[OC_MIN_LR] + (p[OC_MAX_LR] - p[OC_MIN_LR]) * one_cycle_scale(p, t);
    }
    if (p[OC_DECAY_SIZE] == 0.0) {
        return p[OC_MIN_LR];
    }
    return p[OC_MIN_LR] / (1.0 + p[OC_DECAY_LR] * (decay / p[OC_DECAY_SIZE]));
}

static double
one_cycle_beta1(const double *p, double t)
{
    double decay = one_cycle_decay(p, t);
    if (t < 0.0) {
        return p[OC_MIN_MOM];
    }
    if (decay == 0.0) {
        return p[OC_MAX_MOM] - (p[OC_MAX_MOM] - p[OC_MIN_MOM]) * one_cycle_scale(p, t);
    }
    if (p[OC_DECAY_SIZE] == 0.0) {
        return p[OC_MAX_MOM];
    }
    return p[OC_MAX_MOM] * (1.0 + p[OC_DECAY_MOM] * (decay / p[OC_DECAY_SIZE]));
}

static double
warmup_factor(double t, double n, double type)
{
    return type > 0.0 ? t / n : (1.0 / log(n)) * log(t + 1.0);
}

/* WarmupLR and WarmupDecayLR. */
static double
warmup_lr(const shl_ds_schedule *s, double optimizer_lr, double t)
{
    const double *p = s->p;
    double max_lr = isnan(p[WU_MAX]) ? optimizer_lr : p[WU_MAX];
    double n = fmax(2.0, p[WU_STEPS]), factor = 1.0;
    if (t < 0.0) {
        return p[WU_MIN];
    }
    if (t < n) {
        factor = warmup_factor(t, n, p[WU_TYPE]);
    } else if (s->kind == SHL_DS_WARMUP_DECAY_LR) {
        factor = fmax(0.0, (p[WU_TOTAL] - t) / fmax(1.0, p[WU_TOTAL] - n));
    }
    return p[WU_MIN] + (max_lr - p[WU_MIN]) * factor;
}

static double
warmup_cosine_ratio(const double *p, double t)
{
    double n = fmax(2.0, p[WC_STEPS]);
    if (t < 0.0) {
        return 0.0;
    }
    if (t < n) {
        return p[WC_MIN_RATIO] + warmup_factor(t, n, p[WC_TYPE]) * (1.0 - p[WC_MIN_RATIO]);
    }
    double progress = fmin(1.0, (t - n + 1.0) / fmax(1.0, p[WC_TOTAL] - n));
    double ratio = (1.0 + cos(PI * progress)) / 2.0;
    return fmax(0.0, p[WC_COS_MIN] + (1.0 - p[WC_COS_MIN]) * ratio);
}

/* transformers/optimization.py: get_{constant,linear,cosine}_schedule_with_warmup. */
static double
trainer_ratio(const shl_ds_schedule *s, double k)
{
    double n = s->p[HF_WARMUP], left = fmax(1.0, s->p[HF_TOTAL] - n);
    if (k < n) {
        return k / fmax(1.0, n);
    }
    if (s->kind == SHL_HF_LINEAR) {
        return fmax(0.0, (s->p[HF_TOTAL] - k) / left);
    }
    return s->kind == SHL_HF_CONSTANT ? 1.0 : fmax(0.0, 0.5 * (1.0 + cos(PI * ((k - n) / left))));
}

double
shl_ds_schedule_lr(const shl_ds_schedule *s, double optimizer_lr, int64_t step)
{
    double t = (double)step - 1.0; /* DeepSpeed's last_batch_iteration */
    switch (s->kind) {
    case SHL_DS_LR_RANGE_TEST:
        return range_test_lr(s->p, t);
    case SHL_DS_ONE_CYCLE:
        return one_cycle_lr(s->p, t);
    case SHL_DS_WARMUP_LR:
    case SHL_DS_WARMUP_DECAY_LR:
        return warmup_lr(s, optimizer_lr, t);
    case SHL_DS_WARMUP_COSINE_LR:
        return optimizer_lr * warmup_cosine_ratio(s->p, t);
    case SHL_HF_CONSTANT:
    case SHL_HF_LINEAR:
    case SHL_HF_COSINE:
        return optimizer_lr * trainer_ratio(s, (double)step);
    case SHL_DS_SCHEDULE_COUNT:
        break;
    }
    SHL_ASSERT(!"a kind of schedule");
    return 0.0;
}

bool
shl_ds_schedule_betas(const shl_ds_schedule *s, int64_t step, double *beta1, double *beta2)
{
    if (s->kind != SHL_DS_ONE_CYCLE || s->p[OC_MOMENTUM] == 0.0) {
        return false;
    }
    *beta1 = one_cycle_beta1(s->p, (double)step - 1.0);
    *beta2 = ONE_CYCLE_BETA2;
    return true;
}

void
shl_ds_schedule_format(const shl_ds_schedule *s, char *dst, size_t cap)
{
    shl_strf(dst, cap, "%s(", kinds[s->kind].name);
    const char *comma = "";
    for (int i = 0; i < kinds[s->kind].n; i++) {
        if (!isnan(s->p[i])) {
            size_t len = strlen(dst);
            shl_strf(dst + len, cap - len, "%s%s=%.17g", comma, kinds[s->kind].params[i].name,
                     s->p[i]);
            comma = ",";
        }
    }
    size_t len = strlen(dst);
    shl_strf(dst + len, cap - len, ")");
}

/* One "name=value" of len characters. */
static shl_code
parse_param(const char *text, size_t len, shl_ds_schedule *out)
{
    char word[96];
    shl_strf(word, sizeof(word), "%.*s", (int)len, text);
    char *equals = strchr(word, '=');
    if (len >= sizeof(word) || !equals) {
        SHL_RAISE(SHL_E_USAGE, "schedule: \"%s\" is not name=value", word);
        return shl_err_because("parameters are written name=value, with commas between");
    }
    *equals = '\0';
    int at = shl_ds_schedule_param_index(out->kind, word);
    if (at < 0) {
        SHL_RAISE(SHL_E_USAGE, "%s has no parameter \"%s\"", kinds[out->kind].name, word);
        return shl_err_because("it has %d others", kinds[out->kind].n);
    }
    return shl_parse_double(equals + 1, -1e300, 1e300, &out->p[at]);
}

shl_code
shl_ds_schedule_parse(const char *text, shl_ds_schedule *out)
{
    char name[32];
    size_t len = strcspn(text, "("), all = strlen(text);
    shl_ds_schedule_kind kind;
    shl_strf(name, sizeof(name), "%.*s", (int)len, text);
    if (!shl_ds_schedule_find(name, &kind) || text[len] != '(' || text[all - 1] != ')') {
        SHL_RAISE(SHL_E_USAGE, "unknown schedule \"%s\"", text);
        return shl_err_because("a schedule is written Name(parameter=value,...)");
    }
    shl_ds_schedule_init(kind, out);
    for (const char *at = text + len + 1; at < text + all - 1;) {
        size_t word = strcspn(at, ",)");
        SHL_TRY(parse_param(at, word, out));
        at += word + (at[word] == ',' ? 1 : 0);
    }
    return shl_ds_schedule_check(out);
}
