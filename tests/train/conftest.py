"""A cluster of hosts that are all here: stand-ins for ssh and for the hosts' interpreter, and what a launch left on them."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parents[2] / "scripts" / "launch_hostfile.sh"

# As sshd does: the words joined by blanks, read by a plain shell, in an environment of its own.
SSH = """#!/usr/bin/env bash
while [ "$1" = -o ]; do shift 2; done
host="$1"; shift
echo "$host" >>"{here}/calls"
if [ -e "{here}/unreachable_$host" ]; then echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255; fi
exec env -i PATH="$PATH" STAND_IN_HOST="$host" sh -c "$*"
"""
# The hosts' interpreter: the launcher's own part runs for real, torchrun is what the test says the host does.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = scripts/on_host.py ]; then
  if [ "$2" = check ] && [ ! -e "{here}/check_for_real" ]; then
    if [ -e "{here}/check_$STAND_IN_HOST" ]; then . "{here}/check_$STAND_IN_HOST"; else echo code=1 python=3; fi
    exit
  fi
  exec "{python}" "$@"
fi
printf '%s\\0' "$@" >"{here}/$STAND_IN_HOST.args"
env -0 >"{here}/$STAND_IN_HOST.env"
echo $$ >"{here}/$STAND_IN_HOST.pid"
if [ -e "{here}/do_$STAND_IN_HOST" ]; then . "{here}/do_$STAND_IN_HOST"; fi
"""


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on, from below those that systems hand out by themselves, lest a connection take it before its use."""
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
        return port


class Cluster:
    """A folder with the stand-ins, and what the hosts left there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run dir"
        (folder / "bin").mkdir()
        for path, text in ((folder / "bin" / "ssh", SSH), (folder / "py", PYTHON)):
            path.write_text(text.replace("{here}", str(folder)).replace("{python}", sys.executable))
            path.chmod(0o755)
        self.hostfile("alpha slots=2\nbeta slots=2\n")

    def hostfile(self, text: str) -> None:
        (self.folder / "hosts").write_text(text)

    def does(self, host: str, script: str) -> None:
        (self.folder / f"do_{host}").write_text(script)

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        plain = {"HOME": os.environ.get("HOME", "/"), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        settings = {"HOSTFILE": str(self.folder / "hosts"), "PY": str(self.folder / "py"), "RUN_DIR": str(self.run_dir),
                    "STUDENT_MODEL": "/models/student", "TEACHER_MODEL": "/models/teacher", "TRAIN_DATA": "/data/train.jsonl",
                    "STOP_GRACE": "5"}  # fmt: skip
        environment = {name: value for name, value in {**plain, **settings, **variables}.items() if value != "unset"}
        command = ["bash", str(LAUNCHER), *words]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def launch(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, **variables)
        try:
            out, error = process.communicate(timeout=240)
        finally:
            process.kill()  # nothing of a launch that hangs outlives its test
        return subprocess.CompletedProcess(words, process.returncode, out, error)

    def arguments(self, host: str) -> list[str]:
        return (self.folder / f"{host}.args").read_text().split("\0")[:-1]

    def flags(self, host: str) -> dict[str, str]:
        """The trainer's flags, the last of each."""
        words = self.arguments(host)
        words = words[words.index("scripts/train.py") + 1 :]
        return dict(zip(words[::2], words[1::2], strict=True))

    def environment(self, host: str) -> dict[str, str]:
        pairs = (entry.partition("=") for entry in (self.folder / f"{host}.env").read_text().split("\0")[:-1])
        return {name: value for name, _, value in pairs}

    def started(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.args")}

    def wait_for(self, *hosts: str) -> None:
        deadline = time.monotonic() + 120
        logs = [self.run_dir / f"node_{i}_{host}.out" for i, host in enumerate(hosts)]
        while not all(log.exists() and "training" in log.read_text() for log in logs):
            assert time.monotonic() < deadline, "the hosts did not start"
            time.sleep(0.02)

    def ended(self, host: str, within: float = 60.0) -> bool:
        """Whether what ran on a host ends in time."""
        pid, deadline = int((self.folder / f"{host}.pid").read_text()), time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    folder = tmp_path / "a cluster"
    folder.mkdir()
    return Cluster(folder)
