#!/usr/bin/env bash
# Installs what duet needs and is missing, and says what it does; run again, it does nothing.
#
#   scripts/setup.sh            Debian, Ubuntu: with apt, as root or by sudo. Elsewhere: lists what
#                               to install.
#   scripts/setup.sh --local    without root: unpacks the three small libraries into .deps/ here
#
# Needed: g++ (12 or newer) and make, CLI11, nlohmann-json. For `make test`: GoogleTest. For ranks
# as processes: OpenMPI. CUDA is never touched: the Makefile uses it where it is.
set -eu
cd "$(dirname "$0")/.."
deps=.deps/usr/include

# has_header HEADER: the compiler finds it, or it was unpacked before
has_header() {
  local folder
  for folder in "$deps" /opt/homebrew/include /usr/include /usr/local/include; do
    [ ! -e "$folder/$1" ] || return 0
  done
  return 1
}
# sudo would not fail for want of a password: on a terminal it may ask
may_ask() { [ -t 0 ] || sudo -n true 2>/dev/null; }
has() { command -v "$1" >/dev/null 2>&1; }
# has_library NAME: for the linker, among the system's libraries or Homebrew's
has_library() {
  local folder
  for folder in .deps/usr/lib/* /usr/lib /usr/lib/* /usr/lib64 /usr/local/lib* /opt/homebrew/lib; do
    ! compgen -G "$folder/lib$1.*" >/dev/null || return 0
  done
  return 1
}

local_only=no
case "${1:-}" in
  '') ;;
  --local) local_only=yes ;;
  *) echo "setup.sh: unknown option $1; allowed is --local" >&2; exit 2 ;;
esac

missing=()  # Debian's names of the packages
has g++ || has clang++ || missing+=(g++)
has make || missing+=(make)
has_header CLI/CLI.hpp || missing+=(libcli11-dev)
has_header nlohmann/json.hpp || missing+=(nlohmann-json3-dev)
{ has_header gtest/gtest.h && has_library gtest; } || missing+=(libgtest-dev)
has mpicxx || missing+=(libopenmpi-dev)
has mpirun || missing+=(openmpi-bin)

if [ ${#missing[@]} -eq 0 ]; then
  echo "setup.sh: everything is there, nothing to do"
  exit 0
fi
echo "setup.sh: missing: ${missing[*]}"

# Without root: the libraries that work from any place (two of headers only, and GoogleTest's),
# unpacked here.
unpack_local() {
  local package left=()
  for package in "${missing[@]}"; do
    case $package in
      libcli11-dev | nlohmann-json3-dev | libgtest-dev)
        echo "setup.sh: unpacking $package into .deps/"
        mkdir -p .deps
        (cd .deps && apt-get download "$package" && dpkg -x "${package}"_*.deb . &&
          rm -f "${package}"_*.deb)
        ;;
      *) left+=("$package") ;;
    esac
  done
  [ ${#left[@]} -eq 0 ] || echo "setup.sh: still missing, and for root to install: ${left[*]}" \
    "(OpenMPI is optional)"
}

if ! has apt-get; then
  echo "setup.sh: no apt here; install them with your system's packages, for example:"
  echo "  Homebrew:  brew install cli11 nlohmann-json googletest open-mpi"
  echo "  dnf:       dnf install gcc-c++ make cli11-devel json-devel gtest-devel openmpi-devel"
  echo "             (and then: module load mpi)"
  exit 1
elif [ $local_only = yes ]; then
  unpack_local
elif [ "$(id -u)" -eq 0 ] || { has sudo && may_ask; }; then
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "${missing[@]}")
  echo "setup.sh: apt-get update, apt-get install ${missing[*]}"
  "${as_root[@]}" apt-get update -qq ||
    echo "setup.sh: apt-get update failed; going on with the package lists that are there"
  "${install[@]}" >/dev/null
  echo "setup.sh: done"
else
  echo "setup.sh: installing them needs root:"
  echo "  sudo apt-get install ${missing[*]}"
  echo "or, for CLI11, nlohmann-json and GoogleTest (enough, given g++ and make), without root:"
  echo "  scripts/setup.sh --local"
  exit 1
fi
