"""bench/peers: trains GPT-2 by us and by PyTorch and DeepSpeed, on the same weights, batches, dtype
and threads, and prints one table. usage: see `peers.py --help`; `make peers` runs everything.

Two workloads: one process with two threads, and two ranks with one thread each. Speed is measured in
rounds over all trainers, with the machine's probes before and after each run; a ratio is the time
that FLOPs at the probed peak and AdamW's bytes at the probed rate would take, over the median step.
"""
import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time

import report

HERE = os.path.dirname(os.path.abspath(__file__))
OPTIM = {"lr": 6e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
SEED = 7
LOSSES = 10
WARM = 1
TIMEOUT_S = 600
WAIT_S = 120  # for a quiet machine, before each timed run

WORKLOADS = {
    "one": {"ranks": 1, "threads": 2, "batch": 4, "seq": 64, "trainers": [
        "shardlab-ddp", "torch-eager", "torch-compile"]},
    "two": {"ranks": 2, "threads": 1, "batch": 1, "seq": 256, "trainers": [
        "shardlab-ddp", "torch-ddp", "deepspeed-0",
        "shardlab-zero1", "deepspeed-1",
        "shardlab-zero2", "deepspeed-2",
        "shardlab-zero2-offload", "deepspeed-2-offload",
        "shardlab-zero3", "deepspeed-3", "deepspeed-3-release",
        "shardlab-fsdp", "fsdp2-true", "fsdp2-none",
        "shardlab-fsdp-grad-op", "fsdp2-false"]},
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--program", required=True, help="shardlab")
    p.add_argument("--bridge", required=True, help="the helper beside it")
    p.add_argument("--out", required=True, help="folder for exports, the table and the records, which are added to")
    p.add_argument("--model", default="gpt2-124m")
    p.add_argument("--rounds", type=int, default=3, help="rounds of timed runs")
    p.add_argument("--steps", type=int, default=3, help="timed steps of a run, after one to warm up")
    p.add_argument("--only", default="", help="trainers whose name has this")
    p.add_argument("--phase", choices=["losses", "speed", "table"], default="speed",
                   help="speed: all, where the first run of a trainer takes ten steps and counts its "
                   "traffic; losses: only that, for a busy machine, and a later speed will not repeat "
                   "it; table: print what was recorded")
    p.add_argument("--seq", type=int, help="positions in every workload (for small models)")
    return p.parse_args()


def run_json(*command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class CpuWatch:
    """Part of the machine's CPU time that others used, between start and stop."""

    def __init__(self):
        self.begin = self.now()

    @staticmethod
    def now():
        with open("/proc/stat") as f:
            words = [int(w) for w in f.readline().split()[1:9]]
        tick = os.sysconf("SC_CLK_TCK")
        idle, mine = words[3] + words[4], sum(os.times()[:4])
        return sum(words) / tick, (sum(words) - idle) / tick, mine

    def others(self):
        total, busy, mine = (b - a for a, b in zip(self.begin, self.now()))
        return round(max(0.0, (busy - mine) / total), 3)


def wait_until_quiet():
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        watch = CpuWatch()
        time.sleep(2)
        if watch.others() <= report.BUSY:
            return


def wait_all(processes):
    """Until all end; when one fails, time is up or we are stopped, the others are ended too."""
    end = time.monotonic() + TIMEOUT_S
    try:
        while any(p.poll() is None for p in processes):
            if any(p.poll() not in (None, 0) for p in processes) or time.monotonic() > end:
                break
            time.sleep(0.05)
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
            p.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Bench:
    def __init__(self, args):
        self.args = args
        self.records = os.path.join(args.out, "peers.jsonl")
        self.scratch = os.path.join(args.out, "scratch")
        self.exports = {}
        os.makedirs(self.scratch, exist_ok=True)

    def workload(self, name):
        w = dict(WORKLOADS[name], name=name)
        w["seq"] = self.args.seq or w["seq"]
        return w

    def export(self, w):
        """Weights and batches of a workload, once."""
        if w["name"] not in self.exports:
            folder = os.path.join(self.args.out, "export-" + w["name"])
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            shape = run_json(self.args.bridge, "export", folder, self.args.model, str(SEED),
                             str(w["seq"]), str(w["ranks"] * w["batch"]),
                             str(max(LOSSES, WARM + self.args.steps)))
            self.exports[w["name"]] = folder, shape
        return self.exports[w["name"]]

    def probe(self, w):
        return run_json(self.args.bridge, "probe", str(w["ranks"] * w["threads"]))

    def shardlab(self, w, trainer, steps, save):
        """Ours, as a user starts it. A save begins when the line of the last step has come, and `latest`
        is written at its end."""
        strategy, offload = trainer.split("-", 1)[1], trainer.endswith("-offload")
        strategy = strategy.removesuffix("-offload")
        command = [
            self.args.program, "train", "--model", self.args.model, "--strategy", strategy, "--ranks", str(w["ranks"]), "--launch",
            "processes" if w["ranks"] > 1 else "threads", "--threads", str(w["threads"]),
            "--batch", str(w["batch"]), "--seq", str(w["seq"]), "--steps", str(steps), "--data",
            "synthetic", "--seed", str(SEED), "--lr", str(OPTIM["lr"]), "--betas",
            ",".join(map(str, OPTIM["betas"])), "--eps", str(OPTIM["eps"]), "--weight-decay",
            str(OPTIM["weight_decay"]), "--timeout", "300", "--jsonl"]
        command += ["--offload-optimizer", "cpu"] if offload else []
        command += ["--ckpt-dir", save] if save else []
        out = {"losses": [], "step_s": []}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            for line in process.stdout:
                record = json.loads(line)
                if record["kind"] == "step":
                    out["losses"].append(record["loss"])
                    out["step_s"].append(record["step_ns"] * 1e-9)
                    last_step = time.time()
                    continue
                out["commit"] = record["fingerprint"]["commit"]
                out["rss_bytes"] = record["rss_bytes"] - self.start_rss()
                out["comm"] = {k: {"calls": c["calls"], "bytes": c["bytes"]}
                               for k, c in record["comm"].items() if c["calls"] and k != "control"}
        except BaseException:
            process.kill()
            raise
        finally:
            wait_all([process])
        if process.returncode != 0:
            return None
        if save:
            out["save_s"] = os.stat(os.path.join(save, "latest")).st_mtime - last_step
        return out

    def start_rss(self):
        process = subprocess.Popen([self.args.program, "info", "models"], stdout=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        return usage.ru_maxrss * 1024

    def peer(self, w, trainer, steps, save, count):
        folder, shape = self.export(w)
        job = dict(OPTIM, peer=trainer, shape=shape, ckpt=os.path.join(folder, "ckpt"),
                   tokens=os.path.join(folder, "tokens.i32"), steps=steps,
                   targets=os.path.join(folder, "targets.i32"), batch=w["batch"], seq=w["seq"],
                   threads=w["threads"], count=count, save=save,
                   result=os.path.join(self.scratch, "result.json"))
        path = os.path.join(self.scratch, "job.json")
        with open(path, "w") as f:
            json.dump(job, f)
        if os.path.exists(job["result"]):
            os.remove(job["result"])
        env = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()),
                   WORLD_SIZE=str(w["ranks"]), OMP_NUM_THREADS=str(w["threads"]),
                   GLOO_SOCKET_IFNAME="lo", DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
        with open(os.path.join(self.args.out, trainer + "-" + w["name"] + ".log"), "w") as log:
            wait_all([subprocess.Popen(
                [sys.executable, os.path.join(HERE, "worker.py"), path], stdout=log, stderr=log,
                env=dict(env, RANK=str(r), LOCAL_RANK=str(r))) for r in range(w["ranks"])])
        if not os.path.exists(job["result"]):
            return None
        with open(job["result"]) as f:
            return json.load(f)

    def run(self, phase, w, trainer):
        self.export(w)
        save = os.path.join(self.scratch, "save") if phase == "speed" else ""
        first = not self.has_losses(w, trainer)
        shutil.rmtree(os.path.join(self.scratch, "save"), ignore_errors=True)
        steps = LOSSES if first else WARM + self.args.steps
        if phase == "speed":
            wait_until_quiet()
        probes, watch = [self.probe(w)], CpuWatch()
        if trainer.startswith("shardlab"):
            result = self.shardlab(w, trainer, steps, save)
        else:
            result = self.peer(w, trainer, steps, save, first)
        others = watch.others()
        probes.append(self.probe(w))
        record = {"kind": "peer", "phase": phase, "workload": w["name"], "trainer": trainer,
                  "first": first, "others_cpu": others, "probes": probes, "failed": result is None}
        record.update(result or {})
        if save and result:
            record["save_bytes"] = folder_bytes(save)
            shutil.rmtree(save, ignore_errors=True)
        self.write(record)
        median = sorted(record.get("step_s", [0])[WARM:])
        print("%-7s %-4s %-22s %s" % (phase, w["name"], trainer, "failed" if record["failed"] else
              "%.3f s a step, others' CPU %.0f %%" % (median[len(median) // 2], 100 * others)),
              file=sys.stderr)

    def has_losses(self, w, trainer):
        with open(self.records) as f:
            records = [json.loads(line) for line in f]
        return any(r["kind"] == "peer" and r["first"] and not r["failed"] and
                   r["trainer"] == trainer and r["workload"] == w["name"] for r in records)

    def write(self, record):
        with open(self.records, "a") as f:
            f.write(json.dumps(record) + "\n")

    def write_header(self):
        self.write({
            "kind": "peers", "model": self.args.model, "date": time.strftime("%Y-%m-%d"),
            "cpu": cpu_name(), "cores": os.cpu_count(), "optim": OPTIM, "seed": SEED,
            "python": platform.python_version(), "versions": versions(),
            "workloads": {k: {f: v for f, v in self.workload(k).items() if f != "trainers"}
                          for k in WORKLOADS},
            "shapes": {k: self.export(self.workload(k))[1] for k in WORKLOADS},
            "disk_bytes_per_s": disk_rate(self.scratch)})


def folder_bytes(folder):
    return sum(os.path.getsize(os.path.join(at, name))
               for at, _, names in os.walk(folder) for name in names)


def disk_rate(folder, size=1 << 30, block=8 << 20):
    """Bytes/s of one large file written past the page cache, on the disk that saves go to."""
    import mmap
    path = os.path.join(folder, "disk-probe")
    buffer = mmap.mmap(-1, block)
    buffer.write(os.urandom(block))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
        begin = time.perf_counter()
        for _ in range(size // block):
            os.write(fd, buffer)
        os.fsync(fd)
        took = time.perf_counter() - begin
        os.close(fd)
    except OSError:
        return None
    finally:
        if os.path.exists(path):
            os.remove(path)
    return size / took


def cpu_name():
    names = {}
    with open("/proc/cpuinfo") as f:
        for line in f:
            key, _, value = line.partition(":")
            names.setdefault(key.strip(), value.strip())
    return "%s, family %s model %s" % tuple(
        names.get(k, "?") for k in ("model name", "cpu family", "model"))


def versions():
    from importlib.metadata import version
    return {name: version(name) for name in ("torch", "deepspeed", "numpy", "h5py")}


def main():
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(args)
    if args.phase != "table" and not os.path.exists(bench.records):
        bench.write_header()
    rounds = {"losses": 1, "speed": args.rounds, "table": 0}[args.phase]
    for _ in range(rounds):
        for name in WORKLOADS:
            for trainer in WORKLOADS[name]["trainers"]:
                if args.only in trainer:
                    bench.run(args.phase, bench.workload(name), trainer)
    for name in WORKLOADS:
        shutil.rmtree(os.path.join(args.out, "export-" + name), ignore_errors=True)
    with open(bench.records) as f:
        text = report.table([json.loads(line) for line in f])
    with open(os.path.join(args.out, "peers.md"), "w") as f:
        f.write(text)
    print(text, end="")


if __name__ == "__main__":
    main()
