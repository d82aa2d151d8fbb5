#!/usr/bin/env bash
# Everything, before a release: the tests of every day, the slow ones, then 10,000 cases of the fuzz test for each audio reader, a training run
# of 200 steps that is killed 20 times, a transcription that is killed ten times, one of a million lines without a model, ten floods of 500
# requests to the service, and the README's first minute of the service with the quickstart's model. Arguments go to the last pytest;
# ARKFAST_FUZZ_CASES, ARKFAST_SOAK_STEPS, ARKFAST_KILLS, ARKFAST_LINES, ARKFAST_FLOODS and ARKFAST_FLOOD_REQUESTS give other numbers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/test.sh
bash scripts/test_slow.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ARKFAST_FUZZ_CASES="${ARKFAST_FUZZ_CASES:-10000}" ARKFAST_SOAK_STEPS="${ARKFAST_SOAK_STEPS:-200}"
export ARKFAST_KILLS="${ARKFAST_KILLS:-10}" ARKFAST_LINES="${ARKFAST_LINES:-1000000}"
export ARKFAST_FLOODS="${ARKFAST_FLOODS:-10}" ARKFAST_FLOOD_REQUESTS="${ARKFAST_FLOOD_REQUESTS:-500}"
bash scripts/quickstart.sh
.venv/bin/python -m pytest -q -s tests/audio/test_load_fuzz.py tests/train/test_soak.py tests/infer/test_crashes.py tests/infer/test_large.py \
  tests/serve/test_load.py tests/serve/test_first_minute.py "$@"
