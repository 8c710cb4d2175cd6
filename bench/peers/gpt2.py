"""bench/peers: GPT-2 as a plain torch module, filled from one of our checkpoints.

Pre-norm blocks, tanh GELU, tied head; attention by torch's fused causal kernel. Parameters carry
the checkpoint's names; linear weights there are [in, out], as in Hugging Face, torch's are [out, in].
"""
import glob
import os

import h5py
import torch
import torch.nn as nn
import torch.nn.functional as F


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.heads, -1).transpose(1, 2) for t in self.c_attn(x).split(C, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """forward(tokens, targets) is the mean loss."""

    def __init__(self, shape):
        super().__init__()
        width = shape["width"]
        self.wte = nn.Embedding(shape["vocab"], width)
        self.wpe = nn.Embedding(shape["context"], width)
        self.h = nn.ModuleList(Block(width, shape["heads"]) for _ in range(shape["layers"]))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def load(model, ckpt_dir):
    """Fills model from the newest checkpoint below ckpt_dir, one tensor at a time."""
    step = sorted(glob.glob(os.path.join(ckpt_dir, "step-*")))[-1]
    shards = [h5py.File(path, "r") for path in sorted(glob.glob(os.path.join(step, "shard-*.h5")))]
    linear = {name + ".weight" for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, param in model.named_parameters():
        pieces = {}
        for shard in shards:
            for key, data in shard["param"].get(name, {}).items():
                pieces[int(key.split("-")[0])] = data[:]
        flat = torch.cat([torch.from_numpy(pieces[begin]) for begin in sorted(pieces)])
        with torch.no_grad():
            if name in linear:
                param.copy_(flat.view(param.shape[1], param.shape[0]).t())
            else:
                param.copy_(flat.view(param.shape))
    for shard in shards:
        shard.close()


def param_groups(model, weight_decay):
    """Decay on tensors of two or more dimensions, as ours."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
