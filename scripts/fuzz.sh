#!/usr/bin/env bash
# Feeds every target of a fuzzing program (test/fuzz/) with mutated input:   scripts/fuzz.sh PROGRAM
#
# FUZZ_SECONDS (60) is divided among the targets; FUZZ_RUNS, if set, is each target's number of
# inputs instead. FUZZ_TARGETS names some. Begins with the targets' own seeds and what lies in
# test/fuzz/corpus/TARGET: inputs that were once a fault. Prints a line a target; the first fault of
# each is told in full, its input is kept beside the program. Exit status 1 if there was one.
set -u
cd "$(dirname "$0")/.."
program=$(realpath "$1") out=$(dirname "$(realpath "$1")")/fuzzed
targets=${FUZZ_TARGETS:-$("$program" --list)}
each=$(( (${FUZZ_SECONDS:-60} + $(wc -w <<<"$targets") - 1) / $(wc -w <<<"$targets") ))
limit=(-max_total_time=$each)
[ -z "${FUZZ_RUNS:-}" ] || limit=(-runs="$FUZZ_RUNS")
export UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=detect_leaks=0
failed=0 total=0
for target in $targets; do
  mkdir -p "$out/$target/corpus"
  "$program" --seeds="$target" "$out/$target/seeds" || exit 1
  folders=("$out/$target/corpus" "$out/$target/seeds")
  [ ! -d "test/fuzz/corpus/$target" ] || folders+=("test/fuzz/corpus/$target")
  folders=("${folders[@]/#test/$PWD/test}")
  # Seeds are longer than what libFuzzer would allow inputs to be; and a reader that needs more than
  # a second or 2 GB for 4 kB is at fault.
  (cd "$out/$target" && exec "$program" --target="$target" "${limit[@]}" -max_len=4096 -seed=1 \
    -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 "${folders[@]}") >"$out/$target/log" 2>&1
  status=$?
  runs=$(sed -nE 's/^(stat::number_of_executed_units: *|Done )([0-9]+).*/\2/p' \
    "$out/$target/log" | tail -n 1)
  total=$((total + ${runs:-0}))
  printf '  %-14s %9d inputs  %s\n' "$target" "${runs:-0}" \
    "$([ $status -eq 0 ] && echo "no fault" || echo FAULT)"
  [ $status -eq 0 ] && continue
  failed=1
  grep -vE '^(#[0-9]+\s|\s+NEW_FUNC|INFO|stat::|0x|Base64|MS: )' \
    "$out/$target/log" | tail -n 30 | cut -c 1-200
  echo "  the input is in $out/$target"
done
echo "$total inputs in $SECONDS s"
exit $failed
