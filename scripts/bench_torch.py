#!/usr/bin/env python3
"""The architecture of duet's presets as one would write it in PyTorch, and a race against duet on the CPU.

    scripts/bench_torch.py --preset bench --threads 1 --steps 5      one JSON line like that of `duet bench`
    scripts/bench_torch.py --duet ./duet                             both in turn, A B A B ..., ratios and their median
    scripts/bench_torch.py --device cuda --preset base --compile     on a GPU; scripts/gpu_day.sh puts duet's beside it

A training step is the same work in both: forward, cross-entropy and sequence-wise balance loss, backward, gradient norm and
clipping, AdamW, the router's bias. Of the usual ways to write a part the one that was fastest on a CPU is taken: experts as a
loop over contiguous slices of the tokens sorted by expert, gate and up projection as two matrices, values padded to the keys'
width so that scaled_dot_product_attention takes its fused kernel, AdamW fused. torch.compile takes minutes to compile this and
gains nothing on a CPU, where the time is in matrix products.

--grouped, the default on a GPU, is what one writes for a GPU: all experts' products as one grouped_mm whose group sizes stay
on the GPU, gate and up projection as one matrix, rotary angles without complex numbers, which torch.compile does not take, the
vocabulary padded to a multiple of 64. --dtype bf16, the default there, is autocast: weights, gradients and moments are fp32.
"""
import argparse
import json
import math
import pathlib
import re
import statistics
import subprocess
import time
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

COMMON = dict(vocab_size=256, first_k_dense=1, n_shared=1, topk=2, rope_theta=10000.0, balance_loss=1e-4)
PRESETS = {
    "bench": SimpleNamespace(**COMMON, d_model=256, n_layers=4, n_heads=8, q_lora_rank=0, kv_lora_rank=64, nope=32, rope=16,
                             v=32, d_ff=1024, d_expert=512, n_routed=16, n_group=1, topk_group=1, scaling=1.0, seq_len=256,
                             batch=8),
    "tiny": SimpleNamespace(**COMMON, d_model=64, n_layers=8, n_heads=4, q_lora_rank=24, kv_lora_rank=32, nope=16, rope=8, v=16,
                            d_ff=128, d_expert=32, n_routed=8, n_group=4, topk_group=2, scaling=1.5, seq_len=64, batch=1),
    "base": SimpleNamespace(**{**COMMON, "vocab_size": 50257}, d_model=768, n_layers=12, n_heads=12, q_lora_rank=384,
                            kv_lora_rank=256, nope=64, rope=32, v=64, d_ff=3072, d_expert=768, n_routed=16, n_group=4,
                            topk_group=2, scaling=1.5, seq_len=1024, batch=4),
}


def preset(args):
    """The preset with --model's sizes, by the names of duet train, in their place."""
    c = SimpleNamespace(**vars(PRESETS[args.preset]))
    names = {"qk_nope_head_dim": "nope", "qk_rope_head_dim": "rope", "v_head_dim": "v"}
    for size in filter(None, args.model.split(",")):
        key, value = size.split("=")
        assert hasattr(c, names.get(key, key)), f"--model: found {key}, expected a size of duet train's"
        setattr(c, names.get(key, key), int(value))
    c.batch = args.batch or c.batch
    c.grouped = args.device == "cuda" if args.grouped is None else args.grouped
    c.padded_vocab = -(-c.vocab_size // 64) * 64 if c.grouped else c.vocab_size
    return c


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


def rotate(x, cis):
    """RoPE on interleaved pairs: x [batch, seq, heads, rope], cis [seq, rope / 2] complex, or [2, seq, rope / 2] real."""
    if not cis.is_complex():
        (a, b), (cos, sin) = x.float().unflatten(-1, (-1, 2)).unbind(-1), cis[:, :, None]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * cis[:, None]).flatten(-2)


