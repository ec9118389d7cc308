#!/usr/bin/env bash
# Runs test binaries (GoogleTest) and the checks of the house:   scripts/run_tests.sh BINARY...
# Prints a line per suite with its seconds, whatever fails in full, and last a line
# 'N passed, N failed' (', N skipped').
# GTEST_FILTER in the environment chooses tests. Exit status 1 if a test failed or none ran.
set -u
cd "$(dirname "$0")/.."
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Keeps the suite lines ("-- 6 tests from Json (20 ms total)") and the output of tests that did not
# pass.
terse='
  /^\[ RUN      \]/ { text = ""; inside = 1 }
  inside            { text = text $0 "\n" }
  /\[       OK \] .*ms\)$/ { inside = 0; next }
  /\[  SKIPPED \] .*ms\)$/ { if (inside) printf "%s", text; inside = 0; next }
  /\[  FAILED  \] .*ms\)$/ { if (inside) printf "%s", text; inside = 0; next }
  /^\[----------\] .*total\)$/ {
    ms = $(NF - 2); sub(/\(/, "", ms)
    printf "  %-28s %3d tests  %6.2f s\n", $5, $2, ms / 1000
  }
  { fflush() }
  END { if (inside) printf "%s", text }'

count() { grep -cE "$1" "$log"; }

for binary in "$@"; do
  echo "$binary"
  "$binary" 2>&1 | tee "$log" | awk "$terse"
  status=${PIPESTATUS[0]}
  started=$(count '^\[ RUN      \]')
  ok=$(count '\[       OK \] .*ms\)$') skips=$(count '\[  SKIPPED \] .*ms\)$')
  bad=$((started - ok - skips))
  signal=$([ "$status" -le 128 ] || echo " (signal $((status - 128)))")
  [ "$status" -le 1 ] || echo "$binary: exit status $status$signal"
  if [ "$status" -ne 0 ] && [ $bad -eq 0 ]; then
    tail -n 5 "$log"
    bad=1
  elif [ "$started" -eq 0 ]; then
    echo "$binary: ran no tests"
    bad=1
  fi
  passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skips))
done

for check in scripts/check_includes.sh scripts/check_reading.sh; do
  echo $check
  if $check; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done

if [ $# -eq 0 ]; then
  echo "run_tests.sh: no test binary given"
  failed=$((failed + 1))
fi
echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
[ $failed -eq 0 ]
