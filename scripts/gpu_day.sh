#!/usr/bin/env bash
# Half an hour with a GPU: is duet right on it, and how fast?
#
#   scripts/gpu_day.sh [FOLDER]      default: gpu_day. On one H100 it ends within 14 minutes.
#   TRIAL=1 scripts/gpu_day.sh       tries this script where there is no GPU, after `make emulated
#                                    test`: with ./duet-emulated, tiny sizes, and PyTorch on the
#                                    CPU. No number of that table means anything.
#
# Builds duet and its tests, which takes some minutes, on a few cores many; only then LIMIT begins.
# Runs the tests that need a GPU; trains on the CPU and on the GPU, and compares losses, by what
# README.md allows; compares schedules and layouts in all their bits; times `base` and a dense model
# of 0.5B parameters, beside scripts/bench_torch.py where PYTHON (default python3) has torch; times
# four ranks on one GPU with overlap on and off, and NCCL on two, four or eight GPUs; last runs the
# kernels under compute-sanitizer, where there is one. Nothing needs the network.
#
# Each part has its time, and all together LIMIT seconds (default 840); one that fails, as `base`
# may where a GPU has less than 40 GB, does not stop the others. FOLDER holds what each one printed
# (PART.log), parts.jsonl, and of all this, made by scripts/gpu_day_table.py, table.md and
# table.json. Exit status 1 if a part failed or the table says "not ok", 2 without a GPU.
set -u
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-gpu_day}") python=${PYTHON:-python3} limit=${LIMIT:-840} failed=0

stop() { # STATUS WHAT
  echo "gpu_day.sh: $2" >&2
  exit "$1"
}
show() { make -s --eval "show: ; @echo $1" show | tail -n 1; }

if [ ! "${TRIAL:-}" ]; then
  gpus=$(nvidia-smi -L 2>/dev/null | grep -c ^GPU)
  [ "$gpus" -gt 0 ] || stop 2 'expected a GPU, found none with nvidia-smi -L; TRIAL=1 needs none'
  [ "$(show '$(NVCC)')" ] || stop 2 'expected nvcc with cuBLAS, found none: make says CUDA=DIR'
fi
mkdir -p "$out" && rm -rf "$out"/*.log "$out"/parts.jsonl "$out"/table.* "$out"/loss-*

# part NAME SECONDS COMMAND...
part() {
  local name=$1 most=$2 begin=$SECONDS left=$((limit - SECONDS)) status=0
  shift 2
  [ "$most" -le $left ] || most=$left
  if [ "$most" -lt 1 ]; then
    status=124 # as of timeout
    echo 'no time was left' >"$out/$name.log"
  else
    timeout -k 5 "$most" "$@" >"$out/$name.log" 2>&1 || status=$?
  fi
  [ $status = 0 ] || failed=1
  printf '{"part": "%s", "status": %d, "seconds": %d, "command": "%s"}\n' \
    "$name" $status $((SECONDS - begin)) "${*//[\"\\]/}" >>"$out/parts.jsonl"
  printf '%-18s %4d s%s\n' "$name" $((SECONDS - begin)) \
    "$([ $status = 0 ] || echo "  exit status $status")"
}

if [ "${TRIAL:-}" ]; then
  duet=./duet-emulated tests=$(echo build/*/test_emulated) steps=4
  gpus=${DUET_EMULATED_GPUS:-1}
  base=(--preset tiny) dense=(--preset tiny --model first_k_dense=8)
  small=(--preset tiny --seq-len 16)
  compare=(--preset tiny --model n_layers=4 --seq-len 8 --steps 1 --layouts "dp=2 ep=2")
  wide=1 torch=(--device cpu --dtype bf16 --grouped)
else
  duet=./duet tests=$(show '$(BUILD)/test_duet$(CAPABLE)') steps=20
  base=(--preset base) small=(--preset small) compare=(--steps 2)
  dense=(--preset base --model
    n_layers=24,first_k_dense=24,d_model=1152,n_heads=18,d_ff=3456,q_lora_rank=0)
  wide=16 torch=(--device cuda --dtype bf16 --compile)
  echo "building: $out/build.log"
  make -k duet "$tests" >"$out/build.log" 2>&1 || stop 1 "the build failed: $out/build.log"
  SECONDS=0
  part machine 20 nvidia-smi \
    --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
fi
$duet --version >"$out/version.log" 2>&1

# --- is it right? ---------------------------------------------------------------------------------
part tests 150 "$tests" --gtest_filter='Cuda*:Nccl*:CommOverlap.OnA*'
for device in cpu cuda; do
  part loss-$device 60 $duet train "${small[@]}" --device $device --dtype fp32 --steps $steps \
    --microbatches 4 --log-every 1 --val-sequences 1 --sample 0 --out "$out/loss-$device"
done
part compare 90 $duet compare --device cuda "${compare[@]}" --format json

# --- how fast is it? ------------------------------------------------------------------------------
bench=($duet bench --device cuda --threads "$(nproc)" --steps $((steps / 2)))
part duet-base 60 "${bench[@]}" "${base[@]}" --dtype bf16
part duet-base-fp32 60 "${bench[@]}" "${base[@]}" --dtype fp32
part duet-moe 60 "${bench[@]}" "${base[@]}" --dtype bf16 --micro-batch-size $wide
part duet-dense 60 "${bench[@]}" "${dense[@]}" --dtype bf16
if "$python" -c 'import torch' 2>/dev/null; then
  # experts in a loop, where this PyTorch has no grouped_mm for this GPU
  race='"$@" || "$@" --no-grouped'
  race=(bash -c "$race" race "$python" scripts/bench_torch.py "${torch[@]}" --steps $((steps / 2)))
  part torch-moe 180 "${race[@]}" "${base[@]}" --batch $wide
  part torch-dense 120 "${race[@]}" "${dense[@]}"
fi
for overlap in on off; do
  part overlap-$overlap 60 $duet train "${base[@]}" --device cuda --dp 2 --ep 2 --pp 2 \
    --schedule dualpipe --overlap $overlap --microbatches 8 --steps $((steps / 2)) --log-every 1 \
    --val-sequences 1 --sample 0
done
ranks=$((gpus >= 8 ? 8 : gpus >= 4 ? 4 : 2)) # which divide the 16 experts; DualPipe's are even
if [ "$gpus" -gt 1 ]; then
  for layout in "--dp $ranks --ep $ranks" "--pp $ranks --schedule dualpipe --microbatches 16"; do
    part "nccl-${layout:2:2}" 60 $duet train "${base[@]}" --device cuda --transport nccl $layout \
      --steps $((steps / 2)) --log-every 1 --val-sequences 1 --sample 0
  done
fi

# --- is anything touched that should not be? ------------------------------------------------------
# duet looks at every call's status itself, and a test has one fail on purpose
links=(train --preset tiny --device cuda --dp 2 --ep 2 --link intra=10GB/s,latency=5us --seq-len 16
  --microbatches 2 --steps 1 --val-sequences 1 --sample 0)
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    check=(compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 1)
    part $tool 150 "${check[@]}" "$tests" \
      --gtest_filter="Cuda.*:CudaRows.*:CudaAttention.*:Cuda/CommConformance.*:CommOverlap.OnA*"
    part $tool-links 60 env CUDA_VISIBLE_DEVICES=0 DUET_EMULATED_GPUS=1 \
      "${check[@]}" $duet "${links[@]}"
  done
fi

"$python" scripts/gpu_day_table.py "$out" || failed=1
exit $failed
