#!/usr/bin/env bash
# Holds the house to being read in one walk, from main.cu through every room to the tests.
#
# The first comment of a file, and each room's README.md, says 'Read next: FILE', where FILE is
# looked for in the file's own folder, then in the folders above it. This checks that
#
#   - every header and README says so once, and every source that does not say 'See HEADER.h'
#     instead: such a source is read with its header
#   - no two files name the same one, and whoever follows comes by every file, by none twice
#   - a folder is read in one stretch, its README.md first
#   - a README's tables (their first column, in backquotes) name the files of its room in the order
#     of the walk; a folder with a README.md of its own is another room
set -u
cd "$(dirname "$0")/.."
find main.cu model data comm moe pipeline test -name '*.h' -o -name '*.cuh' -o -name '*.cpp' \
  -o -name '*.cu' -o -name README.md | sort | xargs awk '
  function say(text) { print "  " text; return bad = 1 }
  function folder(file) { return sub(/\/[^\/]*$/, "", file) ? file : "" }
  function below(name, at) { return at == "" ? name : at "/" name }

  # the file that a name means in a folder
  function found(name, at) {
    while (at != "" && !(below(name, at) in exists)) at = folder(at)
    return below(name, at) in exists ? below(name, at) : ""
  }
  function room(file) {
    do file = folder(file); while (file != "" && !(file "/README.md" in exists))
    return file
  }

  FNR == 1 { exists[FILENAME] = head = 1 }
  FILENAME ~ /^test\// { next }
  FNR == 1 { files[++count] = FILENAME }
  FILENAME ~ /README\.md$/ {
    text[FILENAME] = text[FILENAME] " " $0
    if (/^\| *`/ && split($0, cell, "|")) table[FILENAME] = table[FILENAME] cell[2]
    next
  }
  head && /^\/\// { text[FILENAME] = text[FILENAME] substr($0, 3); next }
  { head = 0 }

  # Reads what a file says: the next one, or its header.
  function read(file,    words, source, next_ones, name, to) {
    words = text[file]
    gsub(/`/, "", words)
    source = file ~ /\.(cpp|cu)$/
    next_ones = gsub(/[Rr]ead next/, "&", words)
    if (source && !next_ones && match(words, /See [a-z_0-9\/]+\.h/)) {
      name = substr(words, RSTART + 4, RLENGTH - 4)
      if (found(name, folder(file)) == "") say(file ": See: there is no " name)
      return
    }
    on_walk[file] = 1
    if (next_ones != 1 || !match(words, /Read next: [A-Za-z_0-9\/]+\.(h|cuh|cpp|cu|md)/)) {
      say(file ": expected one \"Read next: FILE\"" (source ? " or \"See HEADER.h\"" : "") \
        ", found " next_ones)
      return
    }
    name = substr(words, RSTART + 11, RLENGTH - 11)
    to = found(name, folder(file))
    if (to == "") say(file ": Read next: there is no " name)
    if (to in named_by) say(to ": named by " named_by[to] " and by " file)
    named_by[to] = file
    next_of[file] = to
  }

  function walk(    file, at, lost, unnamed) {
    for (file = "main.cu"; file in on_walk && !(file in visited); file = next_of[file]) {
      visited[file] = ++steps
      step[steps] = file
      for (at = folder(file); at != ""; at = folder(at)) {
        if (at in left && left[at] != steps - 1)
          say(at "/: left after " step[left[at]] ", entered again at " file)
        if (!(at in left) && at "/README.md" in exists && file != at "/README.md")
          say(file ": comes before " at "/README.md")
        left[at] = steps
      }
    }
    if (file !~ /^test\//)
      say(step[steps] ": the walk ends here" (file in visited ? ", going back to " file : ""))
    for (file in on_walk) {
      if (file in visited || file == "main.cu") continue
      lost = file
      if (!(file in named_by)) unnamed = say(file ": no file says to read it next")
    }
    if (lost && !unnamed) say(lost ": on a circle of its own, apart from the walk")
  }

  # Compares the tables of a README with the walk.
  function compare(readme,    at, n, name, i, to, k) {
    at = folder(readme)
    n = split(table[readme], name, "`")
    for (k = 1; k <= steps && !(room(step[k]) == at && step[k] != readme); ++k) {
    }
    for (i = 2; i <= n; i += 2) {
      to = found(name[i], at)
      if (!(to in visited) || room(to) != at || to == readme) continue
      if (k > steps || to != step[k]) break
      do ++k; while (k <= steps && room(step[k]) != at)
    }
    if (i <= n || k <= steps)
      say(readme ": expected in the tables " (k <= steps ? step[k] : "no more files") ", found " \
        (i <= n ? name[i] : "no more files"))
  }

  END {
    for (i = 1; i <= count; ++i) read(files[i])
    walk()
    for (i = 1; i <= steps; ++i) if (step[i] ~ /README\.md$/) compare(step[i])
    exit bad
  }'
