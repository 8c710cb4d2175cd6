/* bench: DeepSpeed's hostfile and its selections (launcher/runner.py): "host slots=4" lines,
 * --include host:0,1@other, --exclude, --num_nodes, --num_gpus. One host runs here; without a file it is
 * called localhost. */
#include <string.h>

#include "bench/ds_options.h"
#include "kernels/base/heap.h"
#include "kernels/base/types.h"

#define MAX_HOSTS 256
#define MAX_SLOTS 1024
/* Without a hostfile, as DeepSpeed has it: this machine, with any slot. */
#define THIS_HOST "localhost slots=1024"

typedef struct host {
    char name[128];
    int slots;
    bool on[MAX_SLOTS];
} host;

typedef struct pool {
    host hosts[MAX_HOSTS];
    int n;
} pool;

static shl_code
raise_line(int line, const char *why)
{
    SHL_RAISE(SHL_E_CONFIG, "hostfile:%d: not a host", line);
    shl_err_because("%s", why);
    return shl_err_advice("worker-1 slots=4");
}

static host *
find_host(pool *p, const char *name, size_t len)
{
    for (int i = 0; i < p->n; i++) {
        if (strlen(p->hosts[i].name) == len && strncmp(p->hosts[i].name, name, len) == 0) {
            return &p->hosts[i];
        }
    }
    return NULL;
}

static shl_code
add_line(pool *p, const char *text, size_t len, int line)
{
    size_t skip = strspn(text, " \t");
    size_t name = strcspn(text + skip, " \t#\r\n");
    char number[16];
    int64_t slots;
    if (skip >= len || text[skip] == '#' || name == 0) {
        return SHL_OK;
    }
    const char *rest = text + skip + name;
    rest += strspn(rest, " \t");
    if (strncmp(rest, "slots=", 6) != 0 || name >= sizeof(p->hosts[0].name)) {
        return raise_line(line, "a line is a name and slots=N");
    }
    shl_strf(number, sizeof(number), "%.*s", (int)strcspn(rest + 6, " \t#\r\n"), rest + 6);
    if (shl_parse_int(number, 1, MAX_SLOTS, &slots) != SHL_OK) {
        return raise_line(line, "slots is a number from 1");
    }
    if (find_host(p, text + skip, name) || p->n == MAX_HOSTS) {
        return raise_line(line, p->n == MAX_HOSTS ? "more than 256 hosts" : "named twice");
    }
    host *h = &p->hosts[p->n++];
    shl_strf(h->name, sizeof(h->name), "%.*s", (int)name, text + skip);
    h->slots = (int)slots;
    memset(h->on, true, (size_t)slots);
    return SHL_OK;
}

static shl_code
read_pool(pool *p, const char *text)
{
    int line = 0;
    while (*text) {
        size_t len = strcspn(text, "\n");
        SHL_TRY(add_line(p, text, len, ++line));
        text += len + (text[len] ? 1 : 0);
    }
    return SHL_OK;
}

static shl_code
raise_choice(const char *flag, const char *text, const char *why)
{
    SHL_RAISE(SHL_E_USAGE, "--%s: \"%s\"", flag, text);
    shl_err_because("%s", why);
    return shl_err_advice("--%s worker-1:0,1@worker-2", flag);
}

/* One "host" or "host:0,1": marks its slots. */
static shl_code
mark(pool *p, const char *flag, const char *at, size_t len, bool value)
{
    size_t name = strcspn(at, ":@");
    host *h = find_host(p, at, name < len ? name : len);
    if (!h) {
        return raise_choice(flag, at, "no host of this name in the hostfile");
    }
    if (name >= len) {
        memset(h->on, value, (size_t)h->slots);
        return SHL_OK;
    }
    for (const char *slot = at + name + 1; slot < at + len;) {
        char number[16];
        int64_t i;
        size_t digits = strcspn(slot, ",@");
        shl_strf(number, sizeof(number), "%.*s", (int)digits, slot);
        if (shl_parse_int(number, 0, h->slots - 1, &i) != SHL_OK) {
            return raise_choice(flag, at, "a slot that the host does not have");
        }
        h->on[i] = value;
        slot += digits + 1;
    }
    return SHL_OK;
}

static shl_code
choose(pool *p, const char *flag, const char *text, bool value)
{
    for (int i = 0; value && i < p->n; i++) {
        memset(p->hosts[i].on, false, (size_t)p->hosts[i].slots);
    }
    while (*text) {
        size_t len = strcspn(text, "@");
        SHL_TRY(mark(p, flag, text, len, value));
        text += len + (text[len] ? 1 : 0);
    }
    return SHL_OK;
}

static shl_code
raise_hosts(int64_t n)
{
    SHL_RAISE(SHL_E_USAGE, "%lld hosts", (long long)n);
    shl_err_because("this program runs the ranks of one host");
    return shl_err_advice("--include HOST, or plan for larger worlds");
}

static shl_code
count(const shl_ds_options *o, const pool *p, int64_t *ranks)
{
    int64_t hosts = 0;
    *ranks = 0;
    for (int i = 0; i < p->n; i++) {
        int64_t slots = 0;
        for (int j = 0; j < p->hosts[i].slots; j++) {
            slots += p->hosts[i].on[j] ? 1 : 0;
        }
        if (slots > 0 && (o->num_nodes == 0 || hosts < o->num_nodes)) {
            hosts++;
            *ranks = o->num_slots > 0 && o->num_slots < slots ? o->num_slots : slots;
        }
    }
    if (hosts == 0) {
        SHL_RAISE(SHL_E_USAGE, "no host is left");
        return shl_err_because("the selection takes none of the hostfile's slots");
    }
    return hosts > 1 ? raise_hosts(hosts) : SHL_OK;
}

shl_code
shl_ds_hosts(const shl_ds_options *o, const char *text, int64_t *ranks)
{
    pool *p = NULL;
    shl_code code;
    *ranks = o->num_slots;
    if (o->include && o->exclude) {
        SHL_RAISE(SHL_E_USAGE, "--include beside --exclude");
        return shl_err_because("DeepSpeed takes one of them");
    }
    if (!text && !o->include && !o->exclude) {
        return o->num_nodes > 1 ? raise_hosts(o->num_nodes) : SHL_OK;
    }
    if (!text && (o->exclude || !strchr(o->include, ':'))) {
        SHL_RAISE(SHL_E_USAGE, "--%s without a hostfile", o->include ? "include" : "exclude");
        shl_err_because(
            "nothing says how many slots the host has; slots by number need no hostfile");
        return shl_err_advice("--include localhost:0,1, or --ranks 2");
    }
    if ((o->include || o->exclude) && (o->num_slots > 0 || o->num_nodes > 0)) {
        SHL_RAISE(SHL_E_USAGE, "--num_gpus or --num_nodes beside --include or --exclude");
        return shl_err_because("DeepSpeed takes one of the two ways to choose");
    }
    SHL_TRY(shl_heap_alloc(1, sizeof(*p), &p));
    SHL_TRY_TO(code, out, read_pool(p, text ? text : THIS_HOST));
    if (o->include) {
        SHL_TRY_TO(code, out, choose(p, "include", o->include, true));
    } else if (o->exclude) {
        SHL_TRY_TO(code, out, choose(p, "exclude", o->exclude, false));
    }
    code = count(o, p, ranks);
out:
    shl_heap_free(&p);
    return code;
}
