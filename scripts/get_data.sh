#!/bin/sh
# Fetches a named data set for `duet train --data`. Duet itself needs none: without --data it trains
# on its own sources.
#
#   scripts/get_data.sh NAME [FOLDER]       default folder: datasets/ (git-ignored)
#
# What is there already is kept, so running it again is cheap; a file appears under its name only
# when it is complete.
set -eu

usage() {
  cat >&2 <<'TEXT'
usage: scripts/get_data.sh NAME [FOLDER]    fetches into FOLDER (default: datasets)
  tinyshakespeare   1.1 MB of text
  tinystories       22 MB of text: the validation stories of TinyStories V2 (GPT-4)
  tinystories-all   2.2 GB of text: its training stories
  fineweb           400 MB: llm.c's first FineWeb-Edu shards (GPT-2 tokens), one to train and one
                    to validate, and the tokenizer
TEXT
  exit 2
}

# fetch URL FILE MIN_BYTES [SHA256]: MIN_BYTES tells a data set from an error page where no checksum
# is known.
fetch() {
  if [ -s "$2" ]; then
    echo "$2: already there"
    return
  fi
  mkdir -p "$(dirname "$2")"
  echo "$2: fetching $1"
  if command -v curl >/dev/null; then
    curl -fSL --retry 2 --connect-timeout 15 -o "$2.part" "$1" || no_network "$1"
  elif command -v wget >/dev/null; then
    wget -q -T 15 -t 2 -O "$2.part" "$1" || no_network "$1"
  else
    fail "neither curl nor wget is installed"
  fi
  size=$(($(wc -c <"$2.part")))
  [ "$size" -ge "$3" ] || fail "$1: found $size bytes, expected at least $3; left as $2.part"
  if [ -n "${4:-}" ]; then
    sum=$( (sha256sum "$2.part" 2>/dev/null || shasum -a 256 "$2.part") | cut -d ' ' -f 1)
    [ "$sum" = "$4" ] || fail "$1: found SHA-256 $sum, expected $4; left as $2.part"
  fi
  mv "$2.part" "$2"
}

fail() {
  echo "get_data.sh: $1" >&2
  exit 1
}
no_network() {
  fail "could not fetch $1: is there a network? Without one, train without --data, or on any text."
}

[ $# -ge 1 ] && [ $# -le 2 ] || usage
folder=${2:-datasets}
char_rnn=https://raw.githubusercontent.com/karpathy/char-rnn/master
stories=https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main
shards=https://huggingface.co/datasets/karpathy/fineweb-edu-100B-gpt2-token-shards/resolve/main
tokenizer=https://huggingface.co/datasets/chrisdryden/llmcDatasets/resolve/main/gpt2_tokenizer.bin
case $1 in
  tinyshakespeare)
    data=$folder/tinyshakespeare.txt
    fetch "$char_rnn/data/tinyshakespeare/input.txt" "$data" 1115394 \
      86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
    ;;
  tinystories)
    data=$folder/tinystories.txt
    fetch "$stories/TinyStoriesV2-GPT4-valid.txt" "$data" 20000000
    ;;
  tinystories-all)
    data=$folder/tinystories-all.txt
    fetch "$stories/TinyStoriesV2-GPT4-train.txt" "$data" 2000000000
    ;;
  fineweb)
    data=$folder/fineweb
    fetch "$tokenizer" "$data/gpt2_tokenizer.bin" 300000
    fetch "$shards/edu_fineweb_val_000000.bin" "$data/edu_fineweb_val_000000.bin" 100000000
    fetch "$shards/edu_fineweb_train_000001.bin" "$data/edu_fineweb_train_000001.bin" 100000000
    ;;
  *) usage ;;
esac
echo "train on it: ./duet train --data $data"
