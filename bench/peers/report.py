"""bench/peers: the table from the records that peers.py writes."""
from statistics import median

ADAMW_BYTES = 28
WARM = 1
TOLERANCE = 1e-5
BUSY = 0.10  # others' part of the CPU from which a timed run counts only for want of a better one


def limit_s(record, shape):
    """What FLOPs at the peak and AdamW's traffic would take, by the probes around the run."""
    flops = median(p["flops_per_s"] for p in record["probes"])
    traffic = median(p["bytes_per_s"] for p in record["probes"])
    return shape["flops"] / flops + ADAMW_BYTES * shape["params"] / traffic


def pick(records, **wanted):
    return [r for r in records if all(r.get(k) == v for k, v in wanted.items()) and not r["failed"]]


def quiet(runs):
    """Those that had the machine for themselves; all, if none had."""
    return [r for r in runs if r["others_cpu"] <= BUSY] or runs


def speed_cells(runs, shape, tokens):
    if not runs:
        return ["-"] * 5
    steps = [median(r["step_s"][WARM:]) for r in runs]
    ratios = [limit_s(r, shape) / s for r, s in zip(runs, steps)]
    load = max(r["others_cpu"] for r in runs)
    return ["%.3f" % median(steps), "%.0f" % (tokens / median(steps)), "%.2f" % median(ratios),
            "%.2f-%.2f of %d" % (min(ratios), max(ratios), len(runs)),
            "%.0f %%%s" % (100 * load, " (busy)" if load > BUSY else "")]


def traffic_text(comm):
    short = {"all_reduce": "AR", "all_gather": "AG", "reduce_scatter": "RS", "broadcast": "BC"}
    return ", ".join("%s %.1f in %d" % (short[k], c["bytes"] / 1e6, c["calls"])
                     for k, c in sorted(comm.items()) if c["bytes"]) or "none"


def loss_text(losses, ours):
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, ours))
    return worst, "%.1e" % worst if worst else "0"


def speed_table(records, head, name):
    w, shape = head["workloads"][name], head["shapes"][name]
    tokens = w["ranks"] * w["batch"] * w["seq"]
    out = ["| trainer | step s | tokens/s | ratio to limit | its range, runs | others' CPU | RSS B/param | collectives of "
           "a step, MB in calls | save s | GB/s | save B/param |",
           "|---|---|---|---|---|---|---|---|---|---|---|"]
    for trainer in dict.fromkeys(r["trainer"] for r in records if r["workload"] == name):
        runs = pick(records, workload=name, trainer=trainer)
        once = pick(runs, first=True)
        timed = quiet(pick(runs, phase="speed"))
        cells = speed_cells(timed, shape, tokens)
        cells.append("%.1f" % (median(r["rss_bytes"] for r in timed) / shape["params"])
                     if timed else "-")
        cells.append(traffic_text(once[0].get("comm", {})) if once else "-")
        if timed:
            seconds = median(r["save_s"] for r in timed)
            size = timed[0]["save_bytes"]
            cells += ["%.2f" % seconds, "%.2f" % (size / seconds / 1e9),
                      "%.2f" % (size / shape["params"])]
        else:
            cells += ["-"] * 3
        failed = sum(r["failed"] for r in records
                     if r["workload"] == name and r["trainer"] == trainer)
        label = trainer + (" (%d runs failed)" % failed if failed else "")
        out.append("| " + " | ".join([label] + cells) + " |")
    return out


def loss_table(records, name):
    runs = {r["trainer"]: r["losses"] for r in pick(records, workload=name, first=True)}
    if "shardlab-ddp" not in runs:
        return []
    ours = runs["shardlab-ddp"]
    out = ["| trainer | largest relative difference to shardlab-ddp | within %.0e | losses of steps 1-%d "
           "|" % (TOLERANCE, len(ours)), "|---|---|---|---|"]
    for trainer, losses in runs.items():
        worst, text = loss_text(losses, ours)
        out.append("| %s | %s | %s | %s |" % (trainer, text, "yes" if worst <= TOLERANCE else "NO",
                                              " ".join("%.6f" % x for x in losses)))
    return out


def table(records):
    head, runs = records[0], [r for r in records if r["kind"] == "peer"]
    timed = [r for r in runs if r["phase"] == "speed"] or runs
    probes = [p for r in timed for p in r["probes"]]
    out = ["# %s beside PyTorch and DeepSpeed" % head["model"], "",
           "%s, %d cores, %s; %s; Python %s; shardlab %s." % (
               head["cpu"], head["cores"], head["date"],
               ", ".join("%s %s" % kv for kv in head["versions"].items()), head["python"],
               next((r["commit"] for r in runs if r.get("commit")), "?")),
           "Same weights (our checkpoint of step 0), batches, fp32, threads, fused AdamW (lr %g, betas "
           "%g %g, eps %g, decay %g on matrices)." % (
               head["optim"]["lr"], *head["optim"]["betas"], head["optim"]["eps"],
               head["optim"]["weight_decay"]),
           "Limit = useful FLOPs / multiply-add peak + %d B per parameter / same-traffic rate; probes "
           "before and after every run, %s." % (ADAMW_BYTES, probes[0]["isa"]),
           "Probed: %.0f-%.0f GFLOP/s, %.0f-%.0f GB/s. Runs in which others took more than %.0f %% of "
           "the CPU are left out where there are better ones; where there are none, the row says busy "
           "and its times mean little." % (
               min(p["flops_per_s"] for p in probes) / 1e9,
               max(p["flops_per_s"] for p in probes) / 1e9,
               min(p["bytes_per_s"] for p in probes) / 1e9,
               max(p["bytes_per_s"] for p in probes) / 1e9, 100 * BUSY),
           "RSS: worst rank's peak over the steps less what it was before a model existed. MB (1e6): full "
           "buffers; AR all-reduce, AG all-gather, RS reduce-scatter.",
           "Save: parameters and moments, until they are on the disk" + (
               " (which takes %.2f GB/s written directly)." % (head["disk_bytes_per_s"] / 1e9)
               if head.get("disk_bytes_per_s") else "."), ""]
    for name, w in head["workloads"].items():
        if not any(r["workload"] == name for r in runs):
            continue
        out += ["## %d rank%s x %d thread%s, B %d, T %d each" % (
            w["ranks"], "s" * (w["ranks"] > 1), w["threads"], "s" * (w["threads"] > 1), w["batch"],
            w["seq"]), ""]
        out += speed_table(runs, head, name) + [""] + loss_table(runs, name) + [""]
    return "\n".join(out[:-1]) + "\n"