class Attention(nn.Module):
    """Multi-head Latent Attention."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        q = c.n_heads * (c.nope + c.rope)
        rank = c.q_lora_rank
        self.q_proj = (nn.Sequential(linear(c.d_model, rank), nn.RMSNorm(rank, 1e-6), linear(rank, q)) if rank
                       else linear(c.d_model, q))
        self.kv_a_proj = linear(c.d_model, c.kv_lora_rank + c.rope)
        self.kv_a_norm = nn.RMSNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = linear(c.kv_lora_rank, c.n_heads * (c.nope + c.v))
        self.o_proj = linear(c.n_heads * c.v, c.d_model)

    def forward(self, x, cis):
        c = self.c
        q_nope, q_rope = self.q_proj(x).unflatten(-1, (c.n_heads, -1)).split([c.nope, c.rope], dim=-1)
        latent, k_rope = self.kv_a_proj(x).split([c.kv_lora_rank, c.rope], dim=-1)
        k_nope, v = self.kv_b_proj(self.kv_a_norm(latent)).unflatten(-1, (c.n_heads, -1)).split([c.nope, c.v], dim=-1)
        q = torch.cat([q_nope, rotate(q_rope, cis)], dim=-1)
        k = torch.cat([k_nope, rotate(k_rope.unsqueeze(2), cis).expand(-1, -1, c.n_heads, -1)], dim=-1)
        v = F.pad(v, (0, c.nope + c.rope - c.v))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.o_proj(y.transpose(1, 2)[..., :c.v].flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, d_model, width):
        super().__init__()
        self.gate, self.up, self.down = linear(d_model, width), linear(d_model, width), linear(width, d_model)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GroupedSwiGLU(nn.Module):
    """All experts' at once: `ends` says where each one's rows end."""

    def __init__(self, experts, d_model, width):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, d_model, 2 * width))
        self.down = nn.Parameter(torch.empty(experts, width, d_model))

    def forward(self, x, ends):
        dtype = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else x.dtype
        gate, up = F.grouped_mm(x.to(dtype), self.gate_up.to(dtype), offs=ends).chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, self.down.to(dtype), offs=ends)


class MoE(nn.Module):
    """DeepSeekMoE: shared experts, sigmoid affinities, node-limited groups, the bias of auxiliary-loss-free balancing."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.gate = linear(c.d_model, c.n_routed)
        self.register_buffer("bias", torch.zeros(c.n_routed))
        self.register_buffer("load", torch.zeros(c.n_routed))
        self.shared = SwiGLU(c.d_model, c.n_shared * c.d_expert)
        self.experts = (GroupedSwiGLU(c.n_routed, c.d_model, c.d_expert) if c.grouped
                        else nn.ModuleList(SwiGLU(c.d_model, c.d_expert) for _ in range(c.n_routed)))

    def choose(self, scores):
        c = self.c
        choice = scores + self.bias
        if c.topk_group < c.n_group:
            groups = choice.unflatten(-1, (c.n_group, -1))
            best = groups.topk(2, dim=-1)[0].sum(-1).topk(c.topk_group, dim=-1)[1]
            keep = torch.zeros(len(scores), c.n_group, dtype=torch.bool, device=scores.device).scatter_(1, best, True)
            choice = groups.masked_fill(~keep[..., None], -math.inf).flatten(1)
        return choice.topk(c.topk, dim=-1)[1]

    def balance_loss(self, scores, sequences):
        c = self.c
        scores = scores.unflatten(0, (sequences, -1))
        with torch.no_grad():
            chosen = scores.topk(c.topk, dim=-1)[1].flatten(1)
            f = F.one_hot(chosen, c.n_routed).sum(1) * (c.n_routed / chosen.shape[1])
        return (f * (scores / scores.sum(-1, keepdim=True)).mean(1)).sum(-1).mean()

    def forward(self, x):
        flat = x.flatten(0, 1)
        scores = self.gate(flat).float().sigmoid()
        with torch.no_grad():
            idx = self.choose(scores)
            order = idx.flatten().argsort(stable=True)
            load = (F.one_hot(idx.flatten(), self.c.n_routed).sum(0) if self.c.grouped
                    else idx.flatten().bincount(minlength=self.c.n_routed))
            self.load += load
        weight = scores.gather(1, idx)
        weight = weight / weight.sum(-1, keepdim=True) * self.c.scaling
        token = order // self.c.topk
        if self.c.grouped:
            routed = self.experts(flat[token], load.cumsum(0).int())[order.argsort()].unflatten(0, idx.shape)
            y = self.shared(flat) + (routed * weight[..., None].to(routed.dtype)).sum(1)
            return y.view_as(x), self.balance_loss(scores, len(x))
        parts = flat[token].split(load.tolist())
        routed = torch.cat([expert(part) for expert, part in zip(self.experts, parts)]) * weight.flatten()[order, None]
        y = self.shared(flat).index_add(0, token, routed)
        return y.view_as(x), self.balance_loss(scores, len(x))


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.input_norm, self.post_norm = nn.RMSNorm(c.d_model, 1e-6), nn.RMSNorm(c.d_model, 1e-6)
        self.attention = Attention(c)
        self.moe = index >= c.first_k_dense
        self.ffn = MoE(c) if self.moe else SwiGLU(c.d_model, c.d_ff)

    def forward(self, x, cis):
        x = x + self.attention(self.input_norm(x), cis)
        y, balance = self.ffn(self.post_norm(x)) if self.moe else (self.ffn(self.post_norm(x)), 0)
        return x + y, balance


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocab_size, c.d_model)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.n_layers))
        self.norm = nn.RMSNorm(c.d_model, 1e-6)
        self.head = linear(c.d_model, c.padded_vocab)
        angles = torch.outer(torch.arange(c.seq_len), c.rope_theta ** (-torch.arange(0, c.rope, 2) / c.rope))
        self.register_buffer("cis", torch.stack([angles.cos(), angles.sin()]) if c.grouped
                             else torch.polar(torch.ones_like(angles), angles))
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x, balance = self.embed(tokens), 0
        for layer in self.layers:
            x, loss = layer(x, self.cis)
            balance = balance + loss
        return self.loss(x, targets) + self.c.balance_loss * balance

    def loss(self, x, targets):
        logits = self.head(self.norm(x))[..., :self.c.vocab_size]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def compile_parts(self):
        """Layer by layer: those that are alike are compiled once."""
        for layer in self.layers:
            layer.compile()
        self.loss = torch.compile(self.loss)


