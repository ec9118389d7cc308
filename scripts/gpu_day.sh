#!/usr/bin/env bash
# Half an hour with a GPU: is duet right on it, and how fast?
#
#   scripts/gpu_day.sh [FOLDER]      default: gpu_day. On one H100 it ends within 14 minutes.
#   TRIAL=1 scripts/gpu_day.sh       tries this script where there is no GPU, after `make emulated
#                                    test`: with ./duet-emulated, tiny sizes, and PyTorch on the
#                                    CPU. No number of that table means anything.
#
# Builds duet and its tests; runs the tests that need a GPU; trains on the CPU and on the GPU, and
# compares losses; compares schedules and layouts in all their bits; times `base` and a dense model
# of 0.5B parameters, beside scripts/bench_torch.py where PYTHON (default python3) has torch; times
# four ranks on one GPU with overlap on and off, and NCCL where there are several GPUs; last runs
# the tests under compute-sanitizer, where there is one. Nothing needs the network.
#
# Each part has its time, and all together LIMIT seconds (default 840); one that fails does not stop
# the others. FOLDER holds what each one printed (PART.log), parts.jsonl, and of all this, made by
# scripts/gpu_day_table.py, table.md and table.json. Exit status 1 if a part failed.
set -u
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-gpu_day}") python=${PYTHON:-python3} limit=${LIMIT:-840} failed=0
mkdir -p "$out" && rm -f "$out"/*.log "$out"/parts.jsonl "$out"/table.*

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
  duet=./duet-emulated tests=$(echo build/*/test_emulated) gpus=1 steps=4
  base=(--preset tiny) dense=(--preset tiny --model first_k_dense=8)
  small=(--preset tiny --seq-len 16)
  compare=(--preset tiny --model n_layers=4 --seq-len 8 --steps 1 --layouts "dp=2 ep=2")
  wide=1 torch=(--device cpu --dtype bf16 --grouped)
else
  duet=./duet gpus=$(nvidia-smi -L | grep -c ^GPU) steps=20
  tests=$(make -s --eval 'show: ; @echo $(BUILD)/test_duet$(CAPABLE)' show | tail -n 1)
  base=(--preset base) small=(--preset small) compare=(--steps 2)
  dense=(--preset base --model
    n_layers=24,first_k_dense=24,d_model=1152,n_heads=18,d_ff=3456,q_lora_rank=0)
  wide=16 torch=(--device cuda --dtype bf16 --compile)
  part machine 20 nvidia-smi \
    --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
  part build 300 make -k duet "$tests"
fi
$duet --version >"$out/version.log" 2>&1

# --- is it right? ---------------------------------------------------------------------------------
part tests 150 "$tests" --gtest_filter='Cuda*:Nccl*:CommOverlap.OnA*'
for device in cpu cuda; do
  part loss-$device 60 $duet train "${small[@]}" --device $device --dtype fp32 --steps $steps \
    --microbatches 4 --log-every 1 --val-sequences 1 --sample 0
done
part compare 90 $duet compare --device cuda --dtype fp32 "${compare[@]}" --format json

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
if [ "$gpus" -gt 1 ]; then
  for layout in "--dp $gpus --ep $gpus" "--pp $gpus --schedule dualpipe --microbatches 16"; do
    part "nccl-${layout:2:2}" 60 $duet train "${base[@]}" --device cuda --transport nccl $layout \
      --steps $((steps / 2)) --log-every 1 --val-sequences 1 --sample 0
  done
fi

# --- is anything touched that should not be? ------------------------------------------------------
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    part $tool 120 compute-sanitizer --tool $tool --error-exitcode 1 "$tests" \
      --gtest_filter='Cuda.*:CudaRows.*'
  done
fi

"$python" scripts/gpu_day_table.py "$out" || failed=1
exit $failed
