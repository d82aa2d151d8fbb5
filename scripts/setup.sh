#!/usr/bin/env bash
# Makes .venv and installs arkfast into it, once: a second run with nothing changed returns at once.
# Usage: bash scripts/setup.sh   (PYTHON=python3.12 to choose an interpreter)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What to type next; other scripts that call this one have a last line of their own.
next_line() {
  if [ "${1:-}" != --called ]; then
    echo "arkfast: ready. Type this now, and in every new shell: source .venv/bin/activate"
  fi
}

python="${PYTHON:-python3}"
stamp=.venv/.arkfast-setup
wanted="$(find setup.py pyproject.toml constraints.txt scripts/setup.sh csrc -type f -not -name '*.pyc' -print0 | sort -z | xargs -0 cat | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  next_line "$@"
  exit 0
fi

"$python" - <<'PY'
import sys
if sys.version_info < (3, 10):
    sys.exit(f"arkfast needs Python 3.10 or newer, this is {sys.version.split()[0]}; set PYTHON to another interpreter")
PY
[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "arkfast: installing into .venv (first time: a few minutes, about 3 GB; what pip says goes to .venv/setup.log)"
install() {
  .venv/bin/python -m pip install "$@" >>.venv/setup.log 2>&1 || {
    tail -n 25 .venv/setup.log >&2
    echo "arkfast: the installation failed; the whole log is .venv/setup.log" >&2
    exit 1
  }
}
: >.venv/setup.log
install --upgrade pip "setuptools>=77"
# This project's distribution was once named arkfast, as another project's on the package index is. Whatever has that name goes before
# arkfast-opd comes, since both own the command: ours is removed here, a stranger's package is the user's to remove.
rm -rf arkfast.egg-info
.venv/bin/python - <<'PY' >>.venv/setup.log
import subprocess, sys
from pathlib import Path

from arkfast.installation import namesakes

for namesake in namesakes():
    if not namesake.folder.is_relative_to(Path(sys.prefix).resolve()):
        continue
    if not namesake.ours:
        sys.exit(f"arkfast: {namesake.advice()}")
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--yes", namesake.name], check=True)
PY
# One resolver run for everything, so that the pin in constraints.txt decides which torch build comes.
install -c constraints.txt -e '.[asr,serve,parquet,ray,remote,eval,train,quickstart,dev]'
(cd .venv && bin/python -c "import arkfast.cli, arkfast.kernels") # from elsewhere: as installed, not as it lies here
printf '%s' "$wanted" >"$stamp"
next_line "$@"
