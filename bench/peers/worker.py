"""bench/peers: one rank of one peer. usage: worker.py JOB (a JSON file; peers.py writes it).

Rank and world come from torchrun's environment variables. Rank 0 writes job["result"]: losses and
seconds of each step, RSS of the worst rank, collectives of one step, seconds and bytes of a save.
"""
import json
import os
import resource
import sys
import time

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2 import GPT2, load, param_groups


class CommBytes(TorchDispatchMode):
    """Counts collectives where they reach the dispatcher; bytes are those of the full buffer."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(t.__name__ == "DTensor" for t in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        if space in ("c10d", "_c10d_functional"):
            self.add(name, max([t.numel() * t.element_size() for t in tensors(list(args))] or [0]))
        return out

    def add(self, name, size):
        for kind in ("all_gather", "reduce_scatter", "all_reduce", "broadcast"):
            if kind.replace("_", "") in name.replace("_", ""):
                count = self.counts.setdefault(kind, {"calls": 0, "bytes": 0})
                count["calls"] += 1
                count["bytes"] += size


def tensors(x):
    if isinstance(x, torch.Tensor):
        return [x]
    return sum(map(tensors, x), []) if isinstance(x, (list, tuple)) else []


class Plain:
    """eager and torch.compile in one process, DistributedDataParallel in several."""

    def __init__(self, job, model):
        self.module = self.model = model
        if job["peer"] == "torch-ddp":
            from torch.nn.parallel import DistributedDataParallel
            self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        if job["peer"] == "torch-compile":
            self.model = torch.compile(model)
        self.optimizer = torch.optim.AdamW(
            param_groups(model, job["weight_decay"]), lr=job["lr"], betas=job["betas"],
            eps=job["eps"], fused=True)

    def step(self, tokens, targets):
        loss = self.model(tokens, targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def save(self, folder):
        if not dist.is_initialized() or dist.get_rank() == 0:
            state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, os.path.join(folder, "state.pt"))


class FSDP2(Plain):
    def __init__(self, job, model):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        reshard = {"true": True, "false": False, "none": None}[job["peer"].rsplit("-", 1)[1]]
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.h:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
        super().__init__(job, model)

    def save(self, folder):
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import get_state_dict
        model, optimizer = get_state_dict(self.module, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)


class DeepSpeed:
    def __init__(self, job, model):
        import deepspeed
        stage = int(job["peer"].split("-")[1])
        zero = {"stage": stage}
        if stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
        if job["peer"].endswith("-release"):
            zero.update(stage3_max_live_parameters=0, stage3_max_reuse_distance=0)
        adamw = {"lr": job["lr"], "betas": job["betas"], "eps": job["eps"],
                 "weight_decay": job["weight_decay"]}
        if job["peer"].endswith("-offload"):  # its own AdamW for host memory
            zero["offload_optimizer"] = {"device": "cpu"}
        else:
            adamw.update(torch_adam=True, fused=True)
        config = {"train_micro_batch_size_per_gpu": job["batch"], "gradient_accumulation_steps": 1,
                  "steps_per_print": 10**9, "gradient_clipping": 0.0, "zero_optimization": zero,
                  "optimizer": {"type": "AdamW", "params": adamw}}
        self.engine, *_ = deepspeed.initialize(
            model=model, model_parameters=param_groups(model, job["weight_decay"]), config=config)

    def step(self, tokens, targets):
        loss = self.engine(tokens, targets)
        self.engine.backward(loss)
        self.engine.step()
        return loss

    def save(self, folder):
        self.engine.save_checkpoint(folder, tag="step")


def open_peer(job, world):
    """The trainer, and this process's resident bytes with every library loaded and no model."""
    if job["peer"].startswith("deepspeed"):
        import deepspeed
        deepspeed.init_distributed("gloo", verbose=False)
    elif world > 1:
        import torch.distributed.fsdp  # noqa: F401
        dist.init_process_group("gloo")
    start = psutil.Process().memory_info().rss
    model = GPT2(job["shape"])
    load(model, job["ckpt"])
    kinds = {"torch": Plain, "fsdp2": FSDP2, "deepspeed": DeepSpeed}
    return kinds[job["peer"].split("-")[0]](job, model), start


def batch_of(job, rank, step):
    rows = slice(rank * job["batch"], (rank + 1) * job["batch"])
    return [torch.from_numpy(job[name][step, rows].astype(np.int64)) for name in ("tokens", "targets")]


def over_ranks(value, op):
    if not dist.is_initialized():
        return value
    t = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(t, op=op)
    return t.item()


def timed_save(peer, folder):
    """With everything on the disk: some formats do not wait for it by themselves."""
    os.makedirs(folder, exist_ok=True)
    if dist.is_initialized():
        dist.barrier()
    begin = time.perf_counter()
    peer.save(folder)
    os.sync()
    if dist.is_initialized():
        dist.barrier()
    return time.perf_counter() - begin


def main():
    with open(sys.argv[1]) as f:
        job = json.load(f)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(job["threads"])
    rows = world * job["batch"]
    for name in ("tokens", "targets"):
        job[name] = np.fromfile(job[name], dtype=np.int32).reshape(-1, rows, job["seq"])
    peer, start = open_peer(job, world)
    out = {"losses": [], "step_s": []}
    for step in range(job["steps"]):
        tokens, targets = batch_of(job, rank, step)
        begin = time.perf_counter()
        loss = peer.step(tokens, targets)
        out["step_s"].append(time.perf_counter() - begin)
        mean = over_ranks(loss.item(), dist.ReduceOp.SUM if world > 1 else None) / world
        out["losses"].append(mean)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out["rss_bytes"] = int(over_ranks(peak - start, dist.ReduceOp.MAX if world > 1 else None))
    if job["count"]:
        with CommBytes() as counter:
            peer.step(*batch_of(job, rank, 0))
        out["comm"] = counter.counts
    if job["save"]:
        out["save_s"] = timed_save(peer, job["save"])
    if rank == 0:
        with open(job["result"], "w") as f:
            json.dump(out, f)
    if world > 1:
        dist.barrier()
    # Some versions abort while they take gloo down; the result is written.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
