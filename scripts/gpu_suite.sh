#!/usr/bin/env bash
# Proves and times the kernels on this machine's GPU: the GPU tests, then the benchmarks group by group, with a table and every goal's verdict
# last; or, with --call A and then --call B, what decides most within five and four minutes. Needs no network and no installed arkfast;
# without a GPU it runs toy sizes. The C++ extension is built in place only where the tests run, which alone use it.
# With --ranks it trains over so many GPUs instead and says how well that scales.
# Usage: bash scripts/gpu_suite.sh [--call A|B] [--ranks 1,2,4,8] [--dry_run] [--minutes N] [--out DIR] [--only GROUP]... [--commit SHA]
# PYTHON=… chooses an interpreter; ARKFAST_WHEELS=… names a folder of wheels for packages that the machine lacks.
set -euo pipefail
here="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-}"
if [ -z "$python" ]; then
  python=python3
  [ ! -x .venv/bin/python ] || python=.venv/bin/python
fi
case "${ARKFAST_WHEELS:-/}" in /*) ;; *) export ARKFAST_WHEELS="$here/$ARKFAST_WHEELS" ;; esac
arguments=()
chosen=no tests=no
while [ $# -gt 0 ]; do
  case "$1" in
    --call | --call=* | --dry_run | --only | --only=*) chosen=yes ;;
  esac
  case "$1 ${2:-}" in
    "--only tests"* | "--only=tests"*) tests=yes ;;
  esac
  # A folder is meant from where the command was typed.
  if [ "$1" = --out ] && [ $# -gt 1 ]; then
    case "$2" in /*) arguments+=(--out "$2") ;; *) arguments+=(--out "$here/$2") ;; esac
    shift 2
  else
    arguments+=("$1")
    shift
  fi
done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
if [ "$chosen" = no ] || [ "$tests" = yes ]; then
  log="$(mktemp)"
  if ! "$python" setup.py -q build_ext --inplace >"$log" 2>&1 || grep -q "no C++ extension" "$log"; then
    echo "gpu_suite: the C++ extension was not built; the kernels do not need it. The end of what the build said:" >&2
    tail -n 5 "$log" >&2
  fi
  rm -f "$log"
fi
exec "$python" benchmarks/gpu_suite.py ${arguments[@]+"${arguments[@]}"}
