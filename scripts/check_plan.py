#!/usr/bin/env python3
"""Holds duet plan to duet's own runs: the step time that it predicts with the cluster file that
--measure writes of this machine, beside the measured one.

    scripts/check_plan.py [--duet ./duet] [--steps 12] [--rounds 3] [--presets tiny,small,bench]

Each rank has a core of its own, of which the machine must have two; nothing else should run, and
what does makes steps longer, never shorter: measured is the least, over rounds of all layouts, of
the median of the steps after the second. Exit status 1 if a prediction is more than 15%
off.
"""
import argparse, json, os, subprocess, statistics, sys, tempfile

LAYOUTS = [(1, 1), (1, 2), (2, 1)]  # dp, pp
# tokens of a sequence, sequences of a microbatch (as model/config.cpp has them), microbatches
BATCHES = {"tiny": (64, 1, 16), "small": (128, 1, 16), "bench": (256, 8, 4)}


def run(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        print(f"--duet: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def measured(duet, out, layout, steps):
    """Seconds of a step."""
    run(duet, "train", *layout, "--threads", "1", "--steps", str(steps), "--val-every", "0",
        "--val-sequences", "1", "--sample", "0", "--out", out, "--overwrite")
    lines = [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]
    return statistics.median(line["step_ms"] for line in lines[2:]) / 1e3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--duet", default="./duet")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presets", default="tiny,small,bench")
    args = parser.parse_args()
    presets = args.presets.split(",")
    if args.steps < 3 or args.rounds < 1 or not set(presets) <= set(BATCHES):
        parser.error(f"allowed: at least 3 steps and 1 round, presets {', '.join(BATCHES)}")
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        cluster = os.path.join(folder, "here.json")
        run(args.duet, "plan", "--measure", cluster)
        print("| preset | dp | pp | measured | predicted | off |\n|---|---|---|---|---|---|")
        for preset in presets:
            seq_len, size, microbatches = BATCHES[preset]
            least = dict.fromkeys(LAYOUTS, float("inf"))
            for dp, pp in LAYOUTS * args.rounds:
                least[dp, pp] = min(least[dp, pp], measured(
                    args.duet, os.path.join(folder, "run"), ["--preset", preset, "--dp", str(dp),
                    "--pp", str(pp), "--microbatches", str(microbatches)], args.steps))
            for (dp, pp), seconds in least.items():
                layout = ["--dp", str(dp), "--pp", str(pp)]
                plan = json.loads(run(
                    args.duet, "plan", "--model", preset, "--cluster", cluster, *layout, "--gpus",
                    str(dp * pp), "--batch", str(dp * microbatches * size), "--seq-len",
                    str(seq_len), "--micro-batch-size", str(size), "--schedule", "1f1b", "--ep",
                    "1", "--dtype", "fp32", "--zero", "0", "--recompute", "none", "--format",
                    "json"))
                off = plan["step_s"] / seconds - 1
                worst = max(worst, abs(off))
                print(f"| {preset} | {dp} | {pp} | {1e3 * seconds:.1f} ms "
                      f"| {1e3 * plan['step_s']:.1f} ms | {100 * off:+.1f}% |", flush=True)
    return worst > 0.15


if __name__ == "__main__":
    sys.exit(main())
