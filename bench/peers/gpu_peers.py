"""GPT-2 on one GPU by PyTorch and by us: the same weights, the same batches, bf16 with fp32 master weights and
AdamW, run in turn, told as ratios.

    python3 bench/peers/gpu_peers.py --program build/release/shardlab --out build/gpu

Needs python3 with torch and a GPU. Peers: eager and torch.compile, both with scaled_dot_product_attention
and fused AdamW. Weights are drawn here once and read by both sides (ours as --init-from); batches are an
llm.c .bin file that both read in order. Every line is written as it is known; ctrl-C keeps what there is.
"""
import argparse
import json
import math
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

MODELS = {  # layers, width, heads, micro-batch by card memory in GiB (largest first)
    "gpt2-tiny": (4, 128, 4, ((0, 4),)),
    "gpt2-124m": (12, 768, 12, ((70, 32), (38, 16), (20, 8), (0, 4))),
    "gpt2-1.5b": (48, 1600, 25, ((130, 16), (70, 8), (38, 2), (0, 1))),
}
LR, BETAS, EPS, DECAY, STD = 1e-4, (0.9, 0.95), 1e-8, 0.1, 0.02
SAME_LOSS = 5e-3  # relative; both sides compute in bf16, each in its own order
BIN_MAGIC, BIN_VERSION = 20240520, 1


def shapes(layers, width, vocab, context):
    """Names as in Hugging Face's GPT-2 (Conv1D weights lie [in, out])."""
    out = {"wte.weight": (vocab, width), "wpe.weight": (context, width)}
    for i in range(layers):
        h = f"h.{i}."
        out[h + "ln_1.weight"] = out[h + "ln_1.bias"] = (width,)
        out[h + "attn.c_attn.weight"], out[h + "attn.c_attn.bias"] = (width, 3 * width), (3 * width,)
        out[h + "attn.c_proj.weight"], out[h + "attn.c_proj.bias"] = (width, width), (width,)
        out[h + "ln_2.weight"] = out[h + "ln_2.bias"] = (width,)
        out[h + "mlp.c_fc.weight"], out[h + "mlp.c_fc.bias"] = (width, 4 * width), (4 * width,)
        out[h + "mlp.c_proj.weight"], out[h + "mlp.c_proj.bias"] = (4 * width, width), (width,)
    out["ln_f.weight"] = out["ln_f.bias"] = (width,)
    return out


def draw(torch, names, seed):
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in names.items():
        if name.endswith("bias"):
            out[name] = torch.zeros(shape)
        elif ".ln_" in name or name.startswith("ln_"):
            out[name] = torch.ones(shape)
        else:
            out[name] = torch.randn(shape, generator=g) * STD
    return out


def write_safetensors(path, tensors):
    """The format of Hugging Face's safetensors: a length, a JSON header, the bytes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        n = t.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        for t in tensors.values():
            f.write(memoryview(t.contiguous().numpy()).cast("B"))


def read_safetensors(torch, path):
    """The same tensors again, mapped: much sooner than drawn anew."""
    import numpy
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(n))
    header.pop("__metadata__", None)
    every = torch.from_numpy(numpy.memmap(path, dtype="float32", mode="c", offset=8 + n))
    return {name: every[at["data_offsets"][0] // 4:at["data_offsets"][1] // 4].view(at["shape"])
            for name, at in header.items()}


def write_batches(torch, path, vocab, n):
    """llm.c's .bin: 256 words of header, then 16-bit tokens."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocab, (n,), generator=g)
    with open(path, "wb") as f:
        f.write(struct.pack("<256i", BIN_MAGIC, BIN_VERSION, n, *([0] * 253)))
        f.write(tokens.to(torch.int32).numpy().astype("uint16").tobytes())
    return tokens


class Teller:
    """One line a run on stdout and in the file, as it comes."""

    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8")

    def tell(self, row):
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if "step_ms" in row:
            print(f"{row['model']:10} {row['who']:9} round {row['round']}: {row['tokens_per_s']:12.0f} tokens/s"
                  f"  {row['step_ms']:8.2f} ms/step  peak {row['peak_bytes'] / 2**30:6.2f} GiB"
                  f"  losses {row['losses'][0]:.4f} .. {row['losses'][-1]:.4f}", flush=True)
        else:
            print(row.get("text", json.dumps(row)), flush=True)