# --- training ----------------------------------------------------------------------------------------------------------------

class Trainer:
    def __init__(self, args):
        torch.manual_seed(0)
        self.c, self.device, self.bf16 = preset(args), args.device, args.dtype == "bf16"
        self.model = Model(self.c).to(args.device)
        if args.compile:
            self.model.compile_parts()
        self.parameters = sum(p.numel() for p in self.model.parameters()) - (self.c.padded_vocab - self.c.vocab_size) * self.c.d_model
        decayed = [p for name, p in self.model.named_parameters() if p.dim() > 1 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.dim() == 1 or "embed" in name]
        self.optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                           lr=1e-3, betas=(0.9, 0.95), fused=True)
        files = sorted(pathlib.Path(__file__).resolve().parent.parent.glob("*/*.cpp"))  # as duet's default data
        self.text = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)), dtype=torch.uint8)

    def step(self):
        c = self.c
        starts = torch.randint(len(self.text) - c.seq_len - 1, (c.batch,)).tolist()
        window = torch.stack([self.text[s:s + c.seq_len + 1] for s in starts]).to(self.device).long()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.model(window[:, :-1], window[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for module in self.model.modules():
                if isinstance(module, MoE):
                    module.bias += 1e-3 * (module.load.mean() - module.load).sign()
                    module.load.zero_()
        return loss.item()

    def measure(self, steps):
        """Median seconds of a step, after one that is not timed, or on a GPU three."""
        for _ in range(3 if self.device == "cuda" else 1):
            self.step()
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)


def blas():
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {"mkl": "MKL", "open": "OpenBLAS"}.get(found[1], found[1]) if found else "an unnamed BLAS"


def result(args, trainer):
    torch.set_num_threads(args.threads)
    seconds, tokens = trainer.measure(args.steps), trainer.c.seq_len * trainer.c.batch
    where = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    ways = [args.dtype, "grouped" if trainer.c.grouped else "a loop over experts"] + ["compiled"] * args.compile
    return {"trainer": "pytorch", "preset": args.preset, "device": f"{where}, torch {torch.__version__}, {blas()}",
            "threads": args.threads, "parameters": trainer.parameters, "how": ", ".join(ways), "tokens": tokens,
            "step_ms": seconds * 1e3, "tokens_per_s": tokens / seconds}


def race(args):
    duet, rounds = args.duet, args.rounds
    print(f"duet and torch {torch.__version__} with {blas()}, {torch.backends.cpu.get_cpu_capability()}, in turn; "
          "tokens/s (GFLOP/s)")
    for preset, steps in (("bench", 4), ("tiny", 40)):
        for threads in (1, 2):
            args.preset, args.threads, args.steps = preset, threads, steps
            trainer, ratios = Trainer(args), []
            title = f"  {preset:5} {threads} thread{'s' if threads > 1 else ' '}"
            for _ in range(rounds):
                command = [duet, "bench", "--device", "cpu", "--preset", preset, "--threads", str(threads), "--steps", str(steps)]
                ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                theirs = result(args, trainer)
                for key in ("parameters", "tokens"):
                    assert ours[key] == theirs[key], f"{key}: duet has {ours[key]}, this script {theirs[key]}"
                ratios.append(ours["tokens_per_s"] / theirs["tokens_per_s"])
                print(f"{title} | duet {ours['tokens_per_s']:8.0f} ({ours['gflops']:5.1f}) | PyTorch "
                      f"{theirs['tokens_per_s']:8.0f} ({ours['gflops'] / ratios[-1]:5.1f}) | {ratios[-1]:.2f}x", flush=True)
            print(f"{title} | median of {rounds} pairs: {statistics.median(ratios):.2f}x", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="bench")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median counts")
    parser.add_argument("--model", default="", help="sizes instead of the preset's, as in duet train: n_layers=4,d_model=256")
    parser.add_argument("--batch", type=int, help="sequences; default: the preset's")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="default: fp32 on the CPU, bf16 on a GPU")
    parser.add_argument("--grouped", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile, a layer at a time")
    parser.add_argument("--duet", help="race against this binary, on the CPU")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of the race")
    args = parser.parse_args()
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "fp32")
    if args.duet:
        race(args)
    else:
        torch.set_num_threads(args.threads)
        print(json.dumps(result(args, Trainer(args))))


if __name__ == "__main__":
    main()
