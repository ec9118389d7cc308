#!/usr/bin/env bash
# Holds the source to the order of the house (the layers first, which gave it its name).
#
# Includes run one way, each folder using only itself and what is left of it:
#
#   model/base  model/machine  model/rows  model  comm  moe  pipeline  main.cu
#
# with data beside model, using model/base; and within pipeline: schedule, then checkpoint, insight,
# and train, so that insight never uses train. Two libraries cost seconds to compile and are
# included where they are needed only: CLI11 where a command's options stand, nlohmann-json in
# json.cpp and where events are read and reports written.
# No two headers define a type of one name. No file is over 400 lines, no function over 60, no line
# over 100 columns, and clang-format 14, where it is installed, changes nothing.
set -u
cd "$(dirname "$0")/.."
bad=0
say() { echo "  $*"; bad=1; }
rooms="model data comm moe pipeline test"
sources=$(find $rooms main.cu -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | sort)

# allowed FILE: the folders whose headers it may include, as a pattern
allowed() {
  local below='model/|data/|comm/|moe/|pipeline/schedule/'
  case $1 in
    model/base/*) echo 'model/base/' ;;
    model/machine/*) echo 'model/(base|machine)/' ;;
    model/rows/*) echo 'model/(base|machine|rows)/' ;;
    model/*) echo 'model/' ;;
    data/*) echo 'model/base/|data/' ;;
    comm/*) echo 'model/|comm/' ;;
    moe/*) echo 'model/|comm/|moe/' ;;
    pipeline/schedule/*) echo "$below" ;;
    pipeline/checkpoint/*) echo "$below|pipeline/checkpoint/" ;;
    pipeline/insight/*) echo "$below|pipeline/checkpoint/|pipeline/insight/" ;;
    *) echo '[a-z]' ;;
  esac
}
for file in $sources; do
  while IFS= read -r line; do say "$file:$line: allowed are $(allowed "$file")"; done < <(
    grep -nE '^ *# *include *"' "$file" | grep -vE "\"($(allowed "$file"))")
done

# only LIBRARY FILES: no other file includes it
only() {
  for file in $(grep -lE "^ *# *include *[<\"]$1" $sources); do
    case " $2 " in *" $file "*) ;; *) say "$file: includes $1; allowed in: $2" ;; esac
  done
}
options="$(echo pipeline/*/*_command.cpp pipeline/*/*/*_command.cpp \
  pipeline/train/{options,generate,bench}.cpp)"
only 'CLI(/|11)' "main.cu model/base/command_line.h $options"
only model/base/command_line "$options test/fuzz/command_line.cpp"
only nlohmann/ "model/base/json.h model/base/json.cpp $(echo pipeline/insight/{trace,plan}/*)"

while IFS= read -r line; do say "$line: a type that another header defines"; done < <(
  grep -E '\.(h|cuh)$' <<<"$sources" | grep -v ^test/ | LC_ALL=C xargs awk '
    match($0, /^(template <[^>]*> )?(struct|class|enum class) [A-Za-z_]+( final)?( :.*)? \{/) {
      sub(/^template <[^>]*> /, "")
      type = $1 == "enum" ? $3 : $2
      if (type in file && file[type] != FILENAME) print FILENAME ":" FNR
      file[type] = FILENAME
    }')

# A function, formatted, ends with a bare brace in the column in which it began.
while IFS= read -r line; do say "$line"; done < <(LC_ALL=C awk '
  function columns(s) { gsub(/[\200-\277]/, "", s); return length(s) }  # of UTF-8
  FNR == 401 { print FILENAME ": over 400 lines" }
  columns($0) > 100 { print FILENAME ":" FNR ": over 100 columns" }
  FILENAME !~ /\.(h|cpp|cu|cuh)$/ { next }
  /^[A-Za-z_~]/ { begin[0] = FNR }
  /^  [A-Za-z_~]/ { begin[2] = FNR }
  /^(  )?}$/ {
    from = begin[length($0) - 1]
    if (FNR - from >= 60) print FILENAME ":" from ": a function of over 60 lines"
  }' $sources Makefile .ci/run $(find scripts -type f ! -name '*.py'))

format=$(command -v clang-format-14 || command -v clang-format)
if [ -n "$format" ] && "$format" --version | grep -q 'version 14\.'; then
  "$format" --dry-run -Werror $sources 2>&1 | grep -E 'error:' | cut -d: -f1 | uniq -c |
    while read -r places file; do echo "  $file: clang-format changes it in $places places"; done |
    grep . && bad=1
fi

exit $bad
