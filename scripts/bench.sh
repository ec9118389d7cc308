#!/usr/bin/env bash
# How fast duet trains on this machine's CPU, beside PyTorch (make bench; about two minutes):
#
#   scripts/bench.sh DUET STUDY
#
# Prints GEMM's GFLOP/s, then tokens/s and GFLOP/s of training steps with the presets `bench` (wide
# enough for GEMM to matter) and `tiny` (where overheads count), on one and two threads. Where
# PYTHON (default python3) has torch, scripts/bench_torch.py runs the same work alternately with
# duet, so that both see the same machine, and prints the ratio of each pair and their median: on a
# shared machine only the ratios mean anything.
set -eu
duet=$1 study=$2
python=${PYTHON:-python3}

for threads in 1 2; do
  echo "GEMM, $threads thread$([ $threads = 1 ] || echo s)"
  "$study" gemm $threads
done
if "$python" -c 'import torch' 2>/dev/null; then
  exec "$python" "$(dirname "$0")/bench_torch.py" --duet "$duet"
fi
echo "training steps ($python has no torch: no comparison with PyTorch; PYTHON=... names another)"
for preset in bench tiny; do
  for threads in 1 2; do
    steps=$([ $preset = tiny ] && echo 40 || echo 5)
    "$duet" bench --device cpu --preset $preset --threads $threads --steps "$steps"
  done
done
