#!/usr/bin/env python3
"""duet against Hugging Face transformers' DeepseekV3ForCausalLM: same weights, same batch, logits and every gradient, fp32.

    scripts/check_hf.py                      the whole recipe with ./duet in a temporary folder, under a minute
    scripts/check_hf.py CHECKPOINT DUMP      one comparison; --balance-loss ALPHA if the run had one

Needs python3 with torch and transformers (4.57 or newer) and installs nothing; it is not part of `make test`.

The dump of step N (`duet train --dump-step N`) has the gradients of the weights before step N's update. So the recipe is: train
K steps, keep the checkpoint, go on for one step with --resume --steps K+1 --dump-step K+1, and give transformers the
checkpoint of step K. The other way round, a model that transformers made is the --init of a run, whose dump of step 1 counts.

Bounds: logits 1e-4 (relative to the largest where that is above 1), loss 1e-5, gradients 1e-3 of the tensor's largest.

Where the two may differ: DeepSeek masks the experts of excluded groups with -inf, transformers up to 4.x with 0.0, so there an
excluded expert is chosen over one whose affinity + bias is negative. The script tries out which rule the installed version has,
counts the tokens for which the rules disagree, and leaves out the cases that have such tokens if the version masks with 0.0.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import torch
    import torch.nn.functional as F
    import transformers
    from safetensors.torch import load_file
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
except ImportError as error:
    sys.exit(f"check_hf.py: {error}; needs python3 with torch, safetensors and transformers 4.57 or newer")
transformers.utils.logging.disable_progress_bar()

LOGITS, LOSS, GRADIENT = 1e-4, 1e-5, 1e-3  # the bounds


def masks_with_inf():
    """Whether this transformers masks excluded groups with -inf, tried out: two groups of two experts, the first one better.
    With biases that make every choice negative, only -inf leaves the choice where it was."""
    torch.manual_seed(0)
    config = DeepseekV3Config(hidden_size=8, moe_intermediate_size=8, n_routed_experts=4, n_shared_experts=1, n_group=2,
                              topk_group=1, num_experts_per_tok=2)
    moe = DeepseekV3MoE(config)
    x, outputs = torch.randn(1, 5, 8), []
    with torch.no_grad():
        for p in moe.parameters():
            p.normal_()
        for first_group in (1.0, -2.0):
            moe.gate.e_score_correction_bias.copy_(torch.tensor([first_group, first_group, -4, -4]))
            outputs.append(moe(x))
    return torch.equal(*outputs)


# --- the model as transformers has it ----------------------------------------------------------------------------------------

def load(checkpoint):
    model, info = DeepseekV3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager",
                                                        output_loading_info=True)
    problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    assert not problems, f"{checkpoint}: transformers reports {problems}"
    assert not getattr(model.config, "num_nextn_predict_layers", 0), "expected a model without multi-token prediction"
    return model


def gradients(model):
    """Gradients under the names of a checkpoint; newer versions keep a layer's experts in two stacked tensors."""
    named = {}
    for name, p in model.named_parameters():
        if p.numel() == 0:  # shared experts where there are none
            continue
        stacked = re.fullmatch(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)", name)
        if not stacked:
            named[name] = p.grad if p.grad is not None else torch.zeros_like(p)  # an expert without tokens
            continue
        prefix, kind = stacked.groups()
        for e, grad in enumerate(p.grad):
            if kind == "down_proj":
                named[f"{prefix}.{e}.down_proj.weight"] = grad
            else:
                named[f"{prefix}.{e}.gate_proj.weight"], named[f"{prefix}.{e}.up_proj.weight"] = grad.chunk(2)
    return named


