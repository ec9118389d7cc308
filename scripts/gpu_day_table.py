#!/usr/bin/env python3
"""Makes FOLDER/table.md and FOLDER/table.json of what scripts/gpu_day.sh left there:   scripts/gpu_day_table.py FOLDER"""
import json
import pathlib
import re
import statistics
import sys


def read(folder, part):
    """What a part printed, or nothing."""
    path = folder / f"{part}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def result(folder, part):
    """Its last line that is a JSON object."""
    lines = [line for line in read(folder, part).splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def steps(folder, part):
    """[(loss, ms)] of a training's lines."""
    return [(float(loss), float(ms)) for loss, ms in
            re.findall(r"^step .*\| loss (\S+) .*\| (\S+) ms", read(folder, part), re.M)]


def median_ms(folder, part):
    ms = [ms for _, ms in steps(folder, part)][1:]
    return statistics.median(ms) if ms else None


def rightness(folder):
    found = {}
    if counts := re.findall(r"\[  (PASSED|FAILED)  \] (\d+) tests?", read(folder, "tests")):
        found["tests"] = {how.lower(): int(n) for how, n in counts}
    cpu, cuda = (steps(folder, f"loss-{device}") for device in ("cpu", "cuda"))
    if cpu and len(cpu) == len(cuda):
        found["loss: largest relative difference from the CPU's"] = max(abs(a / b - 1) for (a, _), (b, _) in zip(cuda, cpu))
    if compared := re.search(r"^\{.*^\}", read(folder, "compare"), re.M | re.S):
        rows = json.loads(compared[0])["rows"]
        found["schedules and layouts with the bits of one rank"] = f"{sum(r['identical'] for r in rows)} of {len(rows)}"
        found |= {f"differs: {r['schedule']}": f"from step {r['first_step_that_differs']}, {r['first_tensor_that_differs']}"
                  for r in rows if not r["identical"]}
    for tool in ("memcheck", "racecheck"):
        if summary := re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", read(folder, tool)):
            found[tool] = summary[-1]
    return found


def speeds(folder):
    rows = []
    for name, part, other in (("base, bf16", "duet-base", None), ("base, fp32", "duet-base-fp32", None),
                              ("MoE: base, large microbatch, bf16", "duet-moe", "torch-moe"),
                              ("dense 0.5B, bf16", "duet-dense", "torch-dense")):
        duet, torch = result(folder, part), other and result(folder, other)
        if not duet:
            continue
        row = {"what": name, "parameters": duet["parameters"], "tokens": duet["tokens"], "tokens_per_s": duet["tokens_per_s"],
               "mfu": duet["mfu"], "kernels": duet["kernels"]}
        if torch:
            for key in ("parameters", "tokens"):
                assert duet[key] == torch[key], f"{part}, {key}: duet has {duet[key]}, PyTorch {torch[key]}"
            row |= {"torch_tokens_per_s": torch["tokens_per_s"], "torch": f"{torch['device']}; {torch['how']}",
                    "ratio": duet["tokens_per_s"] / torch["tokens_per_s"]}
        rows.append(row)
    return rows


def table(head, rows):
    lines = [head, ["---"] * len(head)] + rows
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines) + "\n"


def percent(x):
    return "" if x is None else f"{100 * x:.1f}%"


def kernels_table(row):
    all_ms = sum(k["ms"] for k in row["kernels"] or [] if " " not in k["kind"])

    def of_kind(k):
        rate = f"{k['gflops'] / 1e3:.1f} TFLOP/s" if "gflops" in k else f"{k['gb_per_s']:.0f} GB/s"
        return [k["kind"], k["calls"], f"{k['ms']:.3f}", percent(k["ms"] / all_ms), rate, percent(k["of_peak"])]

    kinds = sorted(row["kernels"] or [], key=lambda k: (" " in k["kind"], -k["ms"]))
    return table(["kind", "calls", "ms", "of all", "rate", "of the peak"], [of_kind(k) for k in kinds])


def markdown(day):
    text = f"# {day['device']}\n\n" + "".join(f"    {line}\n" for line in day["version"]) + "\n"
    text += table(["right?", ""], [[what, found if isinstance(found, str) else json.dumps(found)]
                                   for what, found in day["right"].items()])
    text += table(["speed", "parameters", "tokens a step", "duet, tokens/s", "MFU", "PyTorch, tokens/s", "ratio", "PyTorch is"],
                  [[r["what"], f"{r['parameters'] / 1e6:.1f}M", r["tokens"], f"{r['tokens_per_s']:.0f}", percent(r["mfu"]),
                    f"{r['torch_tokens_per_s']:.0f}" if "ratio" in r else "", f"{r['ratio']:.2f}x" if "ratio" in r else "",
                    r.get("torch", "")] for r in day["speed"]])
    text += table(["training", "ms a step"], [[part, f"{ms:.2f}"] for part, ms in day["step_ms"].items()])
    for row in day["speed"]:
        text += f"## Kernels of a step: {row['what']}\n\n" + kernels_table(row)
    text += "## Parts\n\n" + table(["part", "seconds", "exit status", "command"],
                                   [[p["part"], p["seconds"], p["status"], f"`{p['command']}`"] for p in day["parts"]])
    return text


def main():
    folder = pathlib.Path(sys.argv[1])
    device = next((r["device"] for part in ("duet-base", "duet-moe", "duet-dense") if (r := result(folder, part))), "no GPU")
    trainings = ("overlap-on", "overlap-off", "nccl-dp", "nccl-pp")
    day = {"device": device, "version": read(folder, "version").splitlines() + read(folder, "machine").splitlines()[1:],
           "right": rightness(folder), "speed": speeds(folder),
           "step_ms": {part: ms for part in trainings if (ms := median_ms(folder, part))},
           "parts": [json.loads(line) for line in (folder / "parts.jsonl").read_text().splitlines()]}
    (folder / "table.json").write_text(json.dumps(day, indent=1) + "\n")
    (folder / "table.md").write_text(markdown(day))
    print(f"{folder}/table.md\n\n{markdown(day)}")


if __name__ == "__main__":
    main()
