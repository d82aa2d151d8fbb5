#!/usr/bin/env bash
# Proves and times the kernels on this machine's GPU: builds the C++ extension in place, runs the GPU tests, then the benchmarks group by
# group, and prints a table and every goal's verdict last. Needs no network and no installed arkfast; without a GPU it runs toy sizes.
# Usage: bash scripts/gpu_suite.sh [--minutes N] [--out DIR] [--only GROUP]... [--commit SHA]   (PYTHON=… to choose an interpreter)
set -euo pipefail
here="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-}"
if [ -z "$python" ]; then
  python=python3
  [ ! -x .venv/bin/python ] || python=.venv/bin/python
fi
arguments=()
while [ $# -gt 0 ]; do
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
log="$(mktemp)"
if ! "$python" setup.py -q build_ext --inplace >"$log" 2>&1 || grep -q "no C++ extension" "$log"; then
  echo "gpu_suite: the C++ extension was not built; the kernels do not need it. The end of what the build said:" >&2
  tail -n 5 "$log" >&2
fi
rm -f "$log"
exec "$python" benchmarks/gpu_suite.py ${arguments[@]+"${arguments[@]}"}