class Routing:
    """Looks over the routers' shoulders: per layer the affinities, for the balance loss and for the two rules of masking."""

    def __init__(self, model):
        self.config, self.gates, self.scores = model.config, [], []
        for name, module in model.named_modules():
            if name.endswith(".mlp.gate"):
                self.gates.append(module)
                module.register_forward_hook(self.hook)

    def hook(self, gate, inputs, _):
        x = inputs[0]
        self.scores.append(torch.sigmoid(F.linear(x.reshape(-1, x.shape[-1]).float(), gate.weight.float())))

    def balance_loss(self, sequences):
        """Sum over layers of the mean over sequences of sum_i f_i P_i (DeepSeek-V3, equations 17 to 20; no bias, no groups)."""
        c, total = self.config, 0
        for scores in self.scores:
            s = scores.view(sequences, -1, c.n_routed_experts)
            chosen = F.one_hot(s.topk(c.num_experts_per_tok)[1], c.n_routed_experts).sum(2).float()  # [sequences, seq, experts]
            f = chosen.mean(1) * c.n_routed_experts / c.num_experts_per_tok
            p = (s / s.sum(-1, keepdim=True)).mean(1)
            total = total + (f * p).sum(-1).mean()
        return total

    @torch.no_grad()
    def disputed(self):
        """How many tokens, summed over layers, get other experts when excluded groups are masked with 0.0 instead of -inf."""
        c, count = self.config, 0
        for gate, scores in zip(self.gates, self.scores):
            choice = scores + gate.e_score_correction_bias
            groups = choice.view(len(choice), c.n_group, -1)
            best = groups.topk(min(2, groups.shape[-1]))[0].sum(-1).topk(c.topk_group)[1]
            excluded = torch.ones(len(choice), c.n_group).scatter(1, best, 0).bool().repeat_interleave(groups.shape[-1], 1)
            paper, other = (choice.masked_fill(excluded, value).topk(c.num_experts_per_tok)[1].sort()[0]
                            for value in (-torch.inf, 0.0))
            count += (paper != other).any(-1).sum().item()
        return count


# --- the comparison ----------------------------------------------------------------------------------------------------------

