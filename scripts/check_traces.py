#!/usr/bin/env python3
"""Runs duet analyze over a folder of other people's traces and compares with the right answers.

    scripts/check_traces.py FOLDER [--duet ./duet]
    scripts/check_traces.py --million FILE        writes a trace of a million events, to time reading

FOLDER/README.md is a table whose first column names a file (its extension may be missing) and whose
text says figures as 'T 1,222,847', 'C 210,320', 'M ...', 'overlap ...', 'idle ...' (microseconds), or
words such as 'refused'. What is in no table is run too: it may be accepted or refused, in one line,
but not crash, hang or print NaN. Exit status 1 if something differs.
"""
import argparse, json, os, re, subprocess, sys

FIGURES = {"T": "span_us", "C": "compute_busy_us", "M": "comm_busy_us", "overlap": "overlap_us",
           "idle": "idle_us", "span": "span_us", "compute": "compute_busy_us"}


def analyze(duet, path):
    run = subprocess.run([duet, "analyze", path, "--format", "json"], capture_output=True, text=True,
                         timeout=300)
    if run.returncode not in (0, 2):
        return None, f"exit status {run.returncode}: {run.stderr.strip()[:200]}"
    if run.returncode == 2:
        one_line = run.stderr.count("\n") == 1 and path in run.stderr
        return (None, None) if one_line else (None, f"not one line with the file's name: {run.stderr!r}")
    if "NaN" in run.stdout or "Infinity" in run.stdout:
        return None, "NaN or Infinity in the output"
    return json.loads(run.stdout), run.stderr.strip() or None


def expected_figures(text):
    found = {}
    for name, value in re.findall(r"\b(T|C|M|overlap|idle|span|compute) (\d[\d,]*(?:\.\d+)?)", text):
        found.setdefault(FIGURES[name], float(value.replace(",", "")))
    return found


def million(path):
    with open(path, "w", encoding="utf-8") as out:
        for i in range(10**6):
            kernel = i % 10 == 0
            event = {"ph": "X", "cat": "kernel" if kernel else "cpu_op",
                     "name": "void gemm<int, float>(int*)" if kernel else "aten::linear", "pid": 1,
                     "tid": 7 if kernel else 100, "ts": f"{1740461679470813 + i}.{i % 1000:03d}",
                     "dur": 1.5, "args": {"External id": i, "correlation": i, "grid": [132, 1, 1],
                                          "Input Dims": [[4096, 7168], [7168, 2048]]}}
            print("[,"[i > 0] + re.sub(r'"(\d+\.\d+)"', r"\1", json.dumps(event)), file=out)
        print("]", file=out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--million", metavar="FILE")
    parser.add_argument("--duet", default="./duet")
    args = parser.parse_args()
    if args.million:
        return million(args.million)
    if not args.folder:
        parser.error("expected a folder")
    rows = {}
    readme = os.path.join(args.folder, "README.md")
    if os.path.exists(readme):
        for line in open(readme, encoding="utf-8"):
            cells = [c.strip() for c in line.strip().strip("|").split("|")]
            if len(cells) == 3:
                for name in cells[0].split(","):
                    rows[re.sub(r"\.(json|raw)?(\.gz)?$", "", name.strip())] = cells[2]
    bad = 0
    for name in sorted(os.listdir(args.folder)):
        if not name.endswith((".json", ".gz")):
            continue
        result, wrong = analyze(args.duet, os.path.join(args.folder, name))
        text = next((t for key, t in rows.items() if len(key) > 2 and name.startswith(key)), "")
        figures = expected_figures(text) if result else {}
        rank = result["ranks"][0] if result else {}
        for key, value in figures.items():
            if abs(rank[key] - value) > 1e-6:
                wrong = f"{key}: expected {value}, found {rank[key]}"
        bad += wrong is not None
        kind = "refused" if result is None and wrong is None else f"{len(figures)} figures"
        print(f"{'BAD ' if wrong else 'ok  '} {name}: {wrong or kind}")
    print(f"{bad} bad")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