def build(torch, layers, width, heads, vocab, context):
    """The model as a plain module; parameters are those of `shapes`."""
    import torch.nn.functional as F
    from torch import nn

    class Linear(nn.Module):  # Conv1D of GPT-2: weight [in, out]
        def __init__(self, i, o):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.empty(i, o)), nn.Parameter(torch.empty(o))

        def forward(self, x):
            return F.linear(x, self.weight.t(), self.bias)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn, self.c_proj = Linear(width, 3 * width), Linear(width, width)

        def forward(self, x):
            b, t, c = x.shape
            q, k, v = (y.view(b, t, heads, c // heads).transpose(1, 2)
                       for y in self.c_attn(x).split(width, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.c_proj(y.transpose(1, 2).reshape(b, t, c))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc, self.c_proj = Linear(width, 4 * width), Linear(4 * width, width)

        def forward(self, x):
            return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.attn = nn.LayerNorm(width), Attention()
            self.ln_2, self.mlp = nn.LayerNorm(width), Mlp()

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
            self.h = nn.ModuleList(Block() for _ in range(layers))
            self.ln_f = nn.LayerNorm(width)

        def forward(self, tokens, targets):
            x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
            for block in self.h:
                x = block(x)
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    return Gpt()


def rows_of(tokens, step, batch, seq):
    """The windows of a step, seq + 1 tokens each, in the order of the file."""
    first = step * batch * (seq + 1)
    windows = tokens[first:first + batch * (seq + 1)].view(batch, seq + 1)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def run_torch(torch, o, spec, weights, tokens, batch, compiled):
    """Steps of the peer: bf16 by autocast over fp32 weights, fused AdamW."""
    layers, width, heads, _ = spec
    device = torch.device(o.torch_device)
    on_gpu = device.type == "cuda"
    model = build(torch, layers, width, heads, o.vocab, o.seq).to(device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": DECAY},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, fused=on_gpu or None)
    call = torch.compile(model) if compiled else model
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    losses, times = [], []
    for step in range(o.warm + o.steps):
        x, y = rows_of(tokens, step, batch, o.seq)
        x, y = x.to(device), y.to(device)
        if on_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = call(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())  # waits, as ours does once a step
        times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return losses, times[o.warm:], peak


def run_child(o, words):
    """A process to its end or its deadline, with all that it started; its stdout."""
    left = o.begin + o.budget + o.grace - time.monotonic()
    deadline = max(1.0, min(o.deadline, left))
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as child:
        try:
            out, err = child.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"ended by force after {deadline:.0f} s") from None
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    if child.returncode != 0:
        at = err.find("error: ")
        text = " ".join(err[at:].split()) if at >= 0 else (err.strip().splitlines() or [""])[-1]
        raise RuntimeError(text or f"exit code {child.returncode}")
    return out


def torch_in_child(o, model, batch, compiled, folder):
    """A process of its own, so that memory is given back whole."""
    words = [sys.executable, os.path.abspath(__file__), "--peer", "compile" if compiled else "eager", "--model",
             model, "--batch", str(batch), "--folder", folder, "--steps", str(o.steps), "--warm", str(o.warm),
             "--seq", str(o.seq), "--vocab", str(o.vocab), "--torch-device", o.torch_device]
    return json.loads(run_child(o, words).strip().splitlines()[-1])


def run_ours(o, spec, batch, folder):
    layers, width, heads, _ = spec
    words = [o.program, "train", "--device", o.device, "--dtype", "bf16", "--init-from", folder, "--vocab",
             str(o.vocab), "--context", str(o.seq), "--layers", str(layers), "--width", str(width), "--heads",
             str(heads), "--data", os.path.join(folder, "tokens.bin"), "--shuffle", "off", "--batch", str(batch),
             "--seq", str(o.seq), "--steps", str(o.warm + o.steps), "--lr", str(LR), "--betas",
             f"{BETAS[0]},{BETAS[1]}", "--eps", str(EPS), "--weight-decay", str(DECAY), "--attention",
             o.attention, "--jsonl"]
    rows = [json.loads(line) for line in run_child(o, words).splitlines() if line.startswith("{")]
    steps = [r for r in rows if r["kind"] == "step"]
    run = [r for r in rows if r["kind"] == "run"][-1]
    return {"losses": [s["loss"] for s in steps], "times": [s["step_ns"] * 1e-9 for s in steps[o.warm:]],
            "peak": run["peak_bytes"]["device"]["total"]}


def prepare(torch, o, model, batch, folder):
    """Weights and batches of a model in a folder that both sides read."""
    layers, width, heads, _ = MODELS[model]
    weights = draw(torch, shapes(layers, width, o.vocab, o.seq), 0)
    write_safetensors(os.path.join(folder, "model.safetensors"), weights)
    write_batches(torch, os.path.join(folder, "tokens.bin"), o.vocab,
                  (o.warm + o.steps) * batch * (o.seq + 1))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump({"model_type": "gpt2", "vocab_size": o.vocab, "n_positions": o.seq, "n_layer": layers,
                   "n_embd": width, "n_head": heads, "activation_function": "gelu_new",
                   "layer_norm_epsilon": 1e-5, "architectures": ["GPT2LMHeadModel"]}, f)


def tell(teller, o, model, who, at, batch, r):
    ms = statistics.median(r["times"]) * 1e3
    teller.tell({"kind": "gpu-peers", "schema": 1, "model": model, "who": who, "round": at, "batch": batch,
                 "seq": o.seq, "step_ms": ms, "tokens_per_s": batch * o.seq / ms * 1e3, "losses": r["losses"],
                 "peak_bytes": r["peak"]})
    return ms


def compare(teller, o, model, times, losses):
    for who in ("eager", "compile"):
        wanted = 1.05 if who == "compile" else None
        row = {"kind": "gpu-peers", "schema": 1, "model": model, "against": who, "ratio": None, "wanted": wanted}
        goal = f"  wanted {wanted}" if wanted else ""
        pairs = [(a, b) for a, b in zip(times["ours"], times[who]) if a and b]
        if not pairs:
            teller.tell(row | {"verdict": "not measured", "text": f"{model:10} ours / {who:8} not measured{goal}"})
            continue
        ratio = statistics.median(b / a for a, b in pairs)
        off = max((abs(a - b) / abs(b) for a, b in zip(losses["ours"], losses[who])), default=math.inf)
        same = off <= SAME_LOSS
        verdict = ("" if not wanted else "PASS" if ratio >= wanted else "below") if same else "another training"
        teller.tell(row | {"ratio": ratio, "loss_off": off, "verdict": verdict, "rounds": len(pairs), "text":
                           f"{model:10} ours / {who:8} ratio {ratio:.3f} of its tokens/s{goal}  {verdict}  "
                           f"({len(pairs)} rounds; losses within {off:.1e}, {SAME_LOSS:g} allowed)"})


def child(o):
    import torch
    torch.backends.cuda.matmul.allow_tf32 = True
    weights = read_safetensors(torch, os.path.join(o.folder, "model.safetensors"))
    tokens = write_batches(torch, os.devnull, o.vocab, (o.warm + o.steps) * o.batch * (o.seq + 1))
    losses, times, peak = run_torch(torch, o, MODELS[o.model], weights, tokens, o.batch, o.peer == "compile")
    print(json.dumps({"losses": losses, "times": times, "peak": peak}))


def rounds(torch, o, teller, model, batch, folder):
    """All runs of a model in turn, then their ratios; a run that fails is told and left out."""
    times = {"ours": [], "eager": [], "compile": []}
    losses = {"ours": [], "eager": [], "compile": []}
    ready = None
    for at in range(o.rounds):
        order = ["ours", "eager", "compile"]
        for who in order if at % 2 == 0 else reversed(order):
            ms = None
            try:
                if time.monotonic() - o.begin > o.budget:
                    raise RuntimeError("not reached: the time is over")
                ready = ready or prepare(torch, o, model, batch, folder) or True
                r = (run_ours(o, MODELS[model], batch, folder) if who == "ours"
                     else torch_in_child(o, model, batch, who == "compile", folder))
                ms = tell(teller, o, model, who, at, batch, r)
                losses[who] = r["losses"]
            except (RuntimeError, OSError, ValueError, KeyError, IndexError) as e:
                teller.tell({"kind": "gpu-peers", "schema": 1, "model": model, "who": who, "round": at,
                             "text": f"{model:10} {who:9} round {at}: not measured: {str(e)[:400]}"})
            times[who].append(ms)
    compare(teller, o, model, times, losses)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--program", default="build/release/shardlab")
    p.add_argument("--device", default="cuda", help="of ours")
    p.add_argument("--torch-device", default="cuda")
    p.add_argument("--out", default="build/gpu")
    p.add_argument("--models", default="gpt2-124m,gpt2-1.5b")
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--warm", type=int, default=4)
    p.add_argument("--seq", type=int, default=1024)
    p.add_argument("--vocab", type=int, default=50257)
    p.add_argument("--attention", default="own", choices=["own", "cudnn"])
    p.add_argument("--deadline", type=float, default=240, help="seconds of one run")
    p.add_argument("--budget", type=float, default=490, help="seconds after which no run begins")
    p.add_argument("--grace", type=float, default=30, help="seconds behind them that a run in progress has left")
    p.add_argument("--scratch", help="folder for weights, 6 GB of them for 1.5B (the system's for such files)")
    p.add_argument("--peer", help=argparse.SUPPRESS)
    p.add_argument("--model", help=argparse.SUPPRESS)
    p.add_argument("--folder", help=argparse.SUPPRESS)
    p.add_argument("--batch", type=int, default=0)
    o = p.parse_args()
    if o.peer:
        return child(o)
    try:
        import torch
    except ImportError:
        print("error: python3 has no torch\n  try: GPU_PYTHON=/path/of/python3 make gpu-peers", file=sys.stderr)
        return 2
    if o.torch_device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU", file=sys.stderr)
        return 2
    o.begin = time.monotonic()
    os.makedirs(o.out, exist_ok=True)
    teller = Teller(os.path.join(o.out, "gpu-peers.jsonl"))
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if o.torch_device == "cuda" else 0
    teller.tell({"kind": "gpu-peers", "schema": 1, "torch": torch.__version__, "text":
                 f"torch {torch.__version__}, {torch.cuda.get_device_name(0) if gib else 'cpu'}",
                 "card": torch.cuda.get_device_name(0) if gib else None})
    for model in o.models.split(","):
        batch = o.batch or next(b for least, b in MODELS[model][3] if gib >= least)
        with tempfile.TemporaryDirectory(prefix="gpu-peers-", dir=o.scratch) as folder:
            rounds(torch, o, teller, model, batch, folder)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: what was measured is kept", file=sys.stderr)
        sys.exit(130)
