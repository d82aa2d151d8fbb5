#!/usr/bin/env bash
# Evaluates a checkpoint on every preset (test set), with one process and one load of the model on each GPU; docs/evaluation-presets.md lists the variables.
# Usage: MODEL_PATH=… EVAL_DATA_DIR=… OUTPUT_DIR=… bash scripts/evaluate_presets.sh [--flag value …]   (flags go to arkfast evaluate)
set -euo pipefail
ROOT="${ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}"
if [ -z "${PY:-}" ]; then
  PY=python3
  [ ! -x "$ROOT/.venv/bin/python" ] || PY="$ROOT/.venv/bin/python"
fi
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$PY" -m arkfast.evaluate.presets "$@"
