#!/usr/bin/env bash
# Sets up and runs the tests that prove the product day to day. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --called
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy -p arkfast
# pytest-xdist: as many processes as there are processors, at most four; the tests of a file run in one of them. With -n 0 all run here.
.venv/bin/python -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
