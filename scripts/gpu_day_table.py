#!/usr/bin/env python3
"""Makes FOLDER/table.md and FOLDER/table.json of what scripts/gpu_day.sh left there:   scripts/gpu_day_table.py FOLDER

Exit status 1 if anything is not ok.
"""
import json
import pathlib
import re
import statistics
import sys


def read(folder, part):
    """What a part printed, or nothing."""
    path = folder / f"{part}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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


def losses(folder):
    """Whether the GPU's are near enough to the CPU's: 1e-4, or 1e-3 from the first step on in which experts had other tokens."""
    cpu, cuda = (json_lines(folder / f"loss-{device}" / "metrics.jsonl") for device in ("cpu", "cuda"))
    limit, ok, most = 1e-4, True, 0
    if not cpu or len(cpu) != len(cuda):
        return False, f"{len(cpu)} steps on the CPU, {len(cuda)} on the GPU"
    for a, b in zip(cpu, cuda):
        if [layer["tokens_per_expert"] for layer in a["moe"]] != [layer["tokens_per_expert"] for layer in b["moe"]]:
            limit = 1e-3
        difference = abs(b["loss"] / a["loss"] - 1)
        ok, most = ok and difference <= limit, max(most, difference)
    return ok, f"at most {most:.1e} from the CPU's, in {len(cpu)} steps; allowed {limit:.0e}"


def rightness(folder):
    """{what: (ok, what was found)}"""
    counts = {how.lower(): int(n) for how, n in re.findall(r"\[  (PASSED|FAILED)  \] (\d+) tests?", read(folder, "tests"))}
    found = {"tests": (counts.get("passed", 0) > 0 and "failed" not in counts, json.dumps(counts)), "loss, fp32": losses(folder)}
    compared = re.search(r"^\{.*^\}", read(folder, "compare"), re.M | re.S)
    rows = json.loads(compared[0])["rows"] if compared else []
    same = sum(r["identical"] for r in rows)
    found["schedules and layouts with the bits of one rank"] = (0 < same == len(rows), f"{same} of {len(rows)}")
    for r in rows:
        if not r["identical"]:
            found[r["schedule"]] = (False, f"differs from step {r['first_step_that_differs']}, {r['first_tensor_that_differs']}")
    for part in json_lines(folder / "parts.jsonl"):
        if re.match("memcheck|racecheck", part["part"]):
            summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", read(folder, part["part"])) or ["no summary"]
            found[part["part"]] = (part["status"] == 0, summary[-1])
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
    return "peak unknown" if x is None else f"{100 * x:.1f}%"


def kernels_table(row):
    all_ms = sum(k["ms"] for k in row["kernels"] or [] if " " not in k["kind"])

    def of_kind(k):
        rate = f"{k['gflops'] / 1e3:.1f} TFLOP/s" if "gflops" in k else f"{k['gb_per_s']:.0f} GB/s"
        sums = f"{k['exact_sums_gb']:.2f}" if "exact_sums_gb" in k else ""
        return [k["kind"], k["calls"], f"{k['ms']:.3f}", percent(k["ms"] / all_ms), rate, percent(k["of_peak"]), sums]

    kinds = sorted(row["kernels"] or [], key=lambda k: (" " in k["kind"], -k["ms"]))
    return table(["kind", "calls", "ms", "of all", "rate", "of the peak", "exact sums, GB"], [of_kind(k) for k in kinds])


def markdown(day):
    text = f"# {day['device']}\n\n" + "".join(f"    {line}\n" for line in day["version"]) + "\n"
    text += table(["right?", "", ""], [[what, "ok" if ok else "not ok", found] for what, (ok, found) in day["right"].items()])
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
           "parts": json_lines(folder / "parts.jsonl")}
    (folder / "table.json").write_text(json.dumps(day, indent=1) + "\n")
    (folder / "table.md").write_text(markdown(day))
    print(f"{folder}/table.md\n\n{markdown(day)}")
    return not all(ok for ok, _ in day["right"].values())


if __name__ == "__main__":
    sys.exit(main())
