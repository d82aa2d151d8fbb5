#!/usr/bin/env bash
# The main job on a fresh machine: sets up, then synthesises speech, trains a teacher and a student, and improves the student by
# on-policy distillation. Leaves runs/quickstart/ with a report. Arguments go to `arkfast quickstart` (--help lists them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --called
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
code=0
.venv/bin/arkfast quickstart "$@" || code=$?
# Without the environment the shell knows no command arkfast, not in the report either.
if [ "$code" -lt 2 ]; then echo "To go on, type: source .venv/bin/activate"; fi
exit "$code"
