#!/usr/bin/env bash
# Holds the source to the layering: includes run one way, each folder using only those left of it,
#
#   model   comm   moe   pipeline   main.cu        (data beside model: it uses model/base/check.h and itself)
#
# no file is over 500 lines, and the two headers that cost seconds to compile are included once each.
set -u
cd "$(dirname "$0")/.."
bad=0
say() { echo "  $*"; bad=1; }

# allowed FOLDER: the folders whose headers it may include, as a pattern
allowed() {
  case $1 in
    model) echo 'model/' ;;
    data) echo 'data/|model/base/check\.h' ;;
    comm) echo 'model/|comm/' ;;
    moe) echo 'model/|comm/|moe/' ;;
    pipeline) echo 'model/|data/|comm/|moe/|pipeline/' ;;
  esac
}

for folder in model data comm moe pipeline; do
  [ -d $folder ] || continue
  while IFS= read -r line; do say "$line: $folder/ may include only $(allowed $folder)"; done < <(
    grep -rnE --include='*.h' --include='*.cpp' --include='*.cu' '^ *# *include *"' $folder | grep -vE "\"($(allowed $folder))")
done

files=$(find model data comm moe pipeline scripts main.cu Makefile -type f \
        \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.sh' -o -name '*.py' -o -name Makefile \) 2>/dev/null)
while read -r lines file; do
  [ "$file" = total ] || [ "$lines" -le 500 ] || say "$file: $lines lines, allowed are 500"
done < <(wc -l $files)

for pair in nlohmann/:model/base/json.cpp \
    'CLI/:main.cu pipeline/insight/plan/plan_command.cpp' CLI11:main.cu; do
  header=${pair%%:*} owners=${pair#*:}
  for file in $(grep -lE "^ *# *include *[<\"]$header" $files); do
    [[ " $owners " = *" $file "* ]] || say "$file: includes $header; only $owners may"
  done
done

exit $bad