def compare(model, dump_file, alpha, inf_mask, title):
    """Prints the table of the worst tensors; returns whether all are within the bounds, None where they need not be."""
    dump = load_file(dump_file)
    inputs, targets = dump["input_ids"].long(), dump["targets"].long()
    routing = Routing(model)
    logits = model(inputs, use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    (loss + alpha * routing.balance_loss(len(inputs))).backward()
    theirs = gradients(model)
    ours = {name[5:]: value for name, value in dump.items() if name.startswith("grad.")}
    assert sorted(ours) == sorted(theirs), f"tensors with a gradient: {sorted(set(ours) ^ set(theirs))} only on one side"
    assert not any("e_score_correction_bias" in name for name in theirs), "the router's bias has no gradient"

    if model.config.num_experts_per_tok == 1 and not alpha:  # weights are 1 whatever the router says: gradients of rounding
        theirs = {name: g for name, g in theirs.items() if not name.endswith("mlp.gate.weight")}
    disputed, tokens = routing.disputed(), inputs.numel() * len(routing.gates)
    rows = [("logits", (logits - dump["logits"]).abs().max().item() / max(1, logits.abs().max().item()), LOGITS),
            ("loss", abs(loss.item() - dump["loss"].item()), LOSS)]
    rows += sorted(((name, ((ours[name] - g).abs().max() / g.abs().max().clamp_min(1e-30)).item(), GRADIENT)
                    for name, g in theirs.items()), key=lambda row: -row[1])
    sequences, seq_len = inputs.shape
    print(f"{title}\n  {sequences} sequences of {seq_len} tokens, loss {loss.item():.6f}, {len(theirs)} gradients; 0.0 and -inf "
          f"would choose differently for {disputed} of {tokens} routed tokens")
    for name, error, bound in rows[:7]:
        print(f"    {name:58} {error:9.2e}   allowed {bound:.0e}")
    if disputed and not inf_mask:
        print("  skipped: this transformers masks with 0.0")
        return None
    good = all(error <= bound for _, error, bound in rows)  # a NaN is not good
    print(f"  {'PASS' if good else 'FAIL'}", flush=True)
    return good


# --- the recipe --------------------------------------------------------------------------------------------------------------

def duet(args, out, *options):
    command = [args.duet, "train", "--device", args.device, "--micro-batch-size", "2", "--microbatches", "2", "--sample", "0",
               "--val-sequences", "1", "--out", out, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"check_hf.py: {' '.join(command)}\n{done.stdout}{done.stderr}")


def from_duet(args, folder, name, alpha, options):
    """Three steps of duet, one more with a dump; transformers loads the checkpoint of the third."""
    out = os.path.join(folder, name)
    common = ["--decay-steps", "4", "--warmup-steps", "1", "--balance-loss", str(alpha), *options]
    duet(args, out, "--steps", "3", *common)
    duet(args, out, "--resume", "--steps", "4", "--dump-step", "4", *common)
    return load(out + "/step-000003"), out + "/dump-step-4.safetensors"


def from_transformers(args, folder, name, bias):
    """transformers makes a model and saves it in several files; duet starts from it. bias: the mean of the routers' biases."""
    torch.manual_seed(1)
    config = DeepseekV3Config(
        vocab_size=300, hidden_size=48, intermediate_size=80, moe_intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=3, n_shared_experts=2, n_routed_experts=8, routed_scaling_factor=2.5,
        kv_lora_rank=20, q_lora_rank=28, qk_rope_head_dim=8, v_head_dim=12, qk_nope_head_dim=16, n_group=4, topk_group=2,
        num_experts_per_tok=3, first_k_dense_replace=1, max_position_embeddings=64, initializer_range=0.1, pad_token_id=32,
        attn_implementation="eager")
    model = DeepseekV3ForCausalLM(config)
    for gate in Routing(model).gates:
        gate.e_score_correction_bias.normal_(bias, 0.1)
    saved, out = os.path.join(folder, name + "-hf"), os.path.join(folder, name)
    model.save_pretrained(saved, max_shard_size="100KB")
    duet(args, out, "--init", saved, "--seq-len", "48", "--steps", "1", "--dump-step", "1", "--balance-loss", "0")
    return model, out + "/dump-step-1.safetensors"


def recipe(args, inf_mask):
    flat = ["--model", "n_group=1,topk_group=1,q_lora_rank=0,n_layers=4,n_shared=2,topk=3"]
    cases = [("tiny", 0, [], "duet -> transformers: preset tiny (4 groups of 2, queries through a latent)"),
             ("flat", 0, flat, "duet -> transformers: no groups, q_lora_rank 0, 2 shared experts, top 3"),
             ("none", 0, ["--model", "n_shared=0,topk=1,topk_group=1"], "duet -> transformers: no shared experts, top 1"),
             ("balance", 0.1, [], "duet -> transformers: preset tiny, balance loss with alpha 0.1, computed here")]
    results = []
    with tempfile.TemporaryDirectory(prefix="check_hf.") as folder:
        for name, alpha, options, title in cases:
            model, dump = from_duet(args, folder, name, alpha, ["--preset", "tiny", "--bias-update-speed", "0.02", *options])
            results.append(compare(model, dump, alpha, inf_mask, title))
        for name, bias, title in (("import", 0, "save_pretrained in several files, a token of padding, --init"),
                                  ("negative", -1, "router biases around -1, so that the two rules of masking disagree")):
            model, dump = from_transformers(args, folder, name, bias)
            results.append(compare(model, dump, 0, inf_mask, "transformers -> duet: " + title))
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a checkpoint of duet, e.g. run/step-000100")
    parser.add_argument("dump", nargs="?", help="the next step's dump, e.g. run/dump-step-101.safetensors")
    parser.add_argument("--balance-loss", type=float, default=0, help="alpha of the run that made the dump")
    parser.add_argument("--duet", default="./duet", help="the binary that the recipe uses")
    parser.add_argument("--device", default="cpu", help="the recipe's --device")
    args = parser.parse_args()
    if args.checkpoint and not args.dump:
        parser.error("expected CHECKPOINT and DUMP, or neither")
    torch.set_num_threads(min(2, torch.get_num_threads()))
    inf_mask = masks_with_inf()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}; excluded groups are masked with "
          f"{'-inf, as in DeepSeek' if inf_mask else '0.0, unlike DeepSeek'}")
    results = ([compare(load(args.checkpoint), args.dump, args.balance_loss, inf_mask, args.checkpoint)] if args.checkpoint
               else recipe(args, inf_mask))
    print(f"{results.count(True)} passed, {results.count(False)} failed, {results.count(None)} skipped")
    sys.exit(0 if results.count(False) == 0 and results.count(True) else 1)


if __name__ == "__main__":
    main()
