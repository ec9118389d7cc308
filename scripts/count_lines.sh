#!/usr/bin/env bash
# Code lines (neither blank nor comment alone) of C++/CUDA without tests, per folder and in all.
set -eu
cd "$(dirname "$0")/.."
git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | grep -v '^test/' | xargs awk '
  !/^[[:space:]]*(\/\/.*)?$/ {
    folder = FILENAME
    if (!sub(/\/[^\/]*$/, "", folder)) folder = "."
    n[folder]++
    all++
  }
  END {
    for (f in n) printf "%6d  %s\n", n[f], f | "sort -k2"
    close("sort -k2")
    printf "%6d  in all\n", all
  }'
